"""The op table: every row's generated code against its reference, for every dtype it takes.

One graph a dtype holds one Map a row; the compiler's own back half makes kernels of it. The arguments are
drawn from the row's domain, and for floats all pairs of special values follow. A row passes when it is no
less accurate against float64 than torch's own function.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from compiler_bridge import ir
from compiler_bridge.interpret import interpret
from compiler_bridge.ops import COMPUTE_DTYPE, DTYPES, OPS, REDUCTIONS, ScalarOp, reduce_identity
from compiler_bridge.verify import verify
from parity_tests.executors import in_executor_process
from parity_tests.long_double import in_long_double
from parity_tests.tolerances import compare

COUNT = 61  # not a multiple of any vector width
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, float("inf"), -float("inf"), float("nan"), 1e-40, -1e-40, 3e38, 1e-38]
KIND = {"float32": "f", "float64": "f", "int32": "i", "int64": "i", "bool": "b"}


def rows_of(dtype: str) -> list[ScalarOp]:
    return [row for row in OPS.values() if KIND[dtype] in row.kinds and row.name != "philox_uniform"]


def argument_dtypes(row: ScalarOp, dtype: str) -> list[str]:
    return ["bool", dtype, dtype] if row.name == "where" else [dtype] * row.arity


def draw(row: ScalarOp, dtype: str, position: int, generator: torch.Generator) -> Tensor:
    low, high = row.domain
    if dtype == "bool":
        return torch.rand(COUNT, generator=generator) < 0.5
    if KIND[dtype] == "f":
        return (torch.rand(COUNT, generator=generator, dtype=torch.float64) * (high - low) + low).to(
            DTYPES[dtype]
        )
    first = -40 if position == 0 else int(low)
    return torch.randint(first, 41 if position == 0 else int(high) + 1, (COUNT,), generator=generator).to(
        DTYPES[dtype]
    )


def arguments(row: ScalarOp, dtype: str) -> list[Tensor]:
    """From the domain first, then every combination of special values."""
    generator = torch.Generator().manual_seed(3)
    dtypes = argument_dtypes(row, dtype)
    drawn = [draw(row, name, k, generator) for k, name in enumerate(dtypes)]
    if KIND[dtype] != "f":
        return drawn
    values = [[False, True] if name == "bool" else SPECIAL for name in dtypes]
    combinations = list(zip(*itertools.product(*values)))
    return [
        torch.cat([x, torch.tensor(column, dtype=x.dtype)])
        for x, column in zip(drawn, combinations, strict=True)
    ]


def row_graph(dtype: str) -> tuple[ir.Graph, list[Tensor]]:
    """One Map for each row that takes the dtype, and the inputs."""
    graph, inputs = ir.Graph({}, [], [], []), []
    for row in rows_of(dtype):
        values = arguments(row, dtype)
        loads = []
        for k, value in enumerate(values):
            name = f"{row.name}_{k}"
            kind = str(value.dtype)[len("torch.") :]
            graph.buffers[name] = ir.Buffer(name, kind, (len(value),), (1,), "input")
            graph.inputs.append(name)
            inputs.append(value)
            loads.append(ir.Load(kind, name, ir.axis_index("i")))
        result = "bool" if row.result == "bool" else dtype
        output = f"out_{row.name}"
        graph.buffers[output] = ir.Buffer(output, result, (len(values[0]),), (1,))
        value = ir.Apply(result, row.name, tuple(loads))
        axes = (ir.Axis("i", len(values[0])),)
        graph.nodes.append(ir.Map(output, ir.Origin((row.name,)), axes, ir.axis_index("i"), value))
        graph.outputs.append(ir.BufferView(output, (len(values[0]),), (1,)))
    return graph, inputs


def run_compiled(graph: ir.Graph, inputs: list[Tensor]) -> list[Any]:
    """The compiler's back half on loop IR."""
    from compiler_bridge.emit.program import build_program
    from compiler_bridge.grouper import group_nodes
    from compiler_bridge.runtime import load

    program, _ = build_program(graph, group_nodes(graph), "ops")
    return list(load(program)(*inputs))


def compile_rows(dtype: str) -> list[Any]:
    return run_compiled(*row_graph(dtype))


def check_rows(dtype: str, executor: str) -> None:
    graph, inputs = row_graph(dtype)
    verify(graph)
    results = in_executor_process(executor, compile_rows, dtype)
    with torch.no_grad():
        expected, exact = interpret(graph, inputs), interpret(graph, inputs, float64=True)
    failures = []
    for row, value, reference, true in zip(rows_of(dtype), results, expected, exact, strict=True):
        oracle = true if dtype == "float32" and true.dtype == torch.float64 else None
        comparison = compare(value, reference, oracle, True)
        if not comparison.passed:
            failures.append(f"{row.name}: {comparison}")
    assert not failures, "; ".join(failures)


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bool", *(pytest.param(d, marks=pytest.mark.slow) for d in ("float64", "int32", "int64"))],
)
def test_generated_code_of_every_row_under_numba(dtype: str) -> None:
    check_rows(dtype, "numba")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
def test_generated_code_of_every_row_as_plain_python(dtype: str) -> None:
    check_rows(dtype, "python")


def reduce_graph(dtype: str) -> tuple[ir.Graph, list[Tensor]]:
    """One Reduce for each reduction that takes the dtype, of a matrix along its rows."""
    rows, columns = 5, 67
    kind = {"f": "float", "i": "int", "b": "bool"}[KIND[dtype]]
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(4))
    x = (x > 0) if kind == "bool" else (x * 3).to(DTYPES[dtype]) if kind == "int" else x.to(DTYPES[dtype])
    graph = ir.Graph({"x": ir.Buffer("x", dtype, (rows, columns), (columns, 1), "input")}, [], ["x"], [])
    axes = ir.Axis("i", rows), ir.Axis("j", columns)
    value = ir.Load(dtype, "x", ir.strided_index(axes, (columns, 1)))
    for reduction in REDUCTIONS.values():
        if kind in reduction.identity:
            output = f"out_{reduction.name}"
            graph.buffers[output] = ir.Buffer(output, dtype, (rows,), (1,))
            node = ir.Reduce(
                output, ir.Origin(), axes[:1], axes[1:], ir.axis_index("i"), value, reduction.name
            )
            graph.nodes.append(node)
            graph.outputs.append(ir.BufferView(output, (rows,), (1,)))
    return graph, [x]


def compile_reductions(dtype: str) -> list[Any]:
    return run_compiled(*reduce_graph(dtype))


@pytest.mark.parametrize("executor", ["numba", "python"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
def test_generated_code_of_every_reduction(dtype: str, executor: str) -> None:
    graph, inputs = reduce_graph(dtype)
    verify(graph)
    results = in_executor_process(executor, compile_reductions, dtype)
    expected = interpret(graph, inputs)
    with in_long_double() as run:
        exact = [run.value(x) for x in interpret(graph, inputs, float64=True)]
    for node, value, reference, true in zip(graph.nodes, results, expected, exact, strict=True):
        comparison = compare(value, reference, true, False)
        assert comparison.passed, f"{node.op}: {comparison}"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
def test_identities_change_nothing(dtype: str) -> None:
    kind = {"f": "float", "i": "int", "b": "bool"}[KIND[dtype]]
    x = torch.tensor([False, True]) if kind == "bool" else torch.tensor([-3, 0, 5]).to(DTYPES[dtype])
    for reduction in REDUCTIONS.values():
        if kind in reduction.identity:
            identity = torch.full_like(x, reduce_identity(reduction.name, dtype))
            assert torch.equal(reduction.reference(torch.stack([x, identity]), 0).to(x.dtype), x), (
                reduction.name
            )


def test_philox_gives_the_published_words() -> None:
    from compiler_bridge.random_reference import philox_block

    words = philox_block(0, torch.zeros(1, dtype=torch.int64).numpy().astype("uint64"))
    assert [int(word[0]) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_16_bit_floats_and_small_integers_compute_wider() -> None:
    assert {COMPUTE_DTYPE[name] for name in ("float16", "bfloat16")} == {"float32"}
    assert {COMPUTE_DTYPE[name] for name in ("int8", "uint8", "int16")} == {"int32"}
