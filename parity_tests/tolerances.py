"""The one tolerance: pynn must be no less accurate than the C++ op, both measured against a wider type.

    unit     = eps(dtype) * scale          scale: the tensor's largest exact value; pointwise rows must
                                           also pass with each element's own
    error(t) = max |t - exact| / unit      in roundings ("ulp")
    passes   when error(pynn) <= FACTOR * error(C++) + FLOOR_ULPS

exact is the C++ op run on the same numbers in float64; for float64 results it is the C++ op followed through
torch's own decompositions in long double (long_double.py), which has 11 more bits. That takes a while, and is
only done where pynn and C++ are more than FLOOR_ULPS apart: otherwise the triangle inequality says that the
rule holds, whatever the exact value, since error(pynn) <= error(C++) + |pynn - C++| / unit. Neither side of
the rule rests on C++ being right, nor on the errors one machine's kernels happen to make in another dtype.

FACTOR allows another order of the same additions; FLOOR_ULPS is for rows whose C++ error happens to be
nought on a handful of elements. Neither is chosen per row. Where a sample fails, the C++ error is measured
again as the largest over neighbouring inputs (measure.compare_result): the error of the op at
that input, less its luck.

Random draws differ between dtypes: except in float64, whose draws the long double follows, the C++ op's result
in the same dtype is then the reference.
"""

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

FACTOR = 2.0
FLOOR_ULPS = 4.0


@dataclass(frozen=True)
class Comparison:
    """Errors in roundings; `problem` says what is wrong besides their size, if anything."""

    pynn: float
    cpp: float
    problem: str = ""

    @property
    def allowed(self) -> float:
        return FACTOR * self.cpp + FLOOR_ULPS

    @property
    def passed(self) -> bool:
        return not self.problem and self.pynn <= self.allowed

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        return f"error {self.pynn:.2f} ulp; C++ has {self.cpp:.2f}, so {self.allowed:.2f} are allowed"


def worst(comparisons: list[Comparison]) -> Comparison:
    """Return the comparison that fails by most, or else passes by least."""
    if not comparisons:
        return Comparison(0.0, 0.0)
    return max(comparisons, key=lambda c: (bool(c.problem), c.pynn / c.allowed))


def wide(value: Tensor | numpy.ndarray) -> numpy.ndarray:
    """The same numbers in long double, which holds those of every dtype here."""
    array = value if isinstance(value, numpy.ndarray) else value.detach().double().numpy()
    return array.astype(numpy.longdouble)


def rounding_unit(exact: numpy.ndarray, dtype: torch.dtype, each: bool) -> numpy.ndarray:
    """One rounding at the scale of `exact`, never less than the smallest normal number's."""
    info = torch.finfo(dtype)
    size = numpy.where(numpy.isfinite(exact), numpy.abs(exact), 0)
    return numpy.maximum((size if each else size.max()) * info.eps, info.tiny)


def error_in_ulps(value: Tensor, exact: Tensor | numpy.ndarray, each: bool) -> float:
    """Return max |value - exact| in roundings of value's dtype; infinite where one alone is finite."""
    if value.numel() == 0:
        return 0.0
    found, exact = wide(value), wide(exact)
    same = (found == exact) | (numpy.isnan(found) & numpy.isnan(exact))
    with numpy.errstate(invalid="ignore", over="ignore"):
        error = numpy.abs(found - exact) / rounding_unit(exact, value.dtype, each)
    return float(numpy.where(same, 0.0, numpy.nan_to_num(error, nan=numpy.inf, posinf=numpy.inf)).max())


def compare(value: Tensor, cpp: Tensor, exact: Tensor | numpy.ndarray | None, each: bool) -> Comparison:
    """Hold one result against the C++ op's.

    Args:    value: what pynn computed
             cpp: what the C++ op computed, same dtype
             exact: the same in a wider type; None where `cpp` itself is the reference
             each: measure each element against itself, not against the largest one
    """
    if value.shape != cpp.shape or value.dtype != cpp.dtype:
        got, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (value, cpp))
        return Comparison(0, 0, f"got {got}, C++ gives {wanted}")
    if not cpp.dtype.is_floating_point:
        return Comparison(0, 0, "" if torch.equal(value, cpp) else "differs from C++ (integers or bools)")
    if exact is None:
        return Comparison(error_in_ulps(value, cpp, each), 0.0)
    # A value that overflows in this dtype, and in C++ just so, is as good as C++.
    same = (value == cpp) | (value.isnan() & cpp.isnan())
    own = torch.where(same, cpp, value)
    return Comparison(error_in_ulps(own, exact, each), error_in_ulps(cpp, exact, each))
