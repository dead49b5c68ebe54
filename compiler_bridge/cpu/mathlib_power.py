"""pow and rsqrt.

x^y = 2^(y log2 x),  with log2 x to more than the working precision
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import (
    cast,
    copysign,
    fabs,
    floor,
    fma,
    helper,
    ldexp,
    maximum,
    minimum,
    product,
    rint,
    sqrt,
    trunc,
    where,
)
from compiler_bridge.cpu.mathlib_coefficients import EXP, EXP2_SHORT, LOG2_ODD, LOG_TAIL
from compiler_bridge.cpu.mathlib_exponential import LN2_HIGH_F64, LN2_LOW_F64, two_to_f64
from compiler_bridge.cpu.mathlib_logarithm import (
    INFINITY,
    LOG2_E_HIGH_F64,
    NAN,
    raise_denormal_f64,
    split_f64,
)
from compiler_bridge.cpu.mathlib_word import math_word


@helper
def pow_special(x, y, size_power):
    """|x|^y made x^y: signs of negative bases, and the special values of IEEE 754."""
    whole = trunc(y) == y
    half = y * 0.5
    odd = whole & (floor(half) != half)
    result = where((x < 0.0) & ~whole & (fabs(x) < INFINITY), NAN, size_power)
    result = where(odd, copysign(result, x), result)
    result = where((x != x) | (y != y), x + y, result)
    result = where((x == -1.0) & (fabs(y) == INFINITY), 1.0, result)
    return where((y == 0.0) | (x == 1.0), 1.0, result)


def _pow_f32(x, y):
    """x^y with the special values of IEEE 754. Largest error: 1 ulp (float32), 2 ulp (float64).

    float32 computes log2 and exp2 in float64 with short polynomials; float64 in pairs of float64.
    """
    wide = cast(fabs(x), "float64")
    k, m = split_f64(where(wide == INFINITY, 1.0, wide))
    s = (m - 1.0) / (m + 1.0)
    exponent = (k + s * LOG2_ODD(s * s)) * cast(y, "float64")
    exponent = where((wide == 0.0) | (wide == INFINITY), 0.0, minimum(maximum(exponent, -300.0), 300.0))
    n = rint(exponent)
    power = cast(EXP2_SHORT(exponent - n) * two_to_f64(n), "float32")
    return pow_special(x, y, pow_of_limits(fabs(x), y, power))


@helper
def pow_of_limits(size, y, power):
    """The power, or what 0^y and inf^y are."""
    power = where(size == 0.0, where(y < 0.0, INFINITY, power * 0.0), power)
    power = where(size == INFINITY, where(y < 0.0, power * 0.0, INFINITY), power)
    large, small = size > 1.0, size < 1.0
    power = where((large & (y == INFINITY)) | (small & (y == -INFINITY)), INFINITY, power)
    return where((large & (y == -INFINITY)) | (small & (y == INFINITY)), 0.0, power)


@helper
def sum_exact(a, b):
    """(s, e) with s = round(a + b) and s + e = a + b, for |a| >= |b| or a = 0."""
    s = a + b
    return s, b - (s - a)


@helper
def product_exact(a, b):
    """(p, e) with p = round(a b) and p + e = a b."""
    p = product(a, b)
    return p, fma(a, b, -p)


@helper
def log_pair(x):
    """(high, low): log(x) to about 68 bits, for positive finite x.

        log(1 + f) = 2 s + 2/3 s^3 + s^5 q(s^2),  s = f / (2 + f)

    The first two terms are kept as pairs.
    """
    raised, more = raise_denormal_f64(x)
    k, m = split_f64(raised)
    k = k + more
    f = m - 1.0
    below, below_low = sum_exact(f * 0.0 + 2.0, f)
    s = f / below
    s_low = (fma(s, -below, f) - s * below_low) / below
    z, z_low = product_exact(s, s)
    z_low = fma(s + s, s_low, z_low)
    cube, cube_low = product_exact(s, z)
    cube_low = cube_low + fma(s, z_low, s_low * z)
    third, third_low = product_exact(cube, 0.6666666666666666)
    third_low = fma(cube, 3.700743415417188e-17, fma(cube_low, 0.6666666666666666, third_low))
    rest = cube * z * LOG_TAIL(z)
    high, low = sum_exact(s + s, third)
    low = low + (s_low + s_low + (third_low + rest))
    whole, whole_low = product_exact(k, LN2_HIGH_F64)
    total = whole + high
    taken = total - whole
    lost = (whole - (total - taken)) + (high - taken)
    return sum_exact(total, lost + (low + fma(k, LN2_LOW_F64, whole_low)))


def _pow_f64(x, y):
    size = fabs(x)
    limit = (size == 0.0) | (size == INFINITY)
    high, low = log_pair(where(limit, 1.0, size))
    bounded = minimum(maximum(y, -1e300), 1e300)
    t, t_low = product_exact(high, bounded)
    t_low = fma(low, bounded, t_low)
    beyond = ~(fabs(t) < 800.0)
    t = where(beyond, minimum(maximum(t, -800.0), 800.0), t)
    t_low = where(beyond, 0.0, t_low)
    n = rint(t * LOG2_E_HIGH_F64)
    r = fma(n, -LN2_LOW_F64, t_low) + fma(n, -LN2_HIGH_F64, t)
    power = ldexp(fma(r * r, EXP(r), r) + 1.0, n)
    return pow_special(x, y, pow_of_limits(size, y, power))


pow = math_word(float32=_pow_f32, float64=_pow_f64, outlined=True)


@math_word
def rsqrt(x):
    """1 / sqrt(x), by a square root and a division. Largest error: 1.5 ulp."""
    return 1.0 / sqrt(x)
