"""Sums of products: mm, bmm, addmm and 2-d convolution become one Contract each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    BufferView,
    Contract,
    Expr,
    Index,
    IndexValue,
    Load,
    Scheduled,
    Size,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    NoLowering,
    Lowering,
    apply,
    axes_of,
    cast,
    constant,
    dtype_name,
    lowers,
    real_axes,
    sizes,
)
from compiler_bridge.ops import compute_dtype, dtype_kind


def contract(
    lowering: Lowering,
    val: torch.Tensor,
    axes: tuple[Axis, ...],
    reduced: tuple[Axis, ...],
    lhs: Expr,
    rhs: Expr,
) -> BufferView:
    buffer = lowering.buffer_like(val)
    dtype = compute_dtype(buffer.dtype)
    if dtype_kind(dtype) != "float":
        raise NoLowering(f"matrix product of {buffer.dtype}")
    store = strided_index(axes, buffer.strides)
    lowering.append(
        Contract(
            buffer.name,
            lowering.origin(),
            real_axes(axes),
            real_axes(reduced),
            store,
            cast(lhs, dtype),
            cast(rhs, dtype),
        )
    )
    return lowering.whole(buffer)


@lowers("aten.mm", "aten.bmm")
def lower_mm(lowering: Lowering, node: fx.Node) -> Any:
    lhs, rhs = (lowering.view(a) for a in node.args[:2])
    if len(node.args) > 2:
        raise NoLowering("matrix product with an output dtype")
    *batch, row, column = axes_of(sizes_of(node))
    inner = Axis("k", lhs.shape[-1])
    left = lowering.load_view(lhs, [*batch, row, inner])
    right = lowering.load_view(rhs, [*batch, inner, column])
    return contract(lowering, node.meta["val"], (*batch, row, column), (inner,), left, right)


def sizes_of(node: fx.Node) -> tuple[Size, ...]:
    return sizes(node.meta["val"].shape)


@lowers("aten.addmm", "aten.baddbmm")
def lower_addmm(lowering: Lowering, node: fx.Node) -> Any:
    """bias * beta + alpha * (lhs @ rhs)"""
    bias, lhs, rhs = node.args[:3]
    val = node.meta["val"]
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    left, right = lowering.view(lhs), lowering.view(rhs)
    *batch, row, column = axes_of(sizes_of(node))
    inner = Axis("k", left.shape[-1])
    dtype = compute_dtype(dtype_name(val.dtype))
    wide = val if dtype == dtype_name(val.dtype) else val.to(torch.float32)
    product = contract(
        lowering,
        wide,
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


@lowers("aten.convolution")
def lower_convolution(lowering: Lowering, node: fx.Node) -> Any:
    """out[n, o, y, x] = bias[o] + sum over c, dy, dx of input[n, c, y*s + dy*d - p, ...] * weight[o, c, dy, dx]"""
    source, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    if transposed or groups != 1:
        raise NoLowering(f"convolution transposed={transposed} groups={groups}")
    x, w = lowering.view(source), lowering.view(weight)
    val = node.meta["val"]
    spatial = len(x.shape) - 2
    steps: Any = [list(v) * (spatial if len(v) == 1 else 1) for v in (stride, padding, dilation)]  # pyright: ignore
    axes = axes_of(sizes_of(node))
    channel = Axis("c", x.shape[1])
    windows = [Axis(f"w{k}", w.shape[2 + k]) for k in range(spatial)]
    index: list[Any] = [axes[0], channel]
    mask: Expr | None = None
    for k in range(spatial):
        s, p, d = (step[k] for step in steps)
        position = Index((), -p)
        if axes[2 + k].extent != 1:
            position = position + Index(((axes[2 + k].name, s),), 0)
        if windows[k].extent != 1:
            position = position + Index(((windows[k].name, d),), 0)
        index.append(position)
        if p:
            place = IndexValue("int64", position)
            inside = apply(
                "bitwise_and",
                apply("ge", place, constant(0, "int64")),
                apply("lt", place, constant(x.shape[2 + k], "int64")),
            )
            mask = inside if mask is None else apply("bitwise_and", mask, inside)
    left = lowering.load_view(x, index)
    assert isinstance(left, Load)
    if mask is not None:
        left = replace(left, mask=mask)
    right = lowering.load_view(w, [axes[1], channel, *windows])
    product = contract(lowering, val, axes, (channel, *windows), left, right)
    if bias is None:
        return product
    dtype = compute_dtype(dtype_name(val.dtype))
    return lowering.map(
        val, lambda a: apply("add", lowering.load_view(product, a), lowering.operand(bias, (a[1],), dtype))
    )


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
