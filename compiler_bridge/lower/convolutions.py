"""Convolution and its two gradients: one Contract each, whose access is affine; no im2col buffer exists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    Buffer,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Load,
    Size,
    Value,
    size_equal,
    strided_index,
)
from compiler_bridge.lower.contractions import contract, contract_into, contract_wide, sizes_of
from compiler_bridge.lower.lowering import (
    Lowering,
    apply,
    axes_of,
    both,
    constant,
    dtype_name,
    lowers,
    real_axes,
    sizes,
)
from compiler_bridge.lower.narrow_convolutions import (
    Rows,
    is_narrow,
    narrow_input,
    narrow_weight,
    narrow_weight_gradient,
)
from compiler_bridge.lower.reductions import reduce_value
from compiler_bridge.lower.window import Window, affine, input_places, padded, window_load, window_of
from compiler_bridge.ops import compute_dtype


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
    if is_narrow(x, w, window):
        rows = Rows.of(taps, x.shape[1])
        left = narrow_input(lowering, x, window, batch, places, rows)
        right, summed = narrow_weight(lowering, w, out, rows), (*rows.leading, rows.run)
    else:
        left = window_load(lowering, x, [batch, channel], input_places(window, places, taps), padded(window))
        right, summed = lowering.load_view(w, [out, channel, *taps]), (channel, *taps)
    product = contract_wide if bias is not None else contract
    result = product(lowering, val, (batch, out, *places), summed, left, right)
    if bias is None:
        return result
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        return apply("add", lowering.load_view(result, axes), lowering.operand(bias, (axes[1],), dtype))

    return lowering.map(val, value)


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
    of_weight = narrow_weight_gradient if is_narrow(x, w, window) else convolution_weight_gradient
    weight_gradient = of_weight(lowering, vals[1], grad, x, window) if flags[1] else None
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
    """dw[o, c, d] = sum over n, y of grad[n, o, y] * input[n, c, y * stride + d * dilation - padding]

    Made as [o, d, c], so that the channels, which lie side by side in a channels-last input, do so in the product.
    """
    out, channel, *taps = axes_of(sizes(val.shape))
    batch = Axis("n", grad.shape[0])
    places = [Axis(f"y{k}", extent) for k, extent in enumerate(grad.shape[2:])]
    left = lowering.load_view(grad, [batch, out, *places])
    right = window_load(lowering, x, [batch, channel], input_places(window, places, taps), padded(window))
    if x.strides[1] != 1 or not real_axes(taps):
        return contract(lowering, val, (out, channel, *taps), (batch, *places), left, right)
    dtype = compute_dtype(dtype_name(val.dtype))
    taps_inside = lowering.new_buffer([axis.extent for axis in (out, *taps, channel)], dtype)
    made = contract_into(lowering, taps_inside, (out, *taps, channel), (batch, *places), left, right)

    def value(axes: tuple[Axis, ...]) -> Expr:
        return lowering.load_view(made, (axes[0], *axes[2:], axes[1]))

    return lowering.map(val, value)


@dataclass(frozen=True)
class Phase:
    """One dimension of the input's gradient: y = stride * step + phase, so that the taps which reach y depend on
    the phase alone."""

    step: Axis
    phase: Axis
    index: Index

    @staticmethod
    def of(place: Axis, stride: Size) -> Phase:
        if stride == 1:
            return Phase(place, Axis(f"{place.name}r", 1), affine(place, 1))
        steps = (place.extent + stride - 1) // stride
        step, phase = Axis(f"{place.name}s", steps), Axis(f"{place.name}r", stride)
        return Phase(step, phase, affine(step, stride) + affine(phase, 1))


def convolution_input_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window
) -> BufferView:
    """dx[n, c, y] = sum over o, d of grad[n, o, (y + padding - d * dilation) / stride] * weight[o, c, d]

    where that is a whole number. With t = d * dilation - padding and y = stride * step + phase it is
    step - floor(t / stride), if the phase is what t leaves of the stride.
    """
    batch, channel, *places = axes_of(sizes(val.shape))
    out = Axis("o", grad.shape[1])
    taps = [Axis(f"w{k}", extent) for k, extent in enumerate(w.shape[2:])]
    phases = [Phase.of(place, stride) for place, stride in zip(places, window.stride)]
    found = [
        source_place(phase, affine(tap, dilation, -padding), stride)
        for phase, tap, dilation, padding, stride in zip(
            phases, taps, window.dilation, window.padding, window.stride
        )
    ]
    index = [place for place, _ in found]
    left = window_load(lowering, grad, [batch, out], index, [True] * len(places))
    assert isinstance(left, Load)
    for _, fits in found:
        left = replace(left, mask=both(left.mask, fits)) if fits is not None else left
    right = lowering.load_view(w, [out, channel, *taps])
    order = (batch, *(p.phase for p in phases), *(p.step for p in phases), channel)
    whole = [p.step.extent * p.phase.extent for p in phases]
    dtype = compute_dtype(dtype_name(val.dtype))
    exact = all(size_equal(extent, place.extent) for extent, place in zip(whole, places))
    buffer = lowering.buffer_like(val, dtype) if exact else channels_last(lowering, val, whole, dtype)
    store = strided_index([batch, channel], buffer.strides)
    for phase, stride in zip(phases, buffer.strides[2:]):
        store = store + phase.index.scaled(stride)
    made = contract_into(lowering, buffer, order, (out, *taps), left, right, store)
    if exact and dtype == dtype_name(val.dtype):
        return made
    return lowering.map(val, lambda axes: lowering.load_view(made, axes))


def source_place(phase: Phase, t: Index, stride: Size) -> tuple[Index, Expr | None]:
    """step - floor(t / stride), and the condition that the phase is what t leaves of the stride."""
    if stride == 1:
        return affine(phase.step, 1) + t.scaled(-1), None
    quotient = apply("floor_divide", IndexValue("int64", t), constant(stride, "int64"))
    rest = apply("remainder", IndexValue("int64", t), constant(stride, "int64"))
    place = affine(phase.step, 1) + Index(((Value(quotient), -1),))
    return place, apply("eq", IndexValue("int64", affine(phase.phase, 1)), rest)


def channels_last(lowering: Lowering, val: torch.Tensor, places: list[Size], dtype: str) -> Buffer:
    """[batch, channels, *places] with the channels innermost"""
    batch, channels = sizes(val.shape)[:2]
    strides: list[Size] = [channels]
    for extent in reversed(places):
        strides.insert(
            0, strides[0] * extent
        )  # of the batch and each place but the last, whose own is channels
    shape = [batch, channels, *places]
    return lowering.new_buffer(shape, dtype, [strides[0], 1, *strides[1:]])
