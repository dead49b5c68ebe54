"""x mod pi / 2 for arguments too large to cancel n pi / 2 against (Payne and Hanek's method).

    x = m 2^e,  m a 53-bit integer;   2 / pi = sum d[k] 2^(-26 (k + 1)),  d[k] 26-bit integers

Of x 2 / pi only the value mod 4 matters, so the digits whose products are multiples of 4 are skipped;
each product of half of m with a digit is exact in float64, and its multiples of 4 are dropped before
the products are added to twice float64's precision. Runs lane by lane: such arguments are rare.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import numpy as np

from compiler_bridge.cpu.language import (
    bitcast,
    cast,
    extract,
    fabs,
    floor,
    fma,
    insert,
    lane_count,
    outlined_helper,
    product,
    rint,
)

DIGITS = np.array(
    [
        42722829.0,
        48555073.0,
        21659401.0,
        56087029.0,
        13858563.0,
        28715353.0,
        38736100.0,
        4324945.0,
        26128250.0,
        62674459.0,
        29957006.0,
        37899730.0,
        58726692.0,
        49193117.0,
        6588223.0,
        35515164.0,
        46442140.0,
        65964067.0,
        24988590.0,
        54822121.0,
        41009306.0,
        54917092.0,
        5137525.0,
        37323603.0,
        15192690.0,
        4585659.0,
        58608142.0,
        52426903.0,
        67074070.0,
        25231090.0,
        63202006.0,
        34237727.0,
        28629499.0,
        15891632.0,
        40752081.0,
        37709470.0,
        25143477.0,
        55737260.0,
        33225084.0,
        24853767.0,
        15195689.0,
        19476134.0,
        50255852.0,
        18845021.0,
        2185228.0,
        50622407.0,
        47901436.0,
        13614112.0,
    ]
)
"""2 / pi in base 2^26, most significant digit first."""

_DIGITS_USED = 7

HALF_PI_HIGH, HALF_PI_LOW = np.float64(1.5707963267948966), np.float64(6.123233995736766e-17)


@outlined_helper
def modulo_4(x):
    """x mod 4 in [0, 4), exact."""
    return fma(floor(x * 0.25), -4.0, x)


@outlined_helper
def huge_angle(x):
    """(n, high, low) with x = n pi / 2 + high + low, n in [0, 4], for float64 |x| >= 2^10 (scalar)."""
    size = fabs(x)
    bits = bitcast(size, "int64")
    exponent = (bits >> 52) - 1075
    mantissa = (bits & 0xFFFFFFFFFFFFF) | 0x10000000000000
    upper, lower = cast(mantissa >> 26, "float64"), cast(mantissa & 0x3FFFFFF, "float64")
    first = max((exponent - 2) // 26, 0)
    total, rest = np.float64(0.0), np.float64(0.0)
    for position in range(first, first + _DIGITS_USED):
        # Two factors, as 2^scale alone may be denormal for the last digits
        scale = exponent - 26 * (position + 1)
        weight = bitcast((scale + 26 + 1023) << 52, "float64")
        digit = DIGITS[position]
        for part in (
            modulo_4(upper * digit * weight),
            modulo_4(lower * digit * (weight * 1.4901161193847656e-08)),
        ):
            before = total
            total = before + part
            kept = total - before
            rest = rest + ((before - (total - kept)) + (part - kept))
    n = rint(total)
    fraction = total - n
    near = fraction + rest
    rest = rest - (near - fraction)
    high = product(near, HALF_PI_HIGH)
    low = fma(near, HALF_PI_HIGH, -high) + (near * HALF_PI_LOW + rest * HALF_PI_HIGH)
    quadrant = cast(n, "int64") & 3
    if x < 0.0:
        return -quadrant, -high, -low
    return quadrant, high, low


@outlined_helper
def reduce_huge(x, limit, quadrant, high, low):
    """The reduction (quadrant, high, low) of a vector, replaced in the lanes where |x| > limit."""
    for lane in range(lane_count(x)):
        value = extract(x, lane)
        if fabs(value) > limit:
            if value - value == 0.0:
                n, first, second = huge_angle(cast(value, "float64"))
                quadrant = insert(quadrant, lane, n)
                high = insert(high, lane, first)
                low = insert(low, lane, (first - extract(high, lane)) + second)
            else:  # infinite
                high = insert(high, lane, value - value)
    return quadrant, high, low
