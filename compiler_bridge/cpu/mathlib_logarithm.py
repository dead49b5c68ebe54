"""log, log1p, log2, log10.

    log x = k ln 2 + log(1 + f),   x = 2^k (1 + f)

float32 evaluates a polynomial in f, 2/3 <= 1 + f < 4/3; float64 an odd one in s = f / (2 + f), as
log(1 + f) = 2 atanh(s), sqrt(1/2) <= 1 + f < sqrt(2). Zero, denormals, infinity, NaN and negative numbers are
looked after where a vector holds one.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import (
    bitcast,
    cast,
    copysign,
    fma,
    helper,
    maximum,
    product,
    reduce_any,
    where,
)
from compiler_bridge.cpu.mathlib_coefficients import LOG, LOG_ODD
from compiler_bridge.cpu.mathlib_exponential import LN2_HIGH_F32, LN2_HIGH_F64, LN2_LOW_F64, two_to_f64
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
    """(k, m) with x = 2^k m and 2/3 <= m < 4/3, for positive normal x."""
    bits = bitcast(x, "int32")
    exponent = (bits - 0x3F2AAAAB) >> 23  # the bits of 2/3
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
def unusual_f32(x):
    """Where x is not positive and normal."""
    return bitcast(bitcast(x, "int32") - 0x00800000, "uint32") >= 0x7F000000


@helper
def unusual_f64(x):
    """Where x is not positive and normal."""
    return bitcast(x, "uint64") - 0x0010000000000000 >= 0x7FE0000000000000


@helper
def raise_denormal_f32(x):
    """(x 2^23, -23) for denormal x, else (x, 0)."""
    tiny = x < SMALLEST_NORMAL_F32
    return where(tiny, x * 8388608.0, x), where(tiny, -23.0, x * 0.0)


@helper
def raise_denormal_f64(x):
    """(x 2^52, -52) for denormal x, else (x, 0)."""
    tiny = x < SMALLEST_NORMAL_F64
    return where(tiny, x * 4503599627370496.0, x), where(tiny, -52.0, x * 0.0)


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


@helper
def log_normal_f32(x, more):
    """log(x 2^more) for positive normal x; ln 2 in one float32 is accurate enough."""
    k, m = split_f32(x)
    f = m - 1.0
    return fma(k + more, LN2_HIGH_F32, fma(f * f, fma(f, LOG(f), -0.5), f))


@helper
def log_normal_f64(x, more):
    """log(x 2^more) for positive normal x."""
    k, m = split_f64(x)
    f = m - 1.0
    k = k + more
    tail = fma(k, LN2_LOW_F64, log_of_mantissa_f64(f))
    return fma(k, LN2_HIGH_F64, f + tail)


def _log_f32(x):
    """The natural logarithm. Largest error: 1 ulp (float32 and float64)."""
    result = log_normal_f32(x, 0.0)
    if reduce_any(unusual_f32(x)):
        result = log_domain(x, log_normal_f32(*raise_denormal_f32(x)))
    return result


def _log_f64(x):
    result = log_normal_f64(x, 0.0)
    if reduce_any(unusual_f64(x)):
        result = log_domain(x, log_normal_f64(*raise_denormal_f64(x)))
    return result


log = math_word(float32=_log_f32, float64=_log_f64)


# u = 1 + x chooses k; then f = 2^-k x + (2^-k - 1), rounded once whatever u lost
def _log1p_f32(x):
    """log(1 + x). Largest error: 2 ulp (float32 and float64)."""
    u = x + 1.0
    exponent = (bitcast(u, "int32") - 0x3F2AAAAB) & -0x00800000  # k 2^23
    shrunk = bitcast(maximum(0x3F800000 - exponent, 0), "float32")  # 2^-k, or 0
    f = bitcast(bitcast(x, "int32") - exponent, "float32") + (shrunk - 1.0)
    k = cast(exponent, "float32") * 1.1920928955078125e-07  # 2**-23
    result = fma(k, LN2_HIGH_F32, fma(f * f, fma(f, LOG(f), -0.5), f))
    if reduce_any(unusual_f32(u)):
        result = log_domain(u, result)
    return copysign(result, x)


def _log1p_f64(x):
    u = x + 1.0
    k, _ = split_f64(u)
    shrunk = two_to_f64(maximum(-k, -1023.0))  # 2^-k, or 0
    exponent = ((bitcast(u, "uint64") - 0x3FE6A09E667F3BCD) >> 52) << 52  # k 2^52
    f = bitcast(bitcast(x, "uint64") - exponent, "float64") + (shrunk - 1.0)
    tail = fma(k, LN2_LOW_F64, log_of_mantissa_f64(f))
    result = fma(k, LN2_HIGH_F64, f + tail)
    if reduce_any(unusual_f64(u)):
        result = log_domain(u, result)
    return copysign(result, x)


log1p = math_word(float32=_log1p_f32, float64=_log1p_f64)


@helper
def times_constant(f, tail, high, low):
    """(p, e) with p + e = (f + tail) (high + low) to twice the working precision."""
    whole = f + tail
    rest = (f - whole) + tail
    p = product(whole, high)
    return p, fma(whole, high, -p) + fma(rest, high, whole * low)


@helper
def log2_normal_f32(x, more):
    """log2(x 2^more) for positive normal x."""
    k, m = split_f32(x)
    f = m - 1.0
    p, e = times_constant(f, log_of_mantissa_f32(f), LOG2_E_HIGH_F32, LOG2_E_LOW_F32)
    return add_pair(k + more, p, e)


@helper
def log2_normal_f64(x, more):
    """log2(x 2^more) for positive normal x."""
    k, m = split_f64(x)
    f = m - 1.0
    p, e = times_constant(f, log_of_mantissa_f64(f), LOG2_E_HIGH_F64, LOG2_E_LOW_F64)
    return add_pair(k + more, p, e)


@helper
def add_pair(k, p, e):
    """k + (p + e) rounded about once, for |p| < 1 and whole k."""
    total = k + p
    return total + ((p - (total - k)) + e)


def _log2_f32(x):
    """The logarithm to base 2, exact at powers of two. Largest error: 1 ulp (float32 and float64)."""
    result = log2_normal_f32(x, 0.0)
    if reduce_any(unusual_f32(x)):
        result = log_domain(x, log2_normal_f32(*raise_denormal_f32(x)))
    return result


def _log2_f64(x):
    result = log2_normal_f64(x, 0.0)
    if reduce_any(unusual_f64(x)):
        result = log_domain(x, log2_normal_f64(*raise_denormal_f64(x)))
    return result


log2 = math_word(float32=_log2_f32, float64=_log2_f64)


@helper
def log10_normal_f32(x, more):
    """log10(x 2^more) for positive normal x."""
    k, m = split_f32(x)
    f = m - 1.0
    p, e = times_constant(f, log_of_mantissa_f32(f), LOG10_E_HIGH_F32, LOG10_E_LOW_F32)
    k = k + more
    return fma(k, LOG10_2_HIGH_F32, p + fma(k, LOG10_2_LOW_F32, e))


@helper
def log10_normal_f64(x, more):
    """log10(x 2^more) for positive normal x."""
    k, m = split_f64(x)
    f = m - 1.0
    p, e = times_constant(f, log_of_mantissa_f64(f), LOG10_E_HIGH_F64, LOG10_E_LOW_F64)
    k = k + more
    return fma(k, LOG10_2_HIGH_F64, p + fma(k, LOG10_2_LOW_F64, e))


def _log10_f32(x):
    """The logarithm to base 10. Largest error: 2 ulp (float32 and float64)."""
    result = log10_normal_f32(x, 0.0)
    if reduce_any(unusual_f32(x)):
        result = log_domain(x, log10_normal_f32(*raise_denormal_f32(x)))
    return result


def _log10_f64(x):
    result = log10_normal_f64(x, 0.0)
    if reduce_any(unusual_f64(x)):
        result = log_domain(x, log10_normal_f64(*raise_denormal_f64(x)))
    return result


log10 = math_word(float32=_log10_f32, float64=_log10_f64)
