"""Convolution and its two gradients: one Contract each, whose access is affine; no im2col buffer exists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import Axis, BufferView, Expr, Index, IndexValue, Load, Map, Size, strided_index
from compiler_bridge.lower.contractions import contract, contract_wide, sizes_of
from compiler_bridge.lower.lowering import (
    Lowering,
    apply,
    axes_of,
    both,
    constant,
    dtype_name,
    index_expr,
    lowers,
    real_axes,
    sizes,
)
from compiler_bridge.lower.reductions import reduce_value
from compiler_bridge.ops import compute_dtype


@dataclass(frozen=True)
class Window:
    """stride, padding and dilation of a convolution, one number a spatial dimension."""

    stride: list[Size]
    padding: list[Size]
    dilation: list[Size]


def window_of(lowering: Lowering, arguments: Any, spatial: int) -> Window:
    stride, padding, dilation = (
        [lowering.size_of(step) for step in steps] * (spatial if len(steps) == 1 else 1)
        for steps in arguments
    )
    return Window(stride, padding, dilation)


def affine(axis: Axis, factor: Size, const: Size = 0) -> Index:
    """factor * axis + const; an axis of extent 1 is 0."""
    return Index((), const) if axis.extent == 1 else Index(((axis.name, factor),), const)


def window_load(
    lowering: Lowering, x: BufferView, lead: list[Axis], places: list[Index], padded: list[bool]
) -> Expr:
    """x[lead..., places...], and 0 outside of x along the padded dimensions."""
    mask: Expr | None = None
    for place, extent, checked in zip(places, x.shape[len(lead) :], padded):
        if checked:
            position = IndexValue("int64", place)
            mask = both(mask, apply("ge", position, constant(0, "int64")))
            mask = both(mask, apply("lt", position, constant(extent, "int64")))
    load = lowering.load_view(x, [*lead, *places])
    assert isinstance(load, Load)
    return replace(load, mask=mask)


@lowers("aten.convolution")
def lower_convolution(lowering: Lowering, node: fx.Node) -> Any:
    """out[n, o, y] = bias[o] + sum over c, d of input[n, c, y * stride + d * dilation - padding] * weight[o, c, d]

    where y and d stand for all spatial dimensions.
    """
    source, weight, bias, *steps, transposed, _, groups = node.args
    if transposed or groups != 1:
        from compiler_bridge.lower.grouped_convolutions import lower_grouped_convolution

        return lower_grouped_convolution(lowering, node)
    x, w = lowering.view(source), lowering.view(weight)
    val = node.meta["val"]
    window = window_of(lowering, steps, len(x.shape) - 2)
    batch, out, *places = axes_of(sizes_of(node))
    channel = Axis("c", x.shape[1])
    taps = [Axis(f"w{k}", extent) for k, extent in enumerate(w.shape[2:])]
    left = window_load(lowering, x, [batch, channel], input_places(window, places, taps), padded(window))
    right = lowering.load_view(w, [out, channel, *taps])
    product = contract_wide if bias is not None else contract
    result = product(lowering, val, (batch, out, *places), (channel, *taps), left, right)
    if bias is None:
        return result
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        return apply("add", lowering.load_view(result, axes), lowering.operand(bias, (axes[1],), dtype))

    return lowering.map(val, value)


def input_places(window: Window, places: list[Axis], taps: list[Axis]) -> list[Index]:
    """y * stride + d * dilation - padding"""
    return [
        affine(place, stride) + affine(tap, dilation, -padding)
        for place, tap, stride, dilation, padding in zip(
            places, taps, window.stride, window.dilation, window.padding
        )
    ]


def padded(window: Window) -> list[bool]:
    return [padding != 0 for padding in window.padding]


@lowers("aten.convolution_backward")
def lower_convolution_backward(lowering: Lowering, node: fx.Node) -> Any:
    gradient, source, weight, _, *steps, transposed, _, groups, wanted = node.args
    if transposed or groups != 1:
        from compiler_bridge.lower.grouped_convolutions import lower_grouped_convolution_backward

        return lower_grouped_convolution_backward(lowering, node)
    grad, x, w = (lowering.view(arg) for arg in (gradient, source, weight))
    window = window_of(lowering, steps, len(x.shape) - 2)
    vals, flags = node.meta["val"], list(wanted)  # pyright: ignore
    input_gradient = convolution_input_gradient(lowering, vals[0], grad, w, window) if flags[0] else None
    weight_gradient = convolution_weight_gradient(lowering, vals[1], grad, x, window) if flags[1] else None
    bias_gradient = None
    if flags[2]:
        dims = [k for k in range(len(grad.shape)) if k != 1]

        def value(axes: tuple[Axis, ...]) -> Expr:
            return lowering.load_view(grad, axes)

        bias_gradient = reduce_value(lowering, vals[2], grad, dims, False, "sum", value)
    return input_gradient, weight_gradient, bias_gradient


def convolution_weight_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, x: BufferView, window: Window
) -> BufferView:
    """dw[o, c, d] = sum over n, y of grad[n, o, y] * input[n, c, y * stride + d * dilation - padding]"""
    out, channel, *taps = axes_of(sizes(val.shape))
    batch = Axis("n", grad.shape[0])
    places = [Axis(f"y{k}", extent) for k, extent in enumerate(grad.shape[2:])]
    left = lowering.load_view(grad, [batch, out, *places])
    right = window_load(lowering, x, [batch, channel], input_places(window, places, taps), padded(window))
    return contract(lowering, val, (out, channel, *taps), (batch, *places), left, right)


def convolution_input_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window
) -> BufferView:
    """dx[n, c, y] = sum over o, d of spread[n, o, y + padding - d * dilation] * weight[o, c, d]

    spread[n, o, stride * y] = grad[n, o, y] and 0 between.
    """
    spread = spread_gradient(lowering, grad, window.stride)
    batch, channel, *places = axes_of(sizes(val.shape))
    out = Axis("o", grad.shape[1])
    taps = [Axis(f"w{k}", extent) for k, extent in enumerate(w.shape[2:])]
    index = [
        affine(place, 1) + affine(tap, -dilation, padding)
        for place, tap, dilation, padding in zip(places, taps, window.dilation, window.padding)
    ]
    left = window_load(lowering, spread, [batch, out], index, [True] * len(places))
    right = lowering.load_view(w, [out, channel, *taps])
    return contract(lowering, val, (batch, channel, *places), (out, *taps), left, right)


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
