"""Pooling: small windows written out tap by tap, larger ones as a Reduce over the window's axes.

Max pooling is two loops at the same points, which become one kernel: the largest element of each window, and the
place of the first tap that equals it (of the last NaN, as in ATen). Its gradient is a sum over the windows that may
cover an element where channels lie side by side, else a scatter within each image and channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Apply,
    Axis,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Load,
    Reduce,
    Size,
    Value,
    size_product,
    strided_index,
)
from compiler_bridge.lower.gathers import checked_index
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    both,
    cast,
    compute_dtype_of,
    constant,
    dtype_name,
    lowers,
    real_axes,
    sizes,
    to_storage,
)
from compiler_bridge.lower.scatters import scatter
from compiler_bridge.ops import compute_dtype, dtype_kind, reduce_identity

MOST_TAPS = 16
"""Windows up to this size are written out; Numba's front end is superlinear in the length of a kernel."""

Position = list[Index]


@dataclass(frozen=True)
class Window:
    """One number a spatial dimension; sizes of a window are plain ints."""

    size: list[int]
    stride: list[Size]
    padding: list[Size]
    dilation: list[Size]

    def taps(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*map(range, self.size)))

    @property
    def is_small(self) -> bool:
        return size_product(self.size) <= MOST_TAPS


def per_dim(lowering: Lowering, values: Any, dims: int) -> list[Size]:
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    return [lowering.size_of(value) for value in values] * (dims if len(values) == 1 else 1)


def window_of(
    lowering: Lowering, size: Any, stride: Any, padding: Any, dims: int, dilation: Any = 1
) -> Window:
    widths = per_dim(lowering, size, dims)
    if not all(isinstance(width, int) for width in widths):
        raise NoLowering(f"pooling with windows of unknown size {widths}")
    return Window(
        [int(width) for width in widths],  # pyright: ignore
        per_dim(lowering, stride, dims) if stride else widths,
        per_dim(lowering, padding, dims),
        per_dim(lowering, dilation, dims),
    )


def spatial_dims(node: fx.Node) -> int:
    return 3 if "3d" in str(node.target) else 2


def axis_place(axis: Axis) -> Index:
    return Index() if axis.extent == 1 else Index(((axis.name, 1),), 0)


def position_value(place: Index) -> Expr:
    return IndexValue("int64", place) if place.terms else constant(place.const, "int64")


def tap_position(window: Window, places: Sequence[Axis], tap: Sequence[Index]) -> Position:
    """o * stride + k * dilation - padding"""
    numbers = zip(places, tap, window.stride, window.dilation, window.padding)
    return [axis_place(o).scaled(step) + k.scaled(spread) + -pad for o, k, step, spread, pad in numbers]


def within(position: Position, extents: Sequence[Size]) -> Expr:
    """Whether a position lies in the input; conditions that always hold are folded later (`rules.py`)."""
    mask: Expr | None = None
    for place, extent in zip(position, extents):
        value = position_value(place)
        mask = both(mask, apply("ge", value, constant(0, "int64")))
        mask = both(mask, apply("lt", value, constant(extent, "int64")))
    assert mask is not None
    return mask


def flat_place(position: Position, extents: Sequence[Size]) -> Index:
    """Row-major, over the spatial dimensions."""
    total = Index()
    for place, extent in zip(position, extents):
        total = total.scaled(extent) + place
    return total


@dataclass
class Pool:
    """An input seen through a window: what is common to every pooling operation."""

    lowering: Lowering
    x: BufferView
    window: Window
    dtype: str

    @property
    def dims(self) -> int:
        return len(self.window.size)

    @property
    def extents(self) -> tuple[Size, ...]:
        return self.x.shape[len(self.x.shape) - self.dims :]

    def split(self, axes: Sequence[Axis]) -> tuple[Sequence[Axis], Sequence[Axis]]:
        """(batch and channels, places)"""
        return axes[: len(axes) - self.dims], axes[len(axes) - self.dims :]

    def element(self, axes: Sequence[Axis], tap: Sequence[Index], outside: Any) -> tuple[Expr, Expr]:
        """(the element under a tap, or `outside`; whether the tap lies in the input)"""
        lead, places = self.split(axes)
        position = tap_position(self.window, places, tap)
        mask = within(position, self.extents)
        load = self.lowering.load_view(self.x, [*lead, *position], mask=mask)
        return apply("where", mask, cast(load, self.dtype), constant(outside, self.dtype)), mask

    def tap_indices(self) -> list[list[Index]]:
        return [[Index((), k) for k in tap] for tap in self.window.taps()]

    def tap_axes(self) -> list[Axis]:
        return [Axis(f"w{k}", extent) for k, extent in enumerate(self.window.size)]

    def combine(self, val: torch.Tensor, op: str, outside: Any, stored: str) -> BufferView:
        """op over the window of every element, `outside` where it hangs over."""
        if self.window.is_small:
            word = {"max": "maximum", "sum": "add"}[op]

            def value(axes: tuple[Axis, ...]) -> Expr:
                first, *rest = (self.element(axes, tap, outside)[0] for tap in self.tap_indices())
                for element in rest:
                    first = apply(word, first, element)
                return first

            return self.lowering.map_into(self.lowering.buffer_like(val, stored), value)
        return self.reduce(val, op, stored, lambda axes, tap: self.element(axes, tap, outside)[0])

    def reduce(
        self, val: torch.Tensor, op: str, stored: str, value: Callable[[Sequence[Axis], list[Index]], Expr]
    ) -> BufferView:
        buffer = self.lowering.buffer_like(val, stored)
        axes, taps = axes_of(buffer.shape), self.tap_axes()
        store = strided_index(axes, buffer.strides)
        expr = value(axes, [axis_place(tap) for tap in taps])
        origin = self.lowering.origin()
        self.lowering.append(Reduce(buffer.name, origin, real_axes(axes), real_axes(taps), store, expr, op))
        return self.lowering.whole(buffer)


# ---- the largest element and its place -------------------------------------------------------------------


@lowers("aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices")
def lower_max_pool(lowering: Lowering, node: fx.Node) -> Any:
    given: dict[str, Any] = dict(zip(("self", "kernel_size", "stride", "padding", "dilation"), node.args))
    given.update(node.kwargs)
    window = window_of(
        lowering, given["kernel_size"], given.get("stride"), given.get("padding", 0), spatial_dims(node),
        given.get("dilation", 1),
    )  # fmt: skip
    return largest(lowering, lowering.view(given["self"]), window, node.meta["val"])


def largest(lowering: Lowering, x: BufferView, window: Window, vals: Any) -> tuple[BufferView, BufferView]:
    """(the largest element of each window, its place in the flattened spatial dimensions)"""
    stored = dtype_name(vals[0].dtype)
    dtype = compute_dtype(stored)
    pool = Pool(lowering, x, window, dtype)
    lowest = reduce_identity("max", dtype)
    values = pool.combine(vals[0], "max", lowest, stored)
    if not window.is_small:
        return values, place_by_reduction(pool, values, vals[1], lowest)

    def index(axes: tuple[Axis, ...]) -> Expr:
        return place_by_taps(pool, axes, lowering.load_view(values, axes), lowest)

    return values, lowering.map(vals[1], index)


def place_by_taps(pool: Pool, axes: tuple[Axis, ...], best: Expr, lowest: Any) -> Expr:
    """The first tap that is the best, else the last NaN; as an offset in int32 until the end."""
    window, extents = pool.window, pool.extents
    _, places = pool.split(axes)
    taps = []
    for tap in pool.tap_indices():
        element, mask = pool.element(axes, tap, lowest)
        spread = [k.scaled(step) for k, step in zip(tap, window.dilation)]
        taps.append((element, mask, constant(flat_place(spread, extents).const, "int32")))
    chosen: Expr = taps[0][2]
    if dtype_kind(pool.dtype) == "float":
        for element, _, offset in taps[1:]:
            chosen = apply("where", apply("isnan", element), offset, chosen)
    for element, mask, offset in reversed(taps):
        chosen = apply("where", both(mask, apply("eq", element, best)), offset, chosen)
    origin = flat_place(tap_position(window, places, [Index()] * pool.dims), extents)
    place = apply("add", cast(chosen, "int64"), position_value(origin))
    empty = has_no_tap(pool, places)
    return place if empty is None else apply("where", empty[0], empty[1], place)


def has_no_tap(pool: Pool, places: Sequence[Axis]) -> tuple[Expr, Expr] | None:
    """(whether a window has no tap in the input, ATen's index then); None where that cannot be.

    Only steps wider than the input pass over it.
    """
    window, extents = pool.window, pool.extents
    if all(
        step == 1 or (isinstance(size, int) and isinstance(step, int) and step <= size)
        for step, size in zip(window.dilation, extents)
    ):
        return None
    zero, outside, total = constant(0, "int64"), None, constant(0, "int64")
    for place, step, size in zip(tap_position(window, places, [Index()] * pool.dims), window.dilation, extents):
        begin, limit = position_value(place), constant(size, "int64")
        first = apply("where", apply("lt", begin, zero), apply("remainder", begin, constant(step, "int64")), begin)
        missed = apply("ge", first, limit)
        outside = missed if outside is None else apply("bitwise_or", outside, missed)
        held = apply("minimum", first, apply("sub", limit, constant(1, "int64")))
        total = apply("add", apply("mul", total, limit), held)
    assert outside is not None
    return outside, total


def place_by_reduction(pool: Pool, values: BufferView, val: torch.Tensor, lowest: Any) -> BufferView:
    """The smallest place of an element that is the best; the largest place of a NaN goes before it."""
    lowering, extents = pool.lowering, pool.extents
    count = constant(size_product(extents), "int64")

    def place(axes: Sequence[Axis], tap: list[Index]) -> Expr:
        return position_value(flat_place(tap_position(pool.window, pool.split(axes)[1], tap), extents))

    def first(axes: Sequence[Axis], tap: list[Index]) -> Expr:
        element, mask = pool.element(axes, tap, lowest)
        hit = both(mask, apply("eq", element, lowering.load_view(values, axes)))
        return apply("where", hit, place(axes, tap), count)

    def last_nan(axes: Sequence[Axis], tap: list[Index]) -> Expr:
        element, _ = pool.element(axes, tap, lowest)
        return apply("where", apply("isnan", element), place(axes, tap), constant(-1, "int64"))

    found = pool.reduce(val, "min", "int64", first)
    nans = pool.reduce(val, "max", "int64", last_nan) if dtype_kind(pool.dtype) == "float" else None

    def value(axes: tuple[Axis, ...]) -> Expr:
        index = lowering.load_view(found, axes)
        if nans is not None:
            nan = lowering.load_view(nans, axes)
            index = apply("where", apply("ge", nan, constant(0, "int64")), nan, index)
        empty = has_no_tap(pool, pool.split(axes)[1])
        return index if empty is None else apply("where", empty[0], empty[1], index)

    return lowering.map(val, value)


# ---- its gradient ----------------------------------------------------------------------------------------


@lowers("aten.max_pool2d_with_indices_backward", "aten.max_pool3d_with_indices_backward")
def lower_max_pool_backward(lowering: Lowering, node: fx.Node) -> Any:
    grad, _, size, stride, padding, dilation, _, indices = node.args
    dims = spatial_dims(node)
    window = window_of(lowering, size, stride, padding, dims, dilation)
    if channels_side_by_side(node.meta["val"], dims) and size_product(covering_counts(window)) <= MOST_TAPS:
        return gather_gradient(lowering, node, grad, indices, window)
    return scatter_gradient(lowering, node, grad, indices, dims)


def channels_side_by_side(val: torch.Tensor, dims: int) -> bool:
    channel = val.dim() - dims - 1
    return val.stride(channel) == 1 and val.size(channel) > 1 and val.stride(val.dim() - 1) != 1


def scatter_gradient(lowering: Lowering, node: fx.Node, grad: Any, indices: Any, dims: int) -> BufferView:
    """dx[n, c, index[n, c, o]] += grad[n, c, o]"""
    val = node.meta["val"]
    axes = axes_of(lowering.view(grad).shape)
    lead = list(axes[: len(axes) - dims])
    shape, strides = sizes(val.shape)[val.dim() - dims :], sizes(val.stride())[val.dim() - dims :]
    for k in range(dims - 1):
        if strides[k] != strides[k + 1] * shape[k + 1]:
            raise NoLowering("a gradient whose spatial dimensions cannot be seen as one")
    place, inside = checked_index(lowering, indices, axes, size_product(shape))
    value = lowering.operand(grad, axes, compute_dtype_of(node))
    position: list[Any] = [*lead, *[Axis("one", 1)] * (dims - 1), place]
    return scatter(lowering, node, axes, position, inside, value, "add")


def covering_counts(window: Window) -> list[int]:
    """How many windows may cover an element, along each dimension."""
    counts = []
    for width, step, spread in zip(window.size, window.stride, window.dilation):
        if not isinstance(step, int) or not isinstance(spread, int):
            raise NoLowering(f"the gradient of pooling with stride {step}, dilation {spread}")
        counts.append(-(-((width - 1) * spread + 1) // step))
    return counts


def covering(window: Window, places: Sequence[Axis], back: Sequence[int]) -> Position:
    """The window `back` before the last one that begins at or before each place: floor((y + padding) / stride) - j"""
    found = []
    for place, step, pad, j in zip(places, window.stride, window.padding, back):
        shifted = axis_place(place) + pad
        if step != 1:
            shifted = floor_of(position_value(shifted), step)
        found.append(shifted + -j)
    return found


def floor_of(value: Expr, step: Size) -> Index:
    return Index(((Value(apply("floor_divide", value, constant(step, "int64"))), 1),), 0)


def gather_gradient(lowering: Lowering, node: fx.Node, grad: Any, indices: Any, window: Window) -> BufferView:
    """dx[n, c, y] = sum over the windows o that may cover y of grad[n, c, o] where index[n, c, o] == y"""
    val, dims = node.meta["val"], spatial_dims(node)
    dtype = compute_dtype_of(node)
    gradient, index = lowering.view(grad), lowering.view(indices)
    counts = gradient.shape[len(gradient.shape) - dims :]
    extents = sizes(val.shape)[val.dim() - dims :]

    def value(axes: tuple[Axis, ...]) -> Expr:
        lead, places = axes[: len(axes) - dims], axes[len(axes) - dims :]
        here = position_value(flat_place([axis_place(place) for place in places], extents))
        total: Expr | None = None
        for back in itertools.product(*map(range, covering_counts(window))):
            position = covering(window, places, back)
            mask = within(position, counts)
            found = lowering.load_view(index, [*lead, *position], mask=mask)
            share = lowering.load_view(gradient, [*lead, *position], mask=mask)
            mine = both(mask, apply("eq", found, here))
            term = apply("where", mine, cast(share, dtype), constant(0, dtype))
            total = term if total is None else apply("add", total, term)
        assert total is not None
        return total

    return lowering.map(val, value)
