"""The long double reference: it is as exact as it says, and every row of the table can be followed."""

import mpmath
import numpy
import pytest
import torch

from parity_tests.cases import Row, defined_rows
from parity_tests.long_double import IS_WIDER, in_long_double
from parity_tests.measure import evaluate
from parity_tests.tolerances import wide

pytestmark = pytest.mark.skipif(not IS_WIDER, reason="long double is no wider than float64 here")

# Every transcendental row of long_double_ops.py, and where to look.
FUNCTIONS = {
    "exp": (-700, 700), "expm1": (-40, 40), "log": (1e-9, 1e9), "log1p": (-0.999, 1e6), "log2": (1e-9, 1e9),
    "sqrt": (0, 1e9), "rsqrt": (1e-9, 1e9), "tanh": (-20, 20), "sigmoid": (-40, 40), "sin": (-30, 30),
    "cos": (-30, 30), "erf": (-6, 6), "erfc": (-6, 20),
}  # fmt: skip
BY_MPMATH = {"rsqrt": lambda x: 1 / mpmath.sqrt(x), "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x))}
BY_MPMATH |= {"log2": lambda x: mpmath.log(x) / mpmath.log(2)}


def to_mpmath(x: numpy.longdouble) -> mpmath.mpf:
    high = float(x)
    return mpmath.mpf(high) + mpmath.mpf(float(x - numpy.longdouble(high)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions_have_sixty_bits(name: str):
    low, high = FUNCTIONS[name]
    x = torch.rand(300, dtype=torch.float64) * (high - low) + low
    with in_long_double() as run:
        found = run.value(getattr(torch, name)(x))
    with mpmath.workprec(120):
        for value, at in zip(found, x.tolist()):
            exact = BY_MPMATH.get(name, getattr(mpmath, name, None))(mpmath.mpf(at))
            assert abs(to_mpmath(value) - exact) <= abs(exact) * mpmath.mpf(2) ** -60, at


def test_views_and_writes_reach_the_shadow():
    """1 + 2^-60 survives slicing, transposing, gathering, in-place additions and a copy."""
    tiny = 2.0**-60
    with in_long_double() as run:
        x = torch.zeros(3, 4, dtype=torch.float64)
        x.t()[1:3].add_(1.0).add_(tiny)
        y = torch.cat([x[:, 1], x.gather(1, torch.full((3, 1), 2)).flatten()]).clone()
        z = torch.empty(6, dtype=torch.float64)
        z.copy_(y)
        found = run.value(torch.where(z > 0, z - 1.0, 5.0))
    assert numpy.array_equal(found, numpy.full(6, numpy.longdouble(tiny)))


def test_an_operation_without_a_row_is_an_error():
    with in_long_double(), pytest.raises(NotImplementedError, match="long_double_ops"):
        torch.linalg.qr(torch.eye(2, dtype=torch.float64))


FOLLOWED = [row for row in defined_rows() if torch.float64 in row.dtypes and not row.random]


# C++ multiplies float64 by 1 / 6 rounded to float32; torch's CrossMapLRN2d resizes what a mode cannot follow.
INEXACT_IN_CPP = {"hardsigmoid": 1e-6, "Hardsigmoid": 1e-6}
FOLLOWED = [row for row in FOLLOWED if row.symbol != "CrossMapLRN2d"]


@pytest.mark.slow
@pytest.mark.parametrize("row", FOLLOWED, ids=[row.name for row in FOLLOWED])
def test_every_row_can_be_followed(row: Row):
    """And gives what C++ gives: ten digits tell a wrong row of long_double_ops.py, or a wrong definition, from
    rounding."""
    digits = INEXACT_IN_CPP.get(row.symbol, 1e-10)
    for sample in row.draw(8):
        exact = evaluate(row, torch.nn, sample, torch.float64, exact=True)
        cpp = evaluate(row, torch.nn, sample, torch.float64)
        for value, reference in zip(cpp.values + cpp.grads, exact.values + exact.grads, strict=True):
            finite = numpy.abs(wide(value)[numpy.isfinite(wide(value))])
            scale = max(1.0, float(finite.max(initial=0)))
            assert numpy.allclose(wide(value), wide(reference), rtol=0, atol=digits * scale, equal_nan=True)
