"""Complex numbers: whatever torch's function takes, pynn's takes, with values and gradients as accurate as C++'s.

Every row of a function is run with complex128 and complex64 values in place of its floating-point ones; the
accuracy of complex64 is held against C++ in complex128 by the rule of tolerances.py. Where torch refuses, pynn
refuses, also where it lacks a gradient only, and in the same words.
"""

import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import pynn
from parity_tests.cases import Row, Sample, defined_rows, seed
from parity_tests.tolerances import compare
from parity_tests.torch_version import IS_OLDER

pytestmark = pytest.mark.slow  # `make check` leaves the whole file to `make test`

ROWS = [
    row
    for row in defined_rows()
    if not row.is_module and not row.random and row.reference is None
    if row.symbol != "scaled_mm"  # its rows round to float8 before they call
]


def complex_sample(sample: Sample, dtype: torch.dtype) -> Sample:
    """Floating-point tensors with an imaginary part; the same strides, where they are dense."""
    generator = torch.Generator().manual_seed(0)

    def fresh(value):
        if isinstance(value, torch.Tensor) and value.is_complex():
            return value.detach().to(dtype, copy=True).requires_grad_(value.requires_grad)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        real = value.detach().double()
        imaginary = torch.empty_like(real).uniform_(-1, 1, generator=generator)
        return torch.complex(real, imaginary).to(dtype).requires_grad_(value.requires_grad)

    return Sample(tree_map(fresh, sample.args), tree_map(fresh, sample.kwargs))


def weights_like(result: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    weights = torch.empty(result.shape, dtype=torch.float64).uniform_(0.5, 1.5, generator=generator)
    return (weights * (1 + 0.5j) if result.is_complex() else weights).to(result.dtype)


def tensors_of(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def outcome(row: Row, nn, sample: Sample, dtype: torch.dtype, with_gradients: bool):
    """("raises", the exception), or ("gives", results and gradients)."""
    sample = complex_sample(sample, dtype)
    function = row.build(nn, sample)
    seed(0)
    try:
        with warnings.catch_warnings(), torch.set_grad_enabled(with_gradients):
            warnings.simplefilter("ignore")
            results = tensors_of(function(*sample.args, **sample.kwargs))
            leaves = [leaf for leaf in sample.differentiable() if leaf.is_complex()]
            wanted = [result for result in results if result.requires_grad]
            if not (with_gradients and wanted and leaves):
                return "gives", results
            loss = sum((result * weights_like(result)).real.sum() for result in wanted)
            return "gives", [*results, *torch.autograd.grad(loss, leaves, allow_unused=True)]
    except Exception as error:
        return "raises", error


def assert_no_less_accurate(own, cpp, exact):
    """Real and imaginary parts as numbers of their own, each result against its largest one."""
    assert len(own) == len(cpp) == len(exact)
    for results in zip(own, cpp, exact, strict=True):
        assert all(result is None for result in results) or all(result is not None for result in results)
        if results[0] is not None:
            parts = [torch.view_as_real(r.resolve_conj()) if r.is_complex() else r for r in results]
            comparison = compare(*(part.detach() for part in parts), each=False)
            assert comparison.passed, str(comparison)


@pytest.mark.parametrize("with_gradients", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_complex_inputs_give_what_torch_gives(row, with_gradients):
    for sample in row.draw(6):
        exact = check_outcome(row, sample, torch.complex128, with_gradients)
        rounded = complex_sample(sample, torch.complex64)
        results = check_outcome(row, rounded, torch.complex64, with_gradients)
        if exact and results:
            _, exact = outcome(row, torch.nn, rounded, torch.complex128, with_gradients)
            assert_no_less_accurate(*results, exact)


def check_outcome(row, sample, dtype, with_gradients):
    """(pynn's results, torch's), or None where both refuse, or torch for lack of a gradient."""
    kind, expected = outcome(row, torch.nn, sample, dtype, with_gradients)
    own_kind, own = outcome(row, pynn, sample, dtype, with_gradients)
    if IS_OLDER and isinstance(expected, NotImplementedError) and own_kind == "gives":
        return None  # an older torch has fewer kernels: avg_pool2d's came after 2.11
    assert own_kind == kind, f"torch {kind} {expected}; pynn {own_kind} {own}"
    if kind == "raises":
        assert isinstance(own, type(expected)), f"torch: {expected!r}, pynn: {own!r}"
        if "does not support automatic differentiation" in str(expected):
            assert str(own) == str(expected)
        return None
    assert [described(t) for t in own] == [described(t) for t in expected]
    return own, expected


def described(tensor):
    return None if tensor is None else (tensor.shape, tensor.dtype)


def test_the_table_holds_functions_that_take_complex_numbers():
    """So that the test above compares numbers, not refusals alone."""
    names = (
        "linear",
        "conv2d",
        "pad.constant",
        "sigmoid",
        "tanh",
        "rms_norm",
        "silu",
        "embedding",
        "normalize",
    )
    rows = {row.name.removeprefix("functional."): row for row in ROWS}
    for name in names:
        sample = rows[name].draw(1)[0]
        assert outcome(rows[name], torch.nn, sample, torch.complex128, False)[0] == "gives"
