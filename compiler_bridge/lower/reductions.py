"""Reductions: Reduce nodes; argmax as a maximum and the smallest index that reaches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import Apply, Axis, BufferView, Expr, size_product
from compiler_bridge.lower.lowering import (
    NoLowering,
    Lowering,
    apply,
    axes_of,
    cast,
    constant,
    dtype_name,
    index_expr,
    lowers,
)
from compiler_bridge.ops import compute_dtype, dtype_kind


def reduced_dims(dims: Any, rank: int) -> list[int]:
    if dims is None or (isinstance(dims, (list, tuple)) and len(dims) == 0):
        return list(range(rank))
    dims = [dims] if isinstance(dims, int) else dims
    return sorted(d % rank for d in dims) if rank else []


def reduce_value(
    lowering: Lowering,
    val: torch.Tensor,
    source: BufferView,
    dims: list[int],
    keepdim: bool,
    op: str,
    value: Callable[[tuple[Axis, ...]], Expr],
) -> BufferView:
    """One Reduce over `dims` of source's shape into a buffer shaped like val."""
    axes = axes_of(source.shape)
    buffer = lowering.buffer_like(val)
    kept = [axis for k, axis in enumerate(axes) if k not in dims]
    strides = [s for k, s in enumerate(buffer.strides) if not keepdim or k not in dims]
    reduced = [axes[k] for k in dims]
    expr = value(axes)
    lowering.reduce(buffer, kept, reduced, strides, expr, op)
    return lowering.whole(buffer)


def arguments(node: fx.Node) -> tuple[Any, bool]:
    """(dim, keepdim) of a reduction call."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return dims, bool(keepdim)


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
    rank = len(source.shape)
    dims = reduced_dims(dims, rank)
    dtype = compute_dtype(dtype_name(val.dtype))
    if op in ("any", "all"):
        dtype = "bool"
    elif dtype == "bool" and op in ("max", "min"):
        op = "any" if op == "max" else "all"
    if op in ("max", "min") and any(source.shape[d] == 0 for d in dims):
        raise NoLowering(f"{op} over an empty dimension")
    count = size_product(source.shape[d] for d in dims)
    scratch = val
    if name == "mean" and val.dtype != torch.float32 and val.dtype != torch.float64:
        scratch = val.to(torch.float32)  # the sum is not rounded before the division

    def value(axes: tuple[Axis, ...]) -> Expr:
        return cast(lowering.load_view(source, axes), dtype)

    result = reduce_value(lowering, scratch, source, dims, keepdim, op, value)
    if name != "mean":
        return result
    return lowering.map(
        val, lambda axes: apply("div", lowering.load_view(result, axes), constant(count, dtype))
    )


@lowers("aten.argmax", "aten.argmin", "aten.max.dim", "aten.min.dim")
def lower_arg_extremum(lowering: Lowering, node: fx.Node) -> Any:
    """m = max(x); index = min(where(x == m, position, n)).  NaN counts as the extremum, the first wins."""
    name = str(node.target)
    op = "max" if "max" in name else "min"
    source = lowering.view(node.args[0])
    dims, keepdim = arguments(node)
    if dims is None or len(source.shape) == 0:
        raise NoLowering(f"{name} over the flattened tensor")
    dims = reduced_dims(dims, len(source.shape))
    extent = source.shape[dims[0]]
    if extent == 0:
        raise NoLowering(f"{name} over an empty dimension")
    val = node.meta["val"]
    index_val = val if isinstance(val, torch.Tensor) else val[1]
    x_meta = lowering.meta(node.args[0])
    dtype = compute_dtype(dtype_name(x_meta.dtype))
    if dtype == "bool":
        raise NoLowering(f"{name} of bool")
    values_val = torch.amax(x_meta, dims, keepdim)

    def x(axes: tuple[Axis, ...]) -> Expr:
        return lowering.load_view(source, axes)

    values = reduce_value(lowering, values_val, source, dims, keepdim, op, x)

    def position(axes: tuple[Axis, ...]) -> Expr:
        element = x(axes)
        kept = axes if keepdim else [a for k, a in enumerate(axes) if k not in dims]
        broadcast = [Axis(a.name, 1) if k in dims else a for k, a in enumerate(axes)] if keepdim else kept
        best = lowering.load_view(values, broadcast)
        hit = apply("eq", element, best)
        if dtype_kind(dtype) == "float":
            hit = apply("bitwise_or", hit, apply("isnan", element))
        return apply("where", hit, index_expr(axes[dims[0]]), constant(extent, "int64"))

    indices = reduce_value(lowering, index_val, source, dims, keepdim, "min", position)
    return indices if isinstance(val, torch.Tensor) else (values, indices)


@lowers("aten.dot", "aten.mv")
def lower_dot(lowering: Lowering, node: fx.Node) -> Any:
    matrix, vector = (lowering.view(a) for a in node.args)
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    last = len(matrix.shape) - 1

    def value(axes: tuple[Axis, ...]) -> Expr:
        return Apply(
            dtype, "mul", (lowering.load_view(matrix, axes), lowering.load_view(vector, axes[last:]))
        )

    return reduce_value(lowering, val, matrix, [last], False, "sum", value)
