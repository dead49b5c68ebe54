"""Short loops written out (`unroll.py`), and every second element read and written as halves of pairs (`emit/`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compiler_bridge import ir
from compiler_bridge.emit.program import build_program
from compiler_bridge.group import Group
from compiler_bridge.grouper import group_nodes
from compiler_bridge.interpret import interpret
from compiler_bridge.runtime import load
from compiler_bridge.unroll import unrolled
from compiler_bridge.verify import verify

COUNT = 61  # not a multiple of any vector width
Q, R = ir.Axis("q", COUNT), ir.Axis("r", 2)
ONE, TWO = ir.axis_index("q"), ir.Index((("q", 2),), 0)


def apply(op: str, *args: ir.Expr, dtype: str = "float32") -> ir.Apply:
    return ir.Apply(dtype, op, args)


def read(index: ir.Index, buffer: str = "x", **options: Any) -> ir.Load:
    return ir.Load("float32", buffer, index, **options)


def graph_of(value: ir.Expr, axes: tuple[ir.Axis, ...], store: ir.Index, **sizes: int) -> ir.Graph:
    """One Map over inputs x (and y) of `sizes` elements; out has one element for each turn."""
    dtypes = {load.buffer: "float32" for load in ir.walk(value) if isinstance(load, ir.Load)}
    buffers = {name: ir.Buffer(name, dtypes[name], (size,), (1,), "input") for name, size in sizes.items()}
    count = ir.size_product(axis.extent for axis in axes)
    buffers["out"] = ir.Buffer("out", "float32", (count,), (1,))
    node = ir.Map("out", ir.Origin(), axes, store, value)
    graph = ir.Graph(buffers, [node], list(sizes), [ir.BufferView("out", (count,), (1,))])
    verify(graph)
    return graph


def assert_computed(graph: ir.Graph) -> str:
    """Compiled as interpreted; returns the source."""
    program, _ = build_program(graph, group_nodes(graph), "unrolled")
    inputs = [draw(graph.buffers[name]) for name in graph.inputs]
    (found,), (expected,) = load(program)(*inputs), interpret(graph, inputs)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    return program.source


def draw(buffer: ir.Buffer) -> Tensor:
    return torch.randn(buffer.shape).to(getattr(torch, buffer.dtype))


# ---- unroll.py -------------------------------------------------------------------------------------------

# for q: for r in range(2): out[2 q + r] = x[q] - x[q + 1] if r < 1 else x[q] * x[q + 1]
FIRST, SECOND = (apply(op, read(ONE), read(ONE + 1)) for op in ("sub", "mul"))
IS_FIRST = apply("lt", ir.IndexValue("int64", ir.axis_index("r")), ir.Constant("int64", 1), dtype="bool")
NEIGHBOURS = apply("where", IS_FIRST, FIRST, SECOND)
INTERLEAVED = ir.Index((("q", 2), ("r", 1)), 0)


def turns_of(value: ir.Expr, axes: tuple[ir.Axis, ...], store: ir.Index) -> list[ir.Map]:
    return unrolled(Group([ir.Map("out", ir.Origin(), axes, store, value)]))


def test_turns_that_share_elements_are_written_out():
    """... and what depends on the turn alone is folded."""
    first, second = turns_of(NEIGHBOURS, (Q, R), INTERLEAVED)
    assert (first.axes, first.store, first.value) == ((Q,), TWO, FIRST)
    assert (second.axes, second.store, second.value) == ((Q,), TWO + 1, SECOND)
    assert len({first.output, second.output}) == 2


LEFT_ALONE = {
    "nothing shared": (read(INTERLEAVED), (Q, R), INTERLEAVED),
    "less than half shared": (apply("mul", read(ONE), read(ONE + ir.axis_index("r"))), (Q, R), INTERLEAVED),
    "too long": (read(ONE), (Q, ir.Axis("r", 5)), ir.Index((("q", 5), ("r", 1)), 0)),
    "too many": (
        read(ONE),
        (Q, *(ir.Axis(name, 3) for name in "abc")),
        ir.Index((("q", 27), ("a", 9), ("b", 3), ("c", 1)), 0),
    ),
    "no loop would be left": (read(ir.Index()), (R,), ir.axis_index("r")),
}


@pytest.mark.parametrize("why", LEFT_ALONE)
def test_left_alone(why: str):
    assert turns_of(*LEFT_ALONE[why]) == []


def test_other_groups_are_left_alone():
    node = ir.Map("out", ir.Origin(), (Q, R), INTERLEAVED, NEIGHBOURS)
    total = ir.Reduce("out", ir.Origin(), (Q,), (R,), ONE, NEIGHBOURS, "sum")
    assert unrolled(Group([node])) and unrolled(Group([total])) == unrolled(Group([node, node])) == []


def test_turns_side_by_side_are_stored_as_pairs():
    """The two turns fill every second place of one row each: one store of both."""
    source = assert_computed(graph_of(NEIGHBOURS, (Q, R), INTERLEAVED, x=COUNT + 1))
    assert "_pairs" in source and "store_strided" not in source


def test_turns_of_rows_below_each_other_are_stored_as_rows():
    store = ir.Index((("r", COUNT), ("q", 1)), 0)
    source = assert_computed(graph_of(NEIGHBOURS, (R, Q), store, x=COUNT + 1))
    assert "_pairs" not in source and "store_strided" not in source


# ---- pairs -----------------------------------------------------------------------------------------------


def pair_graph(value: ir.Expr, size: int, dtype: str) -> ir.Graph:
    graph = graph_of(value, (Q,), ONE, x=size)
    graph.buffers["x"] = ir.Buffer("x", dtype, (size,), (1,), "input")
    return graph


BOTH = apply("sub", read(TWO), apply("mul", read(TWO + 1), read(TWO + 3)))
INSIDE = apply(
    "lt", ir.IndexValue("int64", ONE), ir.Constant("int64", COUNT - 9), dtype="bool"
)  # the last nine are masked off


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_second_element_is_half_of_a_pair(dtype: str):
    """Even and odd places, also those of the next pair."""
    source = assert_computed(pair_graph(BOTH, 2 * COUNT + 2, dtype))
    assert "_pairs" in source and "load_strided" not in source


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masked_pairs(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """What is masked off may lie beyond the buffer, and is 0: in a loop that is not cut where the mask ends."""
    monkeypatch.setattr("compiler_bridge.schedule.cut_sections", lambda nodes, axis: [])
    masked = apply("add", read(TWO, mask=INSIDE), read(TWO + 1, mask=INSIDE))
    source = assert_computed(pair_graph(masked, 2 * (COUNT - 9), dtype))
    assert "_pairs" in source and "load_masked" in source


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_of_halves_are_kept(dtype: str):
    special = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, -1e-40, 3e38, -1.5, 1.0]
    )
    x = torch.cat([special, special.roll(1), torch.randn(2 * COUNT - 20)]).to(getattr(torch, dtype))
    for half in range(2):
        graph = pair_graph(read(TWO + half), 2 * COUNT, dtype)
        program, _ = build_program(graph, group_nodes(graph), "unrolled")
        assert "_pairs" in program.source
        (found,), expected = load(program)(x), x[half::2].float()
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


NO_PAIRS = {
    "an odd number of elements": (read(TWO), 2 * COUNT - 1, "float32"),
    "float16": (read(TWO), 2 * COUNT, "float16"),
    "every third": (read(ir.Index((("q", 3),), 0)), 4 * COUNT, "float32"),
    "all": (read(ONE), 2 * COUNT, "float32"),
}


@pytest.mark.parametrize("why", NO_PAIRS)
def test_no_pairs(why: str):
    """A pair that straddles the end must not be read; other steps have no pairs."""
    assert "_pairs" not in assert_computed(pair_graph(*NO_PAIRS[why]))


def test_rows_of_odd_length_have_no_pairs():
    rows = ir.Axis("p", 4)
    index = ir.Index((("p", 2 * COUNT + 1), ("q", 2)), 0)
    store = ir.Index((("p", COUNT), ("q", 1)), 0)
    source = assert_computed(graph_of(read(index), (rows, Q), store, x=4 * (2 * COUNT + 1)))
    assert "_pairs" not in source
