"""Lowering: interpret(lower_graph(graph)) does what the graph does, for every row of lower_cases;
so do the kernels generated from it, as plain Python and compiled by Numba.

Integers, bools and moved data are equal bit for bit; floats are no less accurate against float64 than torch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten

from compiler_bridge import ir
from compiler_bridge.interpret import interpret
from compiler_bridge.lower import lower_graph
from compiler_bridge.ops import ATEN_POINTWISE
from compiler_bridge.pipeline import compile_graph
from compiler_bridge.verify import verify
from parity_tests.executors import in_executor_process
from parity_tests.lower_cases import ROWS, LowerCase
from parity_tests.tolerances import compare

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def flat(function: Any, inputs: tuple) -> Any:
    """The function with a flat list as its result, and None kept."""
    return lambda *args: tree_flatten(function(*args), is_leaf=lambda x: x is None)[0]


def in_float64(inputs: tuple) -> tuple:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def exact_results(function: Any, graph: ir.Graph, inputs: tuple) -> list[Any]:
    """What float64 gives: torch where it takes the doubles, else the interpreter."""
    try:
        exact = function(*in_float64(inputs))
    except (RuntimeError, TypeError):
        return interpret(graph, inputs, float64=True)
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in exact]


def check(function: Any, inputs: tuple, tracing_mode: str) -> ir.Graph:
    """Lower, verify, interpret and compare; returns the lowered graph."""
    function = flat(function, inputs)
    graph = lower_graph(make_fx(function, tracing_mode=tracing_mode)(*inputs))
    verify(graph)
    assert_as_torch(interpret(graph, inputs), function, graph, inputs)
    return graph


def assert_as_torch(results: list[Any], function: Any, graph: ir.Graph, inputs: tuple) -> None:
    expected, exact = function(*inputs), exact_results(function, graph, inputs)
    assert len(results) == len(expected)
    for value, cpp, true in zip(results, expected, exact):
        if not isinstance(cpp, Tensor):
            assert value == cpp
            continue
        assert value.stride() == cpp.stride()
        comparison = compare(value, cpp, true if true.dtype == torch.float64 else None, False)
        assert comparison.passed, str(comparison)


def externs(graph: ir.Graph) -> list[str]:
    return [n.target._schema.name.split("::")[1] for n in graph.nodes if isinstance(n, ir.Extern)]


@pytest.mark.parametrize("tracing_mode", ["fake", pytest.param("symbolic", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_lowered_row_computes_what_torch_does(case: LowerCase, tracing_mode: str) -> None:
    graph = check(case.function, case.inputs(), tracing_mode)
    if tracing_mode == "fake":
        assert set(externs(graph)) == set(case.externs)
    else:
        assert set(externs(graph)) <= set(case.externs + case.symbolic_externs)


def run_compiled(name: str) -> None:
    """Compile one row to kernels and hold it against torch."""
    torch.manual_seed(0)
    case = next(case for case in ROWS if case.name == name)
    inputs = case.inputs()
    function = flat(case.function, inputs)
    module = make_fx(function, tracing_mode="fake")(*inputs)
    results = compile_graph(module, inputs)(*inputs)
    assert_as_torch(results, function, lower_graph(module), inputs)


NEVER_SLOW = ("cummax",)
COMPILED = [
    pytest.param(case.name, marks=[] if case.name in NEVER_SLOW else [pytest.mark.slow]) for case in ROWS
]


@pytest.mark.parametrize("executor", [pytest.param("python", marks=pytest.mark.slow), "numba"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_row_computes_what_torch_does(name: str, executor: str) -> None:
    in_executor_process(executor, run_compiled, name)


def argument(dtype: torch.dtype, domain: tuple[float, float]) -> Tensor:
    low, high = domain
    if dtype == torch.bool:
        return torch.rand(3, 5) < 0.5
    if dtype.is_floating_point:
        return (torch.rand(3, 5) * (high - low) + low).to(dtype)
    return torch.randint(max(int(low), 0), int(high) + 1, (3, 5)).to(dtype)


# Of wider, narrower and small numbers one each is lowered by `make check`.
SOME_DTYPES = [
    pytest.param(
        d, id=str(d), marks=pytest.mark.slow if d in (torch.float64, torch.float16, torch.uint8) else []
    )
    for d in DTYPES
]


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("name", sorted(ATEN_POINTWISE))
def test_every_row_of_the_op_table_lowers(name: str, dtype: torch.dtype) -> None:
    scalar_op = ATEN_POINTWISE[name]
    function = getattr(torch.ops.aten, name)
    inputs = tuple(argument(dtype, scalar_op.domain) for _ in range(scalar_op.arity))
    try:
        function(*inputs)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch has no {name} of {dtype}: {error}")
    graph = check(function, inputs, "fake")
    assert externs(graph) == []


def test_graph_of_an_out_of_range_embedding_reads_zero() -> None:
    table, ids = torch.randn(3, 2), torch.tensor([1, 7])
    graph = lower_graph(make_fx(torch.embedding, tracing_mode="fake")(table, torch.tensor([1, 2])))
    (rows,) = interpret(graph, [table, ids])
    assert torch.equal(rows, torch.stack([table[1], torch.zeros(2)]))


def test_symbolic_graph_runs_at_other_sizes() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([(x @ y).softmax(-1), x.sum(1, True)], 1)[:, 1:] * x.shape[0]

    graph = lower_graph(make_fx(function, tracing_mode="symbolic")(torch.randn(4, 5), torch.randn(5, 6)))
    for rows, inner, columns in ((2, 3, 9), (11, 2, 2)):
        x, y = torch.randn(rows, inner), torch.randn(inner, columns)
        torch.testing.assert_close(interpret(graph, [x, y])[0], function(x, y))


def test_scatter_keeps_the_last_of_equal_places() -> None:
    index, source = torch.tensor([[0, 0, 0]]), torch.tensor([[1.0, 2.0, 3.0]])
    graph = lower_graph(
        make_fx(lambda x, i, v: x.scatter(1, i, v), tracing_mode="fake")(source, index, source)
    )
    assert interpret(graph, [source, index, source])[0][0, 0] == 3
