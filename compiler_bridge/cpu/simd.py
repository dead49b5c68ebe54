"""The kernel language for Numba: every word of ARCHITECTURE.md's table, as intrinsics and operators."""

from __future__ import annotations

import numpy as np

from compiler_bridge.cpu import simd_operators as _operators  # noqa: F401  (registers the operators)

f32, f64 = np.float32, np.float64
i32, i64, u32, u64 = np.int32, np.int64, np.uint32, np.uint64

VOCABULARY = (
    "address_of", "bitcast", "broadcast_load", "cast", "ceil", "concat_vectors", "copysign", "extract",
    "f32", "f64", "fabs", "floor", "fma", "gather", "high_half", "horner", "i32", "i64", "insert", "iota",
    "lane_mask", "load", "load_if", "load_masked", "load_strided", "low_half", "maximum", "minimum",
    "mulhi_u32", "offset_pointer", "pointer", "pointer_at", "prefetch", "product", "reduce_add",
    "reduce_all", "reduce_any", "reduce_max", "reduce_min", "reduce_mul", "rint", "scatter", "splat",
    "sqrt", "store", "store_masked", "store_stream", "store_strided", "transpose", "transpose8", "trunc",
    "u32", "u64", "where",
)  # fmt: skip

__all__ = [*VOCABULARY, "VOCABULARY"]
