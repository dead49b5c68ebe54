"""Writing at places that are data: index_put, scatter, scatter_reduce, index_add, the gradient of embedding.

Positions out of range are dropped. 16-bit floats are added up in float32 and rounded once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import Apply, Axis, BufferView, Constant, Expr, Index, Map, Scatter
from compiler_bridge.lower.gathers import advanced_index, checked_index, index_rank_of, is_adjacent
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
)
from compiler_bridge.lower.pointwise import as_bool


def scatter(
    lowering: Lowering,
    node: fx.Node,
    axes: tuple[Axis, ...],
    position: list[Any],
    inside: Expr,
    value: Expr,
    op: str,
    base: Any = None,
) -> BufferView:
    """A Scatter node over `base` (zeros when None), in the compute dtype of the result."""
    val = node.meta["val"]
    dtype = compute_dtype_of(node)
    start = None if base is None else base_buffer(lowering, val, dtype, base)
    buffer = lowering.buffer_like(val, dtype)
    store = Index((), 0)
    for stride, place in zip(buffer.strides, position):
        if isinstance(place, Axis):
            place = Index((), 0) if place.extent == 1 else Index(((place.name, 1),), 0)
        store = store + place.scaled(stride)
    guarded = Apply(dtype, "guard", (inside, cast(value, dtype)))
    lowering.append(Scatter(buffer.name, lowering.origin(), real_axes(axes), store, guarded, op, start))
    whole = lowering.whole(buffer)
    if dtype == dtype_name(val.dtype):
        return whole
    return lowering.map(val, lambda a: lowering.load_view(whole, a))


def base_buffer(lowering: Lowering, val: torch.Tensor, dtype: str, base: Any) -> str | None:
    """A buffer with the layout of the result that holds the base, or None when that is all zeros."""
    view = lowering.view(base)
    for node in lowering.graph.nodes:
        if isinstance(node, Map) and node.output == view.buffer:
            if isinstance(node.value, Constant) and node.value.value == 0:
                return None
    buffer = lowering.graph.buffers[view.buffer]
    whole = lowering.whole(buffer)
    if view == whole and buffer.dtype == dtype and buffer.strides == sizes(val.stride()):
        return buffer.name
    copy = lowering.buffer_like(val, dtype)
    return lowering.map_into(copy, lambda axes: cast(lowering.load_view(view, axes), dtype)).buffer


@lowers("aten.index_put", "aten._unsafe_index_put")
def lower_index_put(lowering: Lowering, node: fx.Node) -> Any:
    base, indices, values = node.args[:3]
    accumulate = node.args[3] if len(node.args) > 3 else node.kwargs.get("accumulate", False)
    given = [k for k, i in enumerate(indices) if i is not None]  # pyright: ignore
    if len(given) == 1 and lowering.meta(indices[given[0]]).dtype == torch.bool and not accumulate:  # pyright: ignore
        return masked_put(lowering, node, given[0])
    target = lowering.view(base)
    rank = index_rank_of(lowering, indices)
    shape = torch.broadcast_shapes(*(lowering.meta(i).shape for i in indices if i is not None))  # pyright: ignore
    start = given[0] if is_adjacent(given) else 0
    rest = [s for k, s in enumerate(target.shape) if k not in given]
    axes = axes_of((*rest[:start], *sizes(shape), *rest[start:]))
    position, inside = advanced_index(lowering, target, indices, axes, rank)
    value = lowering.operand(values, axes, compute_dtype_of(node))
    return scatter(lowering, node, axes, position, inside, value, "add" if accumulate else "set", base)


def masked_put(lowering: Lowering, node: fx.Node, dim: int) -> BufferView:
    """x[mask] = value for one value: where(mask, value, x)"""
    base, indices, values = node.args[:3]
    mask: Any = indices[dim]  # pyright: ignore
    if lowering.meta(values).numel() != 1:
        raise NoLowering("values put where a boolean mask says (their number depends on data)")
    rank = lowering.meta(mask).dim()
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        put = lowering.operand(values, [Axis("one", 1)] * lowering.meta(values).dim(), dtype)
        return apply(
            "where", as_bool(lowering, mask, axes[dim : dim + rank]), put, lowering.operand(base, axes, dtype)
        )

    return lowering.map(node.meta["val"], value)


SCATTER_REDUCTIONS = {"sum": "add", "amax": "max", "amin": "min"}


@lowers("aten.scatter_reduce.two")
def lower_scatter_reduce(lowering: Lowering, node: fx.Node) -> Any:
    """out = base; out[i, index[i, j, k], k] op= source[i, j, k]"""
    reduction: Any = node.args[4]
    if reduction not in SCATTER_REDUCTIONS or not node.kwargs.get("include_self", True):
        raise NoLowering(f"scatter_reduce by {reduction}, or without what is there already")
    if node.meta["val"].dtype == torch.bool:
        raise NoLowering("scatter_reduce of bools")
    return scatter_along(lowering, node, SCATTER_REDUCTIONS[reduction])


@lowers("aten.scatter_add", "aten.scatter.src", "aten.scatter.value")
def lower_scatter(lowering: Lowering, node: fx.Node) -> Any:
    """out = base; out[i, index[i, j, k], k] = (or +=) source[i, j, k]"""
    return scatter_along(lowering, node, "add" if "scatter_add" in str(node.target) else "set")


def scatter_along(lowering: Lowering, node: fx.Node, op: str) -> BufferView:
    base, dim, index, source = node.args[:4]
    target = lowering.view(base)
    if not target.shape:
        raise NoLowering("scatter into a 0-d tensor")
    dim = int(dim) % len(target.shape)  # pyright: ignore
    axes = axes_of(lowering.view(index).shape)
    dtype = compute_dtype_of(node)
    place, inside = checked_index(lowering, index, axes, target.shape[dim])
    position: list[Any] = list(axes)
    position[dim] = place
    if isinstance(source, fx.Node) and isinstance(lowering.values[source], BufferView):
        view = lowering.view(source)
        if not view.shape:
            view = replace(view, shape=tuple(a.extent for a in axes), strides=(0,) * len(axes))
        value = cast(lowering.load_view(view, axes), dtype)
    else:
        value = lowering.operand(source, axes, dtype)
    return scatter(lowering, node, axes, position, inside, value, op, base)


@lowers("aten.index_add")
def lower_index_add(lowering: Lowering, node: fx.Node) -> Any:
    """out = base; out[i, index[j], k] += alpha * source[i, j, k]"""
    base, dim, index, source = node.args[:4]
    target, view = lowering.view(base), lowering.view(source)
    if not target.shape:
        raise NoLowering("index_add into a 0-d tensor")
    dim = int(dim) % len(target.shape)  # pyright: ignore
    dtype = compute_dtype_of(node)
    axes = axes_of(view.shape)
    place, inside = checked_index(lowering, index, axes[dim : dim + 1], target.shape[dim])
    position: list[Any] = list(axes)
    position[dim] = place
    value = cast(lowering.load_view(view, axes), dtype)
    alpha: Any = node.kwargs.get("alpha", 1)
    if alpha != 1:
        value = apply("mul", value, lowering.operand(alpha, axes, dtype))
    return scatter(lowering, node, axes, position, inside, value, "add", base)


@lowers("aten.embedding_dense_backward")
def lower_embedding_backward(lowering: Lowering, node: fx.Node) -> Any:
    """table gradient[ids[...], column] += grad[..., column], where ids is not the padding index"""
    grad, ids, count, padding, by_frequency = node.args
    if by_frequency:
        raise NoLowering("embedding gradient scaled by frequency")
    view = lowering.view(grad)
    axes = axes_of(view.shape)
    place, inside = checked_index(lowering, ids, axes[:-1], lowering.size_of(count))
    if isinstance(padding, int) and padding >= 0:
        row = lowering.operand(ids, axes[:-1], "int64")
        inside = both(inside, apply("ne", row, constant(padding, "int64")))
    value = lowering.load_view(view, axes)
    return scatter(lowering, node, axes, [place, axes[-1]], inside, value, "add")
