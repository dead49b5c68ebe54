"""Values of the interpreted kernel language: the `Vector` array, conversions, and an exact fma."""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import operator
from typing import Any

import numpy as np

COMPUTE_DTYPES = {
    name: np.dtype(name) for name in ("float32", "float64", "int32", "int64", "uint32", "uint64", "bool")
}

HELD_IN = {
    "bfloat16": "float32",
    "float16": "float32",
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
    "uint16": "int32",
}

STORAGE_DTYPES = {
    **COMPUTE_DTYPES,
    "bool": np.dtype(np.uint8),
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.uint16),
    **{name: np.dtype(name) for name in ("int8", "uint8", "int16", "uint16")},
}


class Vector(np.ndarray):
    """A one-dimensional array whose operators convert a scalar operand to its dtype."""

    def _operand(self, other: Any) -> Any:
        if isinstance(other, Vector):
            if other.dtype != self.dtype or other.shape != self.shape:
                raise TypeError(
                    f"{self.dtype} x {self.size} and {other.dtype} x {other.size} need an explicit cast"
                )
            return other.view(np.ndarray)
        return convert(other, self.dtype)


def _floor_divide(a: Any, b: Any) -> Any:
    """floor(a / b); floats as ATen's div_floor, integers by 0 give 0."""
    if not np.issubdtype(a.dtype, np.floating):
        return np.floor_divide(a, b)
    remainder = np.fmod(a, b)
    quotient = (a - remainder) / b
    one = a.dtype.type(1)
    quotient = np.where((remainder != 0) & ((b < 0) != (remainder < 0)), quotient - one, quotient)
    floored = np.floor(quotient)
    floored = np.where(quotient - floored > 0.5, floored + one, floored)
    floored = np.where(quotient == 0, np.copysign(a.dtype.type(0), a / b), floored)
    return np.where(b == 0, a / b, floored)


def _modulo(a: Any, b: Any) -> Any:
    """The remainder with b's sign (torch.remainder)."""
    if not np.issubdtype(a.dtype, np.floating):
        return np.remainder(a, b)
    remainder = np.fmod(a, b)
    return np.where((remainder != 0) & ((b < 0) != (remainder < 0)), remainder + b, remainder)


def _is_number(dtype: Any) -> bool:
    return dtype != np.bool_


def _is_float(dtype: Any) -> bool:
    return np.issubdtype(dtype, np.floating)


def _is_int(dtype: Any) -> bool:
    return np.issubdtype(dtype, np.integer)


def _is_bits(dtype: Any) -> bool:
    return not np.issubdtype(dtype, np.floating)


_OPERATORS: Any = {
    "add": (_is_number, np.add),
    "sub": (_is_number, np.subtract),
    "mul": (_is_number, np.multiply),
    "truediv": (_is_float, np.divide),
    "floordiv": (_is_number, _floor_divide),
    "mod": (_is_number, _modulo),
    "and": (_is_bits, np.bitwise_and),
    "or": (_is_bits, np.bitwise_or),
    "xor": (_is_bits, np.bitwise_xor),
    "lshift": (_is_int, np.left_shift),
    "rshift": (_is_int, np.right_shift),
}


def _define_operator(name: str, accepts: Any, function: Any) -> None:
    def forward(self: Vector, other: Any) -> Vector:
        if not accepts(self.dtype):
            raise TypeError(f"{name} does not take {self.dtype} vectors")
        with np.errstate(all="ignore"):
            return np.asarray(function(self.view(np.ndarray), self._operand(other))).view(Vector)

    def backward(self: Vector, other: Any) -> Vector:
        if not accepts(self.dtype):
            raise TypeError(f"{name} does not take {self.dtype} vectors")
        left = np.broadcast_to(self._operand(other), self.shape)
        with np.errstate(all="ignore"):
            return np.asarray(function(left, self.view(np.ndarray))).view(Vector)

    setattr(Vector, f"__{name}__", forward)
    setattr(Vector, f"__i{name}__", forward)
    setattr(Vector, f"__r{name}__", backward)


def _define_comparison(name: str) -> None:
    function = getattr(operator, name)

    def compare(self: Vector, other: Any) -> Vector:
        return function(self.view(np.ndarray), self._operand(other)).view(Vector)

    setattr(Vector, f"__{name}__", compare)


for _name, (_accepts, _function) in _OPERATORS.items():
    _define_operator(_name, _accepts, _function)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    _define_comparison(_name)


# ---- conversions ------------------------------------------------------------------------------------


def typed(x: Any) -> Any:
    """A Python number as the numpy scalar Numba would take it for (int64, float64); others unchanged."""
    if isinstance(x, (Vector, np.generic)):
        return x
    if isinstance(x, bool):
        return np.bool_(x)
    return np.int64(x) if isinstance(x, int) else np.float64(x)


def convert(x: Any, like: Any) -> Any:
    """x with the dtype of `like` (a dtype or a value); float -> uint32 goes through int64 and wraps."""
    dtype = like if isinstance(like, np.dtype) else like.dtype
    value = typed(x)
    if value.dtype == dtype:
        return value
    with np.errstate(all="ignore"):
        if _is_float(value.dtype) and dtype == np.uint32:
            value = value.astype(np.int64)
        return value.astype(dtype)


def common(*values: Any) -> Any:
    """All values in one type: the vectors' dtype, or the scalars' common one."""
    vectors = [value for value in values if isinstance(value, Vector)]
    if not vectors:
        scalars = [typed(value) for value in values]
        dtype = np.result_type(*(scalar.dtype for scalar in scalars))
        return [scalar.astype(dtype) for scalar in scalars]
    if any(vector.dtype != vectors[0].dtype or vector.shape != vectors[0].shape for vector in vectors):
        raise TypeError(f"vectors of different types need a cast: {[(v.dtype, v.size) for v in vectors]}")
    return [convert(value, vectors[0].dtype) for value in values]


def decode(raw: Any, dtype: str) -> Any:
    """Stored bits -> the value they are held as."""
    if dtype == "bool":
        return raw != 0
    if dtype == "bfloat16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "float16":
        return raw.view(np.float16).astype(np.float32)
    return raw.astype(COMPUTE_DTYPES[HELD_IN.get(dtype, dtype)])


def encode(value: Any, dtype: str) -> Any:
    """A held value -> the bits to store; 16-bit floats round to nearest even and keep NaN."""
    if dtype == "bfloat16":
        bits = value.view(np.uint32)
        with np.errstate(all="ignore"):
            upper = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(value), np.uint32(0x7FC0), upper).astype(np.uint16)[()]
    with np.errstate(all="ignore"):
        if dtype == "float16":
            return value.astype(np.float16).view(np.uint16)
        return value.astype(STORAGE_DTYPES[dtype])


# ---- exact fma --------------------------------------------------------------------------------------


def _two_sum(a: Any, b: Any) -> Any:
    """(s, e) with s = round(a + b) and s + e = a + b exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Any, b: Any) -> Any:
    """(p, e) with p = round(a * b) and p + e = a * b exactly (Dekker, float64)."""
    splitter = 134217729.0  # 2**27 + 1
    high_a, high_b = a * splitter, b * splitter
    high_a, high_b = high_a - (high_a - a), high_b - (high_b - b)
    low_a, low_b = a - high_a, b - high_b
    whole = a * b
    return whole, ((high_a * high_b - whole) + high_a * low_b + low_a * high_b) + low_a * low_b


def _sum_to_odd(a: Any, b: Any) -> Any:
    """a + b in float64, an inexact result taking the neighbour whose last bit is 1 (Boldo, Melquiond)."""
    total, error = _two_sum(a, b)
    bits = np.asarray(total).view(np.int64)
    even_and_inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    return np.where(even_and_inexact, bits + np.where(away, 1, -1), bits).view(np.float64)


def fused_multiply_add(a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once, for float32 and float64 values of one type.

    float32: the product is exact in float64, and a sum rounded to odd there rounds correctly to float32.
    float64: product and sum as exact pairs, their tails added to odd; plain arithmetic where the pairs
    overflow or lose bits to underflow.
    """
    with np.errstate(all="ignore"):
        if a.dtype == np.float32:
            exact = np.asarray(a, np.float64) * np.asarray(b, np.float64)
            result = _sum_to_odd(exact, np.asarray(c, np.float64)).astype(np.float32)
        else:
            x, y, z = (np.asarray(value, np.float64) for value in (a, b, c))
            whole, tail = _two_product(x, y)
            total, error = _two_sum(whole, z)
            careful = total + _sum_to_odd(error, tail)
            result = np.where(np.isfinite(careful), careful, x * y + z)
    if any(isinstance(value, Vector) for value in (a, b, c)):
        return result.view(Vector)
    return result[()]
