"""atan, atan2, asin, acos: an argument reduced to a small interval, then one odd polynomial."""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import (
    copysign,
    fabs,
    fma,
    helper,
    like,
    maximum,
    minimum,
    polynomial,
    sqrt,
    where,
)
from compiler_bridge.cpu.mathlib_coefficients import ASIN, ATAN, ATAN_TO_1
from compiler_bridge.cpu.mathlib_word import math_word

PI = 3.141592653589793
HALF_PI = 1.5707963267948966
QUARTER_PI = 0.7853981633974483
TAN_EIGHTH_PI = 0.41421356237309503

# what rounding pi / 2 to the dtype lost
HALF_PI_LOW = polynomial(float32=(-4.371138828673793e-08,), float64=(6.123233995736766e-17,))
QUARTER_PI_LOW_F64 = 3.061616997868383e-17


def _angle_f32(small, large):
    """atan(small / large) for 0 <= small <= large; NaN where both are 0 or infinite."""
    t = small / large
    z = t * t
    return fma(t * z, ATAN_TO_1(z), t)


def _angle_f64(small, large):
    """The same; beyond tan(pi / 8) as pi / 4 + atan((small - large) / (small + large))."""
    half_small, half_large = small * 0.5, large * 0.5  # so that the sum stays finite
    middle = small > large * TAN_EIGHTH_PI
    t = where(middle, half_small - half_large, small) / where(middle, half_small + half_large, large)
    z = t * t
    tail = t * z * ATAN(z)
    return where(middle, QUARTER_PI + (t + (tail + QUARTER_PI_LOW_F64)), t + tail)


angle = math_word(float32=_angle_f32, float64=_angle_f64)


@math_word
def atan(x):
    """The inverse tangent: pi / 2 - atan(1 / |x|) beyond 1. Largest error: 2 ulp."""
    size = fabs(x)
    result = angle(minimum(size, 1.0), maximum(size, 1.0))
    return copysign(where(size > 1.0, HALF_PI + (HALF_PI_LOW(x) - result), result), x)


@math_word
def atan2(y, x):
    """The angle of the point (x, y), in [-pi, pi], with the signs of zeros kept. Largest error: 3 ulp."""
    height, width = fabs(y), fabs(x)
    small = minimum(height, width)
    result = angle(small, maximum(height, width))
    result = where(height == width, QUARTER_PI, result)
    result = where(small == 0.0, 0.0, result)
    result = where(height > width, HALF_PI + (HALF_PI_LOW(x) - result), result)
    result = where(copysign(like(x, 1.0), x) < 0.0, PI - (result - 2.0 * HALF_PI_LOW(x)), result)
    return where((x != x) | (y != y), x + y, copysign(result, y))


@helper
def odd_polynomial_asin(t):
    """asin(t) for |t| <= 1/2."""
    z = t * t
    return fma(t * z, ASIN(z), t)


@math_word
def asin(x):
    """The inverse sine; NaN beyond 1. Largest error: 2.5 ulp.

    |x| > 1/2:  pi / 2 - 2 asin(sqrt((1 - |x|) / 2))
    """
    size = fabs(x)
    large = size > 0.5
    inner = odd_polynomial_asin(where(large, sqrt(fma(size, -0.5, 0.5)), size))
    return copysign(where(large, fma(inner, -2.0, HALF_PI), inner), x)


@math_word
def acos(x):
    """The inverse cosine; NaN beyond 1. Largest error: 2 ulp.

    x > 1/2:  2 asin(sqrt((1 - x) / 2));   x < -1/2:  pi - that of -x;   else pi / 2 - asin(x)
    """
    size = fabs(x)
    large = size > 0.5
    inner = odd_polynomial_asin(where(large, sqrt(fma(size, -0.5, 0.5)), size))
    outer = where(x > 0.0, inner + inner, PI - (inner + inner))
    return where(large, outer, HALF_PI - copysign(inner, x))
