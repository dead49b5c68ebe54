"""The one tolerance: pynn must be no less accurate than the C++ op, both measured against float64.

    unit     = eps(dtype) * scale          scale: the tensor's largest exact value; pointwise rows must
                                           also pass with each element's own
    error(t) = max |t - exact| / unit      in roundings ("ulp")
    passes   when error(pynn) <= FACTOR * error(C++) + FLOOR_ULPS

FACTOR allows another order of the same additions; FLOOR_ULPS is for rows whose C++ error happens to be
nought on a handful of elements. Neither is chosen per row. Where a sample fails, the C++ error is measured
again as the largest over inputs one rounding away (measure.against_neighbours): the error of the op at
that input, less its luck.

For float64 there is nothing more exact to hold against. There the C++ op is taken as exact, and its error
in roundings is taken to be what its float32 run had.
"""

from dataclasses import dataclass

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


def rounding_unit(exact: Tensor, dtype: torch.dtype, each: bool) -> Tensor:
    """One rounding at the scale of `exact`, never less than the smallest normal number's."""
    info = torch.finfo(dtype)
    size = exact.abs().nan_to_num(0.0, 0.0, 0.0)
    scale = size if each else size.max()
    return (scale * info.eps).clamp_min(info.tiny)


def error_in_ulps(value: Tensor, exact: Tensor, each: bool) -> float:
    """Return max |value - exact| in roundings of value's dtype; infinite where one alone is finite."""
    if value.numel() == 0:
        return 0.0
    dtype = value.dtype
    value = value.double()
    same = (value == exact) | (value.isnan() & exact.isnan())
    error = (value - exact).abs() / rounding_unit(exact, dtype, each)
    return torch.where(same, 0.0, error.nan_to_num(torch.inf, torch.inf)).max().item()


def compare(value: Tensor, cpp: Tensor, exact: Tensor | None, each: bool, cpp_ulps=0.0) -> Comparison:
    """Hold one result against the C++ op's.

    Args:    value: what pynn computed
             cpp: what the C++ op computed, same dtype
             exact: the C++ op's float64 result; None where `cpp` itself is the reference
             each: measure each element against itself, not against the largest one
             cpp_ulps: the C++ op's error where exact is None
    """
    if value.shape != cpp.shape or value.dtype != cpp.dtype:
        got, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (value, cpp))
        return Comparison(0, 0, f"got {got}, C++ gives {wanted}")
    if not cpp.dtype.is_floating_point:
        return Comparison(0, 0, "" if torch.equal(value, cpp) else "differs from C++ (integers or bools)")
    if exact is None:
        # Both may err, each by the C++ op's error.
        return Comparison(max(0.0, error_in_ulps(value, cpp.double(), each) - cpp_ulps), cpp_ulps)
    # A value that overflows in this dtype, and in C++ just so, is as good as C++.
    same = (value == cpp) | (value.isnan() & cpp.isnan())
    own = torch.where(same, cpp, value)
    return Comparison(error_in_ulps(own, exact, each), error_in_ulps(cpp, exact, each))
