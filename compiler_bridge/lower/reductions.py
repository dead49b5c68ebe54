"""Reductions: Reduce nodes; argmax as a maximum and the smallest index that reaches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Reduce,
    Size,
    size_product,
    strided_index,
)
from compiler_bridge.lower.contractions import require_one_dtype
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    cast,
    compute_dtype_of,
    constant,
    dtype_name,
    lowers,
    real_axes,
    sizes,
)
from compiler_bridge.ops import dtype_kind


def reduced_dims(dims: Any, rank: int) -> list[int]:
    if dims is None or (isinstance(dims, (list, tuple)) and len(dims) == 0):
        return list(range(rank))
    dims = [dims] if isinstance(dims, int) else dims
    return sorted(d % rank for d in dims) if rank else []


def reduce_value(
    lowering: Lowering,
    val: torch.Tensor,
    source: BufferView,
    dims: Sequence[int],
    keepdim: bool,
    op: str,
    value: Callable[[tuple[Axis, ...]], Expr],
    stored: str | None = None,
) -> BufferView:
    """One Reduce over `dims` of source's shape into a buffer laid out like val (of dtype `stored`, if given)."""
    axes = axes_of(source.shape)
    strides = sizes(val.stride())
    shape = sizes(val.shape)
    buffer = lowering.new_buffer(shape, stored or dtype_name(val.dtype), strides)
    kept = [axis for k, axis in enumerate(axes) if k not in dims]
    kept_strides = [s for k, s in enumerate(strides) if not keepdim or k not in dims]
    reduced = real_axes([axes[k] for k in dims])
    store = strided_index(kept, kept_strides)
    lowering.append(Reduce(buffer.name, lowering.origin(), real_axes(kept), reduced, store, value(axes), op))
    return lowering.whole(buffer)


def arguments(node: fx.Node) -> tuple[Any, bool]:
    """(dim, keepdim) of a reduction call."""
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return dims, bool(keepdim)


def require_elements(op: str, source: BufferView, dims: Sequence[int]) -> None:
    if any(source.shape[d] == 0 for d in dims):
        raise NoLowering(f"{op} over an empty dimension")


@lowers(
    "aten.sum",
    "aten.amax",
    "aten.amin",
    "aten.prod",
    "aten.any",
    "aten.all",
    "aten.mean",
    "aten.max.default",
    "aten.min.default",
)
def lower_reduce(lowering: Lowering, node: fx.Node) -> Any:
    name = str(node.target).split(".")[1]
    op = {"amax": "max", "amin": "min", "mean": "sum"}.get(name, name)
    source = lowering.view(node.args[0])
    val = node.meta["val"]
    dims, keepdim = arguments(node)
    dims = reduced_dims(dims, len(source.shape))
    dtype = compute_dtype_of(node)
    if op in ("any", "all") and val.dtype != torch.bool:
        raise NoLowering(f"{op} that gives {val.dtype}")
    if dtype == "bool" and op in ("max", "min"):
        op = "any" if op == "max" else "all"
    if op in ("max", "min"):
        require_elements(op, source, dims)

    def value(axes: tuple[Axis, ...]) -> Expr:
        return cast(lowering.load_view(source, axes), dtype)

    if name != "mean":
        return reduce_value(lowering, val, source, dims, keepdim, op, value)
    # the sum is not rounded to 16 bits before the division
    total = reduce_value(lowering, val, source, dims, keepdim, op, value, dtype)
    count = constant(size_product(source.shape[d] for d in dims), dtype)
    return lowering.map(val, lambda axes: apply("div", lowering.load_view(total, axes), count))


@lowers("aten.linalg_vector_norm")
def lower_vector_norm(lowering: Lowering, node: fx.Node) -> Any:
    """ord 2: sqrt(sum(x * x));  1: sum(|x|);  inf: max(|x|)"""
    given: dict[str, Any] = dict(zip(("self", "ord", "dim", "keepdim"), node.args))
    given.update(node.kwargs)
    order: Any = given.get("ord", 2)
    source, val, dtype = lowering.view(given["self"]), node.meta["val"], compute_dtype_of(node)
    dims = reduced_dims(given.get("dim"), len(source.shape))
    if order not in (1, 2, float("inf")) or dtype_kind(dtype) != "float":
        raise NoLowering(f"vector norm of order {order}")
    if order == float("inf"):
        require_elements("max", source, dims)

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = cast(lowering.load_view(source, axes), dtype)
        return apply("mul", x, x) if order == 2 else apply("fabs", x)

    op = "max" if order == float("inf") else "sum"
    keepdim = bool(given.get("keepdim", False))
    if order != 2:
        return reduce_value(lowering, val, source, dims, keepdim, op, value)
    total = reduce_value(lowering, val, source, dims, keepdim, op, value, dtype)
    return lowering.map(val, lambda axes: apply("sqrt", lowering.load_view(total, axes)))


@lowers("aten.argmax", "aten.argmin", "aten.max.dim", "aten.min.dim")
def lower_arg_extremum(lowering: Lowering, node: fx.Node) -> Any:
    """m = max(x); index = min(where(x == m, position, n)).  NaN counts as the extremum, the first wins."""
    op = "max" if "max" in str(node.target) else "min"
    source = lowering.view(node.args[0])
    dims, keepdim = arguments(node)
    dims = reduced_dims(dims, len(source.shape))
    require_elements(op, source, dims)
    val = node.meta["val"]
    index_val = val if isinstance(val, torch.Tensor) else val[1]
    stored = dtype_name(lowering.meta(node.args[0]).dtype)
    if stored == "bool":
        raise NoLowering(f"{node.target} of bools")

    def x(axes: tuple[Axis, ...]) -> Expr:
        return lowering.load_view(source, axes)

    values = reduce_value(lowering, index_val, source, dims, keepdim, op, x, stored)

    def position(axes: tuple[Axis, ...]) -> Expr:
        element = x(axes)
        kept = [Axis(a.name, 1) if k in dims else a for k, a in enumerate(axes)]
        best = lowering.load_view(
            values, kept if keepdim else [a for k, a in enumerate(kept) if k not in dims]
        )
        hit = apply("eq", element, best)
        if dtype_kind(stored) == "float":
            hit = apply("bitwise_or", hit, apply("isnan", element))
        count = constant(size_product(source.shape[d] for d in dims), "int64")
        return apply("where", hit, flat_position(axes, dims), count)

    indices = reduce_value(lowering, index_val, source, dims, keepdim, "min", position)
    return indices if isinstance(val, torch.Tensor) else (values, indices)


def flat_position(axes: tuple[Axis, ...], dims: Sequence[int]) -> Expr:
    """The number of the element among the reduced ones, row-major."""
    strides: list[Size] = [1]
    for k in reversed(dims[1:]):
        strides.insert(0, strides[0] * axes[k].extent)
    return IndexValue("int64", strided_index([axes[k] for k in dims], strides) if dims else Index())


@lowers("aten.dot", "aten.mv")
def lower_dot(lowering: Lowering, node: fx.Node) -> Any:
    """out[i] = sum over j of matrix[i, j] * vector[j]"""
    require_one_dtype(lowering, node.args)
    matrix, vector = (lowering.view(a) for a in node.args)
    dtype = compute_dtype_of(node)
    if dtype_kind(dtype) != "float":
        raise NoLowering(f"product of {dtype}")
    last = len(matrix.shape) - 1

    def value(axes: tuple[Axis, ...]) -> Expr:
        return apply("mul", lowering.load_view(matrix, axes), lowering.load_view(vector, axes[last:]))

    return reduce_value(lowering, node.meta["val"], matrix, [last], False, "sum", value)
