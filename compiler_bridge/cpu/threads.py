"""The two native functions every compiled graph runs through, and the threads they run on.

`run_plan(header)` turns buffers and offsets into addresses, then opens one parallel region of the OpenMP
runtime torch itself has loaded, in which every thread executes `walk_plan(header)`: entry after entry, its
own share of each, with a barrier where the next entry may read what another thread writes. On one thread
there is no region.

The plan is a handful of int64 arrays (laid out by `runtime.py`):

    header     addresses and ranges, see the `HEADER_` names
    slot       for each kernel argument: index of its base pointer, offset in bytes (base 0 is always 0, so
               that an integer argument is base 0 + its value)
    arguments  where the sums go; entry i finds its own from ENTRY_ARGUMENTS on
    entries    rows of ENTRY_WORDS words: kernel address, first argument, length, parts, barrier
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as remember
from typing import Any

import torch

from compiler_bridge.errors import ThreadsWarning

HEADER_FIRST_SLOT = 0
HEADER_LAST_SLOT = 1
HEADER_SLOTS = 2
HEADER_BASES = 3
HEADER_ARGUMENTS = 4
HEADER_FIRST_ENTRY = 5
HEADER_LAST_ENTRY = 6
HEADER_ENTRIES = 7
HEADER_TEAM = 8
HEADER_PARALLEL = 9
HEADER_BARRIER = 10
HEADER_THREAD = 11
HEADER_TEAM_SIZE = 12
HEADER_WALK = 13
HEADER_WORDS = 14

ENTRY_KERNEL = 0
ENTRY_ARGUMENTS = 1
ENTRY_LENGTH = 2
ENTRY_PARTS = 3
ENTRY_BARRIER = 4
ENTRY_WORDS = 5

_forked = False


def _after_fork_in_child() -> None:
    """OpenMP's threads don't survive a fork, and starting a region would wait for them for ever."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def thread_count() -> int:
    """Threads the next call may use: torch's number; one in a forked child or without an OpenMP runtime."""
    if _forked or openmp_runtime() is None:
        return 1
    return torch.get_num_threads()


# ----------------------------------------------------------------------------------------------- the runtime
@dataclass(frozen=True)
class OpenMPRuntime:
    """Addresses of the entry points, in the library at `path`."""

    path: str
    parallel: int
    barrier: int
    thread: int
    team_size: int


@remember
def openmp_runtime() -> OpenMPRuntime | None:
    """The OpenMP runtime torch has loaded; None, with one warning, when none offers the entry points.

    GNU's libgomp has them, and so have LLVM's and Intel's on Linux. A second runtime is never loaded: its
    threads would compete with torch's.
    """
    torch.get_num_threads()  # makes torch set its pool up
    for path in _loaded_libraries():
        try:
            library = ctypes.CDLL(path)
            symbols = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")
            addresses = [ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value for symbol in symbols]
        except (OSError, AttributeError):
            continue
        if all(addresses):
            return OpenMPRuntime(path, *[int(address or 0) for address in addresses])
    warnings.warn(
        "no OpenMP runtime with GOMP_parallel is loaded by torch; compiled graphs run on one thread",
        ThreadsWarning,
        stacklevel=2,
    )
    return None


def _loaded_libraries() -> list[str]:
    """Paths of the OpenMP libraries in this process, torch's own first."""
    try:
        with open("/proc/self/maps") as maps:
            paths = [line.split(maxsplit=5)[5].strip() for line in maps if line.count("/") > 0]
    except OSError:
        return []
    matching = dict.fromkeys(path for path in paths if re.search(r"/lib(g|i|)omp[^/]*\.so", path))
    torch_directory = os.path.dirname(torch.__file__)
    return sorted(matching, key=lambda path: not path.startswith(torch_directory))


# --------------------------------------------------------------------------------------------- native drivers
def _define_drivers() -> dict[str, Callable[..., None]]:
    """`run_plan` and `walk_plan`; a function because only a cold cache needs Numba imported."""
    from llvmlite import ir
    from numba import extending
    from numba.core import types

    intrinsic: Any = extending.intrinsic  # its types leave out that the first parameter is supplied

    word = ir.IntType(64)
    int32 = ir.IntType(32)

    def call(builder: Any, address: Any, result: Any, arguments: list[Any]) -> Any:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        return builder.call(builder.inttoptr(address, signature.as_pointer()), arguments)

    @intrinsic
    def words(typing_context, address):  # type: ignore[no-untyped-def]
        """int64 address -> pointer to int64."""
        return types.CPointer(types.int64)(
            types.int64
        ), lambda context, builder, signature, values: builder.inttoptr(values[0], word.as_pointer())

    @intrinsic
    def call_kernel(typing_context, address, arguments, begin, end, thread):  # type: ignore[no-untyped-def]
        """kernel(arguments, begin, end, thread) at an address."""

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            call(builder, values[0], ir.VoidType(), values[1:])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    @intrinsic
    def call_integer(typing_context, address):  # type: ignore[no-untyped-def]
        """int function(void) at an address."""

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            return builder.sext(call(builder, values[0], int32, []), word)

        return types.int64(types.int64), generate

    @intrinsic
    def call_with(typing_context, address, data):  # type: ignore[no-untyped-def]
        """void function(data) at an address."""

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            call(builder, values[0], ir.VoidType(), values[1:])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    @intrinsic
    def call_barrier(typing_context, address):  # type: ignore[no-untyped-def]
        """void function(void) at an address."""

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            call(builder, values[0], ir.VoidType(), [])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    @intrinsic
    def call_parallel(typing_context, address, function, data, team):  # type: ignore[no-untyped-def]
        """GOMP_parallel(function, data, team, 0) at an address."""

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            team = builder.trunc(values[3], int32)
            call(builder, values[0], ir.VoidType(), [values[1], values[2], team, ir.Constant(int32, 0)])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    @intrinsic
    def address_of(typing_context, pointer):  # type: ignore[no-untyped-def]
        """pointer -> int64 address."""
        return types.int64(pointer), lambda context, builder, signature, values: builder.ptrtoint(
            values[0], word
        )

    def walk_plan(header):  # type: ignore[no-untyped-def]
        team = 1
        thread = 0
        if header[HEADER_TEAM] > 1:
            team = call_integer(header[HEADER_TEAM_SIZE])
            thread = call_integer(header[HEADER_THREAD])
        entries = words(header[HEADER_ENTRIES])
        for entry in range(header[HEADER_FIRST_ENTRY], header[HEADER_LAST_ENTRY]):
            row = entry * ENTRY_WORDS
            parts = min(entries[row + ENTRY_PARTS], team)
            if thread < parts:
                length = entries[row + ENTRY_LENGTH]
                share = length // parts
                left_over = length - share * parts  # the first `left_over` threads take one more
                begin = share * thread + min(thread, left_over)
                end = begin + share + (1 if thread < left_over else 0)
                arguments = header[HEADER_ARGUMENTS] + 8 * entries[row + ENTRY_ARGUMENTS]
                call_kernel(entries[row + ENTRY_KERNEL], arguments, begin, end, thread)
            if team > 1 and entries[row + ENTRY_BARRIER] != 0:
                call_barrier(header[HEADER_BARRIER])

    def run_plan(header):  # type: ignore[no-untyped-def]
        slots = words(header[HEADER_SLOTS])
        bases = words(header[HEADER_BASES])
        arguments = words(header[HEADER_ARGUMENTS])
        for slot in range(header[HEADER_FIRST_SLOT], header[HEADER_LAST_SLOT]):
            arguments[slot] = bases[slots[2 * slot]] + slots[2 * slot + 1]
        if header[HEADER_TEAM] > 1:
            call_parallel(
                header[HEADER_PARALLEL], header[HEADER_WALK], address_of(header), header[HEADER_TEAM]
            )
        else:
            call_with(header[HEADER_WALK], address_of(header))

    return {"run_plan": run_plan, "walk_plan": walk_plan}


@dataclass(frozen=True)
class Drivers:
    """`run_plan` as a Python callable (it releases the GIL), and the address of `walk_plan`."""

    run_plan: Callable[[int | ctypes.c_int64], None]
    walk_plan: int


_drivers: Drivers | None = None
_drivers_lock = threading.Lock()


def load_drivers() -> Drivers:
    """Compile the drivers, or take them from the cache."""
    global _drivers
    with _drivers_lock:
        if _drivers is None:
            from compiler_bridge.cache import load_functions_of_file

            names = ("run_plan", "walk_plan")
            addresses = load_functions_of_file(__file__, names, _define_drivers)
            run_plan = ctypes.CFUNCTYPE(None, ctypes.c_int64)(addresses["run_plan"])
            _drivers = Drivers(run_plan, addresses["walk_plan"])
        return _drivers


def set_team(header: Any, team: int) -> None:
    """Write into a plan's header how many threads walk it and what they are started with."""
    header[HEADER_TEAM] = team
    header[HEADER_WALK] = load_drivers().walk_plan
    runtime = openmp_runtime()
    if runtime is not None:
        header[HEADER_PARALLEL] = runtime.parallel
        header[HEADER_BARRIER] = runtime.barrier
        header[HEADER_THREAD] = runtime.thread
        header[HEADER_TEAM_SIZE] = runtime.team_size
