"""Python's operators on vectors: `v + w`, `v * 2.0`, `v < w`, `mask & mask`, `-v` ...

One row per operator below. Float arithmetic carries LLVM's `contract` flag only (a * b + c may become
one fused operation); nothing is reassociated and NaN, infinities and signed zeros are kept.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing import templates
from numba.core.typing.templates import AbstractTemplate, signature

from compiler_bridge.cpu.simd_types import Vec, call_intrinsic, constant, fail, is_scalar, is_signed, mangled

infer_global: Any = templates.infer_global

CONTRACT = ("contract",)


def floor_divide_int(builder: Any, a: Any, b: Any, signed: bool) -> Any:
    """a // b rounded to minus infinity; 0 where b is 0; -a where b is -1 (never traps)."""
    quotient, remainder, zero = _divide_int(builder, a, b, signed)
    if not signed:
        return quotient
    inexact = builder.icmp_signed("!=", remainder, zero)
    opposite = builder.icmp_signed("<", builder.xor(remainder, b), zero)
    one_less = builder.sub(quotient, constant(a.type, 1))
    return builder.select(builder.and_(inexact, opposite), one_less, quotient)


def floor_modulo_int(builder: Any, a: Any, b: Any, signed: bool) -> Any:
    """a - (a // b) * b, the sign of b; 0 where b is 0."""
    _, remainder, zero = _divide_int(builder, a, b, signed)
    if not signed:
        return remainder
    inexact = builder.icmp_signed("!=", remainder, zero)
    opposite = builder.icmp_signed("<", builder.xor(remainder, b), zero)
    return builder.select(builder.and_(inexact, opposite), builder.add(remainder, b), remainder)


def _divide_int(builder: Any, a: Any, b: Any, signed: bool) -> Any:
    """Truncating (quotient, remainder, zero), with the two trapping divisors handled apart."""
    zero, one = constant(a.type, 0), constant(a.type, 1)
    by_zero = builder.icmp_unsigned("==", b, zero)
    special = by_zero
    if signed:
        special = builder.or_(by_zero, builder.icmp_signed("==", b, constant(a.type, -1)))
    safe = builder.select(special, one, b)
    quotient = builder.sdiv(a, safe) if signed else builder.udiv(a, safe)
    remainder = builder.sub(a, builder.mul(quotient, safe))
    if signed:
        quotient = builder.select(special, builder.sub(zero, a), quotient)
    quotient = builder.select(by_zero, zero, quotient)
    return quotient, remainder, zero


def modulo_float(builder: Any, a: Any, b: Any) -> Any:
    """fmod(a, b), moved by b where the signs differ (torch.remainder)."""
    zero = constant(a.type, 0.0)
    remainder = builder.frem(a, b)
    differs = builder.xor(builder.fcmp_ordered("<", b, zero), builder.fcmp_ordered("<", remainder, zero))
    inexact = builder.fcmp_unordered("!=", remainder, zero)
    return builder.select(builder.and_(inexact, differs), builder.fadd(remainder, b), remainder)


def floor_divide_float(builder: Any, a: Any, b: Any) -> Any:
    """floor(a / b) computed from the exact remainder; a / b where b is 0.

    Source:  ATen `div_floor_floating` (c10/util/generic_math.h), whose results it keeps
    """
    form, zero, one = a.type, constant(a.type, 0.0), constant(a.type, 1.0)
    plain = builder.fdiv(a, b)
    remainder = builder.frem(a, b)
    quotient = builder.fdiv(builder.fsub(a, remainder), b)
    differs = builder.xor(builder.fcmp_ordered("<", b, zero), builder.fcmp_ordered("<", remainder, zero))
    inexact = builder.fcmp_unordered("!=", remainder, zero)
    quotient = builder.select(builder.and_(inexact, differs), builder.fsub(quotient, one), quotient)
    floored = call_intrinsic(builder, f"llvm.floor.{mangled(form)}", form, [quotient])
    too_low = builder.fcmp_ordered(">", builder.fsub(quotient, floored), constant(form, 0.5))
    floored = builder.select(too_low, builder.fadd(floored, one), floored)
    signed_zero = call_intrinsic(builder, f"llvm.copysign.{mangled(form)}", form, [zero, plain])
    floored = builder.select(builder.fcmp_ordered("==", quotient, zero), signed_zero, floored)
    return builder.select(builder.fcmp_ordered("==", b, zero), plain, floored)


def _floor_divide(builder: Any, element: Any, a: Any, b: Any) -> Any:
    if isinstance(element, types.Float):
        return floor_divide_float(builder, a, b)
    return floor_divide_int(builder, a, b, is_signed(element))


def _modulo(builder: Any, element: Any, a: Any, b: Any) -> Any:
    if isinstance(element, types.Float):
        return modulo_float(builder, a, b)
    return floor_modulo_int(builder, a, b, is_signed(element))


def _float_or_int(float_name: str, int_name: str) -> Any:
    def build(builder: Any, element: Any, a: Any, b: Any) -> Any:
        if isinstance(element, types.Float):
            return getattr(builder, float_name)(a, b, flags=CONTRACT)
        return getattr(builder, int_name)(a, b)

    return build


def _divide(builder: Any, element: Any, a: Any, b: Any) -> Any:
    return builder.fdiv(a, b)


def _shift_right(builder: Any, element: Any, a: Any, b: Any) -> Any:
    return builder.ashr(a, b) if is_signed(element) else builder.lshr(a, b)


def _bitwise(name: str) -> Any:
    return lambda builder, element, a, b: getattr(builder, name)(a, b)


def _is_float(element: Any) -> bool:
    return isinstance(element, types.Float)


def _is_int(element: Any) -> bool:
    return isinstance(element, types.Integer)


def _is_number(element: Any) -> bool:
    return element != types.boolean


def _is_bits(element: Any) -> bool:
    return not isinstance(element, types.Float)


# operator, its in-place form, which elements it takes, how it is built
BINARY_OPERATORS: Any = (
    (operator.add, operator.iadd, _is_number, _float_or_int("fadd", "add")),
    (operator.sub, operator.isub, _is_number, _float_or_int("fsub", "sub")),
    (operator.mul, operator.imul, _is_number, _float_or_int("fmul", "mul")),
    (operator.truediv, operator.itruediv, _is_float, _divide),
    (operator.floordiv, operator.ifloordiv, _is_number, _floor_divide),
    (operator.mod, operator.imod, _is_number, _modulo),
    (operator.and_, operator.iand, _is_bits, _bitwise("and_")),
    (operator.or_, operator.ior, _is_bits, _bitwise("or_")),
    (operator.xor, operator.ixor, _is_bits, _bitwise("xor")),
    (operator.lshift, operator.ilshift, _is_int, _bitwise("shl")),
    (operator.rshift, operator.irshift, _is_int, _shift_right),
)

COMPARISONS: Any = (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
)


def compare(builder: Any, element: Any, sign: str, a: Any, b: Any) -> Any:
    """a <sign> b; every comparison with NaN is false but `!=`."""
    if isinstance(element, types.Float):
        return builder.fcmp_unordered(sign, a, b) if sign == "!=" else builder.fcmp_ordered(sign, a, b)
    return builder.icmp_signed(sign, a, b) if is_signed(element) else builder.icmp_unsigned(sign, a, b)


def _vector_of(name: str, args: Any) -> Any:
    """The vector type of a binary operation, or None when no operand is a vector."""
    left, right = args
    if isinstance(left, Vec):
        if isinstance(right, Vec) and right != left:
            fail(f"{name}: {left} and {right} differ; cast one of them")
        return left if isinstance(right, Vec) or is_scalar(right) else None
    return right if isinstance(right, Vec) and is_scalar(left) else None


def _register_binary(function: Any, accepts: Any, build: Any) -> None:
    class Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            vector = _vector_of(function.__name__, args) if len(args) == 2 else None
            if vector is None:
                return None
            if not accepts(vector.element):
                fail(f"{function.__name__} does not take {vector}")
            return signature(vector, vector, vector)

    infer_global(function)(Typing)

    @lower_builtin(function, Vec, Vec)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return build(builder, sig.args[0].element, *args)


def _register_comparison(function: Any, sign: str) -> None:
    class Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            vector = _vector_of(function.__name__, args) if len(args) == 2 else None
            if vector is None:
                return None
            return signature(Vec(types.boolean, vector.lanes), vector, vector)

    infer_global(function)(Typing)

    @lower_builtin(function, Vec, Vec)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return compare(builder, sig.args[0].element, sign, *args)


def _register_unary(function: Any, accepts: Any, build: Any) -> None:
    class Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) != 1 or not isinstance(args[0], Vec):
                return None
            if not accepts(args[0].element):
                fail(f"{function.__name__} does not take {args[0]}")
            return signature(args[0], args[0])

    infer_global(function)(Typing)

    @lower_builtin(function, Vec)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return build(builder, sig.args[0].element, *args)


def _negate(builder: Any, element: Any, a: Any) -> Any:
    if isinstance(element, types.Float):
        return builder.fneg(a)
    return builder.sub(constant(a.type, 0), a)


def _invert(builder: Any, element: Any, a: Any) -> Any:
    ones = ir.Constant(a.type.element, 1 if element == types.boolean else -1)
    return builder.xor(a, ir.Constant(a.type, [ones] * a.type.count))


for _function, _in_place, _accepts, _build in BINARY_OPERATORS:
    _register_binary(_function, _accepts, _build)
    _register_binary(_in_place, _accepts, _build)
for _function, _sign in COMPARISONS:
    _register_comparison(_function, _sign)
_register_unary(operator.neg, _is_number, _negate)
_register_unary(operator.invert, _is_bits, _invert)
_register_unary(operator.pos, _is_number, lambda builder, element, a: a)
