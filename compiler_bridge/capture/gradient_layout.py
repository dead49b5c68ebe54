"""Gradients of a graph's inputs lie in memory as the inputs do.

A convolution that works channels-last makes channels-last gradients of its weight too, and autograd would copy them
when it accumulates them. The lowering writes a result in whatever strides the graph states, so that of a
convolution's gradient they are simply stated, also where autocast converts it; any other is copied.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode

from compiler_bridge.capture.layout import equal_strides, in_order, order_of_memory

aten = torch.ops.aten
CASTS = (aten._to_copy.default, torch.ops.prims.convert_element_type.default)


def lay_out_gradients(graph: fx.Graph, num_forward_outputs: int) -> None:
    """In place, in a joint graph of forward and backward."""
    (output,) = graph.find_nodes(op="output")
    primals = [node for node in graph.find_nodes(op="placeholder") if str(node.target).startswith("primals")]
    results: list[Any] = list(output.args[0])
    gradients = results[num_forward_outputs:]
    if len(gradients) != len(primals) or not has_convolutions(graph):
        return
    for k, (primal, gradient) in enumerate(zip(primals, gradients), num_forward_outputs):
        if isinstance(gradient, fx.Node) and needs_layout(primal, gradient):
            results[k] = laid_out(graph, output, primal.meta["val"], gradient)
    output.args = (tuple(results),)


def has_convolutions(graph: fx.Graph) -> bool:
    return any(graph.find_nodes(op="call_function", target=aten.convolution_backward.default))


def needs_layout(primal: fx.Node, gradient: fx.Node) -> bool:
    """Whether a gradient has other strides than its input, and the input lies dense in memory."""
    was, now = primal.meta.get("val"), gradient.meta.get("val")
    if not isinstance(was, Tensor) or not isinstance(now, Tensor) or was.shape != now.shape:
        return False
    if not from_convolution(gradient):
        return not equal_strides(was, now) and is_dense(was)
    return was.stride() != now.stride() and is_dense(was)


def is_dense(x: Tensor) -> bool:
    """Whether a copy in its order of memory has its strides (x: a fake tensor)."""
    with fake_mode_of(x), torch.no_grad():
        return equal_strides(x, in_order(torch.empty(x.shape, device=x.device), order_of_memory(x)))


def fake_mode_of(x: Tensor) -> Any:
    return detect_fake_mode([x])


def from_convolution(gradient: fx.Node) -> list[fx.Node]:
    """The convolution_backward whose result this is, that result, and its casts; none where others use them too."""
    chain: list[Any] = [gradient]
    while chain[0].target in CASTS and "memory_format" not in chain[0].kwargs:
        chain.insert(0, chain[0].all_input_nodes[0])
    source: Any = chain[0].args[0] if chain[0].target is operator.getitem else None
    if source is None or source.target is not aten.convolution_backward.default:
        return []
    return [source, *chain] if all(len(node.users) == 1 for node in chain) else []


def laid_out(graph: fx.Graph, output: fx.Node, primal: Tensor, gradient: fx.Node) -> fx.Node:
    """The gradient in the primal's strides."""
    value, chain = gradient.meta["val"], from_convolution(gradient)
    if chain:
        source, result, *_ = chain
        for node in chain[1:]:
            was = node.meta["val"]
            with fake_mode_of(value):
                stated = torch.empty_strided(was.shape, primal.stride(), dtype=was.dtype, device=was.device)
            node.meta["val"] = stated
        vals = list(source.meta["val"])
        vals[result.args[1]] = result.meta["val"]  # pyright: ignore
        source.meta["val"] = tuple(vals)
        return gradient
    order = order_of_memory(primal)
    back = sorted(range(len(order)), key=order.__getitem__)
    steps: tuple[Any, ...] = (
        (aten.permute.default, (order,), {}),
        (aten.clone.default, (), {"memory_format": torch.contiguous_format}),
        (aten.permute.default, (back,), {}),
    )
    with graph.inserting_before(output), fake_mode_of(value), torch.no_grad():
        for target, rest, kwargs in steps:
            made = graph.call_function(target, (gradient, *rest), kwargs)
            made.meta["val"] = target(gradient.meta["val"], *rest, **kwargs)
            gradient = made
    return gradient
