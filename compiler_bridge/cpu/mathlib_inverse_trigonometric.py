"""atan, atan2, asin, acos: an argument reduced to a small interval, then one odd polynomial."""

from __future__ import annotations

from compiler_bridge.cpu.language import copysign, fabs, fma, helper, like, maximum, minimum, sqrt, where
from compiler_bridge.cpu.mathlib_coefficients import ASIN, ATAN
from compiler_bridge.cpu.mathlib_word import math_word

PI = 3.141592653589793
HALF_PI = 1.5707963267948966
QUARTER_PI = 0.7853981633974483
TAN_EIGHTH_PI = 0.41421356237309503

# what rounding pi / 2 to the dtype lost
HALF_PI_LOW_F32 = -4.371138828673793e-08
HALF_PI_LOW_F64 = 6.123233995736766e-17


@helper
def odd_polynomial_atan(t):
    """atan(t) for |t| <= tan(pi / 8)."""
    z = t * t
    return fma(t * z, ATAN(z), t)


@math_word
def atan(x):
    """The inverse tangent. Largest error: 2 ulp.

    |x| > tan(3 pi / 8):  pi / 2 - atan(1 / |x|);   |x| > tan(pi / 8):  pi / 4 + atan((|x| - 1) / (|x| + 1))
    """
    size = fabs(x)
    large = size > 2.414213562373095
    middle = size > TAN_EIGHTH_PI
    above = where(large, -1.0, where(middle, size - 1.0, size))
    below = where(large, size, where(middle, size + 1.0, 1.0))
    start = where(large, HALF_PI, where(middle, QUARTER_PI, like(x, 0.0)))
    return copysign(start + odd_polynomial_atan(above / below), x)


@helper
def angle_of_quadrant(small, large):
    """atan(small / large) for 0 <= small <= large, of which one may be infinite or both be 0."""
    half_small, half_large = small * 0.5, large * 0.5
    middle = small > large * TAN_EIGHTH_PI
    above = where(middle, half_small - half_large, small)
    below = where(middle, half_small + half_large, large)
    angle = where(middle, QUARTER_PI, like(small, 0.0)) + odd_polynomial_atan(above / below)
    angle = where(small == large, QUARTER_PI, angle)
    return where(small == 0.0, 0.0, angle)


@math_word
def atan2(y, x):
    """The angle of the point (x, y), in [-pi, pi], with the signs of zeros kept. Largest error: 3 ulp."""
    height, width = fabs(y), fabs(x)
    angle = angle_of_quadrant(minimum(height, width), maximum(height, width))
    angle = where(height > width, HALF_PI - angle, angle)
    angle = where(copysign(like(x, 1.0), x) < 0.0, PI - angle, angle)
    return where((x != x) | (y != y), x + y, copysign(angle, y))


@helper
def odd_polynomial_asin(t):
    """asin(t) for |t| <= 1/2."""
    z = t * t
    return fma(t * z, ASIN(z), t)


@math_word
def asin(x):
    """The inverse sine; NaN beyond 1. Largest error: 2 ulp.

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
