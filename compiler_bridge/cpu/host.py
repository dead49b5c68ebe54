"""What the machine offers. Imports no Numba: planning a graph whose kernels are in the cache needs none."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llvmlite import binding

from compiler_bridge import settings

REGISTER_LANES = (4, 8, 16)
"""float32 lanes of the registers kernels can be written for: NEON and SSE, AVX2, AVX-512."""


def _native_lanes() -> int:
    """float32 lanes of the widest register this machine works well with, or what PYNN_LANES says.

    Raises:  ValueError when PYNN_LANES is none of REGISTER_LANES
    """
    if settings.LANES:
        if settings.LANES not in REGISTER_LANES:
            raise ValueError(f"PYNN_LANES={settings.LANES}: expected one of {REGISTER_LANES}")
        return settings.LANES
    features = binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return 16
    return 8 if features.get("avx2") else 4


NATIVE_LANES = _native_lanes()


@cache
def cache_bytes(level: int) -> int:
    """Bytes of a core's data cache of level 1 or 2, or of level 3, which cores share; what small machines have, where
    Linux doesn't say."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            found, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            if found == str(level) and kind in ("Data", "Unified") and size.endswith("K"):
                return int(size[:-1]) * 1024
        except (OSError, ValueError):
            continue
    return {1: 32 * 1024, 2: 512 * 1024, 3: 32 * 1024 * 1024}[level]
