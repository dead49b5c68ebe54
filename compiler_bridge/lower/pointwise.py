"""Pointwise ATen operations: a Map over the result's shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import Axis, Expr
from compiler_bridge.lower.lowering import NoLowering, Lowering, apply, cast, constant, dtype_name, lowers
from compiler_bridge.ops import ATEN_POINTWISE, ScalarOp, compute_dtype, dtype_kind


def result_dtype(lowering: Lowering, *args: Any) -> str:
    """torch's promotion of tensors and scalars, as a compute dtype."""
    values = [lowering.meta(a) if isinstance(a, fx.Node) else a for a in args]
    dtype = (
        values[0].dtype if isinstance(values[0], torch.Tensor) else torch.result_type(values[0], values[-1])
    )
    for other in values[1:]:
        promoted = torch.result_type(values[0], other) if isinstance(values[0], torch.Tensor) else dtype
        dtype = promoted
    if len(values) > 1 and not isinstance(values[0], torch.Tensor):
        dtype = torch.result_type(values[0], values[1])
    return compute_dtype(dtype_name(dtype))


def lower_row(row: ScalarOp, lowering: Lowering, node: fx.Node) -> Any:
    args = node.args[: row.arity]
    val = node.meta["val"]
    out = compute_dtype(dtype_name(val.dtype))
    if row.result == "bool":
        dtype = result_dtype(lowering, *args)
    else:
        dtype = out
    kind = dtype_kind(dtype)
    name = row.name
    if kind == "bool":
        name = {
            "add": "bitwise_or",
            "mul": "bitwise_and",
            "maximum": "bitwise_or",
            "minimum": "bitwise_and",
            "ne": "bitwise_xor",
        }.get(name, name)
        if name in ("eq", "lt", "le", "gt", "ge"):
            dtype = "int32"
    if kind == "int" and name in ("floor", "ceil", "trunc", "rint"):
        return lowering.map(val, lambda axes: lowering.operand(args[0], axes, dtype))
    if kind == "int" and name == "fabs":
        return lowering.map(val, lambda axes: integer_abs(lowering.operand(args[0], axes, dtype)))
    if kind == "int" and name in ("isnan", "isinf"):
        return lowering.map(val, lambda axes: constant(False, "bool"))

    alpha = node.kwargs.get("alpha", 1)

    def value(axes: tuple[Axis, ...]) -> Expr:
        operands = [lowering.operand(a, axes, dtype) for a in args]
        if alpha != 1:
            operands[1] = apply("mul", operands[1], lowering.operand(alpha, axes, dtype))
        return apply(name, *operands, dtype="bool" if row.result == "bool" else None)

    return lowering.map(val, value)


def integer_abs(x: Expr) -> Expr:
    return apply("where", apply("lt", x, constant(0, x.dtype)), apply("neg", x), x)


def register_rows() -> None:
    for name, row in ATEN_POINTWISE.items():
        lowers(f"aten.{name}")(lambda lowering, node, row=row: lower_row(row, lowering, node))


register_rows()


@lowers("aten.round.decimals")
def lower_round_decimals(lowering: Lowering, node: fx.Node) -> Any:
    raise NoLowering("round to decimals")


@lowers("aten.relu")
def lower_relu(lowering: Lowering, node: fx.Node) -> Any:
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    return lowering.map(
        val, lambda axes: apply("maximum", lowering.operand(node.args[0], axes, dtype), constant(0, dtype))
    )


@lowers("aten.rsub")
def lower_rsub(lowering: Lowering, node: fx.Node) -> Any:
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
        raise NoLowering("rsub with alpha")
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    x, other = node.args
    return lowering.map(
        val, lambda axes: apply("sub", lowering.operand(other, axes, dtype), lowering.operand(x, axes, dtype))
    )


@lowers("aten.logical_and", "aten.logical_or", "aten.logical_xor")
def lower_logical(lowering: Lowering, node: fx.Node) -> Any:
    op = "bitwise_" + str(node.target).split("logical_")[1].split(".")[0]
    return lowering.map(
        node.meta["val"], lambda axes: apply(op, *(as_bool(lowering, a, axes) for a in node.args))
    )


@lowers("aten.logical_not")
def lower_logical_not(lowering: Lowering, node: fx.Node) -> Any:
    return lowering.map(
        node.meta["val"], lambda axes: apply("logical_not", as_bool(lowering, node.args[0], axes))
    )


def as_bool(lowering: Lowering, arg: Any, axes: tuple[Axis, ...]) -> Expr:
    dtype = compute_dtype(dtype_name(lowering.meta(arg).dtype))
    return cast(lowering.operand(arg, axes, dtype), "bool")


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def lower_div_mode(lowering: Lowering, node: fx.Node) -> Any:
    mode = node.kwargs.get("rounding_mode")
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        a, b = (lowering.operand(arg, axes, dtype) for arg in node.args[:2])
        if mode is None:
            return apply("div", a, b)
        if dtype_kind(dtype) == "int":
            if mode == "floor":
                return apply("floor_divide", a, b)
            raise NoLowering("integer division that truncates")
        if mode == "trunc":
            return apply("trunc", apply("div", a, b))
        return float_floor_divide(a, b)

    return lowering.map(val, value)


def float_floor_divide(a: Expr, b: Expr) -> Expr:
    """floor(a / b), computed as ATen does: (a - a mod b) / b, rounded."""
    quotient = apply("div", apply("sub", a, float_remainder(a, b)), b)
    return apply("where", apply("eq", b, constant(0, b.dtype)), apply("div", a, b), apply("rint", quotient))


def float_remainder(a: Expr, b: Expr) -> Expr:
    """a - b * floor(a / b)"""
    return apply("sub", a, apply("mul", b, apply("floor", apply("div", a, b))))


@lowers("aten.floor_divide", "aten.remainder")
def lower_floor_divide(lowering: Lowering, node: fx.Node) -> Any:
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    if dtype_kind(dtype) != "int":
        raise NoLowering("remainder of floating-point numbers")
    op = "remainder" if "remainder" in str(node.target) else "floor_divide"
    if isinstance(node.args[1], fx.Node):
        raise NoLowering(f"integer {op} by a tensor (division by zero must raise)")
    return lowering.map(val, lambda axes: apply(op, *(lowering.operand(a, axes, dtype) for a in node.args)))


@lowers("aten.pow")
def lower_pow(lowering: Lowering, node: fx.Node) -> Any:
    base, exponent = node.args
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    if dtype_kind(dtype) != "float":
        if not isinstance(exponent, int) or not 0 <= exponent <= 4:
            raise NoLowering("integer power")

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(base, axes, dtype)
        if isinstance(exponent, (int, float)):
            simple = power_by_constant(x, float(exponent))
            if simple is not None:
                return simple
        return apply("pow", x, lowering.operand(exponent, axes, dtype))

    return lowering.map(val, value)


def power_by_constant(x: Expr, exponent: float) -> Expr | None:
    """x**2 -> x * x and so on, as ATen does for these exponents."""
    if exponent == 0:
        return constant(1, x.dtype)
    if exponent == 1:
        return x
    if exponent in (2.0, 3.0, 4.0):
        square = apply("mul", x, x)
        return square if exponent == 2 else apply("mul", square, x if exponent == 3 else square)
    if exponent == 0.5:
        return apply("sqrt", x)
    if exponent == -0.5:
        return apply("rsqrt", x)
    if exponent == -1:
        return apply("reciprocal", x)
    if exponent == -2:
        return apply("reciprocal", apply("mul", x, x))
    return None


@lowers("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def lower_where(lowering: Lowering, node: fx.Node) -> Any:
    condition, a, b = node.args
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    return lowering.map(
        val,
        lambda axes: apply(
            "where",
            as_bool(lowering, condition, axes),
            lowering.operand(a, axes, dtype),
            lowering.operand(b, axes, dtype),
        ),
    )


@lowers("aten.masked_fill")
def lower_masked_fill(lowering: Lowering, node: fx.Node) -> Any:
    x, mask, fill = node.args
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    return lowering.map(
        val,
        lambda axes: apply(
            "where",
            as_bool(lowering, mask, axes),
            lowering.operand(fill, axes, dtype),
            lowering.operand(x, axes, dtype),
        ),
    )


@lowers("aten.clamp", "aten.clamp_min", "aten.clamp_max")
def lower_clamp(lowering: Lowering, node: fx.Node) -> Any:
    bounds = list(node.args[1:]) + [node.kwargs.get(k) for k in ("min", "max") if k in node.kwargs]
    low = node.kwargs.get("min", node.args[1] if len(node.args) > 1 else None)
    high = node.kwargs.get("max", node.args[2] if len(node.args) > 2 else None)
    if "clamp_max" in str(node.target):
        low, high = None, bounds[0]
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(node.args[0], axes, dtype)
        if low is not None:
            x = apply("maximum", x, lowering.operand(low, axes, dtype))
        if high is not None:
            x = apply("minimum", x, lowering.operand(high, axes, dtype))
        return x

    return lowering.map(val, value)


@lowers(
    "aten._to_copy",
    "aten.clone",
    "aten.copy",
    "prims.convert_element_type",
    "aten.contiguous",
    "aten.lift_fresh_copy",
    "prims.device_put",
    "aten.to",
)
def lower_copy(lowering: Lowering, node: fx.Node) -> Any:
    val = node.meta["val"]
    if val.device.type != "cpu":
        raise NoLowering(f"copy to {val.device}")
    source = node.args[1] if str(node.target).startswith("aten.copy") else node.args[0]
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(source, axes, compute_dtype(dtype_name(lowering.meta(source).dtype)))
        return cast(x, dtype)

    return lowering.map(val, value)


@lowers("aten.sign", "aten.sgn")
def lower_sign(lowering: Lowering, node: fx.Node) -> Any:
    val = node.meta["val"]
    dtype = compute_dtype(dtype_name(val.dtype))
    if dtype == "bool":
        return lowering.map(val, lambda axes: lowering.operand(node.args[0], axes, dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(node.args[0], axes, dtype)
        zero = constant(0, dtype)
        positive = cast(apply("lt", zero, x), dtype)
        negative = cast(apply("lt", x, zero), dtype)
        return apply("sub", positive, negative)

    return lowering.map(val, value)
