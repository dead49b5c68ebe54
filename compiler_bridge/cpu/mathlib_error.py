"""erf, erfc and the inverse of erf.

erf(x) = x + x q(x^2)                                  near 0
erfc(x) = e^(-x^2) g(t) / (1 + 2 x),  t = (x - c) / (x + c)   for x >= 0
erfc(-x) = 2 - erfc(x)
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import copysign, fabs, fma, helper, minimum, product, rint, sqrt, where
from compiler_bridge.cpu.mathlib_coefficients import (
    ERF,
    ERF_EXPONENT,
    ERFCX,
    ERFINV_CENTRE,
    ERFINV_TAIL,
    EXP2_TAIL,
)
from compiler_bridge.cpu.mathlib_exponential import exp, two_to_f32
from compiler_bridge.cpu.mathlib_logarithm import INFINITY, NAN, log
from compiler_bridge.cpu.mathlib_word import math_word

LN2 = 0.6931471805599453
ERF_SLOPE = 1.627907028611114  # 2 / (sqrt(pi) ln 2)
SQRT_PI_HALF = 0.886226925452758


@helper
def gauss(x):
    """e^(-x^2), from x^2 to twice the working precision."""
    square = product(x, x)
    lost = fma(x, x, -square)
    power = exp(-square)
    return fma(power, -lost, power)


@helper
def erfc_positive(x, centre):
    """erfc(x) for x >= 0; `centre` is the c of the coefficients of its dtype."""
    t = (x - centre) / (x + centre)
    return gauss(x) * (ERFCX(t) / fma(x, 2.0, 1.0))


@helper
def erfc_joined(x, tail):
    """erfc(x) from that of |x|; 1 - erf(x) near 0, where it is the more accurate."""
    result = where(x < 0.0, 2.0 - tail, tail)
    return where(fabs(x) < 0.5, 1.0 - fma(x, ERF(x * x), x), result)


def _erfc_f32(x):
    """1 - erf(x), accurate also where it is small. Largest error: 4 ulp (float32 and float64)."""
    return erfc_joined(x, erfc_positive(minimum(fabs(x), 11.0), 2.0))


def _erfc_f64(x):
    return erfc_joined(x, erfc_positive(minimum(fabs(x), 28.0), 4.0))


erfc = math_word(float32=_erfc_f32, float64=_erfc_f64)


def _erf_f32(x):
    """The error function. Largest error: 2 ulp (float32 and float64).

    float32:  1 - 2^s,  s = -|x| slope - x^2 q(|x|) = n + r  with whole n
    """
    size = minimum(fabs(x), 4.0)
    s = fma(size, -ERF_SLOPE, (size * -size) * ERF_EXPONENT(size))
    n = rint(s)
    r = s - n
    part = fma(r, LN2, (r * r) * EXP2_TAIL(r))  # 2^r - 1
    power = two_to_f32(n)
    return copysign(fma(power, part, power - 1.0), x)


def _erf_f64(x):
    size = fabs(x)
    near = fma(x, ERF(x * x), x)
    far = 1.0 - erfc_positive(minimum(size, 6.0), 4.0)
    return where(size < 0.95, near, copysign(far, x))


erf = math_word(float32=_erf_f32, float64=_erf_f64)


def _erfinv_f32(x):
    """The inverse of erf: inf at 1, NaN beyond. Largest error: 4 ulp (float32 and float64).

    w = -log(1 - x^2):  x times a polynomial in w - 2.5 for w < 5, in sqrt(w) - 3 beyond;
    float64 takes one step of Halley's method from there.
    """
    return erfinv_domain(x, erfinv_estimate(x, -log(fma(x, -x, 1.0))))


@helper
def erfinv_estimate(x, w):
    """erfinv(x) to about 24 bits, |x| < 1."""
    centre = ERFINV_CENTRE(minimum(w, 5.0) - 2.5)
    tail = ERFINV_TAIL(sqrt(w) - 3.0)
    return x * where(w < 5.0, centre, tail)


def _erfinv_f64(x):
    """Halley's step for f(y) = erf(y) - x, whose f'' / f' is -2 y; from erfc where x is near 1."""
    size = fabs(x)
    start = erfinv_estimate(size, -log((1.0 - size) * (1.0 + size)))
    missing = where(size < 0.5, erf(start) - size, (1.0 - size) - erfc(start))
    step = missing * SQRT_PI_HALF / gauss(start)
    refined = start - step / fma(start, step, 1.0)
    return erfinv_domain(x, copysign(refined, x))


@helper
def erfinv_domain(x, result):
    """The result inside (-1, 1); the infinities at the ends, NaN outside."""
    size = fabs(x)
    result = where(size == 1.0, copysign(INFINITY, x), result)
    return where(size <= 1.0, result, NAN)


erfinv = math_word(float32=_erfinv_f32, float64=_erfinv_f64)
