"""Running totals along one dimension: Scan nodes; cummax and cummin also say where the extremum stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import Axis, BufferView, Expr, Scan, strided_index
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    cast,
    constant,
    dtype_name,
    index_expr,
    lowers,
    real_axes,
)
from compiler_bridge.ops import compute_dtype, dtype_kind

Values = Callable[[tuple[Axis, ...]], Expr]


def scan(lowering: Lowering, val: torch.Tensor, dim: int, op: str, value: Values) -> BufferView:
    """One Scan along `dim` into a buffer like val; along a dimension of size 1 the value itself."""
    buffer = lowering.buffer_like(val)
    axes = axes_of(buffer.shape)
    scanned = real_axes(axes[dim : dim + 1])
    if not scanned:
        return lowering.map_into(buffer, lambda axes: cast(value(axes), compute_dtype(buffer.dtype)))
    kept = real_axes([axis for k, axis in enumerate(axes) if k != dim])
    store = strided_index(axes, buffer.strides)
    lowering.append(Scan(buffer.name, lowering.origin(), kept, scanned, store, value(axes), op))
    return lowering.whole(buffer)


def scanned_dim(node: fx.Node, source: BufferView) -> int:
    dim: Any = node.args[1]
    return int(dim) % max(len(source.shape), 1)


@lowers("aten.cumsum", "aten.cumprod")
def lower_running_total(lowering: Lowering, node: fx.Node) -> Any:
    """out[i, j] = sum (or product) of x[i, :j + 1], added up in float64 where float32 is stored, as in ATen"""
    source, val = lowering.view(node.args[0]), node.meta["val"]
    stored = dtype_name(val.dtype)
    if stored == "bool":
        raise NoLowering(f"{node.target} that gives bools")
    total = "float64" if stored == "float32" else compute_dtype(stored)
    # the argument takes the result's dtype first: cumsum(x, dtype=int64) adds up truncated values
    first = compute_dtype(stored)

    def value(axes: tuple[Axis, ...]) -> Expr:
        return cast(cast(lowering.load_view(source, axes), first), total)

    op = "sum" if "cumsum" in str(node.target) else "prod"
    return scan(lowering, val, scanned_dim(node, source), op, value)


@lowers("aten.cummax", "aten.cummin")
def lower_running_extremum(lowering: Lowering, node: fx.Node) -> Any:
    """m = running maximum of x; index = running maximum of where(x == m, position, 0): of equals, the last.

    NaN counts as the extremum.
    """
    op = "max" if "cummax" in str(node.target) else "min"
    source = lowering.view(node.args[0])
    dim = scanned_dim(node, source)
    values_val, index_val = node.meta["val"]
    stored = dtype_name(values_val.dtype)
    if stored == "bool":
        raise NoLowering(f"{node.target} of bools")

    def x(axes: tuple[Axis, ...]) -> Expr:
        return lowering.load_view(source, axes)

    values = scan(lowering, values_val, dim, op, x)

    def position(axes: tuple[Axis, ...]) -> Expr:
        hit = apply("eq", x(axes), lowering.load_view(values, axes))
        if dtype_kind(stored) == "float":
            hit = apply("bitwise_or", hit, apply("isnan", x(axes)))
        place = index_expr(axes[dim]) if axes else constant(0, "int64")
        return apply("where", hit, place, constant(0, "int64"))

    return values, scan(lowering, index_val, dim, "max", position)
