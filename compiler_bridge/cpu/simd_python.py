"""The kernel language in numpy: what the words mean, and what PYNN_INTERPRET=1 runs.

A vector is a `Vector` (a numpy array of `lanes` elements whose operators convert scalars to its dtype),
a mask a bool `Vector`, a pointer an object over a flat numpy array (bounds-checked) or over raw memory.
Every word computes what the Numba one does, to the bit, except that products and sums are never fused
unless `fma` says so.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from compiler_bridge.cpu.simd_python_memory import (
    address_of,
    broadcast_load,
    gather,
    load,
    load_if,
    load_masked,
    load_strided,
    offset_pointer,
    pointer,
    pointer_at,
    prefetch,
    scatter,
    store,
    store_masked,
    store_stream,
    store_strided,
)
from compiler_bridge.cpu.simd_python_vector import (
    COMPUTE_DTYPES,
    HELD_IN,
    Vector,
    common,
    convert,
    decode,
    encode,
    fused_multiply_add,
    typed,
)

f32, f64 = np.float32, np.float64
i32, i64, u32, u64 = np.int32, np.int64, np.uint32, np.uint64


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with numpy's floating-point and overflow warnings off, as in compiled code."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args)

    return run


# ---- making vectors ---------------------------------------------------------------------------------


def splat(scalar: Any, lanes: int) -> Vector:
    """The scalar in every lane."""
    value = typed(scalar)
    return np.full(lanes, value, value.dtype).view(Vector)


def like(x: Any, value: Any) -> Any:
    """The scalar `value` with the dtype and lanes of x."""
    x = typed(x)
    return splat(convert(value, x), x.size) if isinstance(x, Vector) else convert(value, x)


def iota(lanes: int, dtype: str) -> Vector:
    """0, 1, 2, ... in a vector of `dtype`."""
    return np.arange(lanes).astype(COMPUTE_DTYPES[dtype]).view(Vector)


def iota_like(x: Vector) -> Vector:
    """0, 1, 2, ... with the dtype and lanes of x."""
    return np.arange(x.size).astype(x.dtype).view(Vector)


def lane_mask(count: Any, lanes: int) -> Vector:
    """Mask of the first `count` lanes."""
    return (np.arange(lanes) < count).view(Vector)


# ---- elementwise ------------------------------------------------------------------------------------


def _unary(ufunc: Any, meaning: str) -> Any:
    def word(x: Any) -> Any:
        return ufunc(typed(x))

    word.__doc__ = meaning
    return word


sqrt = _unary(np.sqrt, "The square root, correctly rounded.")
floor = _unary(np.floor, "The largest whole number not above x.")
ceil = _unary(np.ceil, "The smallest whole number not below x.")
trunc = _unary(np.trunc, "x without its fraction.")
rint = _unary(np.rint, "The nearest whole number, ties to even.")
fabs = _unary(np.abs, "|x|, for floats and signed integers.")


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return fused_multiply_add(*common(a, b, c))


def product(a: Any, b: Any) -> Any:
    """a * b, rounded: never fused into a following addition."""
    a, b = common(a, b)
    return a * b


def horner(x: Any, coefficients: Any) -> Any:
    """c[0] + x (c[1] + x (c[2] + ...)) by fma, for a tuple of constants, in the dtype of x."""
    x = typed(x)
    total = convert(coefficients[-1], x)
    for coefficient in coefficients[-2::-1]:
        total = fused_multiply_add(total, x, convert(coefficient, x))
    return total


def polynomial(**coefficients: tuple[float, ...]) -> Any:
    """A word p(x) = c[0] + x (c[1] + x (...)) by fma, with coefficients for each dtype it is given for."""
    tables = {name: tuple(np.dtype(name).type(c) for c in row) for name, row in coefficients.items()}

    def word(x: Any) -> Any:
        return horner(x, tables[typed(x).dtype.name])

    return word


def ldexp(x: Any, n: Any) -> Any:
    """x 2^n for whole n (a float), rounded once."""
    x, n = common(x, n)
    with np.errstate(all="ignore"):
        result = np.ldexp(np.asarray(x), np.asarray(n).astype(np.int32))
    return result.view(Vector) if isinstance(x, Vector) else result[()]


def copysign(magnitude: Any, sign: Any) -> Any:
    """|magnitude| with the sign bit of `sign`."""
    return np.copysign(*common(magnitude, sign))


def maximum(a: Any, b: Any) -> Any:
    """The larger; NaN if either is NaN."""
    a, b = common(a, b)
    return _choose((b > a) | (b != b), b, a)


def minimum(a: Any, b: Any) -> Any:
    """The smaller; NaN if either is NaN."""
    a, b = common(a, b)
    return _choose((b < a) | (b != b), b, a)


def _choose(condition: Any, a: Any, b: Any) -> Any:
    """a or b, already of one type; scalar or lane by lane."""
    if isinstance(condition, Vector):
        return np.where(condition, a, b).view(Vector)
    return a if condition else b


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b, lane by lane; both are evaluated."""
    a, b = common(a, b)
    return _choose(condition, a, b)


def cast(x: Any, dtype: str) -> Any:
    """x converted to `dtype`; a storage-only dtype rounds or wraps in the type it is held in."""
    value = convert(x, COMPUTE_DTYPES[HELD_IN.get(dtype, dtype)])
    if dtype not in HELD_IN:
        return value
    rounded = decode(encode(value, dtype), dtype)
    return rounded.view(Vector) if isinstance(value, Vector) else rounded


def bitcast(x: Any, dtype: str) -> Any:
    """The same bits read as `dtype`; between dtypes of unequal width the lanes of a vector change."""
    value = typed(x)
    if not isinstance(value, Vector) and value.dtype.itemsize != COMPUTE_DTYPES[dtype].itemsize:
        raise TypeError(f"bitcast of a scalar needs two types of equal width; got {value.dtype} and {dtype}")
    return value.view(COMPUTE_DTYPES[dtype])


def mulhi_u32(a: Any, b: Any) -> Any:
    """The upper 32 bits of the 64-bit product of two uint32."""
    wide = convert(a, np.dtype(np.uint64)) * convert(b, np.dtype(np.uint64))
    return convert(wide >> np.uint64(32), np.dtype(np.uint32))


# ---- between lanes ----------------------------------------------------------------------------------


def low_half(vector: Vector) -> Any:
    """The first half of the lanes."""
    return vector[: len(vector) // 2]


def high_half(vector: Vector) -> Any:
    """The second half of the lanes."""
    return vector[len(vector) // 2 :]


def _reduction(combine: Any, meaning: str) -> Any:
    def word(vector: Vector) -> Any:
        while len(vector) > 1:
            vector = combine(low_half(vector), high_half(vector))
        return vector[0]

    word.__doc__ = meaning
    return word


reduce_add = _reduction(operator.add, "The sum of the lanes, upper half onto lower half.")
reduce_mul = _reduction(operator.mul, "The product of the lanes, upper half onto lower half.")
reduce_max = _reduction(maximum, "The largest lane; NaN if any is NaN.")
reduce_min = _reduction(minimum, "The smallest lane; NaN if any is NaN.")


def reduce_any(mask: Vector) -> Any:
    """Whether any lane is true."""
    return mask.view(np.ndarray).any()


def reduce_all(mask: Vector) -> Any:
    """Whether every lane is true."""
    return mask.view(np.ndarray).all()


def lane_count(x: Vector) -> int:
    """How many lanes a vector has."""
    return x.size


def extract(vector: Vector, lane: int) -> Any:
    """One lane of a vector."""
    return vector[lane]


def insert(vector: Vector, lane: int, value: Any) -> Vector:
    """The vector with one lane replaced."""
    changed = vector.copy()
    changed[lane] = value
    return changed


def concat_vectors(low: Vector, high: Vector) -> Vector:
    """Both vectors' lanes, one after the other."""
    return np.concatenate([low, high]).view(Vector)


def reverse_quads(vector: Vector) -> Any:
    """Lanes 3, 2, 1, 0, 7, 6, 5, 4, ..."""
    return vector[np.arange(vector.size) ^ 3]


def transpose(rows: Any) -> Any:
    """A tuple of n vectors of n lanes -> the tuple of the matrix's columns."""
    return tuple(column.copy().view(Vector) for column in np.stack(rows).T)


def transpose8(*rows: Vector) -> Any:
    """Eight vectors of 8 lanes -> the tuple of the matrix's columns."""
    return transpose(rows)


__all__ = [
    "address_of",
    "bitcast",
    "broadcast_load",
    "cast",
    "ceil",
    "concat_vectors",
    "copysign",
    "extract",
    "f32",
    "f64",
    "fabs",
    "floor",
    "fma",
    "gather",
    "high_half",
    "horner",
    "i32",
    "i64",
    "insert",
    "iota",
    "iota_like",
    "lane_count",
    "lane_mask",
    "ldexp",
    "like",
    "load",
    "load_if",
    "load_masked",
    "load_strided",
    "low_half",
    "maximum",
    "minimum",
    "mulhi_u32",
    "offset_pointer",
    "pointer",
    "pointer_at",
    "polynomial",
    "prefetch",
    "product",
    "reduce_add",
    "reduce_all",
    "reduce_any",
    "reduce_max",
    "reduce_min",
    "reduce_mul",
    "reverse_quads",
    "rint",
    "scatter",
    "splat",
    "sqrt",
    "store",
    "store_masked",
    "store_stream",
    "store_strided",
    "transpose",
    "transpose8",
    "trunc",
    "u32",
    "u64",
    "where",
]
