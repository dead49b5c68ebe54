"""What the machine offers. Imports no Numba: planning a graph whose kernels are in the cache needs none."""

from __future__ import annotations

from llvmlite import binding


def _native_lanes() -> int:
    """float32 lanes of the widest register this machine works well with."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return 16
    return 8 if features.get("avx2") else 4


NATIVE_LANES = _native_lanes()
