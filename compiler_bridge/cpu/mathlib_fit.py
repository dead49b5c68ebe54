"""Where mathlib's coefficients come from: minimax polynomials by Remez' exchange.

`python -m compiler_bridge.cpu.mathlib_fit` prints mathlib_coefficients.py. Each row fits

    target(x) ~ sum c[k] x^k      minimising the largest |error(x)| * weight(x) on an interval

in 60-digit arithmetic, then rounds the coefficients to the dtype.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np

mp.mp.dps = 60
_GRID = 1200


class Fit(NamedTuple):
    """One polynomial: its name, dtypes' degrees, interval, what it approximates, how errors weigh."""

    name: str
    degrees: dict[str, int]
    low: Any
    high: Any
    target: Callable[[Any], Any]
    weight: Callable[[Any], Any]


def remez(fit: Fit, degree: int) -> tuple[list[Any], Any]:
    """The coefficients (lowest first) and the largest weighted error."""
    low, high = mp.mpf(fit.low), mp.mpf(fit.high)
    grid = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * k / _GRID) for k in range(_GRID + 1)]
    values = [fit.target(x) for x in grid]
    weights = [fit.weight(x) for x in grid]
    count = degree + 2
    chosen = [round(k * _GRID / (count - 1)) for k in range(count)]
    for _ in range(12):
        system = mp.matrix(count, count)
        right = mp.matrix(count, 1)
        for row, k in enumerate(chosen):
            for power in range(degree + 1):
                system[row, power] = grid[k] ** power
            system[row, degree + 1] = (-1) ** row / weights[k]
            right[row] = values[k]
        solution = mp.lu_solve(system, right)
        coefficients = [solution[k] for k in range(degree + 1)]
        errors = [(mp.polyval(coefficients[::-1], x) - v) * w for x, v, w in zip(grid, values, weights)]
        exchanged = _extrema(errors, count)
        if exchanged == chosen:
            break
        chosen = exchanged
    return coefficients, max(abs(error) for error in errors)


def _extrema(errors: list[Any], count: int) -> list[int]:
    """The `count` grid points of largest error whose signs alternate."""
    peaks: list[int] = []
    for k, error in enumerate(errors):
        if peaks and (errors[peaks[-1]] > 0) == (error > 0):
            if abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = k
        else:
            peaks.append(k)
    while len(peaks) > count:
        peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
    if len(peaks) < count:
        raise ArithmeticError(f"only {len(peaks)} alternations of {count}: the fit is at rounding level")
    return peaks


def _one(x: Any) -> Any:
    return mp.mpf(1)


def _series(x: Any, closed: Callable[[Any], Any], at_zero: Any) -> Any:
    """closed(x), or its limit at 0."""
    return mp.mpf(at_zero) if abs(x) < mp.mpf("1e-25") else closed(x)


LN2 = mp.log(2)
HALF_LN2 = LN2 / 2 * mp.mpf("1.001")
ERF_SLOPE = 2 / mp.sqrt(mp.pi) / LN2
SQRT_HALF = mp.sqrt(mp.mpf(1) / 2)
S_MAX = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2


def _erfcx(x: Any) -> Any:
    return mp.exp(x * x) * mp.erfc(x)


def _from_square(function: Callable[[Any], Any], limit: Any) -> Callable[[Any], Any]:
    """g(z) with z = x * x, given the function of x."""
    return lambda z: _series(z, lambda value: function(mp.sqrt(value)), limit)


FITS = (
    # e^r = 1 + r + r^2 q(r)
    Fit("EXP", {"float32": 4, "float64": 10}, -HALF_LN2, HALF_LN2,
        lambda r: _series(r, lambda x: (mp.expm1(x) - x) / x**2, mp.mpf(1) / 2),
        lambda r: r * r + mp.mpf("0.0005")),
    # the same where 3/4 <= e^r < 3/2
    Fit("EXP_NEAR_ONE", {"float32": 4, "float64": 10}, mp.mpf("-0.2885"), mp.mpf("0.4063"),
        lambda r: _series(r, lambda x: (mp.expm1(x) - x) / x**2, mp.mpf(1) / 2),
        lambda r: (r * r + mp.mpf("0.0005")) / mp.exp(r)),
    # 2^r = 1 + r q(r)
    Fit("EXP2", {"float32": 6, "float64": 12}, mp.mpf("-0.501"), mp.mpf("0.501"),
        lambda r: _series(r, lambda x: mp.expm1(x * LN2) / x, LN2), lambda r: abs(r) + mp.mpf("0.02")),
    # 2^r = 1 + r ln 2 + r^2 q(r)
    Fit("EXP2_TAIL", {"float32": 4}, mp.mpf("-0.501"), mp.mpf("0.501"),
        lambda r: _series(r, lambda x: (mp.expm1(x * LN2) - x * LN2) / x**2, LN2**2 / 2),
        lambda r: abs(r) + mp.mpf("0.0005")),
    # log(1 + f) = f - f^2 / 2 + f^3 q(f), 2/3 <= 1 + f < 4/3
    Fit("LOG", {"float32": 7}, -mp.mpf("0.33334"), mp.mpf("0.33334"),
        lambda f: _series(f, lambda x: (mp.log1p(x) - x + x * x / 2) / x**3, mp.mpf(1) / 3),
        lambda f: f * f + mp.mpf("0.0005")),
    # log(1 + f) = 2 s + s z q(z), s = f / (2 + f), z = s^2
    Fit("LOG_ODD", {"float64": 7}, 0, S_MAX,
        _from_square(lambda s: (2 * mp.atanh(s) - 2 * s) / s**3, mp.mpf(2) / 3),
        lambda z: z + mp.mpf("0.0001")),
    # log2(1 + f) = s q(z), to 2^-40 for float32 pow
    Fit("LOG2_ODD", {"float64": 5}, 0, S_MAX,
        _from_square(lambda s: 2 * mp.atanh(s) / s / LN2, 2 / LN2), _one),
    # 2^r to 2^-32, float64 arithmetic, for float32 pow
    Fit("EXP2_SHORT", {"float64": 7}, mp.mpf("-0.501"), mp.mpf("0.501"), lambda r: mp.mpf(2) ** r, _one),
    # log(1 + f) = 2 s + 2/3 s^3 + s^5 q(z), for float64 pow
    Fit("LOG_TAIL", {"float64": 7}, 0, S_MAX,
        _from_square(lambda s: (2 * mp.atanh(s) - 2 * s - 2 * s**3 / 3) / s**5, mp.mpf(2) / 5),
        lambda z: z + mp.mpf("0.0001")),
    # tanh(x) = x + x z q(z)
    Fit("TANH", {"float32": 4, "float64": 10}, 0, mp.mpf("0.31"),
        _from_square(lambda x: (mp.tanh(x) - x) / x**3, -mp.mpf(1) / 3), lambda z: z + mp.mpf("0.001")),
    # sinh(x) = x + x z q(z)
    Fit("SINH", {"float32": 3, "float64": 7}, 0, 1,
        _from_square(lambda x: (mp.sinh(x) - x) / x**3, mp.mpf(1) / 6), lambda z: z + mp.mpf("0.001")),
    # sin(r) = r + r z q(z);  cos(r) = 1 - z / 2 + z^2 q(z)
    Fit("SIN", {"float32": 2, "float64": 5}, 0, (mp.pi / 4) ** 2 * mp.mpf("1.002"),
        _from_square(lambda x: (mp.sin(x) - x) / x**3, -mp.mpf(1) / 6), lambda z: z + mp.mpf("0.001")),
    Fit("COS", {"float32": 2, "float64": 5}, 0, (mp.pi / 4) ** 2 * mp.mpf("1.002"),
        _from_square(lambda x: (mp.cos(x) - 1 + x * x / 2) / x**4, mp.mpf(1) / 24),
        lambda z: z * z + mp.mpf("0.001")),
    # atan(x) = x + x z q(z)
    Fit("ATAN", {"float64": 11}, 0, (mp.sqrt(2) - 1) ** 2 * mp.mpf("1.002"),
        _from_square(lambda x: (mp.atan(x) - x) / x**3, -mp.mpf(1) / 3), lambda z: z + mp.mpf("0.0005")),
    # the same up to 1, for float32, where a longer polynomial is cheaper than another quotient
    Fit("ATAN_TO_1", {"float32": 8}, 0, mp.mpf("1.0001"),
        _from_square(lambda x: (mp.atan(x) - x) / x**3, -mp.mpf(1) / 3), lambda z: z + mp.mpf("0.0005")),
    # asin(x) = x + x z q(z)
    Fit("ASIN", {"float32": 5, "float64": 12}, 0, mp.mpf("0.2502"),
        _from_square(lambda x: (mp.asin(x) - x) / x**3, mp.mpf(1) / 6), lambda z: z + mp.mpf("0.0005")),
    # erf(x) = x q(z), |x| < 1
    Fit("ERF", {"float32": 6, "float64": 12}, 0, 1,
        _from_square(lambda x: mp.erf(x) / x - 1, 2 / mp.sqrt(mp.pi) - 1), _one),
    # erf(x) = 1 - 2^-(2 / (sqrt(pi) ln 2) x + x^2 q(x)), 0 <= x <= 4
    Fit("ERF_EXPONENT", {"float32": 7}, 0, 4,
        lambda x: _series(x, lambda y: (-mp.log(mp.erfc(y), 2) - ERF_SLOPE * y) / y**2, 2 / mp.pi / LN2),
        lambda x: _series(x, lambda y: y * y * mp.erfc(y) / mp.erf(y), 0) + mp.erfc(x) / 1000),
    # exp(x^2) erfc(x) (1 + 2 x) = q(t), t = (x - c) / (x + c)
    Fit("ERFCX", {"float32": 12}, -1, mp.mpf("0.7"),
        lambda t: _erfcx(2 * (1 + t) / (1 - t)) * (1 + 4 * (1 + t) / (1 - t)), _one),
    Fit("ERFCX", {"float64": 25}, -1, mp.mpf("0.76"),
        lambda t: _erfcx(4 * (1 + t) / (1 - t)) * (1 + 8 * (1 + t) / (1 - t)), _one),
    # erfinv(x) = x q(w - 2.5), w = -log(1 - x^2) < 5;  x q(sqrt(w) - 3) beyond
    Fit("ERFINV_CENTRE", {"float32": 10, "float64": 10}, mp.mpf("-2.5"), mp.mpf("2.5"),
        lambda t: _erfinv_ratio(t + mp.mpf("2.5")), lambda t: 1 / _erfinv_ratio(t + mp.mpf("2.5"))),
    Fit("ERFINV_TAIL", {"float32": 9}, mp.sqrt(5) - 3, mp.sqrt(mp.mpf("16.7")) - 3,
        lambda t: _erfinv_ratio((t + 3) ** 2), lambda t: 1 / _erfinv_ratio((t + 3) ** 2)),
    Fit("ERFINV_TAIL", {"float64": 10}, mp.sqrt(5) - 3, mp.sqrt(mp.mpf("37.5")) - 3,
        lambda t: _erfinv_ratio((t + 3) ** 2), lambda t: 1 / _erfinv_ratio((t + 3) ** 2)),
)  # fmt: skip


def _erfinv(x: Any, w: Any) -> Any:
    """erfinv by Newton's method on log erfc near 1, where mpmath's own loses digits."""
    if w < 4:
        return mp.erfinv(x)
    target = mp.log(1 - x)
    return mp.findroot(lambda y: mp.log(mp.erfc(y)) - target, mp.sqrt(w))


def _erfinv_ratio(w: Any) -> Any:
    """erfinv(x) / x for x = sqrt(1 - e^-w)."""
    if w == 0:
        return mp.sqrt(mp.pi) / 2
    x = mp.sqrt(-mp.expm1(-w))
    return _erfinv(x, w) / x


def _rounded(value: Any, dtype: str) -> str:
    """The coefficient rounded to the dtype, in as many digits as restore it."""
    return repr(float(np.float32(str(value)))) if dtype == "float32" else repr(float(value))


_HEADER = '''"""Minimax coefficients, lowest power first.

Written by `python -m compiler_bridge.cpu.mathlib_fit`.
"""

from compiler_bridge.cpu.language import polynomial
'''


def main(names: list[str]) -> None:
    print(_HEADER)
    for name in dict.fromkeys(fit.name for fit in FITS):
        if names and name not in names:
            continue
        lines: list[str] = []
        for fit in FITS:
            for dtype, degree in fit.degrees.items() if fit.name == name else ():
                coefficients, error = remez(fit, degree)
                print(f"# {dtype}: largest weighted error 2**{mp.nstr(mp.log(error, 2), 4)}")
                rounded = ", ".join(_rounded(coefficient, dtype) for coefficient in coefficients)
                lines.append(f"    {dtype}=({rounded}),")
        print(f"{name} = polynomial(", *lines, ")", sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
