"""The mathematics library keeps the error each function states, over the whole range of its dtype.

Error is in ulp of the reference value: float32 against torch in float64, float64 against mpmath.
"""

from __future__ import annotations

from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch

from compiler_bridge.cpu import mathlib
from parity_tests.kernel_runs import run_compiled
from parity_tests.mathlib_cases import BINARY_CASES, CASES, MathCase

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-30, -1e-30]
LIMITS = {"float32": (-126, 23, 128), "float64": (-1022, 52, 1024)}  # smallest exponent, bits, overflow


def _evaluate(name: str, dtype: str, *inputs: np.ndarray) -> np.ndarray:
    """The compiled word on whole vectors (the inputs' size is a multiple of 8)."""
    output = np.empty_like(inputs[0])
    loads = ", ".join(f'load(pointer(tab, {k}, "{dtype}"), i, 8)' for k in range(len(inputs)))
    body = f"""
        for i in range(begin, end, 8):
            store(pointer(tab, {len(inputs)}, "{dtype}"), i, word({loads}))
    """
    run_compiled(body, [*inputs, output], 0, output.size, word=getattr(mathlib, name))
    return output


def _ulp_of(reference: np.ndarray, dtype: str) -> np.ndarray:
    """reference: float64, without infinities and NaN"""
    smallest, bits, _ = LIMITS[dtype]
    size = np.maximum(np.abs(reference), 2.0**smallest)
    power_of_two = (size.view(np.int64) & 0x7FF0_0000_0000_0000).view(np.float64)  # the exponent alone
    return power_of_two * 2.0**-bits


def _worst(output: np.ndarray, reference: np.ndarray) -> tuple[float, int]:
    """The largest error in ulp and where it is; infinite where it alone overflows."""
    with np.errstate(all="ignore"):
        finite = np.isfinite(reference.astype(np.float32))
        exact = np.where(finite, reference, 0.0)
        error = np.abs(output - exact) / _ulp_of(exact, "float32")
    error[np.isnan(error)] = np.inf
    error[~finite] = 0.0
    where = int(np.argmax(error))
    return float(error[where]), where


def _sweep_float32(case: MathCase, step: int) -> None:
    """Bit patterns 0, step, 2 step, ... of all 2^32, in blocks that fit in memory."""
    worst = 0.0
    block = 1 << 22
    for first in range(0, 2**32, step * block):
        bits = np.arange(first, min(first + step * block, 2**32), step, dtype=np.uint64).astype(np.uint32)
        x = np.concatenate([np.array(SPECIAL, np.float32), bits.view(np.float32)])
        x = np.resize(x, -(-x.size // 8) * 8)
        output = _evaluate(case.name, "float32", x)
        reference = case.reference(torch.from_numpy(x).double()).numpy()
        error, where = _worst(output, reference)
        assert error <= case.ulp_float32, f"{case.name}({x[where]!r}) = {output[where]!r}: {error} ulp"
        with np.errstate(over="ignore"):
            rounded = reference.astype(np.float32)
        special = ~np.isfinite(rounded)
        _assert_equal_special(case.name, x[special], output[special], rounded[special])
        zero = rounded == 0
        assert (np.signbit(output[zero]) == np.signbit(rounded[zero])).all(), f"{case.name}: sign of zero"
        worst = max(worst, error)
    print(f"{case.name}: largest error {worst:.3f} ulp, step {step}")


def _assert_equal_special(name: str, x: np.ndarray, output: np.ndarray, expected: np.ndarray) -> None:
    """NaN where NaN is expected, the same infinity where that is; 1 ulp below overflow may stay finite."""
    largest = np.finfo(output.dtype).max
    near_overflow = np.isinf(expected) & (np.abs(output) >= largest * (1 - 4e-7))
    equal = (output == expected) | (np.isnan(output) & np.isnan(expected))
    equal |= near_overflow & (np.sign(output) == np.sign(expected))
    assert equal.all(), f"{name}({x[~equal][:3]}) = {output[~equal][:3]}, expected {expected[~equal][:3]}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_error_over_the_whole_range(case: MathCase) -> None:
    _sweep_float32(case, 10007)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_error_densely(case: MathCase) -> None:
    _sweep_float32(case, 61)


def _samples_float64(case: MathCase) -> np.ndarray:
    """Values of every magnitude inside the domain, more of them near 1."""
    random = np.random.default_rng(5)
    magnitudes = np.concatenate([random.uniform(-300, 300, 64), random.uniform(-3, 3, 128)])
    values = 10.0**magnitudes * random.choice([-1.0, 1.0], magnitudes.size)
    values = np.concatenate([values, random.uniform(-40, 40, 64), random.uniform(-1, 1, 128)])
    inside = values[(values > case.low) & (values < case.high)]
    return np.resize(inside, -(-inside.size // 8) * 8)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float64_error_on_samples(case: MathCase) -> None:
    x = _samples_float64(case)
    output = _evaluate(case.name, "float64", x)
    _check_float64(case, output, x)


def _check_float64(case: Any, output: np.ndarray, *inputs: np.ndarray) -> None:
    """Against mpmath; angles need the precision that their reduction cancels."""
    smallest, bits, overflow = LIMITS["float64"]
    with mp.workprec(1200 if case.name in ("sin", "cos", "tan") else 160):
        for got, *arguments in zip(output.tolist(), *(values.tolist() for values in inputs)):
            exact = case.exact(*(mp.mpf(argument) for argument in arguments))
            size = abs(exact)
            if size >= mp.mpf(2) ** overflow * (1 - mp.mpf(2) ** -50):
                assert abs(got) >= 1.797e308, f"{case.name}{arguments} = {got}, expected {mp.nstr(exact)}"
                continue
            exponent = max(mp.frexp(size)[1] - 1, smallest) if size else smallest
            error = abs(mp.mpf(got) - exact) / mp.mpf(2) ** (exponent - bits)
            assert error <= case.ulp_float64, f"{case.name}{arguments} = {got!r}: {mp.nstr(error)} ulp"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float64_special_values_are_torchs(case: MathCase) -> None:
    """Zeros with their signs, infinities, NaN, and arguments outside the domain."""
    x = np.array([*SPECIAL, np.finfo(np.float64).tiny / 4])
    output = _evaluate(case.name, "float64", x)
    _assert_close_to_torch(case.name, output, case.reference(torch.from_numpy(x)).numpy(), x)


def _assert_close_to_torch(name: str, output: np.ndarray, expected: np.ndarray, *inputs: np.ndarray) -> None:
    """The same NaN, infinities and signed zeros; other values within 10 ulp (errors have their own test)."""
    same = (output == expected) & (np.signbit(output) == np.signbit(expected))
    same |= np.isnan(output) & np.isnan(expected)
    same |= (expected != 0) & np.isclose(output, expected, rtol=10 * np.finfo(output.dtype).eps, atol=0)
    wrong = [values[~same][:4].tolist() for values in (*inputs, output, expected)]
    assert same.all(), f"{name}: arguments, result, torch's result: {wrong}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", BINARY_CASES, ids=lambda case: case.name)
def test_binary_special_values_are_torchs(case: Any, dtype: str) -> None:
    values = np.array([*SPECIAL, 3.0, -3.0, 2.5, np.finfo(dtype).tiny / 4, 5e9 + 1], dtype)
    values = np.resize(values, 24)
    x, y = (grid.ravel().copy() for grid in np.meshgrid(values, values))
    output = _evaluate(case.name, dtype, x, y)
    expected = case.reference(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    _assert_close_to_torch(case.name, output, expected, x, y)


@pytest.mark.parametrize("case", BINARY_CASES, ids=lambda case: case.name)
def test_binary_float32_error(case: Any) -> None:
    x, y = (values.astype(np.float32) for values in case.samples(1 << 18, 85.0))
    output = _evaluate(case.name, "float32", x, y)
    reference = case.reference(torch.from_numpy(x).double(), torch.from_numpy(y).double()).numpy()
    error, where = _worst(output, reference)
    assert error <= case.ulp_float32, (
        f"{case.name}({x[where]!r}, {y[where]!r}) = {output[where]!r}: {error} ulp"
    )


@pytest.mark.parametrize("case", BINARY_CASES, ids=lambda case: case.name)
def test_binary_float64_error(case: Any) -> None:
    x, y = case.samples(512, 700.0)
    _check_float64(case, _evaluate(case.name, "float64", x, y), x, y)


@pytest.mark.slow
@pytest.mark.parametrize("name", mathlib.__all__)
def test_scalars_give_what_vectors_give(name: str) -> None:
    """Every word on scalars of both dtypes: the bits of the vector version."""
    count = 2 if name in {case.name for case in BINARY_CASES} else 1
    for dtype in ("float32", "float64"):
        x = np.linspace(0.1, 0.9, 8).astype(dtype)
        single = np.empty_like(x)
        arguments = ", ".join([f'load(pointer(tab, 0, "{dtype}"), i)'] * count)
        body = f"""
            for i in range(begin, end):
                store(pointer(tab, 1, "{dtype}"), i, word({arguments}))
        """
        run_compiled(body, [x, single], 0, 8, word=getattr(mathlib, name))
        np.testing.assert_array_equal(single, _evaluate(name, dtype, *[x] * count))


def test_exp_keeps_one_ulp_where_it_once_did_not() -> None:
    """The reduced argument was rounded before the last sum: 1.018 ulp at 59.307022."""
    first, last = np.array([59.25, 59.375], np.float32).view(np.uint32)
    x = np.arange(first, last, dtype=np.uint32).view(np.float32)
    error, where = _worst(_evaluate("exp", "float32", x), np.exp(x.astype(np.float64)))
    assert error <= 1, f"exp({x[where]!r}): {error} ulp"
