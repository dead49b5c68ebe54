"""Depthwise convolutions: every group has one input channel, and a sum over the window takes no matrix product.

The sums (`window.py`) run in vectors along the channels, so these come last in every operand: the weight, small, is
copied with its taps first, and a tensor in another layout is copied as channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from compiler_bridge.ir import (
    Axis,
    Buffer,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Load,
    Reduce,
    Size,
    Value,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    both,
    cast,
    constant,
    dtype_name,
    real_axes,
    sizes,
)
from compiler_bridge.lower.placement import shifted_load
from compiler_bridge.lower.window import Window, affine, input_places, padded, window_load
from compiler_bridge.ops import compute_dtype, dtype_kind


def depthwise_convolution(
    lowering: Lowering, val: torch.Tensor, x: BufferView, w: BufferView, window: Window
) -> BufferView:
    """out[n, g, o, y] = sum over d of input[n, g, y * stride + d * dilation - padding] * weight[g, o, d]"""
    batch, *places = axes_of((val.shape[0], *sizes(val.shape[2:])))
    group, out, taps = weight_axes(w)
    index = input_places(window, places, taps)
    left = window_load(lowering, channels_side_by_side(lowering, x), [batch, group], index, padded(window))
    right = lowering.load_view(taps_first(lowering, w, w.shape[2:]), [group, out, *taps])
    moves: list[Move] = [(batch, 0, 1), (group, 1, out.extent), (out, 1, 1)]
    moves += [(place, k, 1) for k, place in enumerate(places, 2)]
    return sum_over_windows(lowering, val, moves, taps, left, right)


def depthwise_weight_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, x: BufferView, window: Window
) -> BufferView:
    """dw[g, o, d] = sum over n, y of grad[n, g, o, y] * input[n, g, y * stride + d * dilation - padding]"""
    batch, *places = axes_of((grad.shape[0], *grad.shape[3:]), "y")
    group, out, taps = weight_axes(BufferView("", (*grad.shape[1:3], *sizes(val.shape[2:])), ()))
    index = input_places(window, places, taps)
    left = lowering.load_view(channels_side_by_side(lowering, grad), [batch, group, out, *places])
    right = window_load(lowering, channels_side_by_side(lowering, x), [batch, group], index, padded(window))
    moves: list[Move] = [(group, 0, out.extent), (out, 0, 1)]
    moves += [(tap, k, 1) for k, tap in enumerate(taps, 2)]
    return sum_over_windows(lowering, val, moves, [batch, *places], left, right)


@dataclass(frozen=True)
class Reached:
    """Along one dimension: the axes of a place of the input (with what the place moves by along each), the axis of
    the taps that reach it, and which tap and which place of the output they are."""

    axes: tuple[Axis, ...]
    steps: tuple[Size, ...]
    tap_axis: Axis
    tap: Index
    place: Index


def reached_by(k: int, extent: Size, taps: Size, stride: Size, padding: Size, dilation: Size) -> Reached:
    """place = y + padding - tap * dilation; with a stride, y = stride * i + r is reached by every stride-th tap:

    tap = stride * w + (r + padding) % stride, place = i - w + (r + padding) // stride
    """
    if stride == 1:
        axis, tap = Axis(f"i{k}", extent), Axis(f"w{k}", taps)
        return Reached((axis,), (1,), tap, affine(tap, 1), affine(axis, 1) + affine(tap, -dilation, padding))
    axis, rest = Axis(f"i{k}", extent // stride), Axis(f"r{k}", stride)
    tap = Axis(f"w{k}", -(-taps // stride))
    moved = IndexValue("int64", affine(rest, 1, padding))
    first, carried = (
        Index(((Value(apply(op, moved, constant(stride, "int64"))), 1),))
        for op in ("remainder", "floor_divide")
    )
    if isinstance(padding, int) and padding % stride == 0:
        first, carried = affine(rest, 1), Index((), padding // stride)
    elif isinstance(padding, int) and stride == 2:  # of r and r + 1 one is even
        first, carried = affine(rest, -1, 1), affine(rest, 1, padding // 2)
    place = affine(axis, 1) + affine(tap, -1) + carried
    return Reached((axis, rest), (stride, 1), tap, affine(tap, stride) + first, place)


def is_regular(val: torch.Tensor, window: Window) -> bool:
    """Whether the places that every tap reaches are a whole number of strides, as `reached_by` has it."""
    steps = zip(sizes(val.shape[2:]), window.stride, window.dilation)
    return all(stride == 1 or (dilation == 1 and extent % stride == 0) for extent, stride, dilation in steps)


def depthwise_input_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window
) -> BufferView:
    """dx[n, g, y] = sum over o, d of grad[n, g, o, (y + padding - d * dilation) / stride] * weight[g, o, d]

    where the division leaves no remainder.
    """
    steps = zip(sizes(val.shape[2:]), w.shape[2:], window.stride, window.padding, window.dilation)
    reached = [reached_by(k, *step) for k, step in enumerate(steps)]
    batch = Axis("n", val.shape[0])
    group, out, _ = weight_axes(w)
    mask: Expr | None = None
    for each, extent, taps in zip(reached, grad.shape[3:], w.shape[2:]):
        place, tap = IndexValue("int64", each.place), IndexValue("int64", each.tap)
        mask = both(mask, apply("ge", place, constant(0, "int64")))
        mask = both(mask, apply("lt", place, constant(extent, "int64")))
        if len(each.axes) > 1:
            mask = both(mask, apply("lt", tap, constant(taps, "int64")))
    grad = channels_side_by_side(lowering, grad)
    left = lowering.load_view(grad, [batch, group, out, *(each.place for each in reached)])
    assert isinstance(left, Load)
    room = [each.tap_axis.extent * each.steps[0] for each in reached]
    right = lowering.load_view(taps_first(lowering, w, room), [group, out, *(each.tap for each in reached)])
    moves: list[Move] = [(batch, 0, 1), (group, 1, 1)]
    for k, each in enumerate(reached, 2):
        moves += [(axis, k, step) for axis, step in zip(each.axes, each.steps)]
    reduced = [out, *(each.tap_axis for each in reached)]
    return sum_over_windows(lowering, val, moves, reduced, replace(left, mask=mask), right)


# ---------------------------------------------------------------- layouts


def weight_axes(w: BufferView) -> tuple[Axis, Axis, list[Axis]]:
    """group, channel of the output, taps"""
    group, out, *taps = w.shape
    return Axis("g", group), Axis("o", out), list(axes_of(taps, "w"))


def channels_side_by_side(lowering: Lowering, view: BufferView) -> BufferView:
    """The view [batch, groups, ...] itself where its groups lie side by side, else a copy in which they do."""
    if view.strides[1] == 1:
        return view
    order = [0, *range(2, len(view.shape)), 1]
    buffer = buffer_in_order(lowering, view.shape, lowering.graph.buffers[view.buffer].dtype, order)
    return lowering.map_into(buffer, lambda axes: lowering.load_view(view, axes))


def taps_first(lowering: Lowering, w: BufferView, room: Sequence[Size]) -> BufferView:
    """A copy of the weight [groups, channels, taps ...] with its groups side by side and zeros for further taps."""
    rank = len(w.shape)
    shape = (*w.shape[:2], *room)
    dtype = lowering.graph.buffers[w.buffer].dtype
    buffer = buffer_in_order(lowering, shape, dtype, [*range(1, rank), 0])
    return lowering.map_into(
        buffer, lambda axes: shifted_load(lowering, w, axes, {k: 0 for k in range(2, rank)})
    )


def buffer_in_order(lowering: Lowering, shape: tuple[Size, ...], dtype: str, order: list[int]) -> Buffer:
    """A new buffer whose dimensions lie in memory in this order, slowest first."""
    strides: list[Size] = [0] * len(shape)
    stride: Size = 1
    for k in reversed(order):
        strides[k] = stride
        stride = stride * (1 if shape[k] == 0 else shape[k])
    return lowering.new_buffer(shape, dtype, strides)


Move = tuple[Axis, int, Size]
"""An axis, the dimension of the result along which it moves, and by how much."""


def sum_over_windows(
    lowering: Lowering, val: torch.Tensor, moves: list[Move], reduced: list[Axis], lhs: Expr, rhs: Expr
) -> BufferView:
    """val[moves] = sum over `reduced` of lhs * rhs"""
    dtype = compute_dtype(dtype_name(val.dtype))
    if dtype_kind(dtype) != "float":
        raise NoLowering(f"convolution of {val.dtype}")
    shape = sizes(val.shape)
    if any(dim == 1 for _, dim, _ in moves) and val.stride(1) != 1:
        buffer = buffer_in_order(lowering, shape, dtype, [0, *range(2, len(shape)), 1])
    else:
        buffer = lowering.buffer_like(val, dtype)
    axes = tuple(axis for axis, _, _ in moves)
    store = strided_index(axes, [buffer.strides[dim] * by for _, dim, by in moves])
    value = apply("mul", cast(lhs, dtype), cast(rhs, dtype))
    lowering.append(
        Reduce(buffer.name, lowering.origin(), real_axes(axes), real_axes(reduced), store, value, "sum")
    )
    result = lowering.whole(buffer)
    if buffer.strides == sizes(val.stride()) and buffer.dtype == dtype_name(val.dtype):
        return result
    return lowering.map(val, lambda a: lowering.load_view(result, a))
