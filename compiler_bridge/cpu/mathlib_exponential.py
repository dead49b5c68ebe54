"""exp, exp2, expm1, sigmoid, and the reduction they share.

e^x = 2^n e^r,   n = round(x / ln 2),   r = x - n ln 2,   |r| <= ln(2) / 2
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import bitcast, fabs, fma, helper, ldexp, maximum, minimum, rint, where
from compiler_bridge.cpu.mathlib_coefficients import EXP, EXP2, EXP_NEAR_ONE
from compiler_bridge.cpu.mathlib_word import math_word

LOG2_E = 1.4426950408889634
SHIFT = 0.08496250072115618  # log2(3/2) - 1/2

# ln 2 as a sum of two numbers of the dtype
LN2_HIGH_F32, LN2_LOW_F32 = 0.6931471824645996, -1.9046542121259336e-09
LN2_HIGH_F64, LN2_LOW_F64 = 0.6931471805599453, 2.3190468138462996e-17

# Adding and subtracting these rounds to a whole number
ROUND_F32 = 12582912.0  # 1.5 * 2**23
ROUND_F64 = 6755399441055744.0  # 1.5 * 2**52

# Adding these to a whole number n leaves n plus the exponent's bias in the lowest bits of the sum
POWER_F32 = ROUND_F32 + 127.0
POWER_F64 = ROUND_F64 + 1023.0


@helper
def two_to_f32(n):
    """2^n for whole n (float32) in [-126, 127]."""
    return bitcast(bitcast(n + POWER_F32, "int32") << 23, "float32")


@helper
def two_to_f64(n):
    """2^n for whole n (float64) in [-1022, 1023]."""
    return bitcast(bitcast(n + POWER_F64, "int64") << 52, "float64")


@helper
def reduce_exp_f32(x):
    """(n, r, low) with x = n ln 2 + r + low; r is exact."""
    n = fma(x, LOG2_E, ROUND_F32) - ROUND_F32
    return n, fma(n, -LN2_HIGH_F32, x), n * -LN2_LOW_F32


@helper
def reduce_exp_f64(x):
    """(n, r, low) with x = n ln 2 + r + low; r is exact."""
    n = fma(x, LOG2_E, ROUND_F64) - ROUND_F64
    return n, fma(n, -LN2_HIGH_F64, x), n * -LN2_LOW_F64


@helper
def expm1_of_remainder(r, low):
    """e^(r + low) - 1 for |r| <= ln(2) / 2 and tiny low."""
    whole = r + low
    return r + fma(whole * whole, EXP(whole), low)


def _exp_in_range_f32(x):
    """e^x for -104 <= x <= 89 (float64: -746 to 710) and NaN.

    n is such that 3/4 <= e^r < 3/2: there the sums before the last are less than half of the result.
    """
    n = rint(fma(x, LOG2_E, -SHIFT))
    r = fma(n, -LN2_LOW_F32, fma(n, -LN2_HIGH_F32, x))
    return ldexp(fma(r * r, EXP_NEAR_ONE(r), r) + 1.0, n)


def _exp_in_range_f64(x):
    n = rint(fma(x, LOG2_E, -SHIFT))
    r = fma(n, -LN2_LOW_F64, fma(n, -LN2_HIGH_F64, x))
    return ldexp(fma(r * r, EXP_NEAR_ONE(r), r) + 1.0, n)


exp_in_range = math_word(float32=_exp_in_range_f32, float64=_exp_in_range_f64)


def _exp_f32(x):
    """e^x. Largest error: 1 ulp (float32 and float64)."""
    return exp_in_range(minimum(maximum(x, -104.0), 89.0))


def _exp_f64(x):
    return exp_in_range(minimum(maximum(x, -746.0), 710.0))


exp = math_word(float32=_exp_f32, float64=_exp_f64)


def _exp2_f32(x):
    """2^x. Largest error: 1 ulp (float32 and float64)."""
    x = minimum(maximum(x, -151.0), 129.0)
    n = rint(x)
    r = x - n
    return ldexp(fma(r, EXP2(r), 1.0), n)


def _exp2_f64(x):
    x = minimum(maximum(x, -1076.0), 1025.0)
    n = rint(x)
    r = x - n
    return ldexp(fma(r, EXP2(r), 1.0), n)


exp2 = math_word(float32=_exp2_f32, float64=_exp2_f64)


# e^x - 1 = 2 (2^(n-1) (e^r - 1) + (2^(n-1) - 1/2)): exact where n = 0, and no overflow before the last step
def _expm1_f32(x):
    """e^x - 1. Largest error: 2 ulp (float32 and float64)."""
    n, r, low = reduce_exp_f32(minimum(maximum(x, -18.0), 89.0))
    half_power = two_to_f32(n - 1.0)
    grown = fma(half_power, expm1_of_remainder(r, low), half_power - 0.5)
    return where(fabs(x) < 1e-8, x, grown + grown)


def _expm1_f64(x):
    n, r, low = reduce_exp_f64(minimum(maximum(x, -38.0), 710.0))
    half_power = two_to_f64(n - 1.0)
    grown = fma(half_power, expm1_of_remainder(r, low), half_power - 0.5)
    return where(fabs(x) < 1e-17, x, grown + grown)


expm1 = math_word(float32=_expm1_f32, float64=_expm1_f64)


# from e^-|x|, so that nothing overflows
def _sigmoid_f32(x):
    """1 / (1 + e^-x). Largest error: 2.5 ulp (float32 and float64)."""
    small = exp_in_range(maximum(-fabs(x), -104.0))
    return where(x < 0.0, small, 1.0) / (small + 1.0)


def _sigmoid_f64(x):
    small = exp_in_range(maximum(-fabs(x), -746.0))
    return where(x < 0.0, small, 1.0) / (small + 1.0)


sigmoid = math_word(float32=_sigmoid_f32, float64=_sigmoid_f64)
