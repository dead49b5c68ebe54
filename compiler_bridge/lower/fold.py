"""Windows laid out as columns (im2col, nn.Unfold), and the sum of columns where windows overlap (col2im, nn.Fold)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from compiler_bridge.ir import Axis, BufferView, Index, IndexValue, Map, Size, size_product, strided_index
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    both,
    compute_dtype_of,
    constant,
    dtype_name,
    lowers,
    real_axes,
    to_storage,
)
from compiler_bridge.lower.taps import Column, Table, adjoint, columns_of, known, sum_of_columns
from compiler_bridge.lower.window import Window, affine, input_places, padded, window_load

MOST_TERMS = 64  # windows that one element may lie in, written out


def images(view: BufferView) -> BufferView:
    """With a batch dimension."""
    if len(view.shape) == 4:
        return view
    return BufferView(view.buffer, (1, *view.shape), (0, *view.strides), view.offset)


def window(dilation: Any, padding: Any, stride: Any) -> Window:
    return Window(list(stride), list(padding), list(dilation))


@lowers("aten.im2col")
def lower_im2col(lowering: Lowering, node: fx.Node) -> Any:
    """out[n, (c, k), o] = x[n, c, o * stride + k * dilation - padding]"""
    source, kernel, dilation, padding, stride = node.args
    x, steps = images(lowering.view(source)), window(dilation, padding, stride)
    counts = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, d, p, s in zip(x.shape[2:], kernel, dilation, padding, stride)  # pyright: ignore
    ]
    val = node.meta["val"]
    buffer = lowering.new_buffer(val.shape, dtype_name(val.dtype))
    shape: list[Any] = [*x.shape[:2], *kernel, *counts]  # pyright: ignore
    axes = axes_of(shape)
    load = window_load(
        lowering, x, list(axes[:2]), input_places(steps, list(axes[4:]), list(axes[2:4])), padded(steps)
    )
    dense = [size_product(shape[d + 1 :]) for d in range(6)]
    store = strided_index(axes, dense)
    value = to_storage(load, buffer.dtype)
    lowering.append(Map(buffer.name, lowering.origin(), real_axes(axes), store, value))
    return lowering.whole(buffer)


@dataclass(frozen=True)
class Side:
    """One dimension of col2im: kernel positions and window positions, how far apart in memory each lie."""

    taps: int
    count: int
    tap_stride: Size
    count_stride: Size


@lowers("aten.col2im")
def lower_col2im(lowering: Lowering, node: fx.Node) -> Any:
    """x[n, c, y] = sum over the (k, o) with o * stride + k * dilation - padding = y of columns[n, (c, k), o]"""
    source, size, kernel, dilation, padding, stride = node.args
    columns, val, dtype = lowering.view(source), node.meta["val"], compute_dtype_of(node)
    batched = len(columns.shape) == 3
    rows, places = columns.strides[-2:]
    numbers: list[Any] = list(zip(size, kernel, dilation, padding, stride))  # pyright: ignore
    if not all(isinstance(number, int) for each in numbers for number in each):
        raise NoLowering("col2im of sizes known only at run time")
    counts = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, d, p, s in numbers]
    (_, high, *_), (_, wide, *_) = numbers
    sides = [
        Side(high, counts[0], rows * wide, places * counts[1]),
        Side(wide, counts[1], rows, places),
    ]
    buffer = lowering.buffer_like(val)
    axes = axes_of(buffer.shape)
    lead = axes[: len(axes) - 2]
    strides = [columns.strides[0], rows * high * wide] if batched else [rows * high * wide]
    start = strided_index(lead, strides, columns.offset)
    taps = [
        side_columns(lowering, side, axis, *each)
        for side, axis, each in zip(sides, axes[len(lead) :], numbers)
    ]
    if len(taps[0]) * len(taps[1]) > MOST_TERMS:
        raise NoLowering(f"col2im where {len(taps[0])} x {len(taps[1])} windows overlap")
    value = to_storage(sum_of_columns(lowering, columns.buffer, start, taps, dtype), buffer.dtype)
    lowering.append(
        Map(buffer.name, lowering.origin(), real_axes(axes), strided_index(axes, buffer.strides), value)
    )
    return lowering.whole(buffer)


def side_columns(
    lowering: Lowering,
    side: Side,
    axis: Axis,
    size: int,
    kernel: int,
    dilation: int,
    padding: int,
    stride: int,
) -> list[Column]:
    """The taps of one dimension: affine where windows are one apart, else by a table."""
    if stride == 1:
        return [affine_tap(side, axis, k, padding - k * dilation) for k in range(kernel)]
    with _disable_current_modes():
        k, o = torch.arange(side.taps).unsqueeze(1), torch.arange(side.count)
        target = (o * stride + k * dilation - padding).reshape(1, -1)
        inside = (target >= 0) & (target < size)
        table = adjoint(Table(target.clamp(0, size - 1), exists=inside), size)
        number = table.index
        where = number // side.count * known(side.tap_stride) + number % side.count * known(side.count_stride)
        return columns_of(lowering, table, where, axis)


def affine_tap(side: Side, axis: Axis, k: int, shift: int) -> Column:
    """Window o = y + shift, where there is one."""
    window = affine(axis, 1, shift)
    position = IndexValue("int64", window)
    exists = both(
        apply("ge", position, constant(0, "int64")), apply("lt", position, constant(side.count, "int64"))
    )
    return window.scaled(side.count_stride) + Index((), k * side.tap_stride), None, exists
