"""Pointwise ATen operations: a Map over the result's shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import Axis, Expr
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    cast,
    compute_dtype_of,
    constant,
    dtype_name,
    lowers,
)
from compiler_bridge.ops import ATEN_POINTWISE, DTYPES, ScalarOp, compute_dtype, dtype_kind

BOOLEAN_ROWS = {
    "add": "bitwise_or",
    "mul": "bitwise_and",
    "maximum": "bitwise_or",
    "minimum": "bitwise_and",
    "ne": "bitwise_xor",
}
"""What arithmetic means on bools."""

ORDER = ("eq", "ne", "lt", "le", "gt", "ge")


def promoted_dtype(lowering: Lowering, *args: Any) -> str:
    """torch's promotion of two tensors or scalars (the storage dtype)."""

    def example(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            val = arg.meta["val"]
            return val if isinstance(val, torch.Tensor) else 1
        return arg

    values = [example(arg) for arg in args]
    if len(values) == 1:
        return dtype_name(values[0].dtype)
    return dtype_name(torch.result_type(*values))


def lower_row(row: ScalarOp, lowering: Lowering, node: fx.Node) -> Any:
    args = node.args[: row.arity]
    if len(args) < row.arity:
        raise NoLowering(f"{row.name} of {len(args)} arguments")
    stored = promoted_dtype(lowering, *args) if row.result == "bool" else dtype_name(node.meta["val"].dtype)
    dtype, kind, name = compute_dtype(stored), dtype_kind(stored), row.name
    alpha: Any = node.kwargs.get("alpha", 1)
    if kind == "bool" and name in BOOLEAN_ROWS:
        name = BOOLEAN_ROWS[name]
        if alpha != 1:
            raise NoLowering(f"alpha={alpha} of bools")
    elif kind == "bool" and name in ORDER:
        stored = dtype = "int32"
    if kind != "float" and row.kinds == "f":
        return lower_float_row_of_integers(row, lowering, node, dtype)

    def value(axes: tuple[Axis, ...]) -> Expr:
        operands = [lowering.operand(rounded(a, stored), axes, dtype) for a in args]
        if alpha != 1:
            operands[1] = apply("mul", operands[1], lowering.operand(alpha, axes, dtype))
        return apply(name, *operands, dtype="bool" if row.result == "bool" else None)

    def rounded(arg: Any, stored: str) -> Any:
        """A scalar that is compared with 16-bit floats has 16 bits."""
        if name in ORDER and stored in ("float16", "bfloat16") and isinstance(arg, (int, float)):
            return torch.tensor(arg, dtype=DTYPES[stored]).item()
        return arg

    return lowering.map(node.meta["val"], value)


def lower_float_row_of_integers(row: ScalarOp, lowering: Lowering, node: fx.Node, dtype: str) -> Any:
    """Rounding, abs and the predicates of NaN, where the argument is an integer or a bool."""
    val, arg = node.meta["val"], node.args[0]
    if row.name in ("floor", "ceil", "trunc", "rint") or (row.name == "fabs" and dtype == "bool"):
        return lowering.map(val, lambda axes: lowering.operand(arg, axes, dtype))
    if row.name == "fabs":
        return lowering.map(val, lambda axes: integer_abs(lowering.operand(arg, axes, dtype)))
    if row.name in ("isnan", "isinf", "isfinite"):
        return lowering.map(val, lambda axes: constant(row.name == "isfinite", "bool"))
    raise NoLowering(f"{row.name} of {dtype}")


def integer_abs(x: Expr) -> Expr:
    return apply("where", apply("lt", x, constant(0, x.dtype)), apply("neg", x), x)


def register_rows() -> None:
    for name, row in ATEN_POINTWISE.items():
        lowers(f"aten.{name}")(lambda lowering, node, row=row: lower_row(row, lowering, node))


register_rows()


@lowers("aten.round.decimals")
def lower_round_decimals(lowering: Lowering, node: fx.Node) -> Any:
    raise NoLowering("rounding to decimals")


@lowers("aten.relu")
def lower_relu(lowering: Lowering, node: fx.Node) -> Any:
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        return apply("maximum", lowering.operand(node.args[0], axes, dtype), constant(0, dtype))

    return lowering.map(node.meta["val"], value)


@lowers("aten.square")
def lower_square(lowering: Lowering, node: fx.Node) -> Any:
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(node.args[0], axes, dtype)
        return apply("mul", x, x)

    return lowering.map(node.meta["val"], value)


@lowers("aten.rsub")
def lower_rsub(lowering: Lowering, node: fx.Node) -> Any:
    """other - alpha * x"""
    x, other, *rest = node.args
    alpha: Any = rest[0] if rest else node.kwargs.get("alpha", 1)
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        subtracted = lowering.operand(x, axes, dtype)
        if alpha != 1:
            subtracted = apply("mul", lowering.operand(alpha, axes, dtype), subtracted)
        return apply("sub", lowering.operand(other, axes, dtype), subtracted)

    return lowering.map(node.meta["val"], value)


@lowers("aten.addcmul", "aten.addcdiv")
def lower_addc(lowering: Lowering, node: fx.Node) -> Any:
    """x + value * (a * b)   or   x + value * (a / b)"""
    op = "mul" if "addcmul" in str(node.target) else "div"
    factor: Any = node.kwargs.get("value", 1)
    dtype = compute_dtype_of(node)
    if op == "div" and dtype_kind(dtype) != "float":
        raise NoLowering("addcdiv of integers")

    def value(axes: tuple[Axis, ...]) -> Expr:
        x, a, b = (lowering.operand(arg, axes, dtype) for arg in node.args[:3])
        if factor != 1:
            a = apply("mul", lowering.operand(factor, axes, dtype), a)
        return apply("add", x, apply(op, a, b))

    return lowering.map(node.meta["val"], value)


@lowers("aten.lerp")
def lower_lerp(lowering: Lowering, node: fx.Node) -> Any:
    """a + w * (b - a) for |w| < 1/2, else b - (b - a) * (1 - w), as ATen does (exact at both ends)"""
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        a, b, w = (lowering.operand(arg, axes, dtype) for arg in node.args[:3])
        difference = apply("sub", b, a)
        near = apply("add", a, apply("mul", w, difference))
        far = apply("sub", b, apply("mul", difference, apply("sub", constant(1, dtype), w)))
        return apply("where", apply("lt", apply("fabs", w), constant(0.5, dtype)), near, far)

    return lowering.map(node.meta["val"], value)


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


@lowers("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def lower_where(lowering: Lowering, node: fx.Node) -> Any:
    condition, a, b = node.args
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        kept = as_bool(lowering, condition, axes)
        return apply("where", kept, lowering.operand(a, axes, dtype), lowering.operand(b, axes, dtype))

    return lowering.map(node.meta["val"], value)


@lowers("aten.masked_fill")
def lower_masked_fill(lowering: Lowering, node: fx.Node) -> Any:
    x, mask, fill = node.args
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        filled = as_bool(lowering, mask, axes)
        return apply("where", filled, lowering.operand(fill, axes, dtype), lowering.operand(x, axes, dtype))

    return lowering.map(node.meta["val"], value)


@lowers("aten.clamp", "aten.clamp_min", "aten.clamp_max")
def lower_clamp(lowering: Lowering, node: fx.Node) -> Any:
    """min(max(x, low), high); NaN in any of them wins"""
    name = str(node.target).split(".")[1]
    bounds: Any = list(node.args[1:]) + [None, None]
    if name == "clamp_max":
        bounds = [None, bounds[0]]
    low, high = node.kwargs.get("min", bounds[0]), node.kwargs.get("max", bounds[1])
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(node.args[0], axes, dtype)
        if low is not None:
            x = apply("maximum", x, lowering.operand(low, axes, dtype))
        if high is not None:
            x = apply("minimum", x, lowering.operand(high, axes, dtype))
        return x

    return lowering.map(node.meta["val"], value)


@lowers(
    "aten._to_copy",
    "aten.clone",
    "aten.copy",
    "prims.convert_element_type",
    "aten.contiguous",
    "aten.lift_fresh_copy",
    "aten.to",
)
def lower_copy(lowering: Lowering, node: fx.Node) -> Any:
    val = node.meta["val"]
    if val.device.type != "cpu" or val.layout != torch.strided:
        raise NoLowering(f"copy to {val.device}, {val.layout}")
    source = node.args[1] if str(node.target).startswith("aten.copy.") else node.args[0]
    source_dtype = compute_dtype(dtype_name(lowering.meta(source).dtype))
    target = dtype_name(val.dtype)
    rounds = target in ("bfloat16", "float16") and lowering.meta(source).dtype != val.dtype

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = cast(lowering.operand(source, axes, source_dtype), compute_dtype_of(node))
        return apply(f"to_{target}", x) if rounds else x  # what the user asked to round is rounded

    return lowering.map(val, value)


@lowers("aten.sign", "aten.sgn")
def lower_sign(lowering: Lowering, node: fx.Node) -> Any:
    """(0 < x) - (x < 0): 0 for NaN"""
    dtype = compute_dtype_of(node)

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(node.args[0], axes, dtype)
        if dtype == "bool":
            return x
        zero = constant(0, dtype)
        return apply("sub", cast(apply("lt", zero, x), dtype), cast(apply("lt", x, zero), dtype))

    return lowering.map(node.meta["val"], value)
