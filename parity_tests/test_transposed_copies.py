"""Copies into another layout by tiles (`emit/transpose.py`): bit for bit, whatever is left beside the tiles."""

import pytest
import torch
from torch import Tensor

import pynn
from compiler_bridge.emit import program
from parity_tests.executors import in_executor_process

CL = torch.channels_last

LAYOUTS = {
    "whole tiles": ((2, 32, 8, 8), lambda x: x.contiguous(memory_format=CL)),
    "parts of tiles": ((2, 37, 5, 11), lambda x: x.contiguous(memory_format=CL)),
    "back": ((2, 5, 11, 37), lambda x: x.permute(0, 3, 1, 2).contiguous()),
    "a matrix": ((45, 70), lambda x: x.t().contiguous()),
    "a part of a matrix": ((45, 70), lambda x: x[3:40, 5:].t().contiguous()),
    "three dimensions": ((17, 3, 19), lambda x: x.permute(2, 1, 0).contiguous()),
    "repeated": ((18, 33), lambda x: x.t().expand(40, *x.t().shape).contiguous()),
}
TOO_NARROW = {
    "few channels": ((2, 3, 9, 9), lambda x: x.contiguous(memory_format=CL)),
    "computed": ((33, 18), lambda x: x.t().contiguous() + 1),
}


def run_layout(name: str, dtype: torch.dtype, dynamic: bool) -> int:
    """Compare with torch; how many copies went by tiles."""
    shape, function = {**LAYOUTS, **TOO_NARROW}[name]
    found = []

    def noting(*args):
        found.append(program_transposition(*args))
        return found[-1]

    program_transposition, program.transposition_of = program.transposition_of, noting
    try:
        torch._dynamo.reset()
        compiled = pynn.compile(function, strict=True, dynamic=dynamic)
        sizes = [shape, tuple(size + 16 for size in shape), tuple(max(size - 1, 2) for size in shape)]
        for size in sizes if dynamic else sizes[:1]:
            x = torch.randn(size).to(dtype)
            if dtype.is_floating_point:
                x.view(-1)[::7] = torch.nan
            ours, theirs = compiled(x), function(x)
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    finally:
        program.transposition_of = program_transposition
    return sum(copy is not None for copy in found)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["python", "numba"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["known sizes", "sizes at run time"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_copies_by_tiles(name: str, dtype: torch.dtype, dynamic: bool, executor: str):
    assert in_executor_process(executor, run_layout, name, dtype, dynamic) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=str)
def test_other_dtypes_are_copied_as_before(dtype: torch.dtype):
    assert run_layout("parts of tiles", dtype, False) == 0


@pytest.mark.parametrize("name", TOO_NARROW)
def test_what_is_no_copy_or_too_narrow(name: str):
    assert run_layout(name, torch.float32, False) == 0


def test_gradients_go_back_through_the_copy():
    def function(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=CL)

    x = torch.randn(2, 33, 7, 9, requires_grad=True)
    cotangent = torch.randn(2, 33, 7, 9)
    (gradient,) = torch.autograd.grad(pynn.compile(function, strict=True)(x), x, cotangent)
    assert torch.equal(gradient, cotangent)
