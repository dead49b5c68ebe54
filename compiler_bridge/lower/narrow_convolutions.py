"""Convolutions of few channels, an image's three: the taps of a row and its channels are one run of the sum.

In a channels-last copy with its padding written out, the window's last dimension and the channels lie side by side:
j = d * channels + c. So a 7 x 7 window over 3 channels is 7 runs of 21 elements, not 49 of 3. The copy is small
beside the output; the weight is copied into the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compiler_bridge.cpu.gemm_plan import SHORTEST_RUN
from compiler_bridge.ir import Axis, Buffer, BufferView, Expr, Index, Load, Map, Size, strided_index
from compiler_bridge.lower.contractions import contract_into
from compiler_bridge.lower.lowering import Lowering, axes_of, dtype_name, real_axes, sizes
from compiler_bridge.lower.placement import shifted_load
from compiler_bridge.lower.window import Window, affine
from compiler_bridge.ops import compute_dtype

MOST_CHANNELS = 15
"""With as many channels as the shortest register has lanes, one tap is run enough."""


def is_narrow(x: BufferView, w: BufferView, window: Window) -> bool:
    channels, taps = x.shape[1], w.shape[-1]
    known = isinstance(channels, int) and isinstance(taps, int)
    return (
        known
        and 0 < channels <= MOST_CHANNELS
        and channels * taps >= SHORTEST_RUN
        and window.dilation[-1] == 1
    )


@dataclass(frozen=True)
class Rows:
    """The loops over one window: taps of the leading dimensions, and j through a row of the padded input."""

    leading: list[Axis]
    run: Axis

    @staticmethod
    def of(taps: list[Axis], channels: Size) -> Rows:
        return Rows(taps[:-1], Axis("j", taps[-1].extent * channels))


def narrow_input(
    lowering: Lowering, x: BufferView, window: Window, batch: Axis, places: list[Axis], rows: Rows
) -> Expr:
    """padded[n, y * stride + d * dilation, (y' * stride') * channels + j]"""
    buffer = padded_channels_last(lowering, x, window.padding)
    *lead_steps, row_step, _ = buffer.strides[1:]
    index = strided_index([batch], buffer.strides[:1])
    for place, tap, step, stride, dilation in zip(
        places[:-1], rows.leading, lead_steps, window.stride, window.dilation
    ):
        index = index + affine(place, stride * step) + affine(tap, dilation * step)
    index = index + affine(places[-1], window.stride[-1] * row_step) + affine(rows.run, 1)
    return Load(compute_dtype(buffer.dtype), buffer.name, index)


def padded_channels_last(lowering: Lowering, x: BufferView, padding: list[Size]) -> Buffer:
    """[batch, channels, *size] -> [batch, *(size + 2 padding), channels]"""
    padded = [extent + 2 * width for extent, width in zip(x.shape[2:], padding)]
    buffer = lowering.new_buffer([x.shape[0], *padded, x.shape[1]], lowering.graph.buffers[x.buffer].dtype)
    axes = axes_of(buffer.shape)
    shifts = {2 + k: width for k, width in enumerate(padding)}
    value = shifted_load(lowering, x, [axes[0], axes[-1], *axes[1:-1]], shifts)
    append_map(lowering, buffer, axes, value)
    return buffer


def narrow_weight(lowering: Lowering, w: BufferView, out: Axis, rows: Rows) -> Expr:
    """weight[o, c, d, d'] as [o, d, j]"""
    channels, taps = w.shape[1], w.shape[-1]
    shape = [w.shape[0], *w.shape[2:-1], taps, channels]
    buffer = lowering.new_buffer(shape, lowering.graph.buffers[w.buffer].dtype)
    axes = axes_of(buffer.shape)
    append_map(lowering, buffer, axes, lowering.load_view(w, [axes[0], axes[-1], *axes[1:-1]]))
    strides = [*buffer.strides[:-2], 1]
    return Load(
        compute_dtype(buffer.dtype), buffer.name, strided_index([out, *rows.leading, rows.run], strides)
    )


def narrow_weight_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, x: BufferView, window: Window
) -> BufferView:
    """dw[o, d, j] = sum over n, y of grad[n, o, y] * padded input, then [o, c, d, d']"""
    out, channel, *taps = axes_of(sizes(val.shape))
    rows = Rows.of(taps, x.shape[1])
    batch = Axis("n", grad.shape[0])
    places = [Axis(f"y{k}", extent) for k, extent in enumerate(grad.shape[2:])]
    left = lowering.load_view(grad, [batch, out, *places])
    right = narrow_input(lowering, x, window, batch, places, rows)
    kept = (out, *rows.leading, rows.run)
    buffer = lowering.new_buffer([axis.extent for axis in kept], compute_dtype(dtype_name(val.dtype)))
    made = contract_into(lowering, buffer, kept, (batch, *places), left, right)
    apart = split_last(made, taps[-1].extent, channel.extent)
    return lowering.map(val, lambda a: lowering.load_view(apart, (a[0], *a[2:], a[1])))


def split_last(view: BufferView, taps: Size, channels: Size) -> BufferView:
    """[..., j] -> [..., taps, channels]"""
    shape, strides = (*view.shape[:-1], taps, channels), (*view.strides[:-1], channels, 1)
    return BufferView(view.buffer, shape, strides, view.offset)


def append_map(lowering: Lowering, buffer: Buffer, axes: tuple[Axis, ...], value: Expr) -> None:
    index: Index = strided_index(axes, buffer.strides)
    lowering.append(Map(buffer.name, lowering.origin(), real_axes(axes), index, value))
