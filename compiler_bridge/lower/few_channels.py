"""Convolutions of groups with few channels, depthwise ones above all: direct sums over windows (`window.py`).

The sums run in vectors along the groups, so these come last in every operand. The weight, small, is copied with its
taps first; a tensor in which groups do not lie side by side is copied, too (none is for a depthwise convolution in
channels_last).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compiler_bridge.ir import (
    Axis,
    Buffer,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Map,
    Size,
    Value,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    apply,
    axes_of,
    both,
    constant,
    index_expr,
    real_axes,
    sizes,
)
from compiler_bridge.lower.placement import shifted_load
from compiler_bridge.lower.window import Window, affine

MOST_PRODUCTS, PRODUCTS_PER_LANE = 128, 16
"""Pairs of an input and an output channel in a group: above, matrix products were measured to be faster (8 by 8
channels took them 2 to 3 times as long as direct sums, 16 by 16 as long)."""


def is_direct(*operands: BufferView) -> bool:
    """Whether groups are summed directly, one a lane: fewer lanes are worth fewer channels.

    Args:  operands: [groups, outputs, inputs, ...], or two of [batch, groups, channels, ...]
    """
    if len(operands) == 1:
        groups, products = operands[0].shape[0], operands[0].shape[1] * operands[0].shape[2]
    else:
        groups, products = operands[0].shape[1], operands[0].shape[2] * operands[1].shape[2]
    known = isinstance(groups, int) and isinstance(products, int)
    return known and groups > 1 and products <= min(MOST_PRODUCTS, PRODUCTS_PER_LANE * groups)


@dataclass(frozen=True)
class Reached:
    """Along one dimension: the axes of a place of the input (with what the place moves by along each), the axis of
    the taps that reach it, and which tap and which place of the output they are."""

    axes: tuple[Axis, ...]
    steps: tuple[Size, ...]
    tap_axis: Axis
    tap: Index
    place: Index

    def room(self) -> Size:
        """Taps that are counted, those that do not exist too."""
        return self.tap_axis.extent * self.steps[0]


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


def inside(reached: list[Reached], places: Sequence[Size], taps: Sequence[Size]) -> Expr | None:
    """Whether place and tap exist."""
    mask: Expr | None = None
    for each, extent, count in zip(reached, places, taps):
        place = IndexValue("int64", each.place)
        mask = both(mask, apply("ge", place, constant(0, "int64")))
        mask = both(mask, apply("lt", place, constant(extent, "int64")))
        if len(each.axes) > 1:
            mask = both(mask, apply("lt", IndexValue("int64", each.tap), constant(count, "int64")))
    return mask


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


# ---------------------------------------------------------------- layouts


def groups_beside(lowering: Lowering, view: BufferView) -> BufferView:
    """[batch, groups, channels, ...]: itself where its groups lie side by side, else a copy in which they do."""
    if view.strides[1] == 1:
        return view
    order = [0, *range(3, len(view.shape)), 2, 1]
    buffer = buffer_in_order(lowering, view.shape, lowering.graph.buffers[view.buffer].dtype, order)
    return lowering.map_into(buffer, lambda axes: lowering.load_view(view, axes))


def taps_first(lowering: Lowering, w: BufferView, room: Sequence[Size]) -> BufferView:
    """A copy of [groups, outputs, inputs, taps ...] with its groups side by side and zeros for further taps."""
    rank = len(w.shape)
    dtype = lowering.graph.buffers[w.buffer].dtype
    buffer = buffer_in_order(lowering, (*w.shape[:3], *room), dtype, [*range(1, rank), 0])
    return lowering.map_into(
        buffer, lambda axes: shifted_load(lowering, w, axes, {k: 0 for k in range(3, rank)})
    )


def buffer_in_order(lowering: Lowering, shape: tuple[Size, ...], dtype: str, order: list[int]) -> Buffer:
    """A new buffer whose dimensions lie in memory in this order, slowest first."""
    strides: list[Size] = [0] * len(shape)
    stride: Size = 1
    for k in reversed(order):
        strides[k] = stride
        stride = stride * (1 if shape[k] == 0 else shape[k])
    return lowering.new_buffer(shape, dtype, strides)
