"""What elementary ATen operations compute, in numpy's long double: one row per operation, by its name.

A row takes the operation's arguments, tensors as arrays, and gives the floating-point results; what is not
floating-point (a comparison, an index) torch computes. Whatever overload, and in place or not, a name means
the same.
"""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy
import torch
from numpy import add, exp, expm1, log, log1p, newaxis, sqrt, where
from torch.utils._pytree import tree_map

from parity_tests.long_double_losses import LOSSES

longdouble = numpy.longdouble
Array = numpy.ndarray


def by_mpmath(function: Callable) -> Callable[[Array], Array]:
    """A function that numpy lacks, through mpmath at 100 bits. A long double is the sum of two doubles."""

    def one(x) -> Any:
        if not numpy.isfinite(x):
            return longdouble(float(function(mpmath.mpf(float(x)))))
        with mpmath.workprec(100):
            high = float(x)
            result = function(mpmath.mpf(high) + mpmath.mpf(float(x - longdouble(high))))
            nearest = float(result)
            return longdouble(nearest) + longdouble(float(result - nearest))

    return numpy.vectorize(one, otypes=[longdouble])


def axes(dim: Any) -> Any:
    return None if dim is None or dim == [] else tuple(dim) if isinstance(dim, (list, tuple)) else dim


def total(x: Array, dim: Any = None, keepdim: bool = False, **_) -> Array:
    return numpy.sum(x, axis=axes(dim), keepdims=keepdim) if x.ndim else x


def mean(x: Array, dim: Any = None, keepdim: bool = False, **_) -> Array:
    return numpy.mean(x, axis=axes(dim), keepdims=keepdim) if x.ndim else x


def variance(x: Array, dim: Any = None, correction: float = 1, **_) -> Array:
    return numpy.var(x, axis=axes(dim), ddof=correction)


def largest(x: Array, dim: Any = None, keepdim: bool = False, **_) -> Array:
    return numpy.max(x, axis=axes(dim), keepdims=keepdim) if x.ndim else x


def smallest(x: Array, dim: Any = None, keepdim: bool = False, **_) -> Array:
    return numpy.min(x, axis=axes(dim), keepdims=keepdim) if x.ndim else x


def divide(x: Array, y: Any, rounding_mode: str | None = None) -> Array:
    quotient = x / y
    return {None: lambda q: q, "floor": numpy.floor, "trunc": numpy.trunc}[rounding_mode](quotient)


def power(x: Array, exponent: Any) -> Array:
    return numpy.power(numpy.asarray(x, longdouble), exponent)


def clamp(x: Array, low: Any = None, high: Any = None, **named) -> Array:
    low, high = named.get("min", low), named.get("max", high)
    x = x if low is None else numpy.maximum(x, low)
    return x if high is None else numpy.minimum(x, high)


def put(x: Array, indices: list, values: Array, accumulate: bool = False, *_) -> Array:
    """x with values written, or added, at indices; None stands for a whole axis."""
    out = x.copy()
    place = tuple(slice(None) if index is None else index for index in indices)
    if isinstance(values, Array) and values.size == out[place].size:  # a single index may be a scalar
        values = values.reshape(out[place].shape)
    if accumulate:
        add.at(out, place, values)
    else:
        out[place] = values
    return out


def along(dim: int, index: Array) -> tuple:
    """The indices of gather and scatter: each element's own position, but along dim what index says."""
    grids = list(numpy.indices(index.shape))
    grids[dim] = index
    return tuple(grids)


def scatter(x: Array, dim: int, index: Array, source: Any, *_, **named) -> Array:
    assert not named, named
    if x.ndim == 0:
        return numpy.broadcast_to(source, x.shape)
    source = source[tuple(map(slice, index.shape))] if isinstance(source, Array) and source.ndim else source
    return put(x, list(along(dim, index)), source)


def scatter_add(x: Array, dim: int, index: Array, source: Array) -> Array:
    if x.ndim == 0:
        return x + source
    return put(x, list(along(dim, index)), source[tuple(map(slice, index.shape))], accumulate=True)


def index_add(x: Array, dim: int, index: Array, source: Array, alpha: Any = 1) -> Array:
    if x.ndim == 0:
        return x + source * alpha
    return put(x, [None] * (dim % x.ndim) + [numpy.atleast_1d(index)], source * alpha, accumulate=True)


def trilinear(a, b, c, expand_a, expand_b, expand_c, sum_dim, unroll_dim=1) -> Array:
    expanded = [numpy.expand_dims(x, tuple(e)) for x, e in ((a, expand_a), (b, expand_b), (c, expand_c))]
    return (expanded[0] * expanded[1] * expanded[2]).sum(tuple(sum_dim))


def replication_pad_backward(grad: Array, x: Array, padding: list[int]) -> Array:
    """Each padded element hands its gradient to the element it repeats."""
    pairs = [(0, 0)] * (x.ndim - len(padding) // 2) + list(zip(padding[-2::-2], padding[::-2]))
    source = numpy.pad(
        numpy.arange(x.size).reshape(x.shape), [(max(a, 0), max(b, 0)) for a, b in pairs], "edge"
    )
    source = source[tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pairs, source.shape))]
    return put(numpy.zeros(x.size, longdouble), [source.reshape(-1)], grad.reshape(-1), True).reshape(x.shape)


def multi_margin_loss_backward(grad, x, target, p, margin, weight=None, reduction=1) -> Array:
    """x[y] - x[j] below the margin pushes the two apart: the derivative of max(0, margin - x[y] + x[j])^p."""
    rows, labels = numpy.atleast_2d(x), numpy.atleast_1d(target)
    row = numpy.arange(len(rows))
    short = numpy.maximum(0, margin - rows[row, labels][:, newaxis] + rows)
    slope = where(short > 0, 1 if p == 1 else 2 * short, longdouble(0)) / rows.shape[1]
    slope = slope if weight is None else slope * weight[labels][:, newaxis]
    slope[row, labels] = 0
    slope[row, labels] = -slope.sum(1)
    each = numpy.reshape(grad, (-1, 1)) / (len(rows) if reduction == 1 else 1)
    return (slope * each).reshape(x.shape)


def multilabel_margin_loss_backward(grad, x, target, reduction, is_target) -> Array:
    """As above, over every label of a row (the list ends at the first -1) and every class that is none."""
    rows, labels, known = numpy.atleast_2d(x), numpy.atleast_2d(target), numpy.atleast_2d(is_target)
    slope = numpy.zeros_like(rows)
    for row in range(len(rows)):
        listed = labels[row][numpy.cumprod(labels[row] >= 0).astype(bool)]
        for label in listed:
            violates = (known[row] == 0) & (1 - rows[row, label] + rows[row] > 0)
            slope[row] += violates
            slope[row, label] -= violates.sum()
    each = numpy.reshape(grad, (-1, 1)) / (len(rows) if reduction == 1 else 1)
    return (slope / rows.shape[1] * each).reshape(x.shape)


RULES: dict[str, Callable[..., Any]] = {
    # pointwise
    "abs": numpy.abs, "neg": numpy.negative, "exp": exp, "expm1": expm1, "log": log, "log1p": log1p,
    "log2": numpy.log2, "sqrt": sqrt, "rsqrt": lambda x: 1 / sqrt(x), "reciprocal": lambda x: 1 / x,
    "square": lambda x: x * x, "tanh": numpy.tanh, "sin": numpy.sin, "cos": numpy.cos, "sign": numpy.sign,
    "sgn": numpy.sign, "floor": numpy.floor, "ceil": numpy.ceil, "round": numpy.round, "trunc": numpy.trunc,
    "erf": by_mpmath(mpmath.erf), "erfc": by_mpmath(mpmath.erfc), "lgamma": by_mpmath(mpmath.loggamma),
    "relu": lambda x: numpy.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + exp(-x)),
    "sigmoid_backward": lambda grad, y: grad * y * (1 - y),
    "tanh_backward": lambda grad, y: grad * (1 - y * y),
    "threshold_backward": lambda grad, x, at: where(x <= at, 0, grad),
    "hardshrink_backward": lambda grad, x, at: where(numpy.abs(x) <= at, 0, grad),
    "softshrink_backward": lambda grad, x, at: where(numpy.abs(x) <= at, 0, grad),
    "add": lambda x, y, alpha=1: x + y * alpha, "sub": lambda x, y, alpha=1: x - y * alpha,
    "rsub": lambda x, y, alpha=1: y - x * alpha, "mul": lambda x, y: x * y, "div": divide,
    "fmod": numpy.fmod, "remainder": numpy.mod, "pow": power,
    "maximum": numpy.maximum, "minimum": numpy.minimum, "clamp": clamp,
    "clamp_min": numpy.maximum, "clamp_max": numpy.minimum, "where": where,
    "masked_fill": lambda x, mask, value: where(mask, value, x),
    # casts and copies: every float is a long double here
    "clone": lambda x, **_: x, "_to_copy": lambda x, **_: x, "copy": lambda x, source, *_: source,
    "copy_to": lambda x, source: source,
    "convert_element_type": lambda x, dtype: x, "fill": lambda x, value: value, "zero": lambda x: 0,
    # reductions
    "sum": total, "mean": mean, "var": variance, "amax": largest, "amin": smallest,
    "max": lambda *args, **named: (largest(*args, **named), 0)[: 2 if len(args) > 1 else 1],
    "min": lambda *args, **named: (smallest(*args, **named), 0)[: 2 if len(args) > 1 else 1],
    "prod": lambda x, dim=None, keepdim=False, **_: numpy.prod(x, axis=axes(dim), keepdims=keepdim),
    "cumsum": lambda x, dim, **_: numpy.cumsum(x, axis=dim),
    # products
    "mm": numpy.matmul, "bmm": numpy.matmul, "mv": numpy.matmul, "dot": numpy.dot, "_trilinear": trilinear,
    # scattering
    "index_put": put, "_index_put_impl": put, "_unsafe_index_put": put, "scatter": scatter,
    "scatter_add": scatter_add, "index_add": index_add,
    "replication_pad1d_backward": replication_pad_backward,
    "replication_pad2d_backward": replication_pad_backward,
    "replication_pad3d_backward": replication_pad_backward,
    # losses whose backward torch does not decompose
    "multi_margin_loss_backward": multi_margin_loss_backward,
    "multilabel_margin_loss_backward": multilabel_margin_loss_backward,
}  # fmt: skip
RULES |= LOSSES

# Elements arrive elsewhere as they are, and the rest is 0.
MOVES = frozenset(
    """
    cat gather index _unsafe_index index_select repeat flip roll embedding masked_select take stack
    select_backward slice_backward slice_scatter select_scatter diagonal_backward
    """.split()
)

# Made by torch, random numbers too: the shadow takes torch's numbers.
CREATION = frozenset(
    """
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like new_zeros ones
    ones_like new_ones full full_like new_full arange linspace scalar_tensor rand rand_like randn randn_like
    bernoulli uniform exponential normal random lift_fresh_copy
    """.split()
)


def moved(func: Callable, args: Any, kwargs: Any) -> Array:
    """Run an operation that only moves elements on both halves of each long double."""

    def high(x: Any) -> Any:
        return torch.from_numpy(x.astype(numpy.float64)) if isinstance(x, Array) else x

    def low(x: Any) -> Any:
        if not isinstance(x, Array):
            return x
        rest = x - x.astype(numpy.float64)
        return torch.from_numpy(where(numpy.isfinite(rest), rest, 0).astype(numpy.float64))

    halves = [
        func(*a, **k).numpy().astype(longdouble)
        for a, k in (tree_map(h, (args, kwargs)) for h in (high, low))
    ]
    return halves[0] + halves[1]
