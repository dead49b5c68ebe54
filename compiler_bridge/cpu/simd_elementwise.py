"""Elementwise words of the kernel language, for scalars and vectors: fma, minimum, where, cast ..."""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.cpu.simd_memory import count_mask, decode, encode
from compiler_bridge.cpu.simd_types import (
    COMPUTE_TYPES,
    HELD_IN,
    STORAGE,
    Vec,
    call_intrinsic,
    common_type,
    constant,
    convert,
    element_of,
    fail,
    intrinsic,
    is_scalar,
    is_signed,
    lane_indices,
    literal_dtype,
    literal_lanes,
    llvm_type,
    mangled,
    with_element,
)
from compiler_bridge.cpu.simd_types import splat as splat_value

# A flag that means nothing on a multiplication, so that Numba's fastmath pass leaves it alone.
_NEVER_CONTRACT = ("arcp",)


# ---- making vectors ---------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def splat(typingctx, scalar, lanes):
    """The scalar in every lane."""
    width = literal_lanes(lanes)
    if not is_scalar(scalar):
        fail(f"splat takes a scalar; got {scalar}")
    element = types.unliteral(scalar)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat_value(builder, args[0], width)

    return Vec(element, width)(element, lanes), generate


@intrinsic
def like(typingctx, x, value):
    """The scalar `value` with the dtype and lanes of x."""
    form = common_type(typingctx, x)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[1]

    return form(form, form), generate


@intrinsic(prefer_literal=True)
def iota(typingctx, lanes, dtype):
    """0, 1, 2, ... in a vector of `dtype`."""
    result = Vec(COMPUTE_TYPES[literal_dtype(dtype, COMPUTE_TYPES)], literal_lanes(lanes))

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        form = llvm_type(result)
        return ir.Constant(form, [ir.Constant(form.element, lane) for lane in range(result.lanes)])

    return result(lanes, dtype), generate


@intrinsic
def iota_like(typingctx, x):
    """0, 1, 2, ... with the dtype and lanes of x."""
    if not isinstance(x, Vec):
        fail(f"iota_like takes a vector; got {x}")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        form = llvm_type(x)
        return ir.Constant(form, [ir.Constant(form.element, lane) for lane in range(x.lanes)])

    return x(x), generate


@intrinsic(prefer_literal=True)
def lane_mask(typingctx, count, lanes):
    """Mask of the first `count` lanes."""
    width = literal_lanes(lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return count_mask(builder, args[0], width)

    return Vec(types.boolean, width)(types.intp, lanes), generate


# ---- one LLVM intrinsic each ------------------------------------------------------------------------


def _require_float(numba_type: Any, name: str) -> None:
    if not isinstance(element_of(numba_type), types.Float):
        fail(f"{name} takes floats; got {numba_type}")


def _unary_float(name: str, llvm_name: str, meaning: str) -> Any:
    def typing(typingctx, x):
        form = common_type(typingctx, x)
        _require_float(form, name)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            llvm = llvm_type(form)
            return call_intrinsic(builder, f"{llvm_name}.{mangled(llvm)}", llvm, list(args))

        return form(form), generate

    typing.__name__ = typing.__qualname__ = name
    typing.__doc__ = meaning
    return intrinsic(typing)


sqrt = _unary_float("sqrt", "llvm.sqrt", "The square root, correctly rounded.")
floor = _unary_float("floor", "llvm.floor", "The largest whole number not above x.")
ceil = _unary_float("ceil", "llvm.ceil", "The smallest whole number not below x.")
trunc = _unary_float("trunc", "llvm.trunc", "x without its fraction.")
rint = _unary_float("rint", "llvm.rint", "The nearest whole number, ties to even.")


@intrinsic
def fabs(typingctx, x):
    """|x|, for floats and signed integers."""
    form = common_type(typingctx, x)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        llvm = llvm_type(form)
        if isinstance(element_of(form), types.Float):
            return call_intrinsic(builder, f"llvm.fabs.{mangled(llvm)}", llvm, list(args))
        negative = builder.icmp_signed("<", args[0], constant(llvm, 0))
        return builder.select(negative, builder.sub(constant(llvm, 0), args[0]), args[0])

    return form(form), generate


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once."""
    form = common_type(typingctx, a, b, c)
    _require_float(form, "fma")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        llvm = llvm_type(form)
        return call_intrinsic(builder, f"llvm.fma.{mangled(llvm)}", llvm, list(args))

    return form(form, form, form), generate


@intrinsic
def product(typingctx, a, b):
    """a * b, rounded: never fused into a following addition (for error-free transformations)."""
    form = common_type(typingctx, a, b)
    _require_float(form, "product")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fmul(*args, flags=_NEVER_CONTRACT)

    return form(form, form), generate


def _scale_by_halves(builder: Any, x: Any, n: Any, bits: int) -> Any:
    """x 2^h 2^(n - h), h = floor(n / 2): the first product is exact where x is near 1."""
    mantissa, bias = (23, 127) if bits == 32 else (52, 1023)
    whole = ir.IntType(bits)
    whole = ir.VectorType(whole, x.type.count) if isinstance(x.type, ir.VectorType) else whole
    one = constant(whole, bias << mantissa)
    # adding 1.5 * 2^mantissa leaves n in the lowest bits; shifts drop the others
    low = builder.bitcast(builder.fadd(n, constant(x.type, 1.5 * 2.0**mantissa)), whole)
    half = builder.and_(builder.shl(low, constant(whole, mantissa - 1)), constant(whole, -1 << mantissa))
    rest = builder.sub(builder.shl(low, constant(whole, mantissa)), half)
    for exponent in (half, rest):
        x = builder.fmul(x, builder.bitcast(builder.add(exponent, one), x.type))
    return x


def _scale_by_instruction(builder: Any, x: Any, n: Any, bits: int) -> Any:
    """AVX-512's scalef on vectors, in parts of at most one register."""
    lanes = x.type.count
    part = min(lanes, 512 // bits)
    form = ir.VectorType(x.type.element, part)
    mask = ir.IntType(max(part, 8))
    suffix = f"{'ps' if bits == 32 else 'pd'}.{part * bits}"
    more = [ir.Constant(form, ir.Undefined), ir.Constant(mask, -1)]
    if part * bits == 512:
        more.append(ir.Constant(ir.IntType(32), 4))  # the current rounding mode
    parts = []
    for first in range(0, lanes, part):
        chosen = lane_indices(range(first, first + part))
        pieces = [builder.shuffle_vector(v, v, chosen) for v in (x, n)]
        parts.append(call_intrinsic(builder, f"llvm.x86.avx512.mask.scalef.{suffix}", form, pieces + more))
    while len(parts) > 1:
        both = lane_indices(range(2 * parts[0].type.count))
        parts = [builder.shuffle_vector(a, b, both) for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


@intrinsic
def ldexp(typingctx, x, n):
    """x 2^n, rounded once also where the result is denormal.

    For NaN, or x near 1 (1/4 to 4 in size) and whole n (a float) in [-252, 254], float64 [-2044, 2046].
    """
    form = common_type(typingctx, x, n)
    _require_float(form, "ldexp")
    bits = element_of(form).bitwidth
    has_instruction = NATIVE_LANES == 16 and isinstance(form, Vec) and form.lanes * bits >= 128

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scale = _scale_by_instruction if has_instruction else _scale_by_halves
        value, power = args
        return scale(builder, value, power, bits)

    return form(form, form), generate


@intrinsic
def horner(typingctx, x, coefficients):
    """c[0] + x (c[1] + x (c[2] + ...)) by fma, for a tuple of constants, in the dtype of x."""
    form = common_type(typingctx, x)
    _require_float(form, "horner")
    if not isinstance(coefficients, types.UniTuple):
        fail(f"horner takes a tuple of floats; got {coefficients}")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        llvm = llvm_type(form)
        terms = [
            context.cast(builder, builder.extract_value(args[1], k), coefficients.dtype, form)
            for k in range(coefficients.count)
        ]
        total = terms.pop()
        while terms:
            total = call_intrinsic(builder, f"llvm.fma.{mangled(llvm)}", llvm, [total, args[0], terms.pop()])
        return total

    return form(form, coefficients), generate


def polynomial(**coefficients: tuple[float, ...]) -> Any:
    """A word p(x) = c[0] + x (c[1] + x (...)) by fma, with coefficients for each dtype it is given for."""

    def typing(typingctx, x):
        form = common_type(typingctx, x)
        chosen = coefficients.get(str(element_of(form)))
        if chosen is None:
            return fail(f"this polynomial is given for {sorted(coefficients)}, not for {form}")

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            llvm = llvm_type(form)
            terms = [constant(llvm, coefficient) for coefficient in chosen]
            total = terms.pop()
            while terms:
                total = call_intrinsic(
                    builder, f"llvm.fma.{mangled(llvm)}", llvm, [total, args[0], terms.pop()]
                )
            return total

        return form(form), generate

    return intrinsic(typing)


@intrinsic
def copysign(typingctx, magnitude, sign):
    """|magnitude| with the sign bit of `sign`."""
    form = common_type(typingctx, magnitude, sign)
    _require_float(form, "copysign")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        llvm = llvm_type(form)
        return call_intrinsic(builder, f"llvm.copysign.{mangled(llvm)}", llvm, list(args))

    return form(form, form), generate


def build_extreme(builder: Any, element: Any, a: Any, b: Any, largest: bool) -> Any:
    """maximum or minimum of LLVM values, NaN if either is NaN.

    The inner select is one x86 instruction that yields `a` when either is NaN; the outer one vanishes
    when `b` is a constant.
    """
    sign = ">" if largest else "<"
    if not isinstance(element, types.Float):
        better = builder.icmp_signed(sign, b, a) if is_signed(element) else builder.icmp_unsigned(sign, b, a)
        return builder.select(better, b, a)
    chosen = builder.select(builder.fcmp_ordered(sign, b, a), b, a)
    return builder.select(builder.fcmp_unordered("uno", b, b), b, chosen)


@intrinsic
def maximum(typingctx, a, b):
    """The larger; NaN if either is NaN."""
    form = common_type(typingctx, a, b)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return build_extreme(builder, element_of(form), args[0], args[1], True)

    return form(form, form), generate


@intrinsic
def minimum(typingctx, a, b):
    """The smaller; NaN if either is NaN."""
    form = common_type(typingctx, a, b)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return build_extreme(builder, element_of(form), args[0], args[1], False)

    return form(form, form), generate


@intrinsic
def where(typingctx, condition, a, b):
    """a where the condition holds, else b, lane by lane; both are evaluated."""
    form = common_type(typingctx, a, b)
    if isinstance(condition, Vec):
        if condition.element != types.boolean:
            fail(f"where takes a mask; got {condition}")
        if isinstance(form, Vec) and form.lanes != condition.lanes:
            fail(f"where: {condition} chooses between values of type {form}")
        form = form if isinstance(form, Vec) else Vec(form, condition.lanes)
        test = condition
    else:
        test = types.boolean

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return form(test, form, form), generate


# ---- conversions ------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def cast(typingctx, x, dtype):
    """x converted to `dtype`; float -> int truncates.

    A storage-only dtype rounds (bfloat16, float16) or wraps (int8 ...) to what that dtype can hold, in
    the wider type it is held in.
    """
    name = literal_dtype(dtype, STORAGE)
    source = element_of(x)
    form = with_element(types.unliteral(x), source)
    target = COMPUTE_TYPES[HELD_IN.get(name, name)]

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = convert(builder, args[0], source, target)
        return decode(builder, encode(builder, value, name), name) if name in HELD_IN else value

    return with_element(form, target)(form, dtype), generate


@intrinsic(prefer_literal=True)
def bitcast(typingctx, x, dtype):
    """The same bits read as `dtype`; between dtypes of unequal width the lanes of a vector change."""
    target = COMPUTE_TYPES[literal_dtype(dtype, COMPUTE_TYPES)]
    form = types.unliteral(x)
    element = element_of(form)
    if types.boolean in (element, target):
        fail("bitcast takes numbers, not bool")
    if isinstance(form, Vec):
        result = Vec(target, form.lanes * element.bitwidth // target.bitwidth)
    else:
        result = target
        if element.bitwidth != target.bitwidth:
            fail(f"bitcast of a scalar needs two types of equal width; got {form} and {target}")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], llvm_type(result))

    return result(form, dtype), generate


@intrinsic
def mulhi_u32(typingctx, a, b):
    """The upper 32 bits of the 64-bit product of two uint32."""
    form = common_type(typingctx, a, b)
    form = with_element(form, types.uint32)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        narrow = llvm_type(form)
        wide = llvm_type(with_element(form, types.uint64))
        whole = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(whole, constant(wide, 32)), narrow)

    return form(form, form), generate
