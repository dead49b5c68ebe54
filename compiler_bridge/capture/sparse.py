"""Sparse gradients of embedding and embedding_bag: kernels compute the rows, the tensor is made of them afterwards.

    graph(...)  = grad, sparse_rows(rows, indices)
    kernels:      grad, rows, indices
    the tail:     sparse_rows(rows, indices)         runs after the kernels

Kernels know strided tensors only. What makes a sparse tensor, and what goes on from there (two gradients of one table
are added), is the *tail* of a graph: a graph of its own, called with what the kernels have computed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compiler_bridge.errors import FallbackWarning
from pynn.modules._embedding import embedding_sparse_backward
from pynn.modules._embedding_bag import embedding_bag_backward

aten = torch.ops.aten

LIBRARY = torch.library.Library("pynn", "FRAGMENT")
LIBRARY.define(
    "sparse_rows(Tensor grad, Tensor indices, SymInt num_weights, int padding_idx, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.impl("sparse_rows", embedding_sparse_backward, "CompositeExplicitAutograd")
"""One node of a graph, because how many rows are no padding depends on data."""


@torch.library.register_fake("pynn::sparse_rows", lib=LIBRARY)
def _sparse_rows_fake(grad, indices, num_weights, padding_idx, dtype):
    """As many rows as without padding; nobody asks."""
    return embedding_sparse_backward(grad, indices, num_weights, -1, dtype)


def embedding_backward(
    grad: Tensor, indices: Tensor, num_weights: Any, padding_idx: Any, scale_grad_by_freq: bool, sparse: bool
) -> Tensor:
    """What stands in for the C++ composite."""
    if not sparse:
        return aten.embedding_dense_backward.default(
            grad, indices, num_weights, padding_idx, scale_grad_by_freq
        )
    if scale_grad_by_freq:
        raise RuntimeError("embedding_backward: scale_grad_by_freq not supported with sparse gradients")
    return torch.ops.pynn.sparse_rows(grad, indices, num_weights, padding_idx, grad.dtype)


COMPOSITES = {aten.embedding_backward.default: embedding_backward}
DECOMPOSITIONS = {
    aten._embedding_bag_backward.default: functools.partial(
        embedding_bag_backward, sparse_of=torch.ops.pynn.sparse_rows
    )
}
"""For AOTAutograd: see `whole.py` and `decompositions.py`."""

MAKES_SPARSE = frozenset(
    {
        torch.ops.pynn.sparse_rows.default,
        aten._sparse_coo_tensor_with_dims_and_tensors.default,
        aten._sparse_coo_tensor_unsafe.default,
    }
)
"""What puts indices and rows together, and computes nothing."""


def with_sparse_tail(
    module: fx.GraphModule, compile_main: Callable[[fx.GraphModule], Callable[..., Sequence[Any]]]
) -> Callable[..., Sequence[Any]]:
    """The graph, compiled up to where sparse tensors begin."""
    tail = sparse_tail(module.graph)
    if not tail:
        return compile_main(module)
    warn_of_computation(tail)
    outputs = list(module.graph.output_node().args[0])  # pyright: ignore
    strided = [x for x in outputs if x not in tail]
    needed = list(dict.fromkeys(x for node in tail for x in node.all_input_nodes if x not in tail))
    main = compile_main(main_graph(module, tail, [*strided, *needed]))
    finish = tail_graph(module, tail, needed, [x for x in outputs if x in tail])

    def run(*inputs: Any) -> Sequence[Any]:
        results = main(*inputs)
        made, others = iter(finish(*results[len(strided) :])), iter(results)
        return [next(made) if output in tail else next(others) for output in outputs]

    return run


def sparse_tail(graph: fx.Graph) -> dict[fx.Node, None]:
    """The operations that give sparse tensors, and all that need these, in order."""
    tail: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            value = node.meta.get("val")
            is_sparse = isinstance(value, Tensor) and value.layout != torch.strided
            if is_sparse or any(source in tail for source in node.all_input_nodes):
                tail[node] = None
    return tail


def main_graph(module: fx.GraphModule, tail: dict[fx.Node, None], outputs: list[Any]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node not in tail and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.map_arg(outputs, copies.__getitem__))
    return fx.GraphModule(module, graph)


def tail_graph(
    module: fx.GraphModule, tail: dict[fx.Node, None], needed: list[fx.Node], outputs: list[fx.Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in needed}
    for node in tail:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(module, graph)


def warn_of_computation(tail: dict[fx.Node, None]) -> None:
    names = sorted({str(node.target) for node in tail if node.target not in MAKES_SPARSE})
    if names:
        message = (
            f"pynn: operations on sparse tensors run through ATen, not through kernels: {', '.join(names)}"
        )
        warnings.warn(message, FallbackWarning, stacklevel=2)
