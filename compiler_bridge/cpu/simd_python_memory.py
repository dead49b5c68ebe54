"""Pointers, loads and stores of the interpreted kernel language."""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from compiler_bridge.cpu.simd_python_vector import (
    COMPUTE_DTYPES,
    HELD_IN,
    STORAGE_DTYPES,
    Vector,
    convert,
    decode,
    encode,
)


class Pointer:
    """Elements stored as `dtype`, from element `offset` of a flat array, or of raw memory.

    Over an array every access is checked against its bounds.
    """

    def __init__(self, base: Any, dtype: str, offset: int = 0) -> None:
        self.dtype = dtype
        self.offset = int(offset)
        self.storage = STORAGE_DTYPES[dtype]
        self.base = base
        if isinstance(base, np.ndarray):
            if not base.flags.c_contiguous or base.dtype.itemsize != self.storage.itemsize:
                raise TypeError(f"a {dtype} pointer needs a contiguous array of that width; got {base.dtype}")
            self.base = base.reshape(-1).view(self.storage)

    @property
    def held(self) -> Any:
        """The numpy dtype a loaded element has."""
        return COMPUTE_DTYPES[HELD_IN.get(self.dtype, self.dtype)]

    def window(self, start: int, count: int) -> Any:
        """The stored elements [start, start + count) as a writable array."""
        first = self.offset + int(start)
        if isinstance(self.base, np.ndarray):
            if first < 0 or first + count > self.base.size:
                raise IndexError(f"elements [{first}, {first + count}) of an array of {self.base.size}")
            return self.base[first : first + count]
        memory = (ctypes.c_char * (count * self.storage.itemsize)).from_address(
            int(self.base) + first * self.storage.itemsize
        )
        return np.frombuffer(memory, self.storage)


# ---- pointers ---------------------------------------------------------------------------------------


def pointer(table: Any, slot: int, dtype: str) -> Pointer:
    """The address (or the array) in `table[slot]` as a pointer to `dtype`."""
    return Pointer(table[slot], dtype)


def pointer_at(address: Any, dtype: str) -> Pointer:
    """An int64 address (or an array) as a pointer to `dtype`."""
    return Pointer(address, dtype)


def address_of(pointer: Pointer) -> int:
    """The int64 address a pointer holds."""
    start = pointer.base.ctypes.data if isinstance(pointer.base, np.ndarray) else int(pointer.base)
    return start + pointer.offset * pointer.storage.itemsize


def offset_pointer(pointer: Pointer, count: int) -> Pointer:
    """The pointer `count` elements further."""
    return Pointer(pointer.base, pointer.dtype, pointer.offset + int(count))


# ---- loads ------------------------------------------------------------------------------------------


def _read(pointer: Pointer, indices: Any, wanted: Any) -> Vector:
    """Lanes at the indices where wanted, else 0."""
    raw = np.zeros(len(indices), pointer.storage)
    for lane, index in enumerate(indices):
        if wanted[lane]:
            raw[lane] = pointer.window(index, 1)[0]
    return decode(raw, pointer.dtype).view(Vector)


def _first(count: Any, lanes: int) -> Any:
    return np.ones(lanes, bool) if count is None else np.arange(lanes) < count


def load(pointer: Pointer, index: int, lanes: int | None = None, count: int | None = None) -> Any:
    """p[i], or lanes p[i], p[i + 1], ... of which only the first `count` are read and the rest 0."""
    if lanes is None:
        return decode(pointer.window(index, 1)[0], pointer.dtype)
    raw = np.zeros(lanes, pointer.storage)
    read = lanes if count is None else min(max(int(count), 0), lanes)
    if read:
        raw[:read] = pointer.window(index, read)
    return decode(raw, pointer.dtype).view(Vector)


def load_masked(pointer: Pointer, index: int, lanes: int, mask: Any) -> Vector:
    """Contiguous lanes where `mask`, else 0; masked-off lanes are not read."""
    return _read(pointer, int(index) + np.arange(lanes), mask)


def load_if(pointer: Pointer, index: int, condition: Any) -> Any:
    """p[i] if the condition holds, else 0; nothing is read then."""
    return load(pointer, index) if condition else pointer.held.type(0)


def load_strided(pointer: Pointer, index: int, stride: int, lanes: int, count: int | None = None) -> Vector:
    """Lanes p[i], p[i + stride], p[i + 2 stride], ..., of which the first `count` are read."""
    return _read(pointer, int(index) + np.arange(lanes) * int(stride), _first(count, lanes))


def gather(pointer: Pointer, index: Any, mask: Any = None) -> Vector:
    """Lanes p[index[lane]]; masked-off lanes are 0 and not read."""
    return _read(pointer, index, _first(None, len(index)) if mask is None else mask)


def broadcast_load(pointer: Pointer, index: int, lanes: int) -> Vector:
    """p[i] in every lane."""
    return np.full(lanes, load(pointer, index), pointer.held).view(Vector)


def prefetch(pointer: Pointer, index: int) -> None:
    """Nothing: a hint to the cache."""


# ---- stores -----------------------------------------------------------------------------------------


def _write(pointer: Pointer, indices: Any, value: Any, wanted: Any) -> None:
    raw = encode(convert(value, pointer.held), pointer.dtype)
    for lane, index in enumerate(indices):
        if wanted[lane]:
            pointer.window(index, 1)[0] = raw[lane]


def store(pointer: Pointer, index: int, value: Any, count: int | None = None) -> None:
    """p[i] = value, or p[i + lane] = value[lane] for every lane (for lane < count)."""
    raw = encode(convert(value, pointer.held), pointer.dtype)
    if not isinstance(value, Vector):
        pointer.window(index, 1)[0] = raw
        return
    written = len(value) if count is None else min(max(int(count), 0), len(value))
    if written:
        pointer.window(index, written)[:] = raw[:written]


def store_masked(pointer: Pointer, index: int, value: Any, mask: Any) -> None:
    """p[i + lane] = value[lane] where mask."""
    _write(pointer, int(index) + np.arange(len(value)), value, mask)


def store_stream(pointer: Pointer, index: int, value: Any) -> None:
    """store(p, i, value), its place checked; the way past the cache has no meaning here.

    Raises:  ValueError where machine code would trap
    """
    nbytes = len(value) * pointer.storage.itemsize
    if address_of(offset_pointer(pointer, index)) % min(nbytes, 64):
        raise ValueError(f"store_stream of {nbytes} bytes at {index}: not aligned")
    store(pointer, index, value)


def store_strided(pointer: Pointer, index: int, stride: int, value: Any, count: int | None = None) -> None:
    """p[i + lane * stride] = value[lane] (for lane < count)."""
    _write(pointer, int(index) + np.arange(len(value)) * int(stride), value, _first(count, len(value)))


def scatter(pointer: Pointer, index: Any, value: Any, mask: Any = None) -> None:
    """p[index[lane]] = value[lane] where mask; equal indices keep the last lane."""
    _write(pointer, index, value, _first(None, len(index)) if mask is None else mask)
