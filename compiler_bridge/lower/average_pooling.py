"""Average pooling: the sum over each window divided by its length, and the adjoint, a sum over covering windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import Axis, BufferView, Expr, Index, Size, strided_index
from compiler_bridge.lower.lowering import (
    Lowering,
    apply,
    axes_of,
    both,
    cast,
    compute_dtype_of,
    constant,
    dtype_name,
    lowers,
    sizes,
)
from compiler_bridge.lower.pool_windows import (
    Adaptive,
    Place,
    Windows,
    channels_side_by_side,
    combine,
    covering_begin,
    covering_counts,
    element,
    finished,
    floor_of,
    gradient_loops,
    masked,
    position_value,
    reaches,
    sliding,
    spatial_dims,
    within,
)
from compiler_bridge.ops import compute_dtype, dtype_kind


@lowers("aten.avg_pool2d", "aten.avg_pool3d")
def lower_average_pool(lowering: Lowering, node: fx.Node) -> Any:
    names = ("self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given: dict[str, Any] = (
        {"padding": 0, "count_include_pad": True} | dict(zip(names, node.args)) | node.kwargs
    )
    x, dims = lowering.view(given["self"]), spatial_dims(node)
    windows = sliding(lowering, x.shape, given["kernel_size"], given.get("stride"), given["padding"], dims)
    include_pad, override = bool(given["count_include_pad"]), given.get("divisor_override")
    return average(lowering, x, windows, node.meta["val"], include_pad, override)


@lowers("aten._adaptive_avg_pool2d", "aten._adaptive_avg_pool3d")
def lower_adaptive_average_pool(lowering: Lowering, node: fx.Node) -> Any:
    x, dims, val = lowering.view(node.args[0]), spatial_dims(node), node.meta["val"]
    windows = Adaptive.over(x.shape[len(x.shape) - dims :], sizes(val.shape)[len(x.shape) - dims :])
    return average(lowering, x, windows, val, True, None)


def average(
    lowering: Lowering, x: BufferView, windows: Windows, val: torch.Tensor, include_pad: bool, override: Any
) -> BufferView:
    """sum over the taps in the input / number of elements; 16-bit floats are added in float32."""
    dtype = compute_dtype(dtype_name(val.dtype))
    total = lowering.buffer_like(val, dtype)
    axes = axes_of(total.shape)

    def term(tap: Sequence[Index]) -> Expr:
        return element(lowering, windows, x, axes, tap, dtype, 0)[0]

    summed = combine(lowering, total, axes, strided_index(axes, total.strides), windows.size, "sum", term)
    divisor = number_of_elements(windows, axes, include_pad, override, dtype)
    return lowering.map(val, lambda a: quotient(lowering.load_view(summed, a), divisor))


def number_of_elements(
    windows: Windows, axes: Sequence[Axis], include_pad: bool, override: Any, dtype: str
) -> Expr:
    if override is not None:
        return constant(override, dtype)
    known: Size = 1
    varying: Expr | None = None
    for length in windows.lengths(windows.split(axes)[1], include_pad):
        if isinstance(length, Expr):
            varying = length if varying is None else apply("mul", varying, length)
        else:
            known = known * length
    if varying is None:
        return constant(known, dtype)
    return cast(varying if known == 1 else apply("mul", varying, constant(known, "int64")), dtype)


def quotient(total: Expr, divisor: Expr) -> Expr:
    """Integers are divided towards 0, as in C++."""
    if dtype_kind(total.dtype) == "float":
        return apply("div", total, divisor)
    zero = constant(0, total.dtype)
    negative = apply("bitwise_xor", apply("lt", total, zero), apply("lt", divisor, zero))
    size = [apply("where", apply("lt", x, zero), apply("neg", x), x) for x in (total, divisor)]
    found = apply("floor_divide", *size)
    return apply("where", negative, apply("neg", found), found)


# ---- the gradient ----------------------------------------------------------------------------------------


@lowers("aten.avg_pool2d_backward", "aten.avg_pool3d_backward")
def lower_average_pool_backward(lowering: Lowering, node: fx.Node) -> Any:
    """dx[y] = sum over the windows o that cover y of grad[o] / number of elements of o"""
    _, x, size, stride, padding, _, include_pad, override = node.args
    val, dims, dtype = node.meta["val"], spatial_dims(node), compute_dtype_of(node)
    windows = sliding(lowering, lowering.view(x).shape, size, stride, padding, dims)
    covering_counts(windows)
    share = share_of(lowering, node, windows, bool(include_pad), override)
    counts = share.shape[len(share.shape) - dims :]
    split = not channels_side_by_side(val, dims)
    buffer, lead, loops, store, places = gradient_loops(lowering, val, dtype, windows.stride, split)
    first = covering_begin(windows, places)

    def term(tap: Sequence[Index]) -> Expr:
        position = [begin + j for begin, j in zip(first, tap)]
        mask = both(within(position, counts), reaches(windows, places, position))
        return masked(mask, lowering.load_view(share, [*lead, *position], mask=mask), 0)

    total = combine(lowering, buffer, [*lead, *loops], store, covering_counts(windows), "sum", term)
    return finished(lowering, val, total)


def share_of(
    lowering: Lowering, node: fx.Node, windows: Windows, include_pad: bool, override: Any
) -> BufferView:
    """What each element of a window gets: grad[o] / number of elements"""
    grad, dtype = lowering.view(node.args[0]), compute_dtype_of(node)
    axes = axes_of(grad.shape)
    divisor = number_of_elements(windows, axes, include_pad, override, dtype)
    buffer = lowering.buffer_like(lowering.meta(node.args[0]), dtype)
    return lowering.map_into(buffer, lambda a: quotient(lowering.load_view(grad, a), divisor))


@lowers("aten._adaptive_avg_pool2d_backward", "aten._adaptive_avg_pool3d_backward")
def lower_adaptive_average_pool_backward(lowering: Lowering, node: fx.Node) -> Any:
    val, dims, dtype = node.meta["val"], spatial_dims(node), compute_dtype_of(node)
    grad = lowering.view(node.args[0])
    extents, counts = sizes(val.shape)[val.dim() - dims :], grad.shape[len(grad.shape) - dims :]
    windows = Adaptive.over(extents, counts)
    share = share_of(lowering, node, windows, True, None)
    steps: list[Size] = [windows.size[k] if windows.is_even(k) else 1 for k in range(dims)]
    buffer, lead, loops, store, places = gradient_loops(lowering, val, dtype, steps, split=True)
    first = [adaptive_begin(windows, place, k) for k, place in enumerate(places)]
    covering: list[Size] = [
        1 if windows.is_even(k) else most_covering(extents[k], counts[k]) for k in range(dims)
    ]

    def term(tap: Sequence[Index]) -> Expr:
        position = [begin + j for begin, j in zip(first, tap)]
        mask: Expr | None = None
        for k, (place, o) in enumerate(zip(places, position)):
            if not windows.is_even(k):
                above = place.y.scaled(counts[k]) + (counts[k] - 1)
                last = position_value(floor_of(above, extents[k]))
                mask = both(mask, apply("le", position_value(o), last))
        return masked(mask, lowering.load_view(share, [*lead, *position], mask=mask), 0)

    total = combine(lowering, buffer, [*lead, *loops], store, covering, "sum", term)
    return finished(lowering, val, total)


def adaptive_begin(windows: Adaptive, place: Place, dim: int) -> Index:
    """The first window that covers y: floor(y * count / L); the last is floor(((y + 1) * count - 1) / L)"""
    if windows.is_even(dim):
        return place.window(windows.size[dim], 0)
    return floor_of(place.y.scaled(windows.counts[dim]), windows.extents[dim])


def most_covering(size: Any, count: Any) -> int:
    return max((((y + 1) * count - 1) // size - y * count // size + 1 for y in range(size)), default=1)
