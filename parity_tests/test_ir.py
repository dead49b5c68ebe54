"""The loop IR: what its nodes mean, what the verifier refuses, how it prints, and that passes keep its meaning.

Random programs (chains of pointwise operations, reductions, views, moved pieces and products) run four ways:
torch, the lowered graph, the graph after inlining (both interpreted), and compiled.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from compiler_bridge import ir
from compiler_bridge.errors import VerifyError
from compiler_bridge.explain import explain
from compiler_bridge.interpret import interpret
from compiler_bridge.lower import lower_graph
from compiler_bridge.pipeline import compile_graph, inline_with_checks, legalize
from compiler_bridge.printer import print_expr, print_graph, print_value
from compiler_bridge.verify import verify

ROW, COLUMN = ir.Axis("i", 3), ir.Axis("j", 4)
MATRIX = ir.strided_index((ROW, COLUMN), (4, 1))
LOAD = ir.Load("float32", "x", MATRIX)
ORIGIN = ir.Origin(("relu",), "aten.relu.default", "layers.0", "model.py:7  y = relu(x)")


def graph_of(*nodes: Any, outputs: tuple[Any, ...] = ()) -> ir.Graph:
    """Over the input x: float32[3, 4] and buffers y like it, rows: float32[3], flags: bool[3, 4]."""
    buffers = {
        "x": ir.Buffer("x", "float32", (3, 4), (4, 1), "input"),
        "y": ir.Buffer("y", "float32", (3, 4), (4, 1)),
        "rows": ir.Buffer("rows", "float32", (3,), (1,)),
        "flags": ir.Buffer("flags", "bool", (3, 4), (4, 1)),
    }
    return ir.Graph(buffers, list(nodes), ["x"], list(outputs))


def map_of(value: ir.Expr, output: str = "y", store: ir.Index = MATRIX, axes: Any = (ROW, COLUMN)) -> ir.Map:
    return ir.Map(output, ORIGIN, axes, store, value)


def apply(op: str, *args: ir.Expr, dtype: str = "float32") -> ir.Apply:
    return ir.Apply(dtype, op, args)


HALF = ir.Constant("float64", 0.5)
OTHER = ir.Load("float32", "x", ir.axis_index("k"))
BEYOND = replace(LOAD, index=MATRIX + 1)
REDUCE = ir.Reduce("rows", ORIGIN, (ROW,), (COLUMN,), ir.axis_index("i"), LOAD, "sum")

BROKEN = {
    "before it is written": graph_of(map_of(replace(LOAD, buffer="rows"))),
    "writes y again": graph_of(map_of(LOAD), map_of(LOAD)),
    "writes z": graph_of(map_of(LOAD, "z")),
    "uses ['k']": graph_of(map_of(OTHER)),
    "loops ['i', 'i']": graph_of(map_of(LOAD, axes=(ROW, ROW))),
    "add(float32, float64)": graph_of(map_of(apply("add", LOAD, HALF))),
    "lt(float32, float32) -> float32": graph_of(map_of(apply("lt", LOAD, LOAD))),
    "where(float32, float32, float32)": graph_of(map_of(apply("where", LOAD, LOAD, LOAD))),
    "exp(float32, float32)": graph_of(map_of(apply("exp", LOAD, LOAD))),
    "frobnicate(float32)": graph_of(map_of(apply("frobnicate", LOAD))),
    "value of float32": graph_of(map_of(LOAD, "flags")),
    "x at 1 .. 12": graph_of(map_of(BEYOND)),
    "repeats a place": graph_of(map_of(LOAD, store=ir.Index.of({"i": 1, "j": 1}))),
    "stores 3 values": graph_of(
        map_of(replace(LOAD, index=ir.Index()), axes=(ROW,), store=ir.axis_index("i"))
    ),
    "scan any": graph_of(ir.Scan("y", ORIGIN, (ROW,), (COLUMN,), MATRIX, LOAD, "any")),
    "reduction sort": graph_of(replace(REDUCE, op="sort")),
    "guard(bool, float32)": graph_of(map_of(apply("guard", ir.Constant("bool", True), LOAD))),
    "takes rows": graph_of(outputs=(ir.BufferView("rows", (3,), (1,)),)),
    "y at 0 .. 15": graph_of(map_of(LOAD), outputs=(ir.BufferView("y", (4, 4), (4, 1)),)),
}


@pytest.mark.parametrize("found", BROKEN)
def test_verifier_names_what_is_wrong(found: str) -> None:
    with pytest.raises(VerifyError) as error:
        verify(BROKEN[found], "fuse")
    assert found in str(error.value)
    assert "after fuse" in str(error.value) and "required" in str(error.value)


def test_masked_loads_may_leave_the_buffer() -> None:
    inside = apply("lt", ir.IndexValue("int64", MATRIX + 1), ir.Constant("int64", 12), dtype="bool")
    graph = graph_of(map_of(replace(BEYOND, mask=inside)), outputs=(ir.BufferView("y", (3, 4), (4, 1)),))
    verify(graph)
    x = torch.randn(3, 4)
    expected = torch.cat([x.flatten()[1:], torch.zeros(1)]).view(3, 4)
    assert torch.equal(interpret(graph, [x])[0], expected)


def test_reduction_of_nothing_is_its_identity() -> None:
    nothing = ir.Axis("j", 0)
    node = replace(REDUCE, reduce_axes=(nothing,), op="prod")
    graph = graph_of(node, outputs=(ir.BufferView("rows", (3,), (1,)),))
    assert torch.equal(interpret(graph, [torch.randn(3, 4)])[0], torch.ones(3))


def test_float64_interpretation_stores_doubles() -> None:
    graph = graph_of(map_of(apply("exp", LOAD)), REDUCE, outputs=(ir.BufferView("y", (3, 4), (4, 1)),))
    x = torch.randn(3, 4)
    (y,) = interpret(graph, [x], float64=True)
    assert torch.equal(y, x.double().exp())


def test_graph_prints_as_loops_with_origins() -> None:
    value = apply("maximum", apply("mul", LOAD, LOAD), ir.Constant("float32", 0.0))
    text = print_graph(graph_of(map_of(value), REDUCE, outputs=(("input", 0),)))
    for line in (
        "# relu = aten.relu.default, in layers.0",
        "# model.py:7  y = relu(x)",
        "for i in range(3):",
        "    for j in range(4):",
        "        y[i*4 + j] = maximum((x[i*4 + j] * x[i*4 + j]), 0.0)",
        "    rows[i] = 0",
        "        rows[i] += x[i*4 + j]",
        "return input 0",
    ):
        assert line in text.splitlines(), f"{line!r} is not in\n{text}"


def test_masked_load_prints_as_a_selection() -> None:
    mask = apply("lt", ir.IndexValue("int64", ir.axis_index("i")), ir.Constant("int64", 2), dtype="bool")
    assert print_expr(replace(LOAD, mask=mask)) == "(x[i*4 + j] if (i < 2) else 0)"


# ---------------------------------------------------------------- random programs

UNARY = [torch.exp, torch.neg, torch.tanh, torch.abs, torch.sigmoid, torch.square, lambda x: x * 2 + 1]
BINARY = [torch.add, torch.mul, torch.sub, torch.maximum, lambda x, y: torch.where(x > y, x, y)]
REDUCTIONS = [torch.sum, torch.mean, torch.amax]


def step(values: list[Tensor], draw: Any) -> Tensor:
    """One more tensor made of those there are; `draw` gives the same choices whenever it is replayed."""
    x = values[draw(len(values))]
    x = x / (1 + x.abs())  # nothing grows without bound
    kind = draw(10)
    dim = draw(x.dim()) if x.dim() else 0
    if kind == 0 or x.dim() == 0:
        return UNARY[draw(len(UNARY))](x)
    if kind == 1:
        y = values[draw(len(values))]
        fits = y.dim() == x.dim() and all(a == b or 1 in (a, b) for a, b in zip(x.shape, y.shape))
        return BINARY[draw(len(BINARY))](x, y if fits else x)
    if kind == 2:
        return REDUCTIONS[draw(len(REDUCTIONS))](x, dim=dim, keepdim=bool(draw(2)))
    if kind == 3:
        return torch.softmax(x, dim) if draw(2) else x - x.mean(dim, keepdim=True)
    if kind == 4:
        return x.transpose(dim, draw(x.dim()))
    if kind == 5:
        return x.reshape(-1, x.shape[dim]) if draw(2) else x.unsqueeze(dim)
    if kind == 6:
        y = (
            torch.cat([x, x.flip(dim)], dim)
            if draw(2)
            else torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), x], dim)
        )
        return y
    if kind == 8:
        return x.cumsum(dim)
    if kind == 7:
        return torch.nn.functional.pad(x, (draw(3), draw(3) - 1)) if x.shape[-1] > 1 else x.narrow(dim, 0, 1)
    return x.reshape(-1, x.shape[-1]) @ x.reshape(-1, x.shape[-1]).t()


def program_of(choices: list[int], steps: int) -> Any:
    """A function of two tensors, given by a list of numbers that decide every choice."""

    def program(x: Tensor, y: Tensor) -> list[Tensor]:
        position = 0

        def draw(count: int) -> int:
            nonlocal position
            position += 1
            return choices[(position - 1) % len(choices)] % count

        values = [x, y]
        for _ in range(steps):
            values.append(step(values, draw))
            if values[-1].numel() > 4000:
                break
        return values[2:]

    return program


SHAPES = [
    ((3, 4), (4,)),
    ((2, 3, 4), (2, 1, 4)),
    ((5, 1), (5, 7)),
    ((1, 6), (6, 1)),
    ((2, 8, 2), (8, 1)),
    ((4,), ()),
]
PROGRAMS = given(
    st.lists(st.integers(0, 839), min_size=8, max_size=24), st.integers(1, 9), st.sampled_from(SHAPES)
)
CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def traced(choices: list[int], steps: int, shapes: Any) -> tuple[Any, Any, list[Tensor]]:
    program = program_of(choices, steps)
    inputs = [torch.randn(shape) for shape in shapes]
    decompositions = torch._decomp.get_decompositions([torch.ops.aten._softmax])
    return program, make_fx(program, decompositions, tracing_mode="fake")(*inputs), inputs


def assert_as_good(results: list[Any], program: Any, inputs: list[Tensor]) -> None:
    """No further from float64 than torch, but for another order of additions."""
    exact = program(*[x.double() for x in inputs])
    for value, reference, true in zip(results, program(*inputs), exact, strict=True):
        assert value.shape == reference.shape and value.stride() == reference.stride()
        unit = torch.finfo(value.dtype).eps * max(1.0, true.abs().max().item() if true.numel() else 1.0)
        error, allowed = (
            (t.double() - true).abs().max().item() if t.numel() else 0.0 for t in (value, reference)
        )
        assert error <= 2 * allowed + 16 * unit


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=CHECKS)
@PROGRAMS
def test_inlining_keeps_the_meaning_of_random_programs(choices: list[int], steps: int, shapes: Any) -> None:
    program, module, inputs = traced(choices, steps, shapes)
    graph = lower_graph(module)
    verify(graph)
    assert_as_good(interpret(graph, inputs), program, inputs)
    fused = legalize(inline_with_checks(graph))
    verify(fused, "fuse")
    assert_as_good(interpret(fused, inputs), program, inputs)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=CHECKS)
@PROGRAMS
def test_compiled_random_programs_do_what_torch_does(choices: list[int], steps: int, shapes: Any) -> None:
    program, module, inputs = traced(choices, steps, shapes)
    assert_as_good(compile_graph(module, inputs)(*inputs), program, inputs)


def test_explain_shows_stages_kernels_and_externs() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.softmax(x.logcumsumexp(0) * 2, -1)

    text = io.StringIO()
    explanation = explain(function, torch.randn(6, 5), file=text)
    assert len(explanation.records) == 1 and not explanation.fallbacks
    for part in (
        "FX graph",
        "loop IR",
        "generated module",
        "extern aten.logcumsumexp",
        "softmax",
        "for i0 in range(6)",
    ):
        assert part in text.getvalue()


def test_a_shared_value_is_walked_and_printed_once():
    value: ir.Expr = LOAD
    for _ in range(100):
        value = ir.Apply("float32", "add", (value, value))
    assert len(list(ir.walk(value))) == 101
    named, last = print_value(value)
    assert len(named) == 99 and named[0] == "v0 = (x[i*4 + j] + x[i*4 + j])" and last == "(v98 + v98)"
    short = ir.Apply("float32", "exp", (ir.Apply("float32", "add", (LOAD, LOAD)),))
    assert print_value(short) == ([], print_expr(short))
