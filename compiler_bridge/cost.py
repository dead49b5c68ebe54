"""What a kernel costs: bytes it reads and writes, arithmetic operations it does (estimated from the IR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from compiler_bridge import ir
from compiler_bridge.ops import DTYPES

FREE = ("cast", "guard")


@dataclass(frozen=True)
class Cost:
    """read, written: bytes between memory and the kernel; operations: scalar operations, a fma is two."""

    read: int = 0
    written: int = 0
    operations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.read + other.read, self.written + other.written, self.operations + other.operations)


def kernel_cost(graph: ir.Graph, nodes: Sequence[ir.Node]) -> Cost:
    """The cost of nodes that run as one kernel: what they make for each other is not counted as traffic.

    A buffer is read once, however often it is loaded; of a gather, as much as the loops ask for.
    """
    made = {name for node in nodes for name in ir.node_outputs(node)}
    read: dict[str, int] = {}
    for node in nodes:
        for name, elements in elements_read(graph, node).items():
            if name not in made:
                read[name] = max(read.get(name, 0), elements)
    kept = made & needed_outside(graph, nodes)
    read_bytes = sum(elements * item_bytes(graph, name) for name, elements in read.items())
    written = sum(elements_of(graph, name) * item_bytes(graph, name) for name in kept)
    return Cost(read_bytes, written, sum(operations(graph, node) for node in nodes))


def needed_outside(graph: ir.Graph, nodes: Sequence[ir.Node]) -> set[str]:
    """Buffers that other nodes or the caller read."""
    inside = {id(node) for node in nodes}
    names = {output.buffer for output in graph.outputs if isinstance(output, ir.BufferView)}
    produced = {name for node in nodes for name in ir.node_outputs(node)}
    for node in graph.nodes:
        same = id(node) in inside or produced & set(ir.node_outputs(node))
        if not same:
            names |= ir.node_reads(node)
    return names


def number(graph: ir.Graph, size: ir.Size) -> int:
    """A size as a number: at the sizes seen while tracing, unknown symbols count as 1."""
    if isinstance(size, int):
        return size
    value = sympy.sympify(size).subs(list(graph.symbol_hints.items()))
    return int(value.subs([(symbol, 1) for symbol in value.free_symbols]))


def item_bytes(graph: ir.Graph, buffer: str) -> int:
    if buffer not in graph.buffers:  # partial sums of the threads
        return 4
    dtype = DTYPES.get(graph.buffers[buffer].dtype)
    return 8 if dtype is None else dtype.itemsize


def elements_of(graph: ir.Graph, buffer: str) -> int:
    """Elements of a buffer; partial sums, which the graph does not list, count as one."""
    if buffer not in graph.buffers:
        return 1
    return number(graph, ir.size_product(graph.buffers[buffer].shape))


def elements_read(graph: ir.Graph, node: Any) -> dict[str, int]:
    """Elements of each buffer that a node touches."""
    if isinstance(node, (ir.Extern, ir.Scheduled)):
        return {name: elements_of(graph, name) for name in ir.node_reads(node)}
    extents = {axis.name: number(graph, axis.extent) for axis in ir.all_axes(node)}
    touched: dict[str, int] = {}
    for load in ir.node_loads(node):
        points = 1
        moved = extents if load.index.values() else load.index.axes()
        for name in moved:
            points *= extents.get(name, 1)
        held = elements_of(graph, load.buffer)
        touched[load.buffer] = min(held, max(points, touched.get(load.buffer, 0)))
    if isinstance(node, ir.Scatter) and node.base is not None:
        touched[node.base] = elements_of(graph, node.base)
    return touched


def operations(graph: ir.Graph, node: Any) -> int:
    """Scalar operations of a node; of calls (Extern, Scheduled) none are counted."""
    if isinstance(node, (ir.Extern, ir.Scheduled)):
        return 0
    points = 1
    for axis in ir.all_axes(node):
        points *= number(graph, axis.extent)
    distinct = {id(part): part for expr in ir.node_exprs(node) for part in ir.walk(expr)}
    arithmetic = {part for part in distinct.values() if isinstance(part, ir.Apply) and part.op not in FREE}
    combined = 2 if isinstance(node, ir.Contract) else 0 if isinstance(node, ir.Map) else 1
    return points * (len(arithmetic) + combined)
