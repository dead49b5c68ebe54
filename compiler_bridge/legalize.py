"""Give every Scatter a base of its own, so that it can work in place.

output = scatter(base, ...)  ->  output = copy(base) (or zeros); scatter into output

One without a base that clears its rows itself needs none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler_bridge.emit.scatter import row_length
from compiler_bridge.ir import (
    Axis,
    BufferView,
    Expr,
    Graph,
    Load,
    Map,
    Node,
    Scatter,
    node_reads,
    strided_index,
)
from compiler_bridge.lower.lowering import constant
from compiler_bridge.ops import compute_dtype


def give_scatters_a_base(graph: Graph) -> Graph:
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in node_reads(node):
            readers[name] = readers.get(name, 0) + 1
    kept = {view.buffer for view in graph.outputs if isinstance(view, BufferView)}
    buffers, nodes = dict(graph.buffers), list[Node]()
    for node in graph.nodes:
        clears = isinstance(node, Scatter) and node.base is None and row_length(node) is not None
        if isinstance(node, Scatter) and not clears and not owns_base(node, graph, readers, kept):
            name = f"{node.output}_base"
            buffers[name] = replace(graph.buffers[node.output], name=name, kind="temporary")
            nodes.append(base_map(node, name, buffers))
            node = replace(node, base=name)
        nodes.append(node)
    return replace(graph, buffers=buffers, nodes=nodes)


def owns_base(node: Scatter, graph: Graph, readers: dict[str, int], kept: set[str]) -> bool:
    if node.base is None:
        return False
    base, output = graph.buffers[node.base], graph.buffers[node.output]
    private = base.kind == "temporary" and readers[node.base] == 1 and node.base not in kept
    return private and base.strides == output.strides and base.dtype == output.dtype


def base_map(node: Scatter, name: str, buffers: dict[str, Any]) -> Map:
    """Zeros, or a copy of the base."""
    buffer = buffers[name]
    axes = tuple(Axis(f"i{k}", extent) for k, extent in enumerate(buffer.shape))
    dtype = compute_dtype(buffer.dtype)
    value: Expr = constant(0, dtype)
    if node.base is not None:
        value = Load(dtype, node.base, strided_index(axes, buffers[node.base].strides))
    real = tuple(axis for axis in axes if axis.extent != 1)
    return Map(name, node.origin, real, strided_index(axes, buffer.strides), value)
