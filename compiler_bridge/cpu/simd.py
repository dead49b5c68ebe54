"""The kernel language for Numba: every word of ARCHITECTURE.md's table, as intrinsics and operators."""

# pyright: basic
# Numba gives these functions their types.
# ruff: noqa: F401
# The names imported here are the words.

from __future__ import annotations

import numpy as np

from compiler_bridge.cpu import simd_operators as _operators  # registers the operators
from compiler_bridge.cpu import simd_python
from compiler_bridge.cpu.simd_elementwise import (
    bitcast,
    cast,
    ceil,
    copysign,
    fabs,
    floor,
    fma,
    horner,
    iota,
    iota_like,
    lane_mask,
    ldexp,
    like,
    maximum,
    minimum,
    mulhi_u32,
    polynomial,
    product,
    rint,
    splat,
    sqrt,
    trunc,
    where,
)
from compiler_bridge.cpu.simd_lanes import (
    concat_vectors,
    extract,
    high_half,
    insert,
    lane_count,
    low_half,
    reduce_add,
    reduce_all,
    reduce_any,
    reduce_max,
    reduce_min,
    reduce_mul,
    reverse_quads,
    transpose,
    transpose8,
)
from compiler_bridge.cpu.simd_memory import (
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

f32, f64 = np.float32, np.float64
i32, i64, u32, u64 = np.int32, np.int64, np.uint32, np.uint64

# One list of words: that of the implementation that says what they mean. (Pyright reads `+=`, not `=`.)
__all__: list[str] = []
__all__ += simd_python.__all__
