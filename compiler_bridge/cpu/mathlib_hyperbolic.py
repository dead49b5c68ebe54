"""tanh, sinh, cosh and their inverses, from exponentials and logarithms."""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import copysign, fabs, fma, helper, ldexp, minimum, sqrt, where
from compiler_bridge.cpu.mathlib_coefficients import EXP, SINH, TANH
from compiler_bridge.cpu.mathlib_exponential import (
    expm1_of_remainder,
    reduce_exp_f32,
    reduce_exp_f64,
    two_to_f32,
    two_to_f64,
)
from compiler_bridge.cpu.mathlib_logarithm import NAN, log1p
from compiler_bridge.cpu.mathlib_word import math_word

LN2 = 0.6931471805599453


@helper
def tanh_joined(x, size, power, r):
    """x + x z q(z) below 0.55, z = x^2;  beyond, 1 - 2 / (e^(2 |x|) + 1), where e^(2 |x|) = power e^r."""
    z = x * x
    near = fma(size * z, TANH(z), size)
    grown = fma(power, fma(r * r, EXP(r), r), power)
    return copysign(where(size < 0.55, near, 1.0 - 2.0 / (grown + 1.0)), x)


# what the lower part of ln 2 adds to r does not show in 1 - 2 / (e^(2 |x|) + 1)
def _tanh_f32(x):
    """The hyperbolic tangent. Largest error: 2 ulp (float32 and float64)."""
    size = fabs(x)
    n, r, _ = reduce_exp_f32(minimum(size + size, 40.0))
    return tanh_joined(x, size, two_to_f32(n), r)


def _tanh_f64(x):
    size = fabs(x)
    n, r, _ = reduce_exp_f64(minimum(size + size, 40.0))
    return tanh_joined(x, size, two_to_f64(n), r)


tanh = math_word(float32=_tanh_f32, float64=_tanh_f64)


def _half_exp_f32(x):
    """e^x / 2 for x >= 0, finite up to twice the largest float (float32 and float64)."""
    n, r, low = reduce_exp_f32(minimum(x, 91.0))
    return ldexp(expm1_of_remainder(r, low) + 1.0, n - 1.0)


def _half_exp_f64(x):
    n, r, low = reduce_exp_f64(minimum(x, 712.0))
    return ldexp(expm1_of_remainder(r, low) + 1.0, n - 1.0)


half_exp = math_word(float32=_half_exp_f32, float64=_half_exp_f64)


@math_word
def sinh(x):
    """The hyperbolic sine: h - 1 / (4 h), h = e^|x| / 2; a polynomial below 1. Largest error: 2 ulp."""
    size = fabs(x)
    z = x * x
    near = fma(x * z, SINH(z), x)
    grown = half_exp(size)
    return where(size < 1.0, near, copysign(grown - 0.25 / grown, x))


@math_word
def cosh(x):
    """The hyperbolic cosine: h + 1 / (4 h), h = e^|x| / 2. Largest error: 2 ulp."""
    grown = half_exp(fabs(x))
    return grown + 0.25 / grown


@math_word
def asinh(x):
    """The inverse hyperbolic sine, log(|x| + sqrt(x^2 + 1)). Largest error: 3 ulp."""
    size = fabs(x)
    large = size > 1e9
    square = size * size
    small_argument = size + square / (sqrt(square + 1.0) + 1.0)
    result = log1p(where(large, size - 1.0, small_argument))
    return copysign(where(large, result + LN2, result), x)


@math_word
def acosh(x):
    """The inverse hyperbolic cosine, log(x + sqrt(x^2 - 1)); NaN below 1. Largest error: 3 ulp."""
    above = x - 1.0
    large = x > 1e9
    small_argument = above + sqrt(fma(above, above, above + above))
    result = log1p(where(large, above, small_argument))
    return where(x < 1.0, NAN, where(large, result + LN2, result))


@math_word
def atanh(x):
    """The inverse hyperbolic tangent, log((1 + x) / (1 - x)) / 2; NaN beyond 1. Largest error: 3 ulp."""
    size = fabs(x)
    return copysign(0.5 * log1p((size + size) / (1.0 - size)), x)
