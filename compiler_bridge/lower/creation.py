"""Tensors made from nothing: constants, ranges, random numbers."""

from __future__ import annotations

from typing import Any

from torch import fx

from compiler_bridge.ir import Apply, Axis, Expr, IndexValue, Size, strided_index
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    cast,
    compute_dtype_of,
    constant,
    index_expr,
    lowers,
)
from compiler_bridge.ops import dtype_kind


def filled(lowering: Lowering, node: fx.Node, value: Any) -> Any:
    val = node.meta["val"]
    if val.device.type != "cpu":
        raise NoLowering(f"tensor on {val.device}")
    dtype = compute_dtype_of(node)
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
    """start + step * i, in int64 or float64 and rounded once"""
    start: Any = 0
    step: Any = 1
    if str(node.target).startswith("prims.iota"):
        start, step = node.kwargs["start"], node.kwargs["step"]
    elif ".start" in str(node.target):
        start = node.args[0]
        step = node.args[2] if len(node.args) > 2 else 1
    dtype = compute_dtype_of(node)
    if dtype == "bool":
        raise NoLowering("arange of bool")
    exact = "float64" if any(isinstance(v, float) for v in (start, step)) else "int64"

    def value(axes: tuple[Axis, ...]) -> Expr:
        position = cast(index_expr(axes[0]), exact)
        if step != 1:
            position = apply("mul", position, lowering.operand(step, axes, exact))
        if not (isinstance(start, (int, float)) and start == 0):
            position = apply("add", position, lowering.operand(start, axes, exact))
        return cast(position, dtype)

    return lowering.map(node.meta["val"], value)


@lowers("aten.linspace")
def lower_linspace(lowering: Lowering, node: fx.Node) -> Any:
    """start + step * i in the first half, end - step * (n - 1 - i) in the second, as ATen does"""
    start, end, count = node.args[:3]
    dtype = compute_dtype_of(node)
    if not all(isinstance(v, (int, float)) for v in (start, end, count)) or dtype_kind(dtype) != "float":
        raise NoLowering("linspace of integers, or between tensors")
    if count == 1:
        return filled(lowering, node, start)
    step = (end - start) / max(count - 1, 1)  # pyright: ignore

    def value(axes: tuple[Axis, ...]) -> Expr:
        position = index_expr(axes[0])
        left = apply("sub", constant(count - 1, "int64"), position)  # pyright: ignore
        ahead = apply("mul", constant(step, dtype), cast(position, dtype))
        behind = apply("mul", constant(step, dtype), cast(left, dtype))
        first = apply("lt", position, constant(count // 2, "int64"))  # pyright: ignore
        return apply(
            "where",
            first,
            apply("add", constant(start, dtype), ahead),
            apply("sub", constant(end, dtype), behind),
        )

    return lowering.map(node.meta["val"], value)


@lowers("pynn.uniform")
def lower_uniform(lowering: Lowering, node: fx.Node) -> Any:
    """float32 in [0, 1), a function of the seed and the element's number alone."""
    seed = lowering.view(node.args[0])

    def value(axes: tuple[Axis, ...]) -> Expr:
        strides: list[Size] = [1]
        for axis in reversed(axes[1:]):
            strides.insert(0, strides[0] * axis.extent)
        position = IndexValue("int64", strided_index(axes, strides))
        return Apply("float32", "philox_uniform", (lowering.load_view(seed, ()), position))

    return lowering.map(node.meta["val"], value)


@lowers("aten.tril", "aten.triu")
def lower_triangle(lowering: Lowering, node: fx.Node) -> Any:
    diagonal = node.args[1] if len(node.args) > 1 else 0
    compare = "le" if "tril" in str(node.target) else "ge"
    val = node.meta["val"]
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        row, column = index_expr(axes[-2]), index_expr(axes[-1])
        limit = apply("add", row, lowering.operand(diagonal, axes, "int64"))
        kept = Apply("bool", compare, (column, limit))
        return apply("where", kept, lowering.operand(node.args[0], axes, dtype), constant(0, dtype))

    return lowering.map(val, value)


@lowers("aten.eye")
def lower_eye(lowering: Lowering, node: fx.Node) -> Any:
    dtype = compute_dtype_of(node)
    return lowering.map(
        node.meta["val"], lambda axes: cast(apply("eq", index_expr(axes[0]), index_expr(axes[1])), dtype)
    )
