"""Sums of columns stay in registers down the rows of a block (`emit/columns.py`)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from compiler_bridge import backend, pipeline
from compiler_bridge.cpu.host import NATIVE_LANES

pytestmark = pytest.mark.slow  # each compiles kernels


def compiled(function: Any, *inputs: Tensor) -> tuple[Any, str]:
    """The results, and the source of the kernels."""
    torch._dynamo.reset()
    results = backend.compile(function, strict=True, dynamic=False)(*inputs)
    return results, pipeline.records[-1].program.source


def is_in_registers(source: str) -> bool:
    """Whether no sum is loaded for the sake of the next term."""
    return "for r in range(block * " in source and not re.search(r"store\(\w+, [^\n]*load\(", source)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x.to(dtype)


@pytest.mark.parametrize("columns", [NATIVE_LANES, 3 * NATIVE_LANES + 5, 200])
@pytest.mark.parametrize("rows", [2, 63, 700])
def test_several_sums_with_a_value_for_each_row(rows: int, columns: int):
    """Whole numbers: exact in whatever order."""

    def function(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (x * w[:, None]).sum(0), (x * y).sum(0), x.amax(0)

    inputs = draw(rows, columns), draw(rows, columns + 1)[:, 1:], draw(rows)
    found, source = compiled(function, *inputs)
    assert is_in_registers(source), source
    for result, wanted in zip(found, function(*inputs)):
        assert torch.equal(result, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64])
def test_rows_of_two_dimensions_and_other_dtypes(dtype: torch.dtype):
    def function(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        centred = x - mean
        return x.sum((0, 1)), (centred * centred).sum((0, 1))

    x = draw(6, 30, 44, dtype=dtype)[:, 3:28, :37]  # neither dimension steps on where the next ends
    mean = draw(37, dtype=dtype)
    found, source = compiled(function, x, mean)
    assert is_in_registers(source), source
    for result, wanted in zip(found, function(x, mean)):
        assert result.dtype == wanted.dtype and torch.equal(result, wanted)


def test_what_a_kernel_also_stores_is_stored_row_by_row():
    """A result for each element: then the rows are outside."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 2 + 1
        return y, (y * x).sum(0)

    x = draw(90, 50)
    found, source = compiled(function, x)
    assert not is_in_registers(source), source
    for result, wanted in zip(found, function(x)):
        assert torch.equal(result, wanted)
