"""Every word of the kernel language gives the same bits compiled by Numba and interpreted in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity_tests.kernel_runs import assert_same_bits, run_compiled, run_interpreted

LANES = 8
FLOATS = ("float32", "float64")
SIGNED = ("int32", "int64")
UNSIGNED = ("uint32", "uint64")
NUMBERS = (*FLOATS, *SIGNED, *UNSIGNED)
STORED = (*NUMBERS, "bfloat16", "float16", "bool", "int8", "uint8", "int16", "uint16")
# `make check` takes the other width, or the signed one, of these.
LATER = ("uint64", "int16", "uint16")


def each(dtypes: tuple[str, ...]) -> Any:
    marks = {dtype: pytest.mark.slow for dtype in LATER}
    return pytest.mark.parametrize("dtype", [pytest.param(d, marks=marks.get(d, [])) for d in dtypes])


# expression over vectors a, b, c of one dtype -> (dtypes it takes, dtype of the result or None for the same)
EXPRESSIONS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "a + b": (NUMBERS, None),
    "a - b": (NUMBERS, None),
    "a * b": (NUMBERS, None),
    "a / b": (FLOATS, None),
    "a // b": (NUMBERS, None),
    "a % b": (NUMBERS, None),
    "a + 3": (NUMBERS, None),
    "2 - a": (NUMBERS, None),
    "a * 0.3": (FLOATS, None),
    "1.5 / a": (FLOATS, None),
    "7 // a": (NUMBERS, None),
    "a // 3": (NUMBERS, None),
    "a % 3": (NUMBERS, None),
    "-a": (NUMBERS, None),
    "a & b": (SIGNED + UNSIGNED, None),
    "a | b": (SIGNED + UNSIGNED, None),
    "a ^ b": (SIGNED + UNSIGNED, None),
    "~a": (SIGNED + UNSIGNED, None),
    "a << 3": (SIGNED + UNSIGNED, None),
    "a >> 3": (SIGNED + UNSIGNED, None),
    "a >> (b & 15)": (SIGNED + UNSIGNED, None),
    "a < b": (NUMBERS, "bool"),
    "a <= b": (NUMBERS, "bool"),
    "a > 1": (NUMBERS, "bool"),
    "a >= b": (NUMBERS, "bool"),
    "a == b": (NUMBERS, "bool"),
    "a != b": (NUMBERS, "bool"),
    "(a < b) & (b < c)": (NUMBERS, "bool"),
    "(a < b) | ~(b < c)": (NUMBERS, "bool"),
    "(a < b) ^ (b < c)": (NUMBERS, "bool"),
    "fma(a, b, c)": (FLOATS, None),
    "product(a, b)": (FLOATS, None),
    "horner(a, COEFFICIENTS)": (FLOATS, None),
    "sqrt(a)": (FLOATS, None),
    "floor(a)": (FLOATS, None),
    "ceil(a)": (FLOATS, None),
    "trunc(a)": (FLOATS, None),
    "rint(a)": (FLOATS, None),
    "fabs(a)": (FLOATS + SIGNED, None),
    "copysign(a, b)": (FLOATS, None),
    "ldexp(where(a == a, 1.7, a), minimum(maximum(rint(c), -150), 130))": (FLOATS, None),
    "minimum(a, b)": (NUMBERS, None),
    "maximum(a, b)": (NUMBERS, None),
    "maximum(a, 0)": (NUMBERS, None),
    "where(a < b, a, c)": (NUMBERS, None),
    "where(a < b, 0, c)": (NUMBERS, None),
    "splat(extract(a, 3), 8)": (NUMBERS, None),
    "insert(a, 2, extract(b, 5))": (NUMBERS, None),
    "concat_vectors(high_half(a), low_half(b))": (NUMBERS, None),
    "reverse_quads(a)": (NUMBERS, None),
    "transpose8(a, b, c, a + b, b, c, a, c)[3]": (NUMBERS, None),
    "transpose((low_half(a), high_half(a), low_half(b), high_half(c)))[1]": (NUMBERS, None),
    "like(a, 3) + iota_like(a)": (NUMBERS, None),
    "lane_mask(5, 8)": (("int32",), "bool"),
    "iota(8, 'int64')": (("int64",), None),
    "mulhi_u32(a, b)": (("uint32",), None),
    "cast(a, 'float32')": (NUMBERS, "float32"),
    "cast(a, 'float64')": (NUMBERS, "float64"),
    "cast(a, 'bfloat16')": (NUMBERS, "float32"),
    "cast(a, 'float16')": (NUMBERS, "float32"),
    "cast(a, 'bool')": (NUMBERS, "bool"),
    "cast(a < b, 'float32')": (NUMBERS, "float32"),
    "cast(a < b, 'int64')": (NUMBERS, "int64"),
    "cast(a, 'int64')": (SIGNED + UNSIGNED, "int64"),
    "cast(a, 'int32')": (SIGNED + UNSIGNED, "int32"),
    "cast(a, 'uint32')": (SIGNED + UNSIGNED, "uint32"),
    "cast(a, 'int8')": (SIGNED + UNSIGNED, "int32"),
    "cast(a, 'uint8')": (SIGNED + UNSIGNED, "int32"),
    "cast(a, 'int16')": (SIGNED + UNSIGNED, "int32"),
    "cast(c * 0.001, 'int32')": (FLOATS, "int32"),
    "cast(c * 0.001, 'int64')": (FLOATS, "int64"),
    "cast(c * 0.001, 'uint32')": (FLOATS, "uint32"),
    "bitcast(a, 'int32')": (("float32", "uint32"), "int32"),
    "bitcast(a, 'int64')": (("float64", "uint64"), "int64"),
    "bitcast(a, 'float32')": (("int32", "uint32"), "float32"),
    "bitcast(a, 'float64')": (("int64", "uint64"), "float64"),
    "reduce_add(c)": (NUMBERS, None),
    "reduce_mul(c)": (NUMBERS, None),
    "reduce_max(a)": (NUMBERS, None),
    "reduce_min(a)": (NUMBERS, None),
    "reduce_max(c)": (NUMBERS, None),
    "reduce_any(a < b)": (NUMBERS, "bool"),
    "reduce_all(c == c)": (NUMBERS, "bool"),
}

# the words that take scalars too, on scalars x, y, z of one dtype
SCALAR_EXPRESSIONS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "x + y": (FLOATS, None),
    "x / y": (FLOATS, None),
    "fma(x, y, z)": (FLOATS, None),
    "sqrt(x)": (FLOATS, None),
    "rint(x)": (FLOATS, None),
    "floor(x)": (FLOATS, None),
    "fabs(x)": (FLOATS, None),
    "copysign(x, y)": (FLOATS, None),
    "ldexp(where(x == x, 1.7, x), minimum(maximum(rint(z), -150), 130))": (FLOATS, None),
    "minimum(x, y)": (NUMBERS, None),
    "maximum(x, y)": (NUMBERS, None),
    "where(x < y, x, z)": (NUMBERS, None),
    "cast(x, 'float64')": (NUMBERS, "float64"),
    "cast(x, 'bfloat16')": (FLOATS, "float32"),
    "bitcast(x, 'int32')": (("float32",), "int32"),
    "bitcast(x, 'int64')": (("float64",), "int64"),
    "mulhi_u32(x, y)": (("uint32",), None),
    "x < y": (NUMBERS, "bool"),
}

COEFFICIENTS = (np.float32(0.25), np.float32(-1.5), np.float32(3.0))


def _samples(dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three arrays of 64 values: a and b with every pair of special values, c ordinary ones."""
    random = np.random.default_rng(1)
    if dtype in FLOATS:
        tiny = np.finfo(dtype).tiny
        special = [0.0, -0.0, 1.0, -2.5, np.nan, np.inf, -np.inf, tiny / 3]
        ordinary = random.normal(size=64) * 100
    else:
        info = np.iinfo(dtype)
        special = [0, 1, 2, 7, info.max, info.min, info.max // 3, info.max - 1 if info.min == 0 else -1]
        ordinary = random.integers(max(info.min, -1000), 1000, 64)
    a, b = np.meshgrid(np.array(special, dtype), np.array(special, dtype))
    return a.ravel().copy(), b.ravel().copy(), ordinary.astype(dtype)


def _storage(dtype: str) -> np.dtype:
    return np.dtype({"bfloat16": "uint16", "float16": "uint16", "bool": "uint8"}.get(dtype, dtype))


def _rows(table: dict[str, Any], dtype: str) -> list[tuple[str, str]]:
    return [(text, result or dtype) for text, (dtypes, result) in table.items() if dtype in dtypes]


def _body(dtype: str, rows: list[tuple[str, str]], loads: list[str], step: int) -> str:
    """A loop over three inputs that stores each row's expression to an output of its own."""
    lines = [f'p{x} = pointer(tab, {k}, "{dtype}")' for k, x in enumerate("abc")]
    lines.append(f"for i in range(begin, end, {step}):")
    stores = [f'store(pointer(tab, {3 + k}, "{result}"), i, {text})' for k, (text, result) in enumerate(rows)]
    return "\n".join([*lines, *("    " + line for line in [*loads, *stores])])


def _check(body: str, inputs: list[Any], results: list[str], count: int, end: int) -> None:
    outputs = {}
    for name, run in (("compiled", run_compiled), ("interpreted", run_interpreted)):
        outputs[name] = [np.zeros(count, _storage(result)) for result in results]
        run(body, [*inputs, *outputs[name]], 0, end, COEFFICIENTS=COEFFICIENTS)
    for k, line in enumerate(body.strip().splitlines()[-len(results) :]):
        assert_same_bits(outputs["compiled"][k], outputs["interpreted"][k], line.strip())


@pytest.mark.slow
@each(NUMBERS)
def test_vector_words_agree(dtype: str) -> None:
    rows = _rows(EXPRESSIONS, dtype)
    for first in range(0, len(rows), 24):  # Numba's front end is superlinear in a function's length
        part = rows[first : first + 24]
        body = _body(dtype, part, [f"{x} = load(p{x}, i, {LANES})" for x in "abc"], LANES)
        _check(body, list(_samples(dtype)), [result for _, result in part], 64, 64)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_scalar_words_agree(dtype: str) -> None:
    rows = _rows(SCALAR_EXPRESSIONS, dtype)
    body = _body(dtype, rows, ["x = load(pa, i)", "y = load(pb, i)", "z = load(pc, i)"], 1)
    _check(body, list(_samples(dtype)), [result for _, result in rows], 64, 64)


MEMORY_STATEMENTS = (
    "store(q, 0, load(p, 3))",
    "store(q, 1, load(p, 3, 8))",
    "store(q, 1, load(p, 3, 8, n))",
    "store(q, 1, load(p, 3, 8, n - 5))",
    "store(q, 1, load(p, 3, 8), n)",
    "store(q, 1, load(p, 3, 8), n + 20)",
    "store(q, 1, load_strided(p, 2, 3, 8))",
    "store(q, 1, load_strided(p, 60, 3, 8, 2))",
    "store_strided(q, 2, 3, load(p, 3, 8))",
    "store_strided(q, 2, 3, load(p, 3, 8), n)",
    "store(q, 1, gather(p, iota(8, 'int64') * 5 + 1))",
    "store(q, 1, gather(p, iota(8, 'int32') * 9, lane_mask(n, 8)))",
    "scatter(q, iota(8, 'int64') * 4, load(p, 0, 8), lane_mask(n, 8))",
    "scatter(q, iota(8, 'int64') * 4, load(p, 0, 8))",
    "store(q, 1, load_masked(p, 60, 8, lane_mask(n, 8)))",
    "store_masked(q, 60, load(p, 0, 8), lane_mask(n, 8))",
    "store(q, 1, load_if(p, 5, n == 4))",
    "store(q, 1, load_if(p, 1000000000000, n == 5))",
    "store(q, 1, broadcast_load(p, 7, 8))",
    "store(q, 1, load(offset_pointer(p, 20), 3, 16))",
    "store(q, 0, load(pointer_at(address_of(p), DTYPE), 9))",
    "prefetch(p, 0)",
    "store(q, 0, load(p, 0, 64))",
    "store_stream(q, 32, load(p, 3, 8))",
)


def _aligned_zeros(count: int, dtype: np.dtype) -> np.ndarray:
    """Zeros at a multiple of 64 bytes, as store_stream needs."""
    raw = np.zeros(count * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * dtype.itemsize].view(dtype)


def _memory_sample(dtype: str) -> np.ndarray:
    random = np.random.default_rng(2)
    if dtype in FLOATS:
        return random.normal(size=64).astype(dtype)
    if dtype == "bool":
        return random.integers(0, 2, 64).astype(np.uint8)
    return random.integers(0, 2 ** (8 * _storage(dtype).itemsize - 1), 64).astype(_storage(dtype))


@pytest.mark.slow
@each(STORED)
def test_memory_words_agree(dtype: str) -> None:
    """Loads and stores of every dtype, partial, strided, gathered, masked; nothing else is written."""
    source = _memory_sample(dtype)
    # one output for each statement, cut into few kernels
    for first in range(0, len(MEMORY_STATEMENTS), 12):
        part = MEMORY_STATEMENTS[first : first + 12]
        lines = ['p = pointer(tab, 0, "' + dtype + '")', "n = tab[1]"]
        for k, statement in enumerate(part):
            lines += [f'q = pointer(tab, {2 + k}, "{dtype}")', statement.replace("DTYPE", f'"{dtype}"')]
        outputs = {}
        for name, run in (("compiled", run_compiled), ("interpreted", run_interpreted)):
            outputs[name] = [_aligned_zeros(96, _storage(dtype)) for _ in part]
            run("\n".join(lines), [source, 4, *outputs[name]], 0, 1)
        for k, statement in enumerate(part):
            assert_same_bits(outputs["compiled"][k], outputs["interpreted"][k], f"{dtype}: {statement}")


@pytest.mark.parametrize("lanes", [2, 4, 16, 32, 64])
def test_other_lane_counts_agree(lanes: int) -> None:
    body = f"""
        p = pointer(tab, 0, "float32")
        total = splat(f32(0), {lanes})
        largest = splat(f32(-1e30), {lanes})
        for i in range(begin, end, {lanes}):
            v = load(p, i, {lanes}, end - i)
            total = total + v
            largest = maximum(largest, v)
        store(pointer(tab, 1, "float32"), 0, reduce_add(total))
        store(pointer(tab, 2, "float32"), 0, reduce_max(largest))
    """
    sample = np.random.default_rng(3).normal(size=150).astype(np.float32)
    _check(body, [sample], ["float32", "float32"], 1, 150)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("source", FLOATS)
def test_rounding_to_16_bits_is_torchs(dtype: str, source: str) -> None:
    """Every float32 exponent and the ties: the stored bits are those torch's cast gives."""
    import torch

    random = np.random.default_rng(4)
    bits = random.integers(0, 2**32, 4096, dtype=np.uint64).astype(np.uint32)
    bits[::3] = (bits[::3] & 0xFFFF0000) | 0x8000  # ties for bfloat16
    bits[1::3] = (bits[1::3] & 0xFFFFE000) | 0x1000  # ties for float16
    values = bits.view(np.float32).astype(source)
    stored = np.zeros(4096, np.uint16)
    body = f"""
        for i in range(begin, end, 8):
            store(pointer(tab, 1, "{dtype}"), i, load(pointer(tab, 0, "{source}"), i, 8))
    """
    run_compiled(body, [values, stored], 0, 4096)
    expected = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, dtype))
    nan = np.isnan(values)
    assert (stored[~nan] == expected.view(torch.uint16).numpy()[~nan]).all()
    assert torch.from_numpy(stored[nan]).view(getattr(torch, dtype)).isnan().all()


@pytest.mark.slow
def test_philox_known_answer_and_width_independence() -> None:
    """Block 0 of key 0 is the published one; the same numbers at any width, order and alignment."""
    from compiler_bridge.cpu import philox

    names = {name: getattr(philox, name) for name in ("philox_uniform", "philox_uniform_consecutive")}
    body = """
        for i in range(begin, end, 8):
            eight = iota(8, "int64") + i
            store(pointer(tab, 0, "float32"), i, philox_uniform(tab[3], eight))
            store(pointer(tab, 1, "float32"), i, philox_uniform_consecutive(tab[3], eight))
        for i in range(begin, end - 4, 4):
            index = iota(4, "int64") + (i + 1)
            store(pointer(tab, 2, "float32"), i + 1, philox_uniform_consecutive(tab[3], index))
    """
    outputs = [np.zeros(64, np.float32) for _ in range(3)]
    run_compiled(body, [*outputs, 0], 0, 64, **names)
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # kat_vectors of Random123
    assert outputs[0][:4].tolist() == [(word >> 8) * 2.0**-24 for word in words]
    assert (outputs[0] == outputs[1]).all()
    assert (outputs[0][1:57] == outputs[2][1:57]).all()
