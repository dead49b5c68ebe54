"""How Numba's code generator is used: intermediate code for every function, machine code once per kernel.

Left to itself, Numba optimises and generates machine code for each helper a kernel calls, then links the
helpers' intermediate code into the kernel and does both again. Only the last is of use here.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from numba.core.bytecode import FunctionIdentity
from numba.core.codegen import AOTCodeLibrary, JITCodeLibrary


def make_names_unique() -> None:
    """Let Numba number functions at random. It counts from 1 in every process, and the number is all that tells
    closures of one function apart by name; code of several processes, cached on disk and linked together, would
    call the first closure of a name for all of them."""
    FunctionIdentity._unique_ids = iter(lambda: int.from_bytes(os.urandom(6), "little"), None)  # type: ignore


make_names_unique()


class IntermediateLibrary(JITCodeLibrary):
    """A helper: intermediate code to be linked into kernels, simplified function by function only."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def serialize_using_object_code(self) -> Any:
        """What Numba's disk cache keeps of a helper."""
        return self.name, "bitcode", self._final_module.as_bitcode()


class ObjectLibrary(AOTCodeLibrary):
    """A kernel with everything it calls, optimised as a whole; becomes an object file, is never loaded here."""

    def _finalize_final_module(self) -> None:
        self._finalized = True


def object_library(codegen: Any, name: str) -> ObjectLibrary:
    """An empty library to link a kernel in."""
    return ObjectLibrary(codegen, name)


@contextmanager
def intermediate_only(context: Any) -> Generator[None, None, None]:
    """Within (and under Numba's compiler lock), what Numba compiles stays intermediate code.

    Such functions have no address; nobody asks for it, since helpers are only ever called from kernels.
    """

    def placeholder(context: Any, library: Any, function_descriptor: Any, environment: Any) -> Any:
        return [].append  # a builtin, as the dispatcher wants, and a new one: Numba finds the code by it

    with (
        patch.object(type(context), "get_executable", placeholder),
        patch.object(context.codegen(), "_library_class", IntermediateLibrary),
        patch.object(context.codegen(), "set_env", lambda name, environment: None),  # it writes to an address
    ):
        yield
