"""Scatters that clear their rows themselves (`emit/scatter.py`), instead of starting from a base of zeros."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor

from compiler_bridge import ir, runtime
from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.emit.program import build_program
from compiler_bridge.emit.scatter import CHUNK, private_axes, row_length
from compiler_bridge.grouper import group_nodes
from compiler_bridge.interpret import interpret
from compiler_bridge.legalize import give_scatters_a_base
from compiler_bridge.runtime import load
from compiler_bridge.verify import verify

ROWS, PLACES = ir.Axis("i", 5), ir.Axis("j", 4)
FLAT = ir.strided_index((ROWS, PLACES), (4, 1))
WHERE = ir.Load("int64", "index", FLAT)


def apply(op: str, *args: ir.Expr, dtype: str = "bool") -> ir.Apply:
    return ir.Apply(dtype, op, args)


def scatter_of(length: int, dtype: str = "float32", op: str = "add", **changes: Any) -> ir.Scatter:
    """for i: for j: out[i, index[i, j]] op= value[i, j], where 0 <= index < length"""
    wide = "float32" if dtype == "bfloat16" else dtype
    bound = ir.Constant("int64", length)
    position = ir.IndexValue("int64", ir.Index(((ir.Value(WHERE), 1),), 0))
    inside = apply(
        "bitwise_and", apply("ge", position, ir.Constant("int64", 0)), apply("lt", position, bound)
    )
    value = apply("guard", inside, ir.Load(wide, "value", FLAT), dtype=wide)
    store = ir.Index((("i", length), (ir.Value(WHERE), 1)), 0)
    return replace(ir.Scatter("out", ir.Origin(), (ROWS, PLACES), store, value, op), **changes)


def graph_of(node: ir.Scatter, length: int, dtype: str) -> ir.Graph:
    buffers = {
        "index": ir.Buffer("index", "int64", (5, 4), (4, 1), "input"),
        "value": ir.Buffer("value", dtype, (5, 4), (4, 1), "input"),
        "out": ir.Buffer("out", dtype, (5, length), (length, 1)),
    }
    graph = ir.Graph(buffers, [node], ["index", "value"], [ir.BufferView("out", (5, length), (length, 1))])
    verify(graph)
    return graph


@pytest.fixture
def dirty_memory(monkeypatch):
    """Results lie in memory that holds ones in every bit: NaN, True, -1."""

    def filled(shape: Any, strides: Any, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty_strided(shape, strides, dtype=dtype)
        torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(
            1 if dtype == torch.bool else 255
        )
        return tensor

    monkeypatch.setattr(runtime, "EMPTY_STRIDED", filled)


def values(dtype: str) -> Tensor:
    numbers = torch.arange(1, 21).reshape(5, 4)
    return numbers % 3 > 0 if dtype == "bool" else numbers.to(getattr(torch, dtype))


@pytest.mark.parametrize("length", [1, NATIVE_LANES - 3, NATIVE_LANES, 2 * NATIVE_LANES + 5])
@pytest.mark.parametrize(
    "dtype, op", [("float32", "add"), ("bfloat16", "set"), ("int64", "add"), ("bool", "set")]
)
def test_rows_are_cleared(dtype: str, op: str, length: int, dirty_memory):
    """Whole vectors and what is left over; places out of range write nothing, and rows may have none."""
    graph = graph_of(scatter_of(length, dtype, op), length, dtype)
    assert give_scatters_a_base(graph) == graph
    program, _ = build_program(graph, group_nodes(graph), "scatter")
    index = torch.randint(-1, length + 1, (5, 4), generator=torch.Generator().manual_seed(length))
    index[2] = length
    inputs = [index, values(dtype)]
    (found,), (expected,) = load(program)(*inputs), interpret(graph, inputs)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert expected.any() and not expected[2].any()


def test_dirty_memory_is_seen(dirty_memory):
    """The fixture: without the clearing, what was there before would be found."""
    x = ir.Buffer("x", "float32", (2,), (1,), "input")
    node = ir.Map(
        "out",
        ir.Origin(),
        (ir.Axis("i", 2),),
        ir.axis_index("i"),
        ir.Load("float32", "x", ir.axis_index("i")),
    )
    out = ir.Buffer("out", "float32", (3,), (1,))
    graph = ir.Graph({"x": x, "out": out}, [node], ["x"], [ir.BufferView("out", (3,), (1,))])
    program, _ = build_program(graph, group_nodes(graph), "map")
    assert load(program)(torch.ones(2))[0].isnan().tolist() == [False, False, True]


NOT_CLEARED = {
    "another place than the row's first": {"store": scatter_of(9).store + 3},
    "rows apart": {"store": ir.Index((("i", 10), (ir.Value(WHERE), 1)), 0)},
    "elements apart": {"store": ir.Index((("i", 18), (ir.Value(WHERE), 2)), 0)},
    "no rows of its own": {"store": ir.Index(((ir.Value(WHERE), 1),), 0)},
    "two indices": {
        "store": ir.Index((("i", 81), (ir.Value(WHERE), 1), (ir.Value(replace(WHERE, index=FLAT + 1)), 9)), 0)
    },
    "no bound": {"value": ir.Load("float32", "value", FLAT)},
}


@pytest.mark.parametrize("why", NOT_CLEARED)
def test_others_need_a_base(why: str):
    assert row_length(scatter_of(9)) == 9
    assert row_length(scatter_of(9, **NOT_CLEARED[why])) is None


def test_loops_are_private_also_where_sizes_are_known_later():
    """for c: for i: for j: out[c, index[i, j], i] += value: every (c, i) writes to places of its own."""
    height, width = sympy.symbols("height width", positive=True, integer=True)
    rows, channels = ir.Axis("i", width), ir.Axis("c", sympy.Symbol("channels", positive=True, integer=True))
    bound = scatter_of(9).value
    assert isinstance(bound, ir.Apply)
    later = ir.Constant("int64", height)
    inside = replace(bound.args[0], args=(bound.args[0].args[0], replace(bound.args[0].args[1], args=(
        bound.args[0].args[1].args[0], later))))  # fmt: skip
    store = ir.Index((("c", height * width), (ir.Value(WHERE), width), ("i", 1)), 0)
    changes = {"axes": (channels, rows, PLACES), "store": store}
    node = scatter_of(9, value=replace(bound, args=(inside, bound.args[1])), **changes)
    assert private_axes(node) == (channels, rows)
    assert private_axes(scatter_of(9, **changes)) == ()  # rows may be longer than what 9 places fill
    assert row_length(node) is None


def test_the_number_of_rows_may_be_known_later():
    later = ir.Axis("i", sympy.Symbol("s0"))
    assert row_length(scatter_of(9, axes=(later, PLACES))) == 9
    several = ir.Index((("i", 9), ("k", 27), (ir.Value(WHERE), 1)), 0)
    axes = (ir.Axis("k", 2), ir.Axis("i", 3), PLACES)
    assert row_length(scatter_of(9, axes=axes, store=several)) == 9
    axes = (ir.Axis("k", 2), later, PLACES)  # nobody knows that i stays below 3
    assert row_length(scatter_of(9, axes=axes, store=several)) is None


@pytest.mark.parametrize("width", [2, NATIVE_LANES, NATIVE_LANES + 3, 2 * CHUNK + 3])
def test_columns_with_places_of_their_own(width: int, dirty_memory):
    """for i: for j: for c: out[i, index[i, j, c], c] += value[i, j, c], the columns side by side"""
    length, columns = 7, ir.Axis("c", width)
    flat = ir.strided_index((ROWS, PLACES, columns), (4 * width, width, 1))
    where = ir.Load("int64", "index", flat)
    position = ir.IndexValue("int64", ir.Index(((ir.Value(where), 1),), 0))
    bounds = (ir.Constant("int64", 0), ir.Constant("int64", length))
    inside = apply("bitwise_and", apply("ge", position, bounds[0]), apply("lt", position, bounds[1]))
    value = apply("guard", inside, ir.Load("float32", "value", flat), dtype="float32")
    store = ir.Index((("i", length * width), (ir.Value(where), width), ("c", 1)), 0)
    node = ir.Scatter("out", ir.Origin(), (ROWS, PLACES, columns), store, value, "add")
    shape, steps = (5, length, width), (length * width, width, 1)
    buffers = {
        "index": ir.Buffer("index", "int64", (5, 4, width), (4 * width, width, 1), "input"),
        "value": ir.Buffer("value", "float32", (5, 4, width), (4 * width, width, 1), "input"),
        "out": ir.Buffer("out", "float32", shape, steps),
    }
    graph = ir.Graph(buffers, [node], ["index", "value"], [ir.BufferView("out", shape, steps)])
    verify(graph)
    assert give_scatters_a_base(graph) == graph
    program, _ = build_program(graph, group_nodes(graph), "scatter")
    assert f"for {columns.name} in range(first, last):" in program.source
    generator = torch.Generator().manual_seed(width)
    index = torch.randint(-1, length + 1, (5, 4, width), generator=generator)
    index[2] = length
    inputs = [index, torch.randint(1, 9, (5, 4, width), generator=generator).float()]
    (found,), (expected,) = load(program)(*inputs), interpret(graph, inputs)
    assert torch.equal(found, expected) and expected.any() and not expected[2].any()


def test_what_is_not_cleared_is_given_zeros(dirty_memory):
    length = 9
    apart = scatter_of(length, store=ir.Index((("i", 10), (ir.Value(WHERE), 1)), 0))
    graph = graph_of(apart, 10, "float32")
    based = give_scatters_a_base(graph)
    assert [type(each).__name__ for each in based.nodes] == ["Map", "Scatter"] and based.nodes[
        1
    ].base is not None
    program, _ = build_program(based, group_nodes(based), "scatter")
    inputs = [torch.randint(0, length, (5, 4)), values("float32")]
    assert torch.equal(load(program)(*inputs)[0], interpret(graph, inputs)[0])
