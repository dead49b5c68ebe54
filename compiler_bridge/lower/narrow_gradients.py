"""Gradients of an input of few channels, an image's three; also transposed convolutions that make such an image.

A product with three columns would fill three lanes of a register. The taps of a row and the channels together, d and
c, are more columns: first every place of the gradient is multiplied by them, then what they made is added up where it
belongs.

    rows[n, y, d, c, y'] = sum over o and the leading taps of grad[n, o, ..., y'] * weight[o, c, ..., d]
    dx[n, c, y, x]       = sum over d of rows[n, y, d, c, (x + padding - d) / stride]    where that is whole

A 7 x 7 window over 3 channels makes 21 columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from compiler_bridge.cpu.gemm_plan import panel_columns
from compiler_bridge.ir import Axis, BufferView, Expr, IndexValue, Load, Size, strided_index
from compiler_bridge.lower.contractions import contract_into
from compiler_bridge.lower.lowering import Lowering, apply, axes_of, both, constant, dtype_name, sizes
from compiler_bridge.lower.narrow_convolutions import MOST_CHANNELS, append_map, padded_channels_last
from compiler_bridge.lower.phases import Phase, load_by_phases
from compiler_bridge.lower.pool_windows import within
from compiler_bridge.lower.window import Window, affine
from compiler_bridge.ops import compute_dtype


def fills_few_lanes(w: BufferView, window: Window) -> bool:
    """Whether channels alone leave most of a panel's columns empty and channels times taps do not, and `rows` is no
    larger than the gradient."""
    numbers = (*w.shape[:2], w.shape[-1], *window.stride)
    known = [number for number in numbers if isinstance(number, int)]
    if len(known) < len(numbers) or window.dilation[-1] != 1:
        return False
    out, channels, taps, *stride = known
    panels = -(-taps * channels // panel_columns("float32"))
    fewer = 0 < channels <= MOST_CHANNELS and 2 * panels <= taps
    return fewer and taps * channels * math.prod(stride[:-1]) <= out


@dataclass(frozen=True)
class LastDimension:
    """Places of the gradient along the last dimension, x + padding = stride * step + place, taps = stride * turn +
    place."""

    taps: int
    stride: int
    padding: Size

    @property
    def turns(self) -> int:
        return -(-self.taps // self.stride)

    def steps(self, extent: Size) -> Size:
        return (extent + self.padding + self.stride - 1) // self.stride


def narrow_input_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window
) -> BufferView:
    """The gradient of a convolution's input, or the result of a transposed one; one group."""
    if grad.strides[1] != 1:
        grad = in_channels_last(lowering, grad)
    stride, taps = window.stride[-1], w.shape[-1]
    assert isinstance(stride, int) and isinstance(taps, int)
    last = LastDimension(taps, stride, window.padding[-1])
    rows = rows_of_taps(lowering, val, grad, w, window)
    spread = sum_of_turns(lowering, rows, last, last.steps(sizes(val.shape)[-1]), val)
    return lowering.map(val, lambda axes: lowering.load_view(spread, axes))


def in_channels_last(lowering: Lowering, x: BufferView) -> BufferView:
    """A copy, [batch, *places, channels] in memory."""
    none: list[Size] = [0] * (len(x.shape) - 2)
    buffer = padded_channels_last(lowering, x, none)
    batch, *places, channel = buffer.strides
    return BufferView(buffer.name, x.shape, (batch, channel, *places), 0)


def rows_of_taps(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window
) -> BufferView:
    """[batch, *leading places, taps, channels, places of grad]: one product."""
    batch, *leading = axes_of(sizes((val.shape[0], *val.shape[2:-1])))
    out, channel, *taps, tap = (Axis(f"w{k}", extent) for k, extent in enumerate(w.shape))
    place = Axis("p", grad.shape[-1])
    phases = [Phase.of(axis, stride) for axis, stride in zip(leading, window.stride)]
    left = load_by_phases(lowering, grad, [batch, out], phases, taps, window, [affine(place, 1)])
    right = weight_by_rows(lowering, w, [*taps, out, tap, channel])
    whole = [phase.step.extent * phase.phase.extent for phase in phases]
    shape = [batch.extent, *whole, tap.extent, channel.extent, place.extent]
    buffer = lowering.new_buffer(shape, compute_dtype(dtype_name(val.dtype)))
    store = strided_index([batch, tap, channel, place], [buffer.strides[0], *buffer.strides[-3:]])
    for phase, step in zip(phases, buffer.strides[1:]):
        store = store + phase.index.scaled(step)
    order = (batch, *(p.phase for p in phases), *(p.step for p in phases), place, tap, channel)
    return contract_into(lowering, buffer, order, (*taps, out), left, right, store)


def weight_by_rows(lowering: Lowering, w: BufferView, order: list[Axis]) -> Expr:
    """weight[o, c, ..., d] as [..., o, d, c]: the columns of the product lie side by side"""
    buffer = lowering.new_buffer([axis.extent for axis in order], lowering.graph.buffers[w.buffer].dtype)
    *taps, out, tap, channel = order
    append_map(lowering, buffer, tuple(order), lowering.load_view(w, [out, channel, *taps, tap]))
    return Load(compute_dtype(buffer.dtype), buffer.name, strided_index(order, buffer.strides))


def sum_of_turns(
    lowering: Lowering, rows: BufferView, last: LastDimension, steps: Size, val: torch.Tensor
) -> BufferView:
    """[batch, channels, *places], whose last dimension is stride * step + place, without its padding."""
    batch, *leading, _, channels, places = rows.shape
    dtype = lowering.graph.buffers[rows.buffer].dtype
    buffer = lowering.new_buffer([batch, *leading, channels, steps, last.stride], dtype)
    axes = axes_of(buffer.shape)
    *lead, channel, step, place = axes
    total: Expr | None = None
    for turn in range(last.turns):
        tap = affine(place, 1, turn * last.stride)
        source = affine(step, 1, -turn)
        load = lowering.load_view(rows, [*lead, tap, channel, source])
        assert isinstance(load, Load)
        mask = within([source], [places])
        if (turn + 1) * last.stride > last.taps:
            mask = both(mask, apply("lt", IndexValue("int64", tap), constant(last.taps, "int64")))
        load = replace(load, mask=mask)
        total = load if total is None else apply("add", total, load)
    assert total is not None
    append_map(lowering, buffer, axes, total)
    strides = (buffer.strides[0], buffer.strides[-3], *buffer.strides[1:-3], 1)
    return BufferView(buffer.name, sizes(val.shape), strides, last.padding)
