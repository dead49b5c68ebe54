"""Convolutions whose channels come in groups: every group is a convolution of its own.

The channels of a tensor are taken apart into groups and channels of one group, [batch, groups, channels, ...]; the
group is then one more axis of a sum of products. Depthwise convolutions (`depthwise_convolutions`) have one channel
a group and are sums over a window, not matrix products.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    BufferView,
    Contract,
    Expr,
    Map,
    Size,
    strided_index,
)
from compiler_bridge.lower.depthwise_convolutions import (
    depthwise_convolution,
    depthwise_input_gradient,
    depthwise_weight_gradient,
    is_regular,
)
from compiler_bridge.lower.input_gradient import convolution_input_gradient, in_groups
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    both,
    cast,
    constant,
    dtype_name,
    index_expr,
    real_axes,
    sizes,
)
from compiler_bridge.lower.reductions import reduce_value
from compiler_bridge.lower.window import Window, input_places, padded, window_load, window_of
from compiler_bridge.ops import compute_dtype, dtype_kind


def lower_grouped_convolution(lowering: Lowering, node: fx.Node) -> Any:
    source, weight, bias, *steps, transposed, _, groups = node.args
    x, w = lowering.view(source), lowering.view(weight)
    window = window_of(lowering, steps, len(x.shape) - 2)
    forward = grouped_input_gradient if transposed else grouped_convolution
    result = forward(lowering, node.meta["val"], x, w, window, int(groups))  # pyright: ignore
    return result if bias is None else add_bias(lowering, node.meta["val"], result, bias)


def lower_grouped_convolution_backward(lowering: Lowering, node: fx.Node) -> Any:
    """The gradients of a transposed convolution are those of the convolution it is the input gradient of, with
    the parts of input and output exchanged."""
    gradient, source, weight, _, *steps, transposed, _, groups, wanted = node.args
    grad, x, w = (lowering.view(arg) for arg in (gradient, source, weight))
    window = window_of(lowering, steps, len(x.shape) - 2)
    vals, flags, groups = node.meta["val"], list(wanted), int(groups)  # pyright: ignore
    backward, small, large = (
        (grouped_convolution, x, grad) if transposed else (grouped_input_gradient, grad, x)
    )
    return (
        backward(lowering, vals[0], grad, w, window, groups) if flags[0] else None,
        grouped_weight_gradient(lowering, vals[1], small, large, window, groups) if flags[1] else None,
        bias_gradient(lowering, vals[2], grad) if flags[2] else None,
    )


def add_bias(lowering: Lowering, val: torch.Tensor, result: BufferView, bias: Any) -> BufferView:
    """result[n, o, y] + bias[o]"""
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        return apply("add", lowering.load_view(result, axes), lowering.operand(bias, (axes[1],), dtype))

    return lowering.map(val, value)


def bias_gradient(lowering: Lowering, val: torch.Tensor, grad: BufferView) -> BufferView:
    """db[o] = sum over n, y of grad[n, o, y]"""
    dims = [k for k in range(len(grad.shape)) if k != 1]
    return reduce_value(lowering, val, grad, dims, False, "sum", lambda axes: lowering.load_view(grad, axes))


# ---------------------------------------------------------------- sums of products with an axis of groups


def grouped_convolution(
    lowering: Lowering, val: torch.Tensor, x: BufferView, w: BufferView, window: Window, groups: int
) -> BufferView:
    """out[n, g, o, y] = sum over c, d of input[n, g, c, y * stride + d * dilation - padding] * weight[g, o, c, d]"""
    x, w = in_groups(x, 1, groups), in_groups(w, 0, groups)
    if w.shape[2] == 1:
        return depthwise_convolution(lowering, val, without(x, 2), without(w, 2), window)
    batch, *places = axes_of((val.shape[0], *sizes(val.shape[2:])))
    group, out, channel, taps = weight_axes(w.shape)
    index = input_places(window, places, taps)
    left = window_load(lowering, x, [batch, group, channel], index, padded(window))
    right = lowering.load_view(w, [group, out, channel, *taps])
    axes = (batch, group, out, *places)
    return sum_of_products(lowering, val, 1, axes, (channel, *taps), left, right)


def grouped_input_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window, groups: int
) -> BufferView:
    """dx[n, g, c, y] = sum over o, d of grad[n, g, o, (y + padding - d * dilation) / stride] * weight[g, o, c, d]"""
    if w.shape[1] == 1:
        return depthwise_gradient(lowering, val, grad, without(in_groups(w, 0, groups), 2), window, groups)
    return convolution_input_gradient(lowering, val, grad, w, window, groups)


def grouped_weight_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, x: BufferView, window: Window, groups: int
) -> BufferView:
    """dw[g, o, c, d] = sum over n, y of grad[n, g, o, y] * input[n, g, c, y * stride + d * dilation - padding]"""
    grad, x = in_groups(grad, 1, groups), in_groups(x, 1, groups)
    if val.shape[1] == 1:
        return depthwise_weight_gradient(lowering, val, grad, without(x, 2), window)
    batch, *places = axes_of((grad.shape[0], *grad.shape[3:]), "y")
    shape = (groups, grad.shape[2], *sizes(val.shape[1:]))
    group, out, channel, taps = weight_axes(shape)
    index = input_places(window, places, taps)
    left = lowering.load_view(grad, [batch, group, out, *places])
    right = window_load(lowering, x, [batch, group, channel], index, padded(window))
    axes = (group, out, channel, *taps)
    return sum_of_products(lowering, val, 0, axes, (batch, *places), left, right)


def spread_gradient(lowering: Lowering, grad: BufferView, stride: list[Size]) -> BufferView:
    """[batch, channels, height, width] -> [batch, channels, height * stride, width * stride], zeros between"""
    if all(step == 1 for step in stride):
        return grad
    steps: list[Size] = [1, 1, *stride]
    shape = [extent * step for extent, step in zip(grad.shape, steps)]
    buffer = lowering.new_buffer(shape, lowering.graph.buffers[grad.buffer].dtype)
    axes, between = axes_of(grad.shape), axes_of(steps, "r")
    value = lowering.load_view(grad, axes)
    first: Expr | None = None
    for axis in real_axes(between):
        first = both(first, apply("eq", index_expr(axis), constant(0, "int64")))
    assert first is not None
    value = apply("where", first, value, constant(0, value.dtype))
    coarse = [step * s for step, s in zip(steps, buffer.strides)]
    store = strided_index(axes, coarse) + strided_index(between, buffer.strides)
    loops = tuple(axis for pair in zip(axes, between) for axis in pair)
    lowering.append(Map(buffer.name, lowering.origin(), real_axes(loops), store, value))
    return lowering.whole(buffer)


def depthwise_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window, groups: int
) -> BufferView:
    if not is_regular(val, window):
        grad, window = (
            spread_gradient(lowering, grad, window.stride),
            replace(window, stride=[1] * len(window.stride)),
        )
    return depthwise_input_gradient(lowering, val, in_groups(grad, 1, groups), w, window)


def without(view: BufferView, dim: int) -> BufferView:
    """The view without a dimension of extent 1."""
    shape, strides = list(view.shape), list(view.strides)
    del shape[dim], strides[dim]
    return replace(view, shape=tuple(shape), strides=tuple(strides))


def weight_axes(shape: tuple[Size, ...]) -> tuple[Axis, Axis, Axis, list[Axis]]:
    """group, channel of the output, channel of the input, taps"""
    group, out, channel, *taps = shape
    return Axis("g", group), Axis("o", out), Axis("c", channel), list(axes_of(taps, "w"))


def sum_of_products(
    lowering: Lowering,
    val: torch.Tensor,
    dim: int,
    axes: tuple[Axis, ...],
    reduced: tuple[Axis, ...],
    lhs: Expr,
    rhs: Expr,
) -> BufferView:
    """val[axes] = sum over `reduced` of lhs * rhs, where dimension `dim` of val is the axes of groups and channels."""
    dtype = compute_dtype(dtype_name(val.dtype))
    if dtype_kind(dtype) != "float":
        raise NoLowering(f"convolution of {val.dtype}")
    buffer = lowering.buffer_like(val, dtype)
    store = strided_index(axes, in_groups(lowering.whole(buffer), dim, axes[dim].extent).strides)
    lhs, rhs = cast(lhs, dtype), cast(rhs, dtype)
    node = Contract(buffer.name, lowering.origin(), real_axes(axes), real_axes(reduced), store, lhs, rhs)
    lowering.append(node)
    wide = lowering.whole(buffer)
    if buffer.dtype == dtype_name(val.dtype):
        return wide
    return lowering.map(val, lambda a: lowering.load_view(wide, a))
