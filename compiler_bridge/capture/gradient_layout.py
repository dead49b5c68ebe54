"""Gradients of a graph's inputs lie in memory as the inputs do.

A convolution that works channels-last makes channels-last gradients of its weight too, and autograd would copy them
when it accumulates them. The lowering writes a result in whatever strides the graph states, so that of a
convolution's gradient they are simply stated; any other is copied.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode

from compiler_bridge.capture.layout import equal_strides, in_order, order_of_memory

aten = torch.ops.aten


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
    if of_convolution(gradient) is None:
        return not equal_strides(was, now) and is_dense(was)
    return was.stride() != now.stride() and is_dense(was)


def is_dense(x: Tensor) -> bool:
    """Whether a copy in its order of memory has its strides (x: a fake tensor)."""
    with fake_mode_of(x), torch.no_grad():
        return equal_strides(x, in_order(torch.empty(x.shape, device=x.device), order_of_memory(x)))


def fake_mode_of(x: Tensor) -> Any:
    return detect_fake_mode([x])


def of_convolution(gradient: fx.Node) -> fx.Node | None:
    """The convolution_backward whose result this is, where nothing else uses it."""
    source: Any = gradient.args[0] if gradient.target is operator.getitem else None
    made = source is not None and source.target is aten.convolution_backward.default
    return source if made and len(gradient.users) == 1 else None


def laid_out(graph: fx.Graph, output: fx.Node, primal: Tensor, gradient: fx.Node) -> fx.Node:
    """The gradient in the primal's strides."""
    value, source = gradient.meta["val"], of_convolution(gradient)
    if source is not None:
        with fake_mode_of(value):
            stated = torch.empty_strided(value.shape, primal.stride(), dtype=value.dtype, device=value.device)
        vals = list(source.meta["val"])
        vals[gradient.args[1]] = stated  # pyright: ignore
        source.meta["val"], gradient.meta["val"] = tuple(vals), stated
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
