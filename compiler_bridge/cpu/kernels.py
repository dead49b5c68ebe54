"""What `@kernel` makes of a function: the plain Python function, and its machine code on demand."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
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
