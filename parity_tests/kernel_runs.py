"""Runs the same kernel source compiled by Numba and interpreted in numpy, for test_simd and test_mathlib."""

from __future__ import annotations

import ctypes
import functools
import linecache
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc

from compiler_bridge.cpu import simd, simd_python
from compiler_bridge.cpu.language import FASTMATH, KERNEL_SIGNATURE

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def kernel_function(body: str, words: Any, **names: Any) -> Callable[..., None]:
    """`def body_kernel(tab, begin, end, thread)` from its body, over the words of a module."""
    source = "def body_kernel(tab, begin, end, thread):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    scope = {word: getattr(words, word) for word in words.__all__} | names
    filename = f"<kernel {abs(hash(source))}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), scope)
    return scope["body_kernel"]


@functools.lru_cache(maxsize=64)
def compiled_kernel(body: str, names: frozenset[tuple[str, Any]]) -> Any:
    function = kernel_function(body, simd, **dict(names))
    return cfunc(KERNEL_SIGNATURE, error_model="numpy", fastmath=FASTMATH)(function)


def run_compiled(body: str, arguments: list[Any], begin: int, end: int, **names: Any) -> None:
    """Compile the body, once, and run it on arrays (passed by address) and integers."""
    compiled = compiled_kernel(body, frozenset(names.items()))
    table = np.array([a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments], np.int64)
    _CALLBACK(compiled.address)(table.ctypes.data, begin, end, 0)


def run_interpreted(body: str, arguments: list[Any], begin: int, end: int, **names: Any) -> None:
    """Run the body over numpy, arrays bounds-checked."""
    simd_python.quiet(kernel_function(body, simd_python, **names))(arguments, begin, end, 0)


def assert_same_bits(compiled: np.ndarray, interpreted: np.ndarray, what: str) -> None:
    """Equal to the bit, signed zeros included; any NaN equals any NaN."""
    unsigned = np.dtype(f"u{compiled.dtype.itemsize}")
    equal = compiled.view(unsigned) == interpreted.view(unsigned)
    if compiled.dtype.kind == "f":
        equal |= np.isnan(compiled) & np.isnan(interpreted)
    assert equal.all(), f"{what}: compiled {compiled[~equal][:4]}, interpreted {interpreted[~equal][:4]}"
