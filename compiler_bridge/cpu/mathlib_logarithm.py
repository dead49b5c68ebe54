"""log, log1p, log2, log10.

    log x = k ln 2 + log(1 + f),   x = 2^k (1 + f),   sqrt(1/2) <= 1 + f < sqrt(2)

float32 evaluates a polynomial in f; float64 an odd one in s = f / (2 + f), as log(1 + f) = 2 atanh(s).
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import bitcast, cast, fabs, fma, helper, product, where
from compiler_bridge.cpu.mathlib_coefficients import LOG, LOG_ODD
from compiler_bridge.cpu.mathlib_exponential import LN2_HIGH_F32, LN2_HIGH_F64, LN2_LOW_F32, LN2_LOW_F64
from compiler_bridge.cpu.mathlib_word import math_word

INFINITY = float("inf")
NAN = float("nan")
SMALLEST_NORMAL_F32 = 1.1754943508222875e-38
SMALLEST_NORMAL_F64 = 2.2250738585072014e-308

# 1 / ln 2, log10(e) and log10(2), each as a sum of two numbers of the dtype
LOG2_E_HIGH_F32, LOG2_E_LOW_F32 = 1.4426950216293335, 1.925963033500011e-08
LOG2_E_HIGH_F64, LOG2_E_LOW_F64 = 1.4426950408889634, 2.0355273740931033e-17
LOG10_E_HIGH_F32, LOG10_E_LOW_F32 = 0.4342944920063019, -1.0103049952192578e-08
LOG10_E_HIGH_F64, LOG10_E_LOW_F64 = 0.4342944819032518, 1.098319650216765e-17
LOG10_2_HIGH_F32, LOG10_2_LOW_F32 = 0.3010300099849701, -1.432098883924482e-08
LOG10_2_HIGH_F64, LOG10_2_LOW_F64 = 0.3010299956639812, -2.8037281277851704e-18


@helper
def split_f32(x):
    """(k, m) with x = 2^k m and sqrt(1/2) <= m < sqrt(2), for positive normal x."""
    bits = bitcast(x, "int32")
    exponent = (bits - 0x3F3504F3) >> 23  # the bits of sqrt(1/2)
    return cast(exponent, "float32"), bitcast(bits - (exponent << 23), "float32")


@helper
def split_f64(x):
    """(k, m) with x = 2^k m and sqrt(1/2) <= m < sqrt(2), for positive normal x.

    The exponent is shifted out as an unsigned number (AVX2 has no signed shift of 64 bits) and converted
    to float by way of the mantissa of 2^52.
    """
    bits = bitcast(x, "uint64")
    raised = (bits - 0x3FE6A09E667F3BCD) + 0x4000000000000000  # the bits of sqrt(1/2); 1024 more exponents
    exponent = raised >> 52
    k = bitcast(exponent | 0x4330000000000000, "float64") - (4503599627370496.0 + 1024.0)
    return k, bitcast(bits - (exponent << 52) + 0x4000000000000000, "float64")


@helper
def split_any_f32(x):
    """split_f32 for denormal x too."""
    tiny = x < SMALLEST_NORMAL_F32
    k, m = split_f32(where(tiny, x * 8388608.0, x))  # 2**23
    return where(tiny, k - 23.0, k), m


@helper
def split_any_f64(x):
    """split_f64 for denormal x too."""
    tiny = x < SMALLEST_NORMAL_F64
    k, m = split_f64(where(tiny, x * 4503599627370496.0, x))  # 2**52
    return where(tiny, k - 52.0, k), m


@helper
def log_domain(x, result):
    """The result for positive finite x; -inf at 0, inf at inf, NaN below 0 and at NaN."""
    result = where(x == INFINITY, INFINITY, result)
    result = where(x == 0.0, -INFINITY, result)
    return where(x >= 0.0, result, NAN)


@helper
def log_of_mantissa_f32(f):
    """log(1 + f) as f + tail."""
    square = f * f
    return fma(f * square, LOG(f), -0.5 * square)


@helper
def log_of_mantissa_f64(f):
    """log(1 + f) as f + tail.

    With s = f / (2 + f), h = f^2 / 2 and log(1 + f) = 2 s + s R(s^2):  tail = s (h + R) - h.
    """
    s = f / (f + 2.0)
    z = s * s
    half_square = 0.5 * f * f
    return fma(s, fma(z, LOG_ODD(z), half_square), -half_square)


def _log_f32(x):
    """The natural logarithm. Largest error: 1 ulp (float32 and float64)."""
    k, m = split_any_f32(x)
    f = m - 1.0
    tail = fma(k, LN2_LOW_F32, log_of_mantissa_f32(f))
    return log_domain(x, fma(k, LN2_HIGH_F32, f + tail))


def _log_f64(x):
    k, m = split_any_f64(x)
    f = m - 1.0
    tail = fma(k, LN2_LOW_F64, log_of_mantissa_f64(f))
    return log_domain(x, fma(k, LN2_HIGH_F64, f + tail))


log = math_word(float32=_log_f32, float64=_log_f64)


# log1p(x) for u = 1 + x: where k = 0, f is x itself; elsewhere f = m - 1 plus what rounding u lost, scaled.
def _log1p_f32(x):
    """log(1 + x). Largest error: 2 ulp (float32 and float64)."""
    u = x + 1.0
    lost = where(x < 1.0, x - (u - 1.0), 1.0 - (u - x))
    k, m = split_f32(u)
    f = where(k == 0.0, x, (m - 1.0) + lost * (m / u))
    tail = fma(k, LN2_LOW_F32, log_of_mantissa_f32(f))
    result = log_domain(u, fma(k, LN2_HIGH_F32, f + tail))
    return where(fabs(x) < 1e-8, x, result)


def _log1p_f64(x):
    u = x + 1.0
    lost = where(x < 1.0, x - (u - 1.0), 1.0 - (u - x))
    k, m = split_f64(u)
    f = where(k == 0.0, x, (m - 1.0) + lost * (m / u))
    tail = fma(k, LN2_LOW_F64, log_of_mantissa_f64(f))
    result = log_domain(u, fma(k, LN2_HIGH_F64, f + tail))
    return where(fabs(x) < 1e-17, x, result)


log1p = math_word(float32=_log1p_f32, float64=_log1p_f64)


@helper
def times_constant(f, tail, high, low):
    """(p, e) with p + e = (f + tail) (high + low) to twice the working precision."""
    whole = f + tail
    rest = (f - whole) + tail
    p = product(whole, high)
    return p, fma(whole, high, -p) + fma(rest, high, whole * low)


def _log2_f32(x):
    """The logarithm to base 2, exact at powers of two. Largest error: 1 ulp (float32 and float64)."""
    k, m = split_any_f32(x)
    f = m - 1.0
    p, e = times_constant(f, log_of_mantissa_f32(f), LOG2_E_HIGH_F32, LOG2_E_LOW_F32)
    return log_domain(x, where(k == 0.0, p + e, k + (p + e)))


def _log2_f64(x):
    k, m = split_any_f64(x)
    f = m - 1.0
    p, e = times_constant(f, log_of_mantissa_f64(f), LOG2_E_HIGH_F64, LOG2_E_LOW_F64)
    return log_domain(x, where(k == 0.0, p + e, k + (p + e)))


log2 = math_word(float32=_log2_f32, float64=_log2_f64)


def _log10_f32(x):
    """The logarithm to base 10. Largest error: 2 ulp (float32 and float64)."""
    k, m = split_any_f32(x)
    f = m - 1.0
    p, e = times_constant(f, log_of_mantissa_f32(f), LOG10_E_HIGH_F32, LOG10_E_LOW_F32)
    return log_domain(x, fma(k, LOG10_2_HIGH_F32, p + fma(k, LOG10_2_LOW_F32, e)))


def _log10_f64(x):
    k, m = split_any_f64(x)
    f = m - 1.0
    p, e = times_constant(f, log_of_mantissa_f64(f), LOG10_E_HIGH_F64, LOG10_E_LOW_F64)
    return log_domain(x, fma(k, LOG10_2_HIGH_F64, p + fma(k, LOG10_2_LOW_F64, e)))


log10 = math_word(float32=_log10_f32, float64=_log10_f64)
