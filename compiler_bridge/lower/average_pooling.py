"""Average pooling: the sum over each window divided by its length, and the adjoint, a sum over covering windows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    Buffer,
    BufferView,
    Expr,
    Index,
    Load,
    Size,
    Value,
    exact_quotient,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    apply,
    axes_of,
    cast,
    compute_dtype_of,
    constant,
    dtype_name,
    lowers,
    sizes,
)
from compiler_bridge.lower.pool_windows import (
    Adaptive,
    Covering,
    Place,
    Position,
    Windows,
    adaptive_steps,
    axis_place,
    channels_side_by_side,
    combine,
    covering_adaptive,
    covering_counts,
    covering_sliding,
    element,
    finished,
    floor_of,
    gradient_loops,
    masked,
    position_value,
    sliding,
    spatial_dims,
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
    """Uneven windows overlap, and where they begin is data: they are summed along one dimension after the other."""
    x, dims, val = lowering.view(node.args[0]), spatial_dims(node), node.meta["val"]
    windows = Adaptive.over(x.shape[len(x.shape) - dims :], sizes(val.shape)[len(x.shape) - dims :])
    if all(windows.is_even(k) for k in range(dims)):
        return average(lowering, x, windows, val, True, None)
    tables = window_tables(lowering, windows)
    for k in range(dims):
        x = sum_along(lowering, x, windows, k, tables.get(k), val)
    divisor = divisor_of(windows, tables, compute_dtype(dtype_name(val.dtype)))
    return lowering.map(val, lambda a: quotient(lowering.load_view(x, a), divisor(a)))


def sum_along(
    lowering: Lowering,
    x: BufferView,
    windows: Adaptive,
    k: int,
    table: WindowTables | None,
    val: torch.Tensor,
) -> BufferView:
    """The sums over one dimension of the windows; in memory as val is."""
    one = windows.along(k)

    def find(place: Axis, tap: Sequence[Index]) -> tuple[Position, Expr | None]:
        return one.position([place], tap) if table is None else table.position(place, tap)

    dim = len(x.shape) - windows.dims + k
    return summed_along(lowering, x, dim, windows.counts[k], one.size, find, val, windows.dims)


def is_known(windows: Adaptive, k: int) -> bool:
    """Whether the windows along a dimension are known, or evenly apart: then they need no tables."""
    return windows.is_even(k) or (isinstance(windows.extents[k], int) and isinstance(windows.counts[k], int))


@dataclass(frozen=True)
class WindowTables:
    """Where windows begin and end along one dimension, computed once for each in place of two divisions an element.

    begin, end: int32, one element for each place
    """

    begin: BufferView
    end: BufferView

    @staticmethod
    def of(lowering: Lowering, windows: Adaptive) -> WindowTables:
        """Of each output the elements it averages."""
        (count,) = windows.counts
        return WindowTables(
            place_table(lowering, count, lambda o: position_value(windows.begin([o])[0])),
            place_table(lowering, count, lambda o: windows.end(o, 0)),
        )

    @staticmethod
    def covering(lowering: Lowering, windows: Adaptive) -> WindowTables:
        """Of each element the outputs that average it."""
        (extent,), (count,) = windows.extents, windows.counts

        def end(y: Axis) -> Expr:
            last = floor_of(axis_place(y).scaled(count) + (count - 1), extent)
            return position_value(last + 1)

        def begin(y: Axis) -> Expr:
            return position_value(covering_adaptive(windows, [Place(axis_place(y))]).first[0])

        return WindowTables(place_table(lowering, extent, begin), place_table(lowering, extent, end))

    def position(self, place: Axis, tap: Sequence[Index]) -> tuple[Position, Expr]:
        here = Index(((Value(entry(self.begin, place)), 1),)) + tap[0]
        return [here], apply("lt", position_value(here), entry(self.end, place))

    def length(self, place: Axis, dtype: str) -> Expr:
        return cast(apply("sub", entry(self.end, place), entry(self.begin, place)), dtype)


def place_table(lowering: Lowering, extent: Size, value: Callable[[Axis], Expr]) -> BufferView:
    return lowering.map_into(
        lowering.new_buffer([extent], "int32"), lambda axes: cast(value(axes[0]), "int32")
    )


def entry(table: BufferView, place: Axis) -> Expr:
    return cast(Load("int32", table.buffer, axis_place(place)), "int64")


def window_tables(lowering: Lowering, windows: Adaptive) -> dict[int, WindowTables]:
    """Of each dimension that needs them."""
    return {
        k: WindowTables.of(lowering, windows.along(k))
        for k in range(windows.dims)
        if not is_known(windows, k)
    }


def divisor_of(
    windows: Adaptive, tables: dict[int, WindowTables], dtype: str
) -> Callable[[Sequence[Axis]], Expr]:
    """The number of elements of the window at a place."""

    def divisor(axes: Sequence[Axis]) -> Expr:
        if not tables:
            return number_of_elements(windows, axes, True, None, dtype)
        lengths = []
        for k, place in enumerate(axes[len(axes) - windows.dims :]):
            one = windows.along(k)
            known = number_of_elements(one, [place], True, None, dtype) if k not in tables else None
            lengths.append(known or tables[k].length(place, dtype))
        return functools.reduce(lambda a, b: apply("mul", a, b), lengths)

    return divisor


def summed_along(
    lowering: Lowering, x: BufferView, dim: int, extent: Size, counts: Sequence[Size],
    find: Callable[[Axis, Sequence[Index]], tuple[Position, Expr | None]], val: torch.Tensor, spatial: int,
) -> BufferView:  # fmt: skip
    """out[.., o, ..] = sum over taps of x[.., find(o, tap), ..], `extent` places along `dim`; in memory as val is."""
    shape = (*x.shape[:dim], extent, *x.shape[dim + 1 :])
    buffer = new_buffer_ordered(lowering, shape, val, spatial)
    axes = axes_of(shape)

    def term(tap: Sequence[Index]) -> Expr:
        position, mask = find(axes[dim], tap)
        load = lowering.load_view(x, [*axes[:dim], *position, *axes[dim + 1 :]], mask=mask)
        return masked(mask, cast(load, buffer.dtype), 0)

    return combine(lowering, buffer, axes, strided_index(axes, buffer.strides), counts, "sum", term)


def new_buffer_ordered(lowering: Lowering, shape: Sequence[Size], val: torch.Tensor, dims: int) -> Buffer:
    """A buffer of val's compute dtype, channels last in memory where val's are."""
    order = list(range(len(shape)))
    if channels_side_by_side(val, dims):
        order.append(order.pop(len(shape) - dims - 1))
    strides: list[Size] = [1] * len(shape)
    step: Size = 1
    for dim in reversed(order):
        strides[dim] = step
        step = step * (1 if shape[dim] == 0 else shape[dim])
    return lowering.new_buffer(shape, compute_dtype(dtype_name(val.dtype)), strides)


def average(
    lowering: Lowering, x: BufferView, windows: Windows, val: torch.Tensor, include_pad: bool, override: Any
) -> BufferView:
    """sum over the taps in the input / number of elements; 16-bit floats are added in float32."""
    dtype = compute_dtype(dtype_name(val.dtype))
    total = lowering.buffer_like(val, dtype)
    axes = axes_of(total.shape)

    def term(tap: Sequence[Index]) -> Expr:
        return element(lowering, windows, x, axes, tap, dtype, 0)[0]

    summed = combine(lowering, total, axes, strided_index(axes, total.strides), windows.taps, "sum", term)
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
    even = all(exact_quotient(size, step) is not None for size, step in zip(windows.extents, windows.stride))
    split = even or not channels_side_by_side(val, dims)
    loops = gradient_loops(lowering, val, dtype, windows.stride, split)
    return sum_of_shares(lowering, val, share, loops, covering_sliding(windows, loops[-1], counts))


def sum_of_shares(
    lowering: Lowering, val: torch.Tensor, share: BufferView, loops: Any, covering: Covering
) -> BufferView:
    buffer, lead, inner, store, _ = loops

    def term(tap: Sequence[Index]) -> Expr:
        position = [begin + j for begin, j in zip(covering.first, tap)]
        mask = covering.covers(position)
        return masked(mask, lowering.load_view(share, [*lead, *position], mask=mask), 0)

    total = combine(lowering, buffer, [*lead, *inner], store, covering.counts, "sum", term)
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
    if all(windows.is_even(k) for k in range(dims)):
        share = share_of(lowering, node, windows, True, None)
        loops = gradient_loops(lowering, val, dtype, adaptive_steps(windows), split=True)
        return sum_of_shares(lowering, val, share, loops, covering_adaptive(windows, loops[-1]))
    divisor = divisor_of(windows, window_tables(lowering, windows), dtype)
    buffer = lowering.buffer_like(lowering.meta(node.args[0]), dtype)
    share = lowering.map_into(buffer, lambda a: quotient(lowering.load_view(grad, a), divisor(a)))
    for k in reversed(range(dims)):
        share = shares_along(lowering, share, windows, k, val)
    return finished(lowering, val, share)


def shares_along(
    lowering: Lowering, share: BufferView, windows: Adaptive, k: int, val: torch.Tensor
) -> BufferView:
    """The shares of the windows that cover an element, added along one dimension; in memory as val is."""
    one, dim, extent = windows.along(k), len(share.shape) - windows.dims + k, windows.extents[k]

    def covering(place: Axis) -> Covering:
        return covering_adaptive(one, [Place(axis_place(place))])

    tables = None if is_known(windows, k) else WindowTables.covering(lowering, one)

    def find(place: Axis, tap: Sequence[Index]) -> tuple[Position, Expr | None]:
        if tables is not None:
            return tables.position(place, tap)
        position = [covering(place).first[0] + tap[0]]
        return position, covering(place).covers(position)

    counts = covering(Axis("y", extent)).counts
    return summed_along(lowering, share, dim, extent, counts, find, val, windows.dims)
