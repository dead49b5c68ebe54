"""Concatenation, padding, gather and scatter."""

from __future__ import annotations

from dataclasses import replace
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
    Map,
    Scatter,
    Size,
    size_equal,
    strided_index,
    substitute_store,
)
from compiler_bridge.lower.lowering import (
    NoLowering,
    Lowering,
    apply,
    axes_of,
    cast,
    constant,
    data_index,
    dtype_name,
    lowers,
    real_axes,
    sizes,
)
from compiler_bridge.ops import compute_dtype


def shifted_load(
    lowering: Lowering, view: BufferView, axes: tuple[Axis, ...], shifts: dict[int, Size]
) -> Expr:
    """view[..., axis - shift, ...], and 0 outside of the view."""
    index: list[Any] = []
    mask: Expr | None = None
    noted: list[tuple[str, Size]] = []
    for k, axis in enumerate(axes):
        shift = shifts.get(k)
        if shift is None:
            index.append(axis)
            continue
        # an axis of extent 1 is no loop variable: its position is the constant 0
        moved = (Index((), 0) if axis.extent == 1 else Index(((axis.name, 1),), 0)) + (-shift)
        index.append(moved)
        noted.append((axis.name, shift))
        position = IndexValue("int64", moved)
        inside = apply("ge", position, constant(0, "int64"))
        below = apply("lt", position, constant(view.shape[k], "int64"))
        conditions = [] if shift == 0 else [inside]
        if not size_equal(view.shape[k] + shift, axis.extent):
            conditions.append(below)
        for condition in conditions:
            mask = condition if mask is None else apply("bitwise_and", mask, condition)
    load = lowering.load_view(view, [i if isinstance(i, Index) else i for i in index], shifts=tuple(noted))
    assert isinstance(load, Load)
    return load if mask is None else replace(load, mask=mask)


@lowers("aten.cat")
def lower_cat(lowering: Lowering, node: fx.Node) -> Any:
    tensors: Any = node.args[0]
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    dim = dim % max(val.dim(), 1)
    views = [lowering.view(t) for t in tensors if lowering.meta(t).dim() == val.dim()]

    def value(axes: tuple[Axis, ...]) -> Expr:
        result: Expr | None = None
        offset: Size = 0
        for view in views:
            extent = view.shape[dim]
            part = cast(shifted_load(lowering, view, axes, {dim: offset}), dtype)
            if result is None:
                result = part
            else:
                position = IndexValue("int64", Index(((axes[dim].name, 1),), 0))
                result = apply("where", apply("lt", position, constant(offset, "int64")), result, part)
            offset = offset + extent
        assert result is not None
        return result

    return lowering.map(val, value)


@lowers("aten.constant_pad_nd")
def lower_constant_pad(lowering: Lowering, node: fx.Node) -> Any:
    source = lowering.view(node.args[0])
    pads: Any = [lowering.size_of(p) for p in node.args[1]]  # pyright: ignore
    fill: Any = node.args[2] if len(node.args) > 2 else 0
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    rank = len(source.shape)
    shifts = {
        rank - 1 - k: pads[2 * k] for k in range(len(pads) // 2) if pads[2 * k] != 0 or pads[2 * k + 1] != 0
    }

    def value(axes: tuple[Axis, ...]) -> Expr:
        load = shifted_load(lowering, source, axes, shifts)
        assert isinstance(load, Load)
        if fill == 0 or load.mask is None:
            return cast(load, dtype)
        return apply("where", load.mask, load, constant(fill, dtype))

    return lowering.map(val, value)


@lowers("aten.slice_backward", "aten.select_backward")
def lower_slice_backward(lowering: Lowering, node: fx.Node) -> Any:
    """Zeros of the input's shape with the gradient at the sliced places (step 1)."""
    select = "select" in str(node.target)
    gradient, shape, dim = node.args[0], node.args[1], node.args[2]
    start: Any = node.args[3] if not isinstance(node.args[3], fx.Node) else lowering.values[node.args[3]]
    if not select and node.args[5] != 1:
        raise NoLowering(f"slice_backward with step {node.args[5]}; expected 1")
    view = lowering.view(gradient)
    full = [lowering.size_of(s) for s in shape]  # pyright: ignore
    dim = int(dim) % len(full)  # pyright: ignore
    extent = full[dim]
    if isinstance(start, int) and start < 0:
        start = start + extent
    if isinstance(start, int) and isinstance(extent, int):
        start = min(max(start, 0), extent)
    if select:  # the selected dimension comes back with extent 1
        view = BufferView(
            view.buffer,
            (*view.shape[:dim], 1, *view.shape[dim:]),
            (*view.strides[:dim], 0, *view.strides[dim:]),
            view.offset,
        )
    val = node.meta["val"]
    return lowering.map(val, lambda axes: shifted_load(lowering, view, axes, {dim: start}))


@lowers("aten.slice_scatter", "aten.select_scatter")
def lower_slice_scatter(lowering: Lowering, node: fx.Node) -> Any:
    select = "select" in str(node.target)
    base, source = node.args[0], lowering.view(node.args[1])
    full = lowering.view(base).shape
    given = dict(zip(("dim", "index") if select else ("dim", "start", "end", "step"), node.args[2:]))
    given.update(node.kwargs)
    dim = int(given.get("dim") or 0) % len(full)  # pyright: ignore
    start: Any = given.get("index" if select else "start") or 0
    start = lowering.size_of(start)
    if (given.get("step") or 1) != 1:
        raise NoLowering(f"slice_scatter with step {given['step']}; expected 1")
    if isinstance(start, int) and start < 0:
        start = start + full[dim]
    if select:
        source = BufferView(
            source.buffer,
            (*source.shape[:dim], 1, *source.shape[dim:]),
            (*source.strides[:dim], 0, *source.strides[dim:]),
            source.offset,
        )
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        load = shifted_load(lowering, source, axes, {dim: start})
        assert isinstance(load, Load) and load.mask is not None
        return apply("where", load.mask, cast(load, dtype), lowering.operand(base, axes, dtype))

    return lowering.map(val, value)


@lowers("aten.flip")
def lower_flip(lowering: Lowering, node: fx.Node) -> Any:
    source = lowering.view(node.args[0])
    dims = {d % len(source.shape) for d in node.args[1]}  # pyright: ignore

    def value(axes: tuple[Axis, ...]) -> Expr:
        index: list[Any] = []
        for k, axis in enumerate(axes):
            if k in dims and axis.extent != 1:
                index.append(Index(((axis.name, -1),), axis.extent - 1))
            else:
                index.append(axis)
        return lowering.load_view(source, index)

    return lowering.map(node.meta["val"], value)


@lowers("aten.repeat")
def lower_repeat(lowering: Lowering, node: fx.Node) -> Any:
    """out[r * n + i] = x[i]: every dimension becomes two axes."""
    source = lowering.view(node.args[0])
    repeats = [lowering.size_of(r) for r in node.args[1]]  # pyright: ignore
    val = node.meta["val"]
    buffer = lowering.buffer_like(val)
    lead = len(repeats) - len(source.shape)
    extents = (1,) * lead + source.shape
    outer, inner = axes_of(repeats, "r"), axes_of(extents, "i")
    store = strided_index(inner, buffer.strides) + strided_index(
        outer, [n * s for n, s in zip(extents, buffer.strides)]
    )
    value = lowering.load_view(source, inner[lead:])
    axes = tuple(a for pair in zip(outer, inner) for a in pair)
    lowering.append(Map(buffer.name, lowering.origin(), real_axes(axes), store, value))
    return lowering.whole(buffer)


# ---------------------------------------------------------------- data-dependent indices


def checked_index(
    lowering: Lowering, arg: Any, axes: Any, extent: Size, wrap: bool = True
) -> tuple[Index, Expr]:
    """The index of data, and the condition that it is in range (an access out of range reads 0)."""
    index = data_index(lowering.operand(arg, axes, "int64"), extent, wrap)
    position = IndexValue("int64", index)
    inside = apply(
        "bitwise_and",
        apply("ge", position, constant(0, "int64")),
        apply("lt", position, constant(extent, "int64")),
    )
    return index, inside


@lowers("aten.embedding")
def lower_embedding(lowering: Lowering, node: fx.Node) -> Any:
    table = lowering.view(node.args[0])
    ids = lowering.view(node.args[1])
    rank = len(ids.shape)

    def value(axes: tuple[Axis, ...]) -> Expr:
        index, inside = checked_index(lowering, node.args[1], axes[:rank], table.shape[0], wrap=False)
        return lowering.load_view(table, [index, axes[rank]], mask=inside)

    return lowering.map(node.meta["val"], value)


@lowers("aten.index_select")
def lower_index_select(lowering: Lowering, node: fx.Node) -> Any:
    source = lowering.view(node.args[0])
    if not source.shape:
        raise NoLowering("index_select of a 0-d tensor")
    dim = int(node.args[1]) % len(source.shape)  # pyright: ignore

    def value(axes: tuple[Axis, ...]) -> Expr:
        position, inside = checked_index(
            lowering, node.args[2], axes[dim : dim + 1], source.shape[dim], wrap=False
        )
        index: list[Any] = list(axes)
        index[dim] = position
        return lowering.load_view(source, index, mask=inside)

    return lowering.map(node.meta["val"], value)


@lowers("aten.gather")
def lower_gather(lowering: Lowering, node: fx.Node) -> Any:
    source = lowering.view(node.args[0])
    if not source.shape:
        raise NoLowering("gather of a 0-d tensor")
    dim = int(node.args[1]) % len(source.shape)  # pyright: ignore

    def value(axes: tuple[Axis, ...]) -> Expr:
        position, inside = checked_index(lowering, node.args[2], axes, source.shape[dim], wrap=False)
        index: list[Any] = [Axis(a.name, a.extent) for a in axes]
        index[dim] = position
        # the index may cover less than the source: never broadcast a source dimension of another extent
        view = BufferView(source.buffer, tuple(a.extent for a in axes), source.strides, source.offset)
        view = replace(view, shape=tuple(2 if k == dim else s for k, s in enumerate(view.shape)))
        return lowering.load_view(view, index, mask=inside)

    return lowering.map(node.meta["val"], value)


def advanced_index(
    lowering: Lowering,
    source: BufferView,
    indices: Any,
    axes: tuple[Axis, ...],
    index_rank: int,
    wrap: bool = True,
) -> tuple[list[Any], Expr]:
    """(one Index or Axis a source dimension, in-range condition) of x[indices] at the result's `axes`.

    Adjacent index tensors put their broadcast dimensions in their place, separated ones at the front.
    """
    given = [k for k, i in enumerate(indices) if i is not None]
    adjacent = given == list(range(given[0], given[-1] + 1))
    start = given[0] if adjacent else 0
    index_axes = axes[start : start + index_rank]
    rest = list(axes[:start]) + list(axes[start + index_rank :])
    position: list[Any] = []
    mask: Expr | None = None
    for k in range(len(source.shape)):
        if k < len(indices) and indices[k] is not None:
            if lowering.meta(indices[k]).dtype in (torch.bool, torch.uint8):
                raise NoLowering("indexing by a boolean mask (the size depends on data)")
            index, inside = checked_index(lowering, indices[k], index_axes, source.shape[k], wrap)
            position.append(index)
            mask = inside if mask is None else apply("bitwise_and", mask, inside)
        else:
            position.append(rest.pop(0))
    assert mask is not None
    return position, mask


def index_rank_of(lowering: Lowering, indices: Any) -> int:
    return max(lowering.meta(i).dim() for i in indices if i is not None)


@lowers("aten.index", "aten._unsafe_index")
def lower_index(lowering: Lowering, node: fx.Node) -> Any:
    source = lowering.view(node.args[0])
    indices: Any = node.args[1]
    rank = index_rank_of(lowering, indices)

    def value(axes: tuple[Axis, ...]) -> Expr:
        position, inside = advanced_index(lowering, source, indices, axes, rank)
        return lowering.load_view(source, position, mask=inside)

    return lowering.map(node.meta["val"], value)


def scatter(
    lowering: Lowering,
    node: fx.Node,
    axes: tuple[Axis, ...],
    position: list[Any],
    inside: Expr,
    value: Expr,
    op: str,
    base: Any,
) -> BufferView:
    """A Scatter node over a copy of `base`; positions out of range are dropped."""
    val = node.meta["val"]
    buffer = lowering.new_buffer(val.shape, dtype_name(val.dtype))
    base_view = lowering.view(base)
    if compute_dtype(buffer.dtype) != buffer.dtype:
        raise NoLowering(f"scatter into {buffer.dtype}")
    copy = lowering.map(val, lambda a: lowering.load_view(base_view, a))
    if lowering.graph.buffers[copy.buffer].strides != buffer.strides:
        raise NoLowering("scatter into a tensor that is not contiguous")
    store = Index((), 0)
    for stride, place in zip(buffer.strides, position):
        if isinstance(place, Axis):
            place = Index((), 0) if place.extent == 1 else Index(((place.name, 1),), 0)
        store = store + place.scaled(stride)
    guarded = Apply(value.dtype, "guard", (inside, value))
    lowering.append(
        Scatter(
            buffer.name,
            lowering.origin(),
            real_axes(axes),
            substitute_store(store, {}),
            guarded,
            op,
            copy.buffer,
        )
    )
    return lowering.whole(buffer)


@lowers("aten.index_put", "aten._unsafe_index_put")
def lower_index_put(lowering: Lowering, node: fx.Node) -> Any:
    base, indices, values = node.args[:3]
    accumulate = node.args[3] if len(node.args) > 3 else node.kwargs.get("accumulate", False)
    target = lowering.view(base)
    rank = index_rank_of(lowering, indices)
    shape = torch.broadcast_shapes(*(lowering.meta(i).shape for i in indices if i is not None))  # pyright: ignore
    given = [k for k, i in enumerate(indices) if i is not None]  # pyright: ignore
    start = given[0] if given == list(range(given[0], given[-1] + 1)) else 0
    rest = [s for k, s in enumerate(target.shape) if k not in given]
    axes = axes_of((*rest[:start], *sizes(shape), *rest[start:]))
    position, inside = advanced_index(lowering, target, indices, axes, rank)
    dtype = compute_dtype(dtype_name(node.meta["val"].dtype))
    value = lowering.operand(values, axes, dtype)
    return scatter(lowering, node, axes, position, inside, value, "add" if accumulate else "set", base)


@lowers("aten.scatter_add", "aten.scatter.src", "aten.scatter.value")
def lower_scatter(lowering: Lowering, node: fx.Node) -> Any:
    base, dim, index, source = node.args[:4]
    target = lowering.view(base)
    if not target.shape:
        raise NoLowering("scatter into a 0-d tensor")
    dim = int(dim) % len(target.shape)  # pyright: ignore
    axes = axes_of(lowering.view(index).shape)
    dtype = compute_dtype(dtype_name(node.meta["val"].dtype))
    place, inside = checked_index(lowering, index, axes, target.shape[dim], wrap=False)
    position: list[Any] = list(axes)
    position[dim] = place
    if isinstance(source, fx.Node) and isinstance(lowering.values[source], BufferView):
        view = lowering.view(source)
        value = cast(lowering.load_view(replace(view, shape=tuple(a.extent for a in axes)), axes), dtype)
    else:
        value = lowering.operand(source, axes, dtype)
    op = "add" if "scatter_add" in str(node.target) else "set"
    return scatter(lowering, node, axes, position, inside, value, op, base)


@lowers("aten.index_add")
def lower_index_add(lowering: Lowering, node: fx.Node) -> Any:
    base, dim, index, source = node.args[:4]
    if node.kwargs.get("alpha", 1) != 1:
        raise NoLowering("index_add with alpha")
    target = lowering.view(base)
    view = lowering.view(source)
    dim = int(dim) % max(len(target.shape), 1)  # pyright: ignore
    axes = axes_of(view.shape)
    place, inside = checked_index(lowering, index, axes[dim : dim + 1], target.shape[dim], wrap=False)
    position: list[Any] = list(axes)
    position[dim] = place
    return scatter(lowering, node, axes, position, inside, lowering.load_view(view, axes), "add", base)
