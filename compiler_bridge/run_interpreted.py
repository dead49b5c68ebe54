"""Running a program as plain Python (PYNN_INTERPRET=1): the same steps, the same shares per thread.

Kernels are the functions of the generated module, uncompiled; what a pointer argument names arrives as a
numpy array over exactly its buffer, so that the interpreted kernel language checks every access.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compiler_bridge import cache
from compiler_bridge.cpu import threads as layout
from compiler_bridge.program import CompiledKernel, FunctionArgument, KernelStep, PointerArgument, Program
from compiler_bridge.runtime import TensorsOfCall, run_extern
from compiler_bridge.specialize import ARENA_BASE, NativeSegment, Specialized, extent

if TYPE_CHECKING:
    from compiler_bridge.runtime import CompiledGraph

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def run_interpreted(graph: CompiledGraph, specialized: Specialized, inputs: Sequence[Any]) -> list[Any]:
    """What `CompiledGraph.__call__` does, without machine code."""
    fresh = [torch.empty_strided(a.shape, a.strides, dtype=a.dtype) for a in specialized.allocations]
    arena = torch.zeros(max(64, specialized.arena_bytes), dtype=torch.uint8)
    externs: dict[str, torch.Tensor] = {}
    tensors = TensorsOfCall(specialized, inputs, fresh, externs, arena, graph.constants)
    memory = _Memory(specialized, tensors, arena)
    for segment in specialized.segments:
        if isinstance(segment, NativeSegment):
            for step, entry in zip(segment.steps, range(segment.first_entry, segment.last_entry)):
                _run_step(graph.program, step, specialized.entries[entry], memory)
        else:
            run_extern(segment, tensors)
    return [tensors.output(output) for output in specialized.outputs]


def _run_step(program: Program, step: KernelStep, entry: np.ndarray, memory: _Memory) -> None:
    """All threads' shares, one after the other."""
    first = int(entry[layout.ENTRY_ARGUMENTS])
    table = [memory.argument(program, argument, first + i) for i, argument in enumerate(step.arguments)]
    function = python_kernel(program, step.kernel)
    length, parts = int(entry[layout.ENTRY_LENGTH]), int(entry[layout.ENTRY_PARTS])
    share, left_over = divmod(length, parts)
    for thread in range(parts):
        begin = share * thread + min(thread, left_over)
        function(table, begin, begin + share + (1 if thread < left_over else 0), thread)


def python_kernel(program: Program, kernel: str | CompiledKernel) -> Any:
    """The Python function of a kernel."""
    if isinstance(kernel, str):
        return getattr(cache.import_module(program.source), kernel)
    return kernel


class _Memory:
    """Buffers of one call as numpy arrays."""

    def __init__(self, specialized: Specialized, tensors: TensorsOfCall, arena: torch.Tensor):
        self.specialized = specialized
        self.tensors = tensors
        self.arena = arena

    def argument(self, program: Program, argument: Any, slot: int) -> Any:
        """What the table of the kernel holds: an array, an address, an integer or a function."""
        base, offset = (int(word) for word in self.specialized.slots[slot])
        if isinstance(argument, PointerArgument):
            return self._array(argument.buffer_name, offset)
        if isinstance(argument, FunctionArgument):
            return python_kernel(program, argument.kernel)
        if base == self.specialized.bases[ARENA_BASE]:
            return self.arena.data_ptr() + offset
        return offset

    def _array(self, name: str, offset: int) -> np.ndarray:
        """The buffer from byte `offset` on (counted as the slot counts: within the arena for temporaries)."""
        specialized = self.specialized
        buffer = specialized.buffers[name]
        itemsize = buffer.dtype.itemsize
        if buffer.kind in ("arena", "thread_scratch"):
            threads = specialized.threads if buffer.kind == "thread_scratch" else 1
            end = specialized.arena_offsets[name] + specialized.numel[name] * itemsize * threads
            return _array_at(self.arena.data_ptr() + offset, end - offset, itemsize)
        base = self.tensors.base(name, buffer.kind)
        nbytes = extent(base.shape, base.stride()) * itemsize
        return _array_at(base.data_ptr() + offset, nbytes - offset, itemsize)


def _array_at(address: int, nbytes: int, itemsize: int) -> np.ndarray:
    if nbytes <= 0:
        return np.zeros(0, _UNSIGNED[itemsize])
    memory: Any = (ctypes.c_char * nbytes).from_address(address)
    return np.frombuffer(memory, _UNSIGNED[itemsize])
