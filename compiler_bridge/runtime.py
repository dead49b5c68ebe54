"""Running a program: `load(program)` gives a callable; a call is one native call per run of native steps.

Per call, Python reads the inputs' addresses, makes the outputs, takes an arena, packs these addresses into
one array and calls `run_plan`. Everything else was laid out before (`specialize.py`). What a call writes to
(the array of addresses, the argument tables) belongs to a frame, and frames are pooled, so that any number of
threads can run the same graph at once.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from compiler_bridge import cache, compile_pool, settings
from compiler_bridge.cpu import threads as layout
from compiler_bridge.errors import InvalidInput, InvalidProgram
from compiler_bridge.memory import ARENAS, EMPTY_STRIDED, OUTPUTS, RECYCLED_FROM
from compiler_bridge.program import (
    CompiledKernel,
    DynamicStep,
    InputReference,
    KernelStep,
    Program,
    SymbolSource,
    TensorInput,
)
from compiler_bridge.progress import report_progress
from compiler_bridge.specialize import (
    Allocation,
    ConcreteView,
    ExternSegment,
    NativeSegment,
    Specialized,
    specialize_program,
)

REMEMBERED_SIZES = 64
ADDRESS = torch.Tensor.data_ptr


def load(program: Program) -> CompiledGraph:
    """Make a program callable: its kernels are compiled or found in the cache now.

    Raises:  CompileError, InvalidProgram
    """
    return CompiledGraph(program)


class CompiledGraph:
    """A loaded program. Call it with the graph's inputs; it returns the list of outputs, a new one each time.

    Safe to call from several threads at once. Uses torch.get_num_threads() threads, one in a forked child.
    """

    def __init__(self, program: Program):
        self.program = program
        self._addresses: dict[str, int] = {}
        self._specialized: OrderedDict[tuple[int, ...], Specialized] = OrderedDict()
        self._lock = threading.Lock()
        self._static: Specialized | None = None  # the latest, where only the number of threads can change
        self._symbols = list(program.symbols)
        self._read_symbols = [symbol_reader(source) for source in program.symbols.values()]
        self.constants = {b.name: b.value for b in program.buffers if b.kind == "constant"}
        for name, value in self.constants.items():
            if value is None:
                raise InvalidProgram(f"constant {name} without a value")
        if settings.INTERPRET:
            from compiler_bridge.run_interpreted import run_interpreted

            self._run_interpreted = run_interpreted
        else:
            self._run_plan = layout.load_drivers().run_plan
        if self._symbols:
            self._kernel_addresses(_kernels_of_steps(program))
        else:
            self._specialize((layout.thread_count(),))

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run the graph.

        Raises:  InvalidInput when PYNN_DEBUG >= 1 and a tensor isn't what the graph was compiled for
        """
        if settings.DEBUG >= 1:
            self._check_inputs(inputs)
        specialized = self._static
        if specialized is None or specialized.threads != layout.thread_count():
            specialized = self._find_specialized(inputs)
        if settings.INTERPRET:
            return self._run_interpreted(self, specialized, inputs)
        try:
            frame = specialized.frames.pop()
        except IndexError:
            frame = Frame(specialized, self.constants, len(inputs))
        fresh = [make() for make in frame.makers]
        tensors = inputs if frame.takes_all else [inputs[index] for index in specialized.tensor_inputs]
        if specialized.arena_bytes:
            arena = ARENAS.take(specialized.arena_bytes)
            frame.pack(frame.bases, 8, *map(ADDRESS, tensors), *map(ADDRESS, fresh), arena.data_ptr())
        else:
            arena = None
            frame.pack(frame.bases, 8, *map(ADDRESS, tensors), *map(ADDRESS, fresh), 0)
        externs: dict[str, torch.Tensor] = {}
        if frame.single_header is not None:
            self._run_plan(frame.single_header)
        else:
            externs = self._run_segments(specialized, frame, inputs, fresh, arena)
        if arena is not None:
            ARENAS.give_back(arena)
        specialized.frames.append(frame)
        if frame.returns_fresh:
            return fresh
        if frame.picks is not None:
            return [(inputs if given else fresh)[index] for given, index in frame.picks]
        values = TensorsOfCall(specialized, inputs, fresh, externs, None, self.constants)
        return [values.output(output) for output in specialized.outputs]

    def _run_segments(
        self,
        specialized: Specialized,
        frame: Frame,
        inputs: Sequence[Any],
        fresh: Sequence[torch.Tensor],
        arena: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Native segments and the ATen calls between them; returns the tensors ATen made."""
        externs: dict[str, torch.Tensor] = {}
        tensors = TensorsOfCall(specialized, inputs, fresh, externs, arena, self.constants)
        for index, segment in enumerate(specialized.segments):
            if isinstance(segment, NativeSegment):
                self._run_plan(frame.header_addresses[index])
            else:
                run_extern(segment, tensors)
                for view in segment.outputs:
                    if view is not None:
                        name = view.buffer_name
                        frame.bases[specialized.bases[name]] = externs[name].data_ptr()
            for name in specialized.release[index]:
                del externs[name]
        return externs

    def _find_specialized(self, inputs: Sequence[Any]) -> Specialized:
        """The tables for this call's sizes and threads."""
        key = (layout.thread_count(), *[read(inputs) for read in self._read_symbols])
        specialized = self._specialized.get(key)
        if specialized is None:
            specialized = self._specialize(key)
        if not self._symbols:
            self._static = specialized
        return specialized

    def _specialize(self, key: tuple[int, ...]) -> Specialized:
        """The tables for (threads, symbol values), made once and remembered."""
        with self._lock:
            if key not in self._specialized:
                values = dict(zip(self._symbols, key[1:]))
                specialized = specialize_program(self.program, values, key[0], self._kernel_addresses)
                self._specialized[key] = specialized
                if len(self._specialized) > REMEMBERED_SIZES:
                    self._specialized.popitem(last=False)
            return self._specialized[key]

    def _kernel_addresses(self, kernels: Sequence[str | CompiledKernel]) -> list[int]:
        if settings.INTERPRET:
            return [0] * len(kernels)
        names = [kernel for kernel in kernels if isinstance(kernel, str) and kernel not in self._addresses]
        library = [kernel for kernel in kernels if not isinstance(kernel, str)]
        self._compile_missing(names, library)
        if names:
            self._addresses.update(cache.load_kernels(self.program.source, names, self.program.name))
        return [self._addresses[kernel] if isinstance(kernel, str) else kernel.address for kernel in kernels]

    def _compile_missing(self, names: Sequence[str], library: Sequence[CompiledKernel]) -> None:
        """Fill the disk cache, with the help of other processes if there is much to compile."""
        missing = cache.missing_kernels(self.program.source, names)
        if not missing:
            return
        tasks = [compile_pool.GeneratedKernel(self.program.source, name) for name in missing]
        tasks += [compile_pool.LibraryKernel(kernel) for kernel in {id(k): k for k in library}.values()]
        with report_progress(f"pynn: compiling {self.program.name}", len(tasks)) as advance:
            compile_pool.compile_in_parallel(tasks, advance)

    def _check_inputs(self, inputs: Sequence[Any]) -> None:
        """Compare tensors with what the program expects."""
        specs = self.program.inputs
        if len(inputs) != len(specs):
            raise InvalidInput(f"{len(inputs)} inputs", f"{len(specs)} inputs")
        for index, (value, spec) in enumerate(zip(inputs, specs)):
            if not isinstance(spec, TensorInput):
                continue
            expected = (spec.dtype, *(size for size in spec.shape if isinstance(size, int)))
            sizes = [s for s, size in zip(value.shape, spec.shape) if isinstance(size, int)]
            if value.dim() != len(spec.shape) or expected != (value.dtype, *sizes):
                raise InvalidInput(
                    f"input {index} ({spec.name}): {value.dtype} {tuple(value.shape)}",
                    f"{spec.dtype} {spec.shape}",
                )
            for dim, stride in enumerate(spec.strides):
                if isinstance(stride, int) and value.shape[dim] > 1 and value.stride(dim) != stride:
                    raise InvalidInput(
                        f"input {index} ({spec.name}) with strides {value.stride()}", f"{spec.strides}"
                    )


class Frame:
    """What one call writes to: base pointers, argument tables, and the headers that point to them.

    makers:        functions that make the outputs
    takes_all:     the inputs are the tensors that kernels read, in this order
    single_header: the plan, if it is one native segment
    returns_fresh: the outputs are what the makers made
    picks:         for each output whether it is an input, and which of the inputs or of what the makers made it is;
                   None where an output is neither
    """

    def __init__(self, specialized: Specialized, constants: dict[str, Any], inputs: int):
        self.bases: Any = np.zeros(len(specialized.bases) + 1, dtype=np.int64)
        for name, value in constants.items():
            self.bases[specialized.bases[name]] = value.data_ptr()
        self.arguments = np.zeros(max(1, len(specialized.slots)), dtype=np.int64)
        self.makers = [maker(allocation) for allocation in specialized.allocations]
        self.takes_all = specialized.tensor_inputs == list(range(inputs))
        packed = len(specialized.tensor_inputs) + len(specialized.allocations) + 1
        self.pack = struct.Struct(f"={packed}q").pack_into
        self.headers = np.zeros((len(specialized.segments), layout.HEADER_WORDS), dtype=np.int64)
        self.header_addresses = [
            ctypes.c_int64(self.headers.ctypes.data + row * 8 * layout.HEADER_WORDS)
            for row in range(len(self.headers))
        ]
        for row, segment in enumerate(specialized.segments):
            if isinstance(segment, NativeSegment):
                self._fill_header(self.headers[row], segment, specialized)
        natives = [isinstance(segment, NativeSegment) for segment in specialized.segments]
        self.single_header = self.header_addresses[0] if natives == [True] else None
        self.picks = picks_of(specialized)
        count = len(specialized.allocations)
        self.returns_fresh = self.picks == [(False, index) for index in range(count)]

    def _fill_header(self, header: np.ndarray, segment: NativeSegment, specialized: Specialized) -> None:
        header[layout.HEADER_FIRST_SLOT] = segment.first_slot
        header[layout.HEADER_LAST_SLOT] = segment.last_slot
        header[layout.HEADER_SLOTS] = specialized.slots.ctypes.data
        header[layout.HEADER_BASES] = self.bases.ctypes.data
        header[layout.HEADER_ARGUMENTS] = self.arguments.ctypes.data
        header[layout.HEADER_FIRST_ENTRY] = segment.first_entry
        header[layout.HEADER_LAST_ENTRY] = segment.last_entry
        header[layout.HEADER_ENTRIES] = specialized.entries.ctypes.data
        layout.set_team(header, segment.team)


def maker(allocation: Allocation) -> Callable[[], torch.Tensor]:
    """How to make an output: a large one in memory that was an output before, if nobody holds it any more."""
    shape, strides, dtype = allocation.shape, allocation.strides, allocation.dtype
    if allocation.nbytes >= RECYCLED_FROM:
        return partial(OUTPUTS.empty, shape, strides, dtype, allocation.nbytes)
    return partial(EMPTY_STRIDED, shape, strides, dtype)


def picks_of(specialized: Specialized) -> list[tuple[bool, int]] | None:
    """Where to find each output, `Frame.picks`."""
    picks: list[tuple[bool, int]] = []
    for output in specialized.outputs:
        if isinstance(output, InputReference):
            picks.append((True, output.index))
            continue
        found = [i for i, allocation in enumerate(specialized.allocations) if is_whole(output, allocation)]
        if not found:
            return None
        picks.append((False, found[0]))
    return picks


def is_whole(output: Any, allocation: Any) -> bool:
    """Whether an output is exactly the fresh tensor of this allocation."""
    return (
        isinstance(output, ConcreteView)
        and output.buffer_name == allocation.buffer_name
        and (output.shape, output.strides, output.dtype, output.offset)
        == (allocation.shape, allocation.strides, allocation.dtype, 0)
    )


class TensorsOfCall:
    """Buffers as torch tensors, for ATen calls and for outputs."""

    def __init__(
        self,
        specialized: Specialized,
        inputs: Sequence[Any],
        fresh: Sequence[torch.Tensor],
        externs: dict[str, torch.Tensor],
        arena: torch.Tensor | None,
        constants: dict[str, Any],
    ):
        self.specialized = specialized
        self.inputs = inputs
        self.fresh = fresh
        self.externs = externs
        self.arena = arena
        self.constants = constants

    def view(self, view: ConcreteView) -> torch.Tensor:
        """The view over its buffer."""
        buffer = self.specialized.buffers[view.buffer_name]
        if buffer.kind in ("arena", "thread_scratch"):
            return self._view_arena(view, buffer.dtype.itemsize)
        base = self.base(view.buffer_name, buffer.kind)
        if view.dtype != base.dtype:
            base = base.view(view.dtype)
        elif (tuple(base.shape), base.stride(), 0) == (view.shape, view.strides, view.offset):
            return base
        return base.as_strided(view.shape, view.strides, base.storage_offset() + view.offset)

    def base(self, name: str, kind: str) -> torch.Tensor:
        specialized = self.specialized
        if kind == "input":
            return self.inputs[specialized.tensor_inputs[specialized.bases[name] - 1]]
        if kind == "output":
            return self.fresh[specialized.bases[name] - 1 - len(specialized.tensor_inputs)]
        return self.constants[name] if kind == "constant" else self.externs[name]

    def _view_arena(self, view: ConcreteView, itemsize: int) -> torch.Tensor:
        if self.arena is None:
            raise InvalidProgram(f"output {view.buffer_name} in the arena", 'a buffer of kind "output"')
        specialized = self.specialized
        begin = specialized.arena_offsets[view.buffer_name]
        nbytes = specialized.numel[view.buffer_name] * itemsize
        flat = self.arena[begin : begin + nbytes].view(view.dtype)
        return flat.as_strided(view.shape, view.strides, flat.storage_offset() + view.offset)

    def in_own_storage(self, view: ConcreteView) -> torch.Tensor:
        """The view over its buffer, which begins where the storage does (that of the arena is copied)."""
        buffer = self.specialized.buffers[view.buffer_name]
        if buffer.kind != "arena":
            return self.view(view)
        whole = replace(view, shape=(self.specialized.numel[view.buffer_name],), strides=(1,), offset=0)
        return self.view(whole).clone().as_strided(view.shape, view.strides, view.offset)

    def output(self, output: Any) -> Any:
        """What the caller gets for an output."""
        if isinstance(output, ConcreteView):
            return self.view(output)
        if isinstance(output, InputReference):
            return self.inputs[output.index]
        return output

    def substitute(self, tree: Any) -> Any:
        """A template of arguments with tensors in it."""
        if isinstance(tree, ConcreteView):
            return self.view(tree)
        if isinstance(tree, (list, tuple)):
            return type(tree)(self.substitute(branch) for branch in tree)
        if isinstance(tree, dict):
            return {key: self.substitute(branch) for key, branch in tree.items()}
        return tree


OF_STORAGE = {
    torch.ops.aten.as_strided.default,
    torch.ops.aten.as_strided_copy.default,
    torch.ops.aten.as_strided_scatter.default,
}
"""Operations whose offset counts from where the storage begins, not from where the tensor does."""


def run_extern(segment: ExternSegment, tensors: TensorsOfCall) -> None:
    """Call ATen; its results become the buffers the segment names, in the strides the segment states."""
    arguments = tensors.substitute(segment.args)
    if segment.op in OF_STORAGE:
        arguments = (tensors.in_own_storage(segment.args[0]), *arguments[1:])
    results = segment.op(*arguments, **tensors.substitute(segment.kwargs))
    if not isinstance(results, (tuple, list)):
        results = (results,)
    for result, view in zip(results, segment.outputs):
        if view is None:
            continue
        if tuple(result.shape) != view.shape:
            raise InvalidProgram(f"{segment.op} returned {tuple(result.shape)}", f"{view.shape}")
        if result.stride() != view.strides or result.dtype != view.dtype:
            copy = torch.empty_strided(view.shape, view.strides, dtype=view.dtype)
            result = copy.copy_(result)
        tensors.externs[view.buffer_name] = result


def symbol_reader(source: SymbolSource) -> Callable[[Sequence[Any]], int]:
    """How to read a symbol's value from the inputs of a call."""
    index, dim = source.input_index, source.dim
    if source.what == "value":
        return lambda inputs: int(inputs[index])
    if source.what == "size":
        return lambda inputs: inputs[index].size(dim)
    return lambda inputs: inputs[index].stride(dim)


def _kernels_of_steps(program: Program) -> list[str | CompiledKernel]:
    """The kernels that the steps name before any plan is asked for."""
    kernels: list[str | CompiledKernel] = []
    for step in program.steps:
        if isinstance(step, KernelStep):
            kernels += step.kernels()
        elif isinstance(step, DynamicStep):
            kernels += step.kernels
    return kernels
