"""FX graph of ATen operations -> a callable: every stage in order, with a record of each for `explain`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from compiler_bridge import settings
from compiler_bridge.contract import make_contracts_plain
from compiler_bridge.emit.program import KernelInfo, build_program
from compiler_bridge.fuse import inline_producers, remove_dead
from compiler_bridge.group import Group
from compiler_bridge.grouper import group_nodes
from compiler_bridge.ir import BufferView, Extern, Graph, Index, Load, Map, Origin
from compiler_bridge.legalize import give_scatters_a_base
from compiler_bridge.lower import lower_graph
from compiler_bridge.lower.lowering import apply
from compiler_bridge.program import Program
from compiler_bridge.rules import FALSE
from compiler_bridge.runtime import load


@dataclass
class GraphRecord:
    """What was made of one graph; `explain` prints it."""

    kind: str
    fx_text: str
    graph: Graph
    fused: Graph
    groups: list[Group]
    program: Program
    kernels: list[KernelInfo]
    externs: list[Extern]
    path: str = ""
    compile_seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    compiled: Any = None
    folding_text: str = ""


@dataclass
class OnceCall:
    """What a compiled graph wants computed whenever a frozen input has changed.

    It is called with the graph's inputs at `positions`; the results follow the graph's own inputs in its calls, of
    which those at `unused` may be anything.
    """

    call: Callable[..., list[Any]]
    positions: list[int]
    unused: list[int]


records: list[GraphRecord] = []
"""The graphs compiled in this process, latest last; kept only while `recording` says so."""

MOST_RECORDS = 64


def legalize(graph: Graph) -> Graph:
    """What code generation takes for granted."""
    return make_contracts_plain(give_scatters_a_base(graph))


def inline_with_checks(graph: Graph) -> Graph:
    """Inline; then join the flags in one last output, without those that are false whatever the data."""
    flags = [BufferView(name, (), ()) for name in graph.checks]
    graph = inline_producers(replace(graph, outputs=[*graph.outputs, *flags]))
    made = {node.output: node for node in graph.nodes}
    kept = [name for name in graph.checks if getattr(made[name], "value", None) != FALSE]
    graph = replace(graph, outputs=graph.outputs[: len(graph.outputs) - len(flags)], checks=kept)
    if not kept:
        return remove_dead(graph)
    value: Any = Load("bool", kept[0], Index())
    for name in kept[1:]:
        value = apply("bitwise_or", value, Load("bool", name, Index()))
    name = "index_out_of_range"
    graph.buffers[name] = replace(graph.buffers[kept[0]], name=name)
    graph.nodes.append(Map(name, Origin(op="check"), (), Index(), value))
    return remove_dead(replace(graph, outputs=[*graph.outputs, BufferView(name, (), ())]))


def with_checks(compiled: Callable[..., list[Any]], module: fx.GraphModule) -> Callable[..., list[Any]]:
    """When an index was out of range, ATen runs the graph and raises torch's own error."""

    own = len(module.graph.find_nodes(op="placeholder"))

    def run(*inputs: Any) -> list[Any]:
        results = compiled(*inputs)
        return list(module(*inputs[:own])) if results.pop().item() else results

    return run


def run_interpreted(interpret: Callable[..., list[Any]], graph: Graph, *inputs: Any) -> list[Any]:
    return interpret(graph, list(inputs))


def compile_graph(
    module: fx.GraphModule, example_inputs: Any, kind: str = "inference", options: Any = None
) -> Callable[..., list[Any]]:
    """Compile one forward, backward or inference graph.

    module.meta["frozen"]: positions of inputs that seldom change. What needs only them is left to the `once` (an
    OnceCall or None) of the result.

    Raises:  UnsupportedOp and other BridgeErrors; the caller decides about falling back
    """
    start = time.perf_counter()
    stages: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        stages[name] = time.perf_counter() - begun
        return result

    graph: Graph = stage("lower", lambda: lower_graph(module, kind != "backward"))
    if settings.DEBUG >= 1:
        from compiler_bridge.verify import verify

        verify(graph)
    fused: Graph = stage("fuse", lambda: legalize(inline_with_checks(graph)))
    if settings.DEBUG >= 1:
        from compiler_bridge.verify import verify

        verify(fused, "fuse")
    if settings.INTERPRET_IR:
        from compiler_bridge.interpret import interpret

        interpreted = functools.partial(run_interpreted, interpret, fused)
        return with_checks(interpreted, module) if fused.checks else interpreted
    frozen = module.meta.get("frozen", ())
    groups: list[Group] = stage("group", lambda: group_nodes(fused))
    program, kernels = stage("emit", lambda: build_program(fused, groups, f"{kind}{len(records)}", frozen))
    compiled = stage("load", lambda: load(program))
    externs = [n for n in fused.nodes if isinstance(n, Extern)]
    record = GraphRecord(
        kind,
        module.print_readable(print_output=False),
        graph,
        fused,
        groups,
        program,
        kernels,
        externs,
        str(getattr(compiled, "path", "")),
        time.perf_counter() - start,
        stages,
        compiled,
        module.meta.get("folding", ""),
    )
    records.append(record)
    del records[:-MOST_RECORDS]
    if settings.DEBUG >= 1:
        from compiler_bridge.explain import report_graph

        report_graph(record, settings.DEBUG)
    result: Any = with_checks(compiled, module) if fused.checks else compiled
    if program.once is not None:
        once = program.once
        result.once = OnceCall(load(once.program), once.positions, once.unused)
    return result
