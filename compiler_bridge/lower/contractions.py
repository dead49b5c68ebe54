"""Sums of products: mm, bmm and addmm become one Contract each."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    Buffer,
    BufferView,
    Contract,
    Expr,
    Index,
    Scheduled,
    Size,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    cast,
    dtype_name,
    lowers,
    real_axes,
    sizes,
)
from compiler_bridge.ops import compute_dtype, dtype_kind


def contract_wide(
    lowering: Lowering,
    val: torch.Tensor,
    axes: tuple[Axis, ...],
    reduced: tuple[Axis, ...],
    lhs: Expr,
    rhs: Expr,
) -> BufferView:
    """The product in its compute dtype: a 16-bit result is not rounded yet."""
    dtype = compute_dtype(dtype_name(val.dtype))
    if dtype_kind(dtype) != "float":
        raise NoLowering(f"matrix product of {val.dtype}")
    return contract_into(lowering, lowering.buffer_like(val, dtype), axes, reduced, lhs, rhs)


def contract_into(
    lowering: Lowering,
    buffer: Buffer,
    axes: tuple[Axis, ...],
    reduced: tuple[Axis, ...],
    lhs: Expr,
    rhs: Expr,
    store: Index | None = None,
) -> BufferView:
    """The product as the contents of a buffer of its compute dtype; store: where, unless axes are the buffer's."""
    store = strided_index(axes, buffer.strides) if store is None else store
    left, right = cast(lhs, buffer.dtype), cast(rhs, buffer.dtype)
    axes, reduced = real_axes(axes), real_axes(reduced)
    lowering.append(Contract(buffer.name, lowering.origin(), axes, reduced, store, left, right))
    return lowering.whole(buffer)


def contract(
    lowering: Lowering,
    val: torch.Tensor,
    axes: tuple[Axis, ...],
    reduced: tuple[Axis, ...],
    lhs: Expr,
    rhs: Expr,
) -> BufferView:
    """The product in the dtype of `val`: 16-bit results are rounded by a Map of their own."""
    wide = contract_wide(lowering, val, axes, reduced, lhs, rhs)
    if lowering.graph.buffers[wide.buffer].dtype == dtype_name(val.dtype):
        return wide
    return lowering.map(val, lambda a: lowering.load_view(wide, a))


@lowers("aten.mm", "aten.bmm")
def lower_mm(lowering: Lowering, node: fx.Node) -> Any:
    require_one_dtype(lowering, node.args[:2])
    lhs, rhs = (lowering.view(a) for a in node.args[:2])
    if len(node.args) > 2:
        raise NoLowering("matrix product with an output dtype")
    *batch, row, column = axes_of(sizes_of(node))
    inner = Axis("k", lhs.shape[-1])
    left = lowering.load_view(lhs, [*batch, row, inner])
    right = lowering.load_view(rhs, [*batch, inner, column])
    return contract(lowering, node.meta["val"], (*batch, row, column), (inner,), left, right)


def require_one_dtype(lowering: Lowering, args: Any) -> None:
    """Fake tensors let products of two dtypes pass; ATen then refuses them as it does in eager mode."""
    dtypes = {lowering.meta(arg).dtype for arg in args}
    if len(dtypes) > 1:
        raise NoLowering(f"product of different dtypes {', '.join(sorted(map(str, dtypes)))}")


def sizes_of(node: fx.Node) -> tuple[Size, ...]:
    return sizes(node.meta["val"].shape)


@lowers("aten.addmm", "aten.baddbmm")
def lower_addmm(lowering: Lowering, node: fx.Node) -> Any:
    """bias * beta + alpha * (lhs @ rhs)"""
    bias, lhs, rhs = node.args[:3]
    require_one_dtype(lowering, node.args[:3])
    val = node.meta["val"]
    alpha: Any = node.kwargs.get("alpha", 1)
    beta: Any = node.kwargs.get("beta", 1)
    left, right = lowering.view(lhs), lowering.view(rhs)
    *batch, row, column = axes_of(sizes_of(node))
    inner = Axis("k", left.shape[-1])
    dtype = compute_dtype(dtype_name(val.dtype))
    product = contract_wide(
        lowering,
        val,
        (*batch, row, column),
        (inner,),
        lowering.load_view(left, [*batch, row, inner]),
        lowering.load_view(right, [*batch, inner, column]),
    )

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.load_view(product, axes)
        if alpha != 1:
            x = apply("mul", x, lowering.operand(alpha, axes, dtype))
        if beta == 0:
            return x
        y = lowering.operand(bias, axes, dtype)
        if beta != 1:
            y = apply("mul", y, lowering.operand(beta, axes, dtype))
        return apply("add", x, y)

    return lowering.map(val, value)


@lowers("pynn.attention", "pynn.attention_backward")
def lower_attention(lowering: Lowering, node: fx.Node) -> Any:
    """Attention stays whole: a scheduled kernel (cpu/attention*.py) tested against its definition."""

    def template(arg: Any) -> Any:
        return lowering.values[arg]

    args = tuple(fx.map_arg(node.args, template))
    results: list[BufferView | None] = []
    for val in node.meta["val"]:
        results.append(None if val is None else lowering.whole(lowering.buffer_like(val)))
    outputs = tuple(None if r is None else r.buffer for r in results)
    lowering.append(Scheduled(str(outputs[0]), lowering.origin(), node.target, args, outputs))
    return tuple(results)
