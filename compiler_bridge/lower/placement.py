"""Moving whole pieces: padding with a constant, slices put back, flips, repeats, rolls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from compiler_bridge.ir import (
    Axis,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Load,
    Map,
    Size,
    Value,
    size_equal,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    both,
    cast,
    compute_dtype_of,
    constant,
    index_expr,
    lowers,
    real_axes,
    sizes,
)


def shifted_load(lowering: Lowering, view: BufferView, axes: Sequence[Axis], shifts: dict[int, Size]) -> Load:
    """view[..., axis - shift, ...], and 0 outside of the view (what can't be outside is not checked)."""
    index: list[Any] = list(axes)
    mask: Expr | None = None
    noted: list[tuple[str, Size, Size]] = []
    for k, shift in shifts.items():
        axis, extent = axes[k], view.shape[k]
        # an axis of extent 1 is no loop variable: its position is the constant 0
        moved = axis_index_of(axis) + (-shift)
        index[k] = moved
        if axis.extent != 1:
            noted.append((axis.name, shift, extent))
        position = IndexValue("int64", moved)
        if not (isinstance(shift, int) and shift <= 0):
            mask = both(mask, apply("ge", position, constant(0, "int64")))
        last = axis.extent - 1 - shift - extent
        if not (isinstance(last, int) and last < 0):
            mask = both(mask, apply("lt", position, constant(extent, "int64")))
    load = lowering.load_view(view, index)
    assert isinstance(load, Load)
    return replace(load, mask=mask, shifts=tuple(noted) if mask is not None else ())


def spaced_load(
    lowering: Lowering, view: BufferView, axes: Sequence[Axis], dim: int, start: Size, step: Size
) -> Load:
    """view[..., (axis - start) / step, ...] along dim, and 0 where that is no place of the view."""
    if step == 1:
        return shifted_load(lowering, view, axes, {dim: start})
    moved = IndexValue("int64", axis_index_of(axes[dim]) + (-start))
    width = constant(step, "int64")
    place = apply("floor_divide", moved, width)
    index: list[Any] = list(axes)
    index[dim] = Index(((Value(place), 1),))
    mask = apply("eq", apply("remainder", moved, width), constant(0, "int64"))
    mask = both(mask, apply("ge", place, constant(0, "int64")))
    mask = both(mask, apply("lt", place, constant(view.shape[dim], "int64")))
    load = lowering.load_view(view, index)
    assert isinstance(load, Load)
    return replace(load, mask=mask)


def axis_index_of(axis: Axis) -> Index:
    """An axis of extent 1 is no loop variable."""
    return Index() if axis.extent == 1 else Index(((axis.name, 1),))


def with_dimension(view: BufferView, dim: int) -> BufferView:
    """The view with a further dimension of extent 1."""
    shape, strides = list(view.shape), list(view.strides)
    shape.insert(dim, 1)
    strides.insert(dim, 0)
    return replace(view, shape=tuple(shape), strides=tuple(strides))


@lowers("aten.constant_pad_nd")
def lower_constant_pad(lowering: Lowering, node: fx.Node) -> Any:
    source = lowering.view(node.args[0])
    pads: Any = [lowering.size_of(p) for p in node.args[1]]  # pyright: ignore
    fill: Any = node.args[2] if len(node.args) > 2 else 0
    dtype = compute_dtype_of(node)
    rank = len(source.shape)
    shifts = {
        rank - 1 - k: pads[2 * k] for k in range(len(pads) // 2) if pads[2 * k] != 0 or pads[2 * k + 1] != 0
    }

    def value(axes: tuple[Axis, ...]) -> Expr:
        load = shifted_load(lowering, source, axes, shifts)
        if fill == 0 or load.mask is None:
            return load
        return apply("where", load.mask, load, constant(fill, dtype))

    return lowering.map(node.meta["val"], value)


@lowers("aten.slice_backward", "aten.select_backward")
def lower_slice_backward(lowering: Lowering, node: fx.Node) -> Any:
    """Zeros of the input's shape with the gradient at the sliced places."""
    gradient, shape, dim, start, *rest = node.args
    view = lowering.view(gradient)
    full = [lowering.size_of(s) for s in shape]  # pyright: ignore
    dim = int(dim) % len(full)  # pyright: ignore
    step: Size = 1
    if "select" in str(node.target):
        view = with_dimension(view, dim)
    else:
        step = lowering.size_of(rest[1])
    begin = within(lowering.size_of(start), full[dim])
    return lowering.map(node.meta["val"], lambda axes: spaced_load(lowering, view, axes, dim, begin, step))


def within(start: Size, extent: Size) -> Size:
    """A slice's start counted from the front and cut to the extent."""
    if isinstance(start, int) and start < 0:
        start = start + extent
    if isinstance(start, int) and isinstance(extent, int):
        return min(max(start, 0), extent)
    return start


@lowers("aten.slice_scatter", "aten.select_scatter")
def lower_slice_scatter(lowering: Lowering, node: fx.Node) -> Any:
    """base, with `source` at the sliced places"""
    select = "select" in str(node.target)
    base, source = node.args[0], lowering.view(node.args[1])
    full = lowering.view(base).shape
    given: dict[str, Any] = dict(
        zip(("dim", "index") if select else ("dim", "start", "end", "step"), node.args[2:])
    )
    given.update(node.kwargs)
    dim = int(given.get("dim") or 0) % len(full)
    step = lowering.size_of(given.get("step") or 1)
    if select:
        source = with_dimension(source, dim)
    start = within(lowering.size_of(given.get("index" if select else "start") or 0), full[dim])
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        load = spaced_load(lowering, source, axes, dim, start, step)
        if load.mask is None:
            return cast(load, dtype)
        return apply("where", load.mask, cast(load, dtype), lowering.operand(base, axes, dtype))

    return lowering.map(node.meta["val"], value)


@lowers("aten.as_strided_scatter")
def lower_as_strided_scatter(lowering: Lowering, node: fx.Node) -> Any:
    """base, with `source` at the places of base.as_strided(size, stride): where these are all of base's, once each.

    That is what the gradient of a view with other strides for the same elements asks for.
    """
    source = lowering.view(node.args[1])
    val = node.meta["val"]
    arguments: Any = [*node.args[2:], *node.kwargs.values()]
    size, stride = (sizes([lowering.size_of(x) for x in values]) for values in arguments[:2])
    offset = lowering.size_of(arguments[2]) if len(arguments) > 2 and arguments[2] is not None else 0
    buffer = lowering.buffer_like(val)
    if offset != 0 or not is_dense(size, stride, buffer.numel()):
        raise NoLowering("as_strided_scatter to some of the places, or to one of them twice")
    axes = axes_of(size)
    value = cast(lowering.load_view(source, axes), compute_dtype_of(node))
    store = strided_index(axes, stride)
    lowering.append(Map(buffer.name, lowering.origin(), real_axes(axes), store, value))
    return lowering.whole(buffer)


def is_dense(size: Sequence[Size], stride: Sequence[Size], elements: Size) -> bool:
    """Whether the strides reach each of so many elements once."""
    reached: Size = 1
    places = [(step, extent) for extent, step in zip(size, stride) if extent != 1]
    while places:
        place = next((p for p in places if size_equal(p[0], reached)), None)
        if place is None:
            return False
        places.remove(place)
        reached = reached * place[1]
    return size_equal(reached, elements)


@lowers("aten.flip")
def lower_flip(lowering: Lowering, node: fx.Node) -> Any:
    """out[i] = x[n - 1 - i]"""
    source = lowering.view(node.args[0])
    dims = {d % len(source.shape) for d in node.args[1]}  # pyright: ignore

    def value(axes: tuple[Axis, ...]) -> Expr:
        index: list[Any] = list(axes)
        for k in dims:
            if axes[k].extent != 1:
                index[k] = Index(((axes[k].name, -1),), axes[k].extent - 1)
        return lowering.load_view(source, index)

    return lowering.map(node.meta["val"], value)


@lowers("aten.roll")
def lower_roll(lowering: Lowering, node: fx.Node) -> Any:
    """out[i] = x[i - shift] if i >= shift else x[i - shift + n], one dimension after the other"""
    source = lowering.view(node.args[0])
    shifts: Any = [lowering.size_of(s) for s in node.args[1]]  # pyright: ignore
    dims: Any = node.args[2] if len(node.args) > 2 else []
    if not dims:
        raise NoLowering("roll of the flattened tensor")
    for shift, dim in zip(shifts, dims):
        dim = dim % len(source.shape)
        extent = source.shape[dim]
        if not isinstance(extent, int) or not isinstance(shift, int):
            raise NoLowering("roll by or along a symbolic size")
        source = rolled(lowering, node, source, dim, shift % extent if extent else 0)
    return source


def rolled(lowering: Lowering, node: fx.Node, source: BufferView, dim: int, shift: int) -> BufferView:
    extent = source.shape[dim]

    def value(axes: tuple[Axis, ...]) -> Expr:
        if shift == 0:
            return lowering.load_view(source, axes)
        wrapped = shifted_load(lowering, source, axes, {dim: shift - extent})
        kept = shifted_load(lowering, source, axes, {dim: shift})
        return apply("where", apply("lt", index_expr(axes[dim]), constant(shift, "int64")), wrapped, kept)

    return lowering.map(node.meta["val"], value)


@lowers("aten.repeat")
def lower_repeat(lowering: Lowering, node: fx.Node) -> Any:
    """out[r * n + i] = x[i]: every dimension becomes two axes."""
    source = lowering.view(node.args[0])
    repeats = [lowering.size_of(r) for r in node.args[1]]  # pyright: ignore
    buffer = lowering.buffer_like(node.meta["val"])
    lead = len(repeats) - len(source.shape)
    extents = (1,) * lead + source.shape
    outer, inner = axes_of(repeats, "r"), axes_of(extents, "i")
    coarse = [n * s for n, s in zip(extents, buffer.strides)]
    store = strided_index(inner, buffer.strides) + strided_index(outer, coarse)
    value = lowering.load_view(source, inner[lead:])
    axes = tuple(a for pair in zip(outer, inner) for a in pair)
    lowering.append(Map(buffer.name, lowering.origin(), real_axes(axes), store, value))
    return lowering.whole(buffer)
