"""What kernels import: the vocabulary, and the decorators that make a function a kernel or a helper.

With PYNN_INTERPRET=1 the same names are the numpy versions and the decorators leave plain Python.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compiler_bridge import settings
from compiler_bridge.cpu import simd_python
from compiler_bridge.cpu.host import NATIVE_LANES

if settings.INTERPRET:
    from compiler_bridge.cpu.simd_python import *  # noqa: F403
else:
    from compiler_bridge.cpu.simd import *  # noqa: F403

KERNEL_SIGNATURE = "void(CPointer(int64), int64, int64, int64)"
FASTMATH = {"contract"}
"""a * b + c may be fused; nothing is reassociated, NaN and signed zeros are kept."""


def kernel(function: Callable[..., None]) -> Any:
    """A function (tab, begin, end, thread) as a C callback with `.address`; see ARCHITECTURE.md."""
    if settings.INTERPRET:
        return simd_python.quiet(function)
    from compiler_bridge.cpu.kernels import Kernel

    return Kernel(function)  # compiled through the disk cache when its address is read


def helper(function: Callable[..., Any]) -> Any:
    """A function that kernels call, inlined into them."""
    if settings.INTERPRET:
        return simd_python.quiet(function)
    return _jit(function, forceinline=True)


def outlined_helper(function: Callable[..., Any]) -> Any:
    """A function that kernels call; LLVM decides whether to inline it."""
    if settings.INTERPRET:
        return simd_python.quiet(function)
    return _jit(function)


def _jit(function: Callable[..., Any], **options: Any) -> Any:
    import numba

    from compiler_bridge.cpu import code_library  # noqa: F401  (names that are unique beyond this process)
    from compiler_bridge.cpu.language_cache import enable_helper_cache
    from compiler_bridge.cpu.numba_passes import KernelCompiler

    njit: Any = numba.njit
    compiled = njit(
        error_model="numpy", fastmath=FASTMATH, no_cpython_wrapper=True, no_cfunc_wrapper=True,
        pipeline_class=KernelCompiler, **options,
    )  # fmt: skip
    return enable_helper_cache(compiled(function))


__all__ = ["FASTMATH", "KERNEL_SIGNATURE", "NATIVE_LANES", "helper", "kernel", "outlined_helper"]
__all__ += simd_python.__all__
