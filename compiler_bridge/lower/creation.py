"""Tensors made from nothing: constants, ranges, random numbers."""

from __future__ import annotations

from typing import Any

from torch import fx

from compiler_bridge.ir import Apply, Axis, Expr
from compiler_bridge.lower.lowering import (
    NoLowering,
    Lowering,
    apply,
    cast,
    constant,
    dtype_name,
    index_expr,
    lowers,
)
from compiler_bridge.ops import compute_dtype, dtype_kind


def filled(lowering: Lowering, node: fx.Node, value: Any) -> Any:
    val = node.meta["val"]
    if val.device.type != "cpu":
        raise NoLowering(f"tensor on {val.device}")
    dtype = compute_dtype(dtype_name(val.dtype))
    return lowering.map(val, lambda axes: lowering.operand(value, axes, dtype))


@lowers("aten.full", "aten.full_like", "aten.new_full")
def lower_full(lowering: Lowering, node: fx.Node) -> Any:
    position = 2 if "new_full" in str(node.target) else 1
    return filled(lowering, node, node.args[position])


@lowers("aten.fill")
def lower_fill(lowering: Lowering, node: fx.Node) -> Any:
    return filled(lowering, node, node.args[1])


@lowers("aten.scalar_tensor")
def lower_scalar_tensor(lowering: Lowering, node: fx.Node) -> Any:
    return filled(lowering, node, node.args[0])


@lowers(
    "aten.zeros",
    "aten.zeros_like",
    "aten.new_zeros",
    "aten.empty",
    "aten.empty_like",
    "aten.new_empty",
    "aten.empty_strided",
    "aten.new_empty_strided",
    "aten.zero",
    "aten.empty_permuted",
)
def lower_zeros(lowering: Lowering, node: fx.Node) -> Any:
    return filled(lowering, node, 0)  # empty memory may as well be zero


@lowers("aten.ones", "aten.ones_like", "aten.new_ones")
def lower_ones(lowering: Lowering, node: fx.Node) -> Any:
    return filled(lowering, node, 1)


@lowers("aten.arange", "prims.iota")
def lower_arange(lowering: Lowering, node: fx.Node) -> Any:
    name = str(node.target)
    start: Any = 0
    step: Any = 1
    if name.startswith("prims.iota"):
        start, step = node.kwargs["start"], node.kwargs["step"]
    elif ".start" in name:
        start = node.args[0]
        step = node.args[2] if len(node.args) > 2 else 1
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    if dtype_kind(dtype) == "bool":
        raise NoLowering("arange of bool")

    def value(axes: tuple[Axis, ...]) -> Expr:
        position = cast(index_expr(axes[0]), dtype)
        if step != 1:
            position = apply("mul", position, lowering.operand(step, axes, dtype))
        if isinstance(start, (int, float)) and start == 0:
            return position
        return apply("add", position, lowering.operand(start, axes, dtype))

    return lowering.map(val, value)


@lowers("pynn.uniform")
def lower_uniform(lowering: Lowering, node: fx.Node) -> Any:
    """float32 in [0, 1), a function of the seed and the element's number alone."""
    seed = lowering.view(node.args[0])

    def value(axes: tuple[Axis, ...]) -> Expr:
        position: Expr = constant(0, "int64")
        for axis in axes:
            position = apply("mul", position, constant(axis.extent, "int64"))
            position = apply("add", position, index_expr(axis))
        return Apply("float32", "philox_uniform", (lowering.load_view(seed, ()), position))

    return lowering.map(node.meta["val"], value)


@lowers("aten.tril", "aten.triu")
def lower_triangle(lowering: Lowering, node: fx.Node) -> Any:
    diagonal = node.args[1] if len(node.args) > 1 else 0
    compare = "le" if "tril" in str(node.target) else "ge"
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        row, column = index_expr(axes[-2]), index_expr(axes[-1])
        limit = apply("add", row, lowering.operand(diagonal, axes, "int64"))
        kept = Apply("bool", compare, (column, limit))
        return apply("where", kept, lowering.operand(node.args[0], axes, dtype), constant(0, dtype))

    return lowering.map(val, value)


@lowers("aten.eye")
def lower_eye(lowering: Lowering, node: fx.Node) -> Any:
    dtype = compute_dtype(dtype_name(node.meta["val"].dtype))
    return lowering.map(
        node.meta["val"], lambda axes: cast(apply("eq", index_expr(axes[0]), index_expr(axes[1])), dtype)
    )
