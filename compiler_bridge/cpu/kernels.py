"""What `@kernel` makes of a function: the plain Python function, and its machine code on demand."""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Kernel:
    """A kernel `function(tab, begin, end, thread)`; nothing is compiled before `address` is read.

    Calling it runs the plain Python function.
    """

    def __init__(self, function: Callable[..., None]):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, tab: Any, begin: int, end: int, thread: int) -> None:
        self.function(tab, begin, end, thread)

    def __repr__(self) -> str:
        return f"<kernel {self.function.__qualname__}>"

    @property
    def name(self) -> str:
        return self.function.__name__

    @functools.cached_property
    def address(self) -> int:
        """Address of the machine code, compiled now or taken from the cache."""
        from compiler_bridge.cache import load_function

        return load_function(self.function)

    @functools.cached_property
    def ctypes(self) -> Callable[[int, int, int, int], None]:
        """The machine code as a ctypes function (releases the GIL); `tab` is an address."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(self.address)


@dataclass(frozen=True)
class LazyKernel:
    """The kernel `module.maker(*arguments)` (`module.maker` itself when arguments is None), not made yet.

    Its address comes from the cache without importing the module or Numba; it can be sent to another process.
    The module is a file of this folder; what its kernels reach lies in files of the same family (the word
    before the first underscore) and in the kernel language.
    """

    module: str
    maker: str
    arguments: tuple[Any, ...] | None = None

    @property
    def name(self) -> str:
        return self.maker.removesuffix("_kernel")

    @property
    def kernel(self) -> Any:
        """What the maker makes: a Kernel, or the plain function when interpreted."""
        made = getattr(importlib.import_module(f"compiler_bridge.cpu.{self.module}"), self.maker)
        return made if self.arguments is None else made(*self.arguments)

    def __call__(self, tab: Any, begin: int, end: int, thread: int) -> None:
        self.kernel(tab, begin, end, thread)

    @property
    def address(self) -> int:
        return _lazy_address(self)


@functools.cache
def _lazy_address(lazy: LazyKernel) -> int:
    from compiler_bridge.cache import load_functions

    key = f"{lazy.module}.{lazy.maker}{lazy.arguments}"
    text = _family_text(lazy.module.split("_")[0])
    return load_functions(text, [key], lambda: {key: lazy.kernel.function}, lazy.name)[key]


@functools.cache
def _family_text(family: str) -> str:
    return "".join(path.read_text() for path in sorted(Path(__file__).parent.glob(f"{family}*.py")))
