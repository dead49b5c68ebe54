"""The gradient of a convolution's input, which is also what a transposed convolution computes."""

from __future__ import annotations

from dataclasses import replace

import torch

from compiler_bridge.ir import (
    Axis,
    Buffer,
    BufferView,
    Size,
    size_equal,
    strided_index,
)
from compiler_bridge.lower.contractions import contract_into
from compiler_bridge.lower.lowering import (
    Lowering,
    axes_of,
    dtype_name,
    sizes,
)
from compiler_bridge.lower.narrow_gradients import fills_few_lanes, narrow_input_gradient
from compiler_bridge.lower.phases import Phase, load_by_phases
from compiler_bridge.lower.window import Window
from compiler_bridge.ops import compute_dtype


def in_groups(view: BufferView, dim: int, groups: int) -> BufferView:
    """The view with its channels, dimension `dim`, taken apart into groups and the channels of a group.

    ATen has checked that groups divide the channels, also where their number is known only at run time.
    """
    extent, stride = view.shape[dim], view.strides[dim]
    channels = extent // groups
    shape = (*view.shape[:dim], groups, channels, *view.shape[dim + 1 :])
    strides = (*view.strides[:dim], stride * channels, stride, *view.strides[dim + 1 :])
    return replace(view, shape=shape, strides=strides)


def convolution_input_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window, groups: int = 1
) -> BufferView:
    """dx[n, g, c, y] = sum over o, d of grad[n, g, o, (y + padding - d * dilation) / stride] * weight[g, o, c, d]

    where that is a whole number. With t = d * dilation - padding and y = stride * step + phase it is
    step - floor(t / stride), if the phase is what t leaves of the stride.
    """
    if groups == 1 and fills_few_lanes(w, window):
        return narrow_input_gradient(lowering, val, grad, w, window)
    grad, w = in_groups(grad, 1, groups), in_groups(w, 0, groups)
    batch, *places = axes_of(sizes((val.shape[0], *val.shape[2:])))
    group, out, channel = (Axis(name, extent) for name, extent in zip("goc", w.shape[:3]))
    taps = [Axis(f"w{k}", extent) for k, extent in enumerate(w.shape[3:])]
    phases = [Phase.of(place, stride) for place, stride in zip(places, window.stride)]
    left = load_by_phases(lowering, grad, [batch, group, out], phases, taps, window)
    right = lowering.load_view(w, [group, out, channel, *taps])
    order = (group, batch, *(p.phase for p in phases), *(p.step for p in phases), channel)
    whole = [p.step.extent * p.phase.extent for p in phases]
    dtype = compute_dtype(dtype_name(val.dtype))
    exact = all(size_equal(extent, place.extent) for extent, place in zip(whole, places))
    # channels that lie side by side in the gradient are read so, and written so
    exact = exact and (grad.strides[2] != 1 or val.stride(1) == 1)
    buffer = lowering.buffer_like(val, dtype) if exact else channels_last(lowering, val, whole, dtype)
    step = buffer.strides[1]
    store = strided_index([batch, group, channel], [buffer.strides[0], step * channel.extent, step])
    for phase, stride in zip(phases, buffer.strides[2:]):
        store = store + phase.index.scaled(stride)
    made = contract_into(lowering, buffer, order, (out, *taps), left, right, store)
    if exact and dtype == dtype_name(val.dtype):
        return made
    return lowering.map(val, lambda axes: lowering.load_view(made, axes))


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
