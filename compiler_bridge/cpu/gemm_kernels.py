"""The kernels of the GEMM library by name: compiled, or taken from the cache, when their address is first read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compiler_bridge.cpu.gemm_plan import DTYPES

KERNELS = ("pack_b", "multiply", "sum_parts", "pack_indirect", "indirect", "runs", "dot", "axpy")


@dataclass(frozen=True)
class GemmKernel:
    """A kernel of the GEMM library; compiled (or taken from the cache) when `address` is first read.

    Calling it runs the plain Python function (PYNN_INTERPRET=1).
    """

    name: str
    dtype: str

    @property
    def address(self) -> int:
        return _address(self.name, self.dtype)

    def __call__(self, tab: Any, begin: int, end: int, thread: int) -> None:
        kernel_function(self.name, self.dtype)(tab, begin, end, thread)


def gemm_kernel(name: str, dtype: str) -> GemmKernel:
    """The kernel of a plan entry, for operands of `dtype`.

    Raises:  ValueError for an unknown name or dtype
    """
    if name not in KERNELS or dtype not in DTYPES:
        raise ValueError(f"GEMM kernel {name!r} for {dtype!r}: expected one of {KERNELS} and one of {DTYPES}")
    return GemmKernel(name, dtype)


@cache
def _sources_digest() -> str:
    """Of every file the kernels' code is in."""
    files = sorted(Path(__file__).parent.glob("gemm_*.py"))
    return hashlib.sha256("".join(path.read_text() for path in files).encode()).hexdigest()[:16]


@cache
def _address(name: str, dtype: str) -> int:
    from compiler_bridge.cache import load_functions_of_file

    key = f"gemm_{name}_{dtype}_{_sources_digest()}"

    def define() -> dict[str, Callable[..., Any]]:
        return {key: kernel_function(name, dtype)}

    return load_functions_of_file(__file__, (key,), define)[key]


def kernel_function(name: str, dtype: str) -> Callable[..., Any]:
    """The kernel as a plain Python function (imports the kernel language)."""
    from compiler_bridge.cpu import gemm_axpy, gemm_dot, gemm_indirect, gemm_multiply, gemm_runs

    kernels = {
        "pack_b": gemm_multiply.pack_b_kernel,
        "multiply": gemm_multiply.multiply_kernel,
        "sum_parts": gemm_multiply.sum_parts_kernel,
        "pack_indirect": gemm_indirect.pack_indirect_kernel,
        "indirect": gemm_indirect.indirect_kernel,
        "runs": gemm_runs.runs_kernel,
        "dot": gemm_dot.dot_kernel,
        "axpy": gemm_axpy.axpy_kernel,
    }
    kernel = kernels[name](dtype)
    return getattr(kernel, "function", kernel)
