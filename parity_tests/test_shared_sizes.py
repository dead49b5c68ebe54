"""Kernels that differ only in sizes are compiled once (`emit/functions.py`)."""

from __future__ import annotations

import torch

from compiler_bridge import pipeline
from compiler_bridge.cache import kernel_keys
from compiler_bridge.emit.functions import ModuleFunctions, replace_sizes


def test_two_widths_share_one_kernel():
    """Two softmaxes over rows of 64 and of 128: one text, and each right."""

    def both(x, y):
        return torch.softmax(x, 1), torch.softmax(y, 1)

    x, y = torch.randn(40, 64), torch.randn(24, 128)
    torch._dynamo.reset()
    compiled = torch.compile(both, backend="pynn", dynamic=False)
    torch.testing.assert_close(compiled(x, y), both(x, y))
    program = pipeline.records[-1].program
    names = [step.kernel for step in program.steps]
    assert len(set(names)) == 2
    assert len(set(kernel_keys(program.source, names).values())) == 1


def test_numbers_that_stay_constants():
    """Lanes, short extents, divisors within a loop, and elements of a call are no sizes."""
    line = "v1 = load(p0, i0 * 64 + i1 * 3 + r // 48 + 100, 32, lane_mask(20, 32)) * f32(1152.0) + i64(96)"
    found = []

    def name(number: int, text: str) -> str:
        found.append(number)
        return text

    assert replace_sizes(line, name) == line
    assert found == [64, 100, 1152, 96]
    found.clear()
    replace_sizes("for i1 in range(0, 256, 64):", name)
    assert found == [256, 64]


def test_sizes_that_are_equal_everywhere_stay():
    """Only what differs goes into the table; places that hold the same size share one entry."""
    functions, tables = ModuleFunctions(), {}
    for size in (64, 128):
        lines = [f"    for i in range(0, {size}, 16):", f"        store(p0, r * {size} + i * 32, f32(0))"]
        name = functions.add(lines, "fill", "", "begin, end, thread")
        functions.called_with(name, 1, tables.setdefault(size, []).append)
    functions.share_sizes()
    assert tables == {64: [64], 128: [128]}
    text = functions.source()
    assert text.count("size0 = tab[1]") == 2
    assert "range(0, size0, 16)" in text and "r * size0 + i * 32" in text
