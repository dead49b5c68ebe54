"""Convolutions whose channels come in groups: every group is a convolution of its own.

The channels of a tensor are taken apart into groups and channels of one group, [batch, groups, channels, ...]; the
group is then one more axis of a sum of products: a matrix product a group, or where groups have few channels
(`few_channels`: depthwise convolutions have one) a plain sum over windows.

A transposed convolution is the input gradient of a convolution, so its own gradients are a convolution and a weight
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    BufferView,
    Contract,
    Expr,
    Load,
    Map,
    Reduce,
    Size,
    strided_index,
)
from compiler_bridge.lower.convolutions import add_bias, bias_gradient
from compiler_bridge.lower.few_channels import (
    groups_beside,
    inside,
    is_direct,
    is_regular,
    reached_by,
    spread_gradient,
    taps_first,
)
from compiler_bridge.lower.input_gradient import convolution_input_gradient, in_groups
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    cast,
    dtype_name,
    real_axes,
    sizes,
)
from compiler_bridge.lower.weight_gradient import convolution_weight_gradient
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


# ---------------------------------------------------------------- sums of products with an axis of groups


def grouped_convolution(
    lowering: Lowering, val: torch.Tensor, x: BufferView, w: BufferView, window: Window, groups: int
) -> BufferView:
    """out[n, g, o, y] = sum over c, d of input[n, g, c, y * stride + d * dilation - padding] * weight[g, o, c, d]"""
    x, w = in_groups(x, 1, groups), in_groups(w, 0, groups)
    direct = is_direct(w)
    if direct:
        x, w = groups_beside(lowering, x), taps_first(lowering, w, w.shape[3:])
    batch, *places = axes_of(sizes((val.shape[0], *val.shape[2:])))
    group, out, channel, taps = weight_axes(w.shape)
    index = input_places(window, places, taps)
    left = window_load(lowering, x, [batch, group, channel], index, padded(window))
    right = lowering.load_view(w, [group, out, channel, *taps])
    moves = [Move(batch, 0), Move(out, 1), Move(group, 1, out.extent)]
    moves += [Move(place, k) for k, place in enumerate(places, 2)]
    return sum_of_products(lowering, val, moves, [channel, *taps], left, right, direct)


def grouped_input_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, w: BufferView, window: Window, groups: int
) -> BufferView:
    """dx[n, g, c, y] = sum over o, d of grad[n, g, o, (y + padding - d * dilation) / stride] * weight[g, o, c, d]

    where the division leaves no remainder: either the taps for which it does are left out (`reached_by`), or the
    gradient is spread.
    """
    apart = in_groups(w, 0, groups)
    if not is_direct(apart):
        return convolution_input_gradient(lowering, val, grad, w, window, groups)
    if not is_regular(val, window):
        grad = spread_gradient(lowering, grad, window.stride)
        window = replace(window, stride=[1] * len(window.stride))
    grad = in_groups(grad, 1, groups)
    steps = zip(sizes(val.shape[2:]), apart.shape[3:], window.stride, window.padding, window.dilation)
    reached = [reached_by(k, *step) for k, step in enumerate(steps)]
    mask = inside(reached, grad.shape[3:], apart.shape[3:])
    grad, w = groups_beside(lowering, grad), taps_first(lowering, apart, [each.room() for each in reached])
    batch = Axis("n", sizes(val.shape)[0])
    group, out, channel, _ = weight_axes(w.shape)
    left = lowering.load_view(grad, [batch, group, out, *(each.place for each in reached)], mask=mask)
    right = lowering.load_view(w, [group, out, channel, *(each.tap for each in reached)])
    moves = [Move(batch, 0), Move(channel, 1), Move(group, 1, channel.extent)]
    for k, each in enumerate(reached, 2):
        moves += [Move(axis, k, step) for axis, step in zip(each.axes, each.steps)]
    return sum_of_products(lowering, val, moves, [out, *(r.tap_axis for r in reached)], left, right, True)


def grouped_weight_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, x: BufferView, window: Window, groups: int
) -> BufferView:
    """dw[g, o, c, d] = sum over n, y of grad[n, g, o, y] * input[n, g, c, y * stride + d * dilation - padding]"""
    apart_grad, apart_x = in_groups(grad, 1, groups), in_groups(x, 1, groups)
    group, out, channel, taps = weight_axes((groups, apart_grad.shape[2], *sizes(val.shape[1:])))
    if not is_direct(apart_grad, apart_x):
        return convolution_weight_gradient(lowering, val, grad, x, window, groups)
    grad, x = groups_beside(lowering, apart_grad), groups_beside(lowering, apart_x)
    batch, *places = axes_of((grad.shape[0], *grad.shape[3:]), "y")
    index = input_places(window, places, taps)
    left = lowering.load_view(grad, [batch, group, out, *places])
    right = window_load(lowering, x, [batch, group, channel], index, padded(window))
    moves = [Move(group, 0, out.extent), Move(out, 0), Move(channel, 1)]
    moves += [Move(tap, k) for k, tap in enumerate(taps, 2)]
    return sum_of_products(lowering, val, moves, [batch, *places], left, right, True)


def weight_axes(shape: tuple[Size, ...]) -> tuple[Axis, Axis, Axis, list[Axis]]:
    """group, channel of the output, channel of the input, taps"""
    group, out, channel, *taps = shape
    return Axis("g", group), Axis("o", out), Axis("c", channel), list(axes_of(taps, "w"))


@dataclass(frozen=True)
class Move:
    """Along an axis the result moves by `by` in dimension `dim`."""

    axis: Axis
    dim: int
    by: Size = 1


def sum_of_products(
    lowering: Lowering,
    val: torch.Tensor,
    moves: list[Move],
    reduced: list[Axis],
    lhs: Expr,
    rhs: Expr,
    direct: bool,
) -> BufferView:
    """val[moves] = sum over `reduced` of lhs * rhs: a matrix product a group, or a plain sum over windows.

    The sum is made in its compute dtype and, where it is direct, with the groups side by side.
    """
    dtype = compute_dtype(dtype_name(val.dtype))
    if dtype_kind(dtype) != "float":
        raise NoLowering(f"convolution of {val.dtype}")
    result = lowering.buffer_like(val)
    axes = tuple(move.axis for move in moves)
    final = strided_index(axes, [result.strides[move.dim] * move.by for move in moves])
    made, store = result, final
    if direct and moves[0].dim == 0 and moves[0].axis.name == "n" and final.coefficient("g") != 1:
        last = [a for a in axes if a.name not in "cog"] + [a for a in axes if a.name in "cog"]
        made = lowering.new_buffer([a.extent for a in last], dtype)
        store = strided_index(last, made.strides)
    elif result.dtype != dtype:
        made = lowering.buffer_like(val, dtype)
    lhs, rhs = cast(lhs, dtype), cast(rhs, dtype)
    loops = made.name, lowering.origin(), real_axes(axes), real_axes(reduced), store
    lowering.append(Reduce(*loops, apply("mul", lhs, rhs), "sum") if direct else Contract(*loops, lhs, rhs))
    if made is not result:
        value = Load(dtype, made.name, store)
        lowering.append(Map(result.name, lowering.origin(), real_axes(axes), final, value))
    return lowering.whole(result)
