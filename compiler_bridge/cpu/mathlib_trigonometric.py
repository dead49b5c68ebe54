"""sin, cos, tan.

x = n pi / 2 + r,   |r| <= pi / 4,   r = high + low

n mod 4 chooses between the polynomials of sin r and cos r, and the sign.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import bitcast, cast, fabs, fma, helper, product, reduce_any, rint, where
from compiler_bridge.cpu.mathlib_coefficients import COS, SIN
from compiler_bridge.cpu.mathlib_huge_angle import reduce_huge
from compiler_bridge.cpu.mathlib_word import math_word

TWO_OVER_PI = 0.6366197723675814

# pi / 2 as sums of numbers of the dtype
A_F32, B_F32, C_F32 = 1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15
A_F64, B_F64, C_F64 = 1.5707963267948966, 6.123233995736766e-17, -1.4973849048591833e-33

# Up to here n is exact, and n A cancels exactly against x
LARGEST_F32 = 65536.0
LARGEST_F64 = 268435456.0  # 2**28

ROUND_F64 = 6755399441055744.0  # 1.5 * 2**52: adding it leaves a whole number in the lowest bits


@helper
def cancel_half_pi(x, n, a, b, c):
    """(high, low) of x - n (a + b + c); the first difference is exact, the second kept as a pair."""
    first = fma(n, -a, x)
    part = product(n, b)
    part_low = fma(n, b, -part)
    high = first - part
    taken = high - first
    lost = (first - (high - taken)) - (part + taken)
    return high, lost - fma(n, c, part_low)


@helper
def reduce_f32(x):
    """(n mod 4 as int32, high, low) with x = n pi / 2 + high + low."""
    n = rint(x * TWO_OVER_PI)
    high, low = cancel_half_pi(x, n, A_F32, B_F32, C_F32)
    quadrant = cast(n, "int32")
    if reduce_any(fabs(x) > LARGEST_F32):
        quadrant, high, low = reduce_huge(x, LARGEST_F32, quadrant, high, low)
    return quadrant, high, low


@helper
def reduce_f64(x):
    """(n mod 4 as int64, high, low) with x = n pi / 2 + high + low."""
    n = rint(x * TWO_OVER_PI)
    high, low = cancel_half_pi(x, n, A_F64, B_F64, C_F64)
    quadrant = bitcast(n + ROUND_F64, "int64")
    if reduce_any(fabs(x) > LARGEST_F64):
        quadrant, high, low = reduce_huge(x, LARGEST_F64, quadrant, high, low)
    return quadrant, high, low


@helper
def sin_cos_of_remainder(high, low):
    """(sin, cos) of high + low, at most pi / 4 in size."""
    z = high * high
    sine = high + fma(high * z, SIN(z), low)
    cosine = fma(z, fma(z, COS(z), -0.5), 1.0) - high * low
    return sine, cosine


def _sin_f32(x):
    """The sine of any finite x; NaN at infinity. Largest error: 1.5 ulp (float32 and float64)."""
    quadrant, high, low = reduce_f32(x)
    return sin_of(x, quadrant, high, low)


def _sin_f64(x):
    quadrant, high, low = reduce_f64(x)
    return sin_of(x, quadrant, high, low)


@helper
def sin_of(x, quadrant, high, low):
    """The sine from the reduced angle; x itself where it is so small that its square vanishes."""
    sine, cosine = sin_cos_of_remainder(high, low)
    result = where((quadrant & 1) != 0, cosine, sine)
    result = where((quadrant & 2) != 0, -result, result)
    return where(fabs(x) < 1e-9, x, result)


sin = math_word(float32=_sin_f32, float64=_sin_f64)


def _cos_f32(x):
    """The cosine of any finite x; NaN at infinity. Largest error: 1.5 ulp (float32 and float64)."""
    quadrant, high, low = reduce_f32(x)
    return cos_of(quadrant, high, low)


def _cos_f64(x):
    quadrant, high, low = reduce_f64(x)
    return cos_of(quadrant, high, low)


@helper
def cos_of(quadrant, high, low):
    """The cosine from the reduced angle."""
    sine, cosine = sin_cos_of_remainder(high, low)
    result = where((quadrant & 1) != 0, sine, cosine)
    return where(((quadrant + 1) & 2) != 0, -result, result)


cos = math_word(float32=_cos_f32, float64=_cos_f64)


def _tan_f32(x):
    """The tangent of any finite x; NaN at infinity. Largest error: 3 ulp (float32 and float64)."""
    quadrant, high, low = reduce_f32(x)
    return tan_of(x, quadrant, high, low)


def _tan_f64(x):
    quadrant, high, low = reduce_f64(x)
    return tan_of(x, quadrant, high, low)


@helper
def tan_of(x, quadrant, high, low):
    """sin / cos, or -cos / sin in the odd quadrants."""
    sine, cosine = sin_cos_of_remainder(high, low)
    odd = (quadrant & 1) != 0
    result = where(odd, -cosine, sine) / where(odd, sine, cosine)
    return where(fabs(x) < 1e-9, x, result)


tan = math_word(float32=_tan_f32, float64=_tan_f64)
