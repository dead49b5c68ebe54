"""Numba's on-disk cache for helpers, keyed by the text they depend on.

Numba's own cache looks only at the file a function stands in; a helper's machine code also depends on
the words and helpers it uses. Its stamp here is a hash of the language and mathlib files, of the family of
its own file (gemm_*.py for gemm_pack.py) and of the lanes of a register. A directory that can't be read or
written costs recompilation, nothing else.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from compiler_bridge import settings
from compiler_bridge.cpu.host import NATIVE_LANES

_FOLDER = Path(__file__).parent


@functools.cache
def source_stamp(family: str) -> str:
    """Hash of the files that give the vocabulary, and the helpers of one family, their meaning."""
    patterns = ("language*.py", "simd*.py", "mathlib*.py", f"{family}*.py")
    digest = hashlib.sha256(str(NATIVE_LANES).encode())
    for path in sorted({path for pattern in patterns for path in _FOLDER.glob(pattern)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _HelperLocator(_CacheLocator):
    """Below the package's cache directory, one folder for each state of the files."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file = py_file
        self._stamp = source_stamp(Path(py_file).stem.split("_")[0])

    def get_cache_path(self) -> str:
        return str(Path(settings.CACHE_DIR) / "helpers" / self._stamp[:16])

    def get_source_stamp(self) -> Any:
        stat = os.stat(self._py_file)
        return stat.st_mtime, stat.st_size, self._stamp

    def get_disambiguator(self) -> str:
        return hashlib.sha256(self._py_file.encode()).hexdigest()[:10]

    def ensure_cache_path(self) -> None:
        os.makedirs(self.get_cache_path(), exist_ok=True)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if os.path.exists(py_file) else None


class _HelperCacheImpl(CompileResultCacheImpl):
    _locator_classes = [_HelperLocator]


class HelperCache(FunctionCache):
    """FunctionCache in our place, for which a broken or read-only directory is a missing entry."""

    _impl_class = _HelperCacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged pickle can raise anything; the helper is compiled again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # unwritable directory, full disk, damaged index: not kept
            return


def enable_helper_cache(dispatcher: Any) -> Any:
    """Give a Numba dispatcher this cache; returns it."""
    if os.path.exists(dispatcher.py_func.__code__.co_filename):
        dispatcher._cache = HelperCache(dispatcher.py_func)
    return dispatcher
