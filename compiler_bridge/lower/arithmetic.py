"""Powers, quotients and shifts: the arithmetic whose meaning depends on the argument.

Integer division by zero stops the process on most machines, where ATen raises; integers are therefore only
divided by constants that are not 0 (and by -1 by changing the sign). Everything else is left to ATen.
"""

from __future__ import annotations

from typing import Any

import sympy
from torch import fx

from compiler_bridge.ir import Axis, Expr
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    compute_dtype_of,
    constant,
    dtype_name,
    lowers,
)
from compiler_bridge.ops import compute_dtype, dtype_kind


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def lower_div_mode(lowering: Lowering, node: fx.Node) -> Any:
    mode = node.kwargs.get("rounding_mode")
    dtype = compute_dtype_of(node)
    if dtype_kind(dtype) == "int" and mode is not None:
        return integer_quotient(lowering, node, str(mode))
    if mode == "floor":
        raise NoLowering("floor of a quotient of floats (it needs an exact remainder)")

    def value(axes: tuple[Axis, ...]) -> Expr:
        a, b = (lowering.operand(arg, axes, dtype) for arg in node.args[:2])
        quotient = apply("div", a, b)
        return quotient if mode is None else apply("trunc", quotient)

    return lowering.map(node.meta["val"], value)


@lowers("aten.floor_divide")
def lower_floor_divide(lowering: Lowering, node: fx.Node) -> Any:
    return integer_quotient(lowering, node, "floor")


@lowers("aten.remainder")
def lower_remainder(lowering: Lowering, node: fx.Node) -> Any:
    """a - floor(a / b) * b"""
    return integer_quotient(lowering, node, "remainder")


@lowers("aten.fmod")
def lower_fmod(lowering: Lowering, node: fx.Node) -> Any:
    """a - trunc(a / b) * b"""
    return integer_quotient(lowering, node, "fmod")


def integer_quotient(lowering: Lowering, node: fx.Node, mode: str) -> Any:
    """Integers divided by a constant: its quotient (mode floor, trunc) or what is left (remainder, fmod)."""
    dtype = compute_dtype_of(node)
    if dtype_kind(dtype) != "int":
        raise NoLowering(f"{mode} of a quotient of {dtype} (it needs an exact remainder)")
    divisor = safe_divisor(lowering, node.args[1])

    def value(axes: tuple[Axis, ...]) -> Expr:
        a = lowering.operand(node.args[0], axes, dtype)
        zero = constant(0, dtype)
        if isinstance(divisor, int) and divisor == -1:
            return apply("neg", a) if mode in ("floor", "trunc") else zero
        if mode in ("floor", "remainder"):
            return apply("floor_divide" if mode == "floor" else mode, a, constant(divisor, dtype))
        b = constant(divisor, dtype)
        quotient, left = apply("floor_divide", a, b), apply("remainder", a, b)
        # floor and trunc differ where something is left and the signs of a and b differ
        differ = apply("lt" if not isinstance(divisor, int) or divisor > 0 else "gt", a, zero)
        rounded_down = apply("bitwise_and", differ, apply("ne", left, zero))
        if mode == "trunc":
            return apply("where", rounded_down, apply("add", quotient, constant(1, dtype)), quotient)
        return apply("where", rounded_down, apply("sub", left, b), left)

    return lowering.map(node.meta["val"], value)


def safe_divisor(lowering: Lowering, arg: Any) -> Any:
    """A Python number or a size that can't be 0.

    Raises:  NoLowering for 0 and for tensors
    """
    value = lowering.values[arg] if isinstance(arg, fx.Node) else arg
    if isinstance(value, sympy.Symbol):  # a bare symbol is a size of two or more
        return value
    if not isinstance(value, int):
        raise NoLowering("integers divided by data (a zero must raise)")
    if value == 0:
        raise NoLowering("integers divided by zero")
    return int(value)


@lowers("aten.pow")
def lower_pow(lowering: Lowering, node: fx.Node) -> Any:
    base, exponent = node.args
    dtype = compute_dtype_of(node)
    whole = isinstance(exponent, int) and 0 <= exponent <= 4
    if dtype_kind(dtype) != "float" and not whole:
        raise NoLowering("integers to a power that is not 0 .. 4")
    if dtype == "bool":
        raise NoLowering("powers of bools")

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(base, axes, dtype)
        if isinstance(exponent, (int, float)):
            simple = power_by_constant(x, float(exponent))
            if simple is not None:
                return simple
        return apply("pow", x, lowering.operand(exponent, axes, dtype))

    return lowering.map(node.meta["val"], value)


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


@lowers("aten.bitwise_left_shift", "aten.bitwise_right_shift", "aten.__lshift__", "aten.__rshift__")
def lower_shift(lowering: Lowering, node: fx.Node) -> Any:
    """x << n, x >> n by a constant within the width of x"""
    dtype = dtype_name(node.meta["val"].dtype)
    count = node.args[1]
    width = {"int32": 32, "int64": 64}.get(compute_dtype(dtype), 0)
    if not isinstance(count, int) or not 0 <= count < width or dtype == "bool":
        raise NoLowering(f"{dtype} shifted by {count}")
    left = "left" in str(node.target) or "lshift" in str(node.target)
    op = "left_shift" if left else "right_shift"

    def value(axes: tuple[Axis, ...]) -> Expr:
        x = lowering.operand(node.args[0], axes, compute_dtype(dtype))
        return apply(op, x, constant(count, compute_dtype(dtype)))

    return lowering.map(node.meta["val"], value)
