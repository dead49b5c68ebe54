"""A program at one set of sizes and threads: integers only, ready for the native driver.

`specialize_program` evaluates every size, asks the dynamic steps for their kernels, packs the temporaries,
and lays out the tables that `cpu/threads.py` walks. It runs once per distinct (sizes, threads).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy
import torch

from compiler_bridge.cpu import threads as layout
from compiler_bridge.errors import InvalidProgram, UnknownSymbol
from compiler_bridge.memory import Lifetime, plan_arena
from compiler_bridge.program import (
    Buffer,
    CompiledKernel,
    DynamicPlan,
    DynamicStep,
    ExternStep,
    FunctionArgument,
    InputReference,
    KernelStep,
    PointerArgument,
    Program,
    Size,
    SizeArgument,
    Step,
    TensorInput,
    TensorView,
    leaves,
)

Values = Mapping[sympy.Symbol, int]


def evaluate(size: Size, values: Values) -> int:
    """A size as an integer.

    Raises:  UnknownSymbol when a symbol has no value
    """
    if isinstance(size, int):
        return size
    result: Any = size.xreplace({symbol: sympy.Integer(value) for symbol, value in values.items()})
    if not result.is_number:
        raise UnknownSymbol(result.free_symbols, list(values))
    return int(result)


@dataclass(frozen=True)
class ConcreteView:
    """A TensorView with integers."""

    buffer_name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclass(frozen=True)
class NativeSegment:
    """Consecutive native steps: rows of the slot and entry tables, on `team` threads."""

    first_slot: int
    last_slot: int
    first_entry: int
    last_entry: int
    team: int
    steps: list[KernelStep]  # one per entry, to print and to interpret


@dataclass(frozen=True)
class ExternSegment:
    """An ATen call; `args` and `kwargs` hold ConcreteViews and integers."""

    op: Callable[..., Any]
    args: Any
    kwargs: Any
    outputs: list[ConcreteView | None]


Segment = NativeSegment | ExternSegment


@dataclass(frozen=True)
class Allocation:
    """A fresh tensor for an output buffer."""

    buffer_name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last element."""
        return extent(self.shape, self.strides) * self.dtype.itemsize


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of a strided tensor, both included."""
    return 0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))


@dataclass
class Specialized:
    """Everything a call needs.

    bases: index of each buffer's base pointer, in the order: zero, tensor inputs, outputs, arena, externs,
           constants; arena buffers share the arena's, their offset is in `slots`
    """

    values: dict[sympy.Symbol, int]
    threads: int
    bases: dict[str, int]
    arena_bytes: int
    arena_offsets: dict[str, int]
    slots: np.ndarray
    entries: np.ndarray
    segments: list[Segment]
    tensor_inputs: list[int]
    allocations: list[Allocation]
    outputs: list[ConcreteView | InputReference | int | None]
    buffers: dict[str, Buffer]
    numel: dict[str, int]
    release: list[list[str]]  # extern buffers nobody reads after segment i
    frames: list[Any] = field(default_factory=list)


ARENA_BASE = "arena"


def specialize_program(
    program: Program,
    values: Values,
    threads: int,
    addresses: Callable[[Sequence[str | CompiledKernel]], Sequence[int]],
) -> Specialized:
    """Make the tables for these sizes. `addresses` turns kernels into the addresses of their machine code."""
    buffers = {buffer.name: buffer for buffer in program.buffers}
    if len(buffers) != len(program.buffers):
        raise InvalidProgram("two buffers of one name", "distinct names")
    numel = {name: evaluate(buffer.numel, values) for name, buffer in buffers.items()}
    steps = gather_seeds(program.steps)
    expanded, workspaces = _expand_steps(steps, values, threads)
    offsets, arena_bytes = _place_temporaries(steps, buffers, numel, workspaces, threads)
    bases = _number_bases(program, buffers)
    tables = _Tables(buffers, bases, offsets, values, threads)
    segments = tables.add_steps(expanded)
    slots = np.array(tables.slots, dtype=np.int64).reshape(-1, 2)
    entries = np.array(tables.entries, dtype=np.int64).reshape(-1, layout.ENTRY_WORDS)
    kernels = [step.kernel for step in tables.native]
    found = addresses([*kernels, *tables.functions.values()])
    entries[:, layout.ENTRY_KERNEL] = found[: len(kernels)]
    slots[list(tables.functions), 1] = found[len(kernels) :]
    outputs = [_concrete_output(output, values) for output in program.outputs]
    return Specialized(
        values=dict(values),
        threads=threads,
        bases=bases,
        arena_bytes=arena_bytes,
        arena_offsets=offsets,
        slots=slots,
        entries=entries,
        segments=segments,
        tensor_inputs=[i for i, spec in enumerate(program.inputs) if isinstance(spec, TensorInput)],
        allocations=_allocate_outputs(program, numel, outputs),
        outputs=outputs,
        buffers=buffers,
        numel=numel,
        release=_release_externs(segments, buffers, outputs),
    )


# A step of the program after dynamic steps were asked: its kernels, and the name of its workspace.
@dataclass(frozen=True)
class _Expanded:
    steps: list[KernelStep] | ExternStep
    workspace: str


def _expand_steps(
    steps: Sequence[Step], values: Values, threads: int
) -> tuple[list[_Expanded], dict[int, tuple[str, int]]]:
    """Replace dynamic steps by their kernels; also step index -> (workspace name, its bytes)."""
    expanded: list[_Expanded] = []
    workspaces: dict[int, tuple[str, int]] = {}
    for index, step in enumerate(steps):
        workspace = f"workspace of step {index}"
        if isinstance(step, DynamicStep):
            plan: DynamicPlan = step.plan(values, threads)
            if plan.workspace_bytes:
                workspaces[index] = (workspace, plan.workspace_bytes)
            expanded.append(_Expanded(plan.steps, workspace))
        elif isinstance(step, KernelStep):
            expanded.append(_Expanded([step], workspace))
        else:
            expanded.append(_Expanded(step, workspace))
    return expanded, workspaces


def gather_seeds(steps: Sequence[Step]) -> list[Step]:
    """Draw all seeds of a graph in one call before everything else, in the order they stand in the graph.

    Valid because a draw reads nothing of the graph, and torch's generator gives n numbers drawn at once the
    values of n draws; what it saves is a break between native segments for each.
    """
    seeds = [step for step in steps if isinstance(step, ExternStep) and is_seed(step)]
    if not seeds:
        return list(steps)
    outputs = [view for step in seeds for view in step.outputs]
    drawn = ExternStep(draw_seeds, (len(seeds),), {}, outputs, seeds[0].reason)
    return [drawn, *(step for step in steps if not (isinstance(step, ExternStep) and is_seed(step)))]


def is_seed(step: ExternStep) -> bool:
    return str(step.op) in ("pynn.seed", "pynn.seed.default")


def draw_seeds(count: int) -> list[torch.Tensor]:
    """What `count` calls of `pynn::seed` return."""
    low, high = -(2**63), 2**63 - 1  # as capture/random.py draws them
    return list(torch.randint(low, high, (count,), dtype=torch.int64).unbind())


def _place_temporaries(
    steps: Sequence[Step],
    buffers: Mapping[str, Buffer],
    numel: Mapping[str, int],
    workspaces: Mapping[int, tuple[str, int]],
    threads: int,
) -> tuple[dict[str, int], int]:
    """Byte offset in the arena of every temporary (arena buffers, scratch of the threads, workspaces)."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in step.buffer_names():
            if name not in buffers:
                raise InvalidProgram(f"step {index} uses buffer {name}", f"one of {list(buffers)}")
            if buffers[name].kind in ("arena", "thread_scratch"):
                first.setdefault(name, index)
                last[name] = index
    lifetimes = [Lifetime(name, size, index, index) for index, (name, size) in workspaces.items()]
    for name, begin in first.items():
        nbytes = numel[name] * buffers[name].dtype.itemsize
        if buffers[name].kind == "thread_scratch":
            if nbytes % 64:
                raise InvalidProgram(f"thread_scratch {name} of {nbytes} bytes", "a multiple of 64")
            nbytes *= threads
        lifetimes.append(Lifetime(name, nbytes, begin, last[name]))
    plan = plan_arena(lifetimes)
    return plan.offsets, plan.nbytes


def _number_bases(program: Program, buffers: Mapping[str, Buffer]) -> dict[str, int]:
    """Index of each base pointer: what changes at every call comes first and in one run."""
    names = [spec.name for spec in program.inputs if isinstance(spec, TensorInput)]
    names += [name for name, buffer in buffers.items() if buffer.kind == "output"]
    names.append(ARENA_BASE)
    names += [name for name, buffer in buffers.items() if buffer.kind in ("extern", "constant")]
    return {name: index for index, name in enumerate(names, start=1)}


class _Tables:
    """Slots and entries as they grow."""

    def __init__(
        self,
        buffers: Mapping[str, Buffer],
        bases: Mapping[str, int],
        offsets: Mapping[str, int],
        values: Values,
        threads: int,
    ):
        self.buffers = buffers
        self.bases = bases
        self.offsets = offsets
        self.values = values
        self.threads = threads
        self.slots: list[tuple[int, int]] = []
        self.entries: list[list[int]] = []
        self.native: list[KernelStep] = []
        self.functions: dict[int, str | CompiledKernel] = {}  # slot -> function whose address it holds

    def add_steps(self, expanded: Sequence[_Expanded]) -> list[Segment]:
        segments: list[Segment] = []
        waiting: list[tuple[KernelStep, str]] = []
        for item in expanded:
            if isinstance(item.steps, ExternStep):
                self._close_segment(waiting, segments)
                segments.append(self._extern(item.steps))
            else:
                waiting += [(step, item.workspace) for step in item.steps]
        self._close_segment(waiting, segments)
        return segments

    def _close_segment(self, waiting: list[tuple[KernelStep, str]], segments: list[Segment]) -> None:
        first_slot, first_entry = len(self.slots), len(self.entries)
        steps: list[KernelStep] = []
        for step, workspace in waiting:
            length = evaluate(step.length, self.values)
            if length > 0:
                steps.append(step)
                self._add_entry(step, workspace, length)
        waiting.clear()
        if not steps:
            return
        team = max(entry[layout.ENTRY_PARTS] for entry in self.entries[first_entry:])
        self._place_barriers(first_entry)
        segments.append(
            NativeSegment(first_slot, len(self.slots), first_entry, len(self.entries), team, steps)
        )

    def _add_entry(self, step: KernelStep, workspace: str, length: int) -> None:
        parts = max(1, min(self.threads, length // max(1, step.grain)))
        self.entries.append([0, len(self.slots), length, parts, 0])
        self.native.append(step)
        for argument in step.arguments:
            if isinstance(argument, SizeArgument):
                self.slots.append((0, evaluate(argument.value, self.values)))
            elif isinstance(argument, PointerArgument):
                self.slots.append(self._slot(argument))
            elif isinstance(argument, FunctionArgument):
                self.functions[len(self.slots)] = argument.kernel
                self.slots.append((0, 0))
            else:
                offset = self.offsets.get(workspace, 0) + argument.byte_offset
                self.slots.append((self.bases[ARENA_BASE], offset))

    def _slot(self, argument: PointerArgument) -> tuple[int, int]:
        buffer = self.buffers[argument.buffer_name]
        offset = evaluate(argument.element_offset, self.values) * buffer.dtype.itemsize
        if buffer.kind in ("arena", "thread_scratch"):
            if buffer.name not in self.offsets:
                raise InvalidProgram(f"buffer {buffer.name} used by a step that doesn't declare it")
            return self.bases[ARENA_BASE], self.offsets[buffer.name] + offset
        return self.bases[buffer.name], offset

    def _place_barriers(self, first_entry: int) -> None:
        """A barrier after each entry but the last (the region's end is one), and none between two entries
        that run on thread 0 alone."""
        rows = self.entries[first_entry:]
        for row, following in itertools.pairwise(rows):
            alone = row[layout.ENTRY_PARTS] == 1 and following[layout.ENTRY_PARTS] == 1
            row[layout.ENTRY_BARRIER] = 0 if alone else 1

    def _extern(self, step: ExternStep) -> ExternSegment:
        return ExternSegment(
            step.op,
            concrete_tree(step.args, self.values),
            concrete_tree(step.kwargs, self.values),
            [None if view is None else concrete_view(view, self.values) for view in step.outputs],
        )


def concrete_view(view: TensorView, values: Values) -> ConcreteView:
    """The view with integers."""
    return ConcreteView(
        view.buffer_name,
        tuple(evaluate(size, values) for size in view.shape),
        tuple(evaluate(stride, values) for stride in view.strides),
        evaluate(view.offset, values),
        view.dtype,
    )


def concrete_tree(tree: Any, values: Values) -> Any:
    """A template of arguments with ConcreteViews and integers in it."""
    if isinstance(tree, TensorView):
        return concrete_view(tree, values)
    if isinstance(tree, (list, tuple)):
        return type(tree)(concrete_tree(branch, values) for branch in tree)
    if isinstance(tree, dict):
        return {key: concrete_tree(branch, values) for key, branch in tree.items()}
    if isinstance(tree, sympy.Expr):
        return evaluate(tree, values)
    return tree


def _concrete_output(output: Any, values: Values) -> ConcreteView | InputReference | int | None:
    if output is None or isinstance(output, (InputReference, int)):
        return output
    if isinstance(output, TensorView):
        return concrete_view(output, values)
    return evaluate(output, values)


def _allocate_outputs(program: Program, numel: Mapping[str, int], outputs: Sequence[Any]) -> list[Allocation]:
    """One fresh tensor per output buffer: with the shape of the output that covers it, else flat."""
    allocations: list[Allocation] = []
    for buffer in program.buffers:
        if buffer.kind != "output":
            continue
        shape, strides = (numel[buffer.name],), (1,)
        for view in outputs:
            if isinstance(view, ConcreteView) and _covers(view, buffer, numel):
                shape, strides = view.shape, view.strides
                break
        allocations.append(Allocation(buffer.name, shape, strides, buffer.dtype))
    return allocations


def _covers(view: ConcreteView, buffer: Buffer, numel: Mapping[str, int]) -> bool:
    """Whether a tensor of the view's shape and strides has room for the whole buffer."""
    if (view.buffer_name, view.offset, view.dtype) != (buffer.name, 0, buffer.dtype):
        return False
    return extent(view.shape, view.strides) >= numel[buffer.name]


def _release_externs(
    segments: Sequence[Segment], buffers: Mapping[str, Buffer], outputs: Sequence[Any]
) -> list[list[str]]:
    """For each segment the extern buffers whose last reader it is."""
    kept = {view.buffer_name for view in outputs if isinstance(view, ConcreteView)}
    last: dict[str, int] = {}
    for index, segment in enumerate(segments):
        names: list[str] = []
        if isinstance(segment, NativeSegment):
            for step in segment.steps:
                names += step.buffer_names()
        else:
            names += [view.buffer_name for view in extern_views(segment)]
        for name in names:
            if buffers[name].kind == "extern" and name not in kept:
                last[name] = index
    release: list[list[str]] = [[] for _ in segments]
    for name, index in last.items():
        release[index].append(name)
    return release


def extern_views(segment: ExternSegment) -> list[ConcreteView]:
    """Every tensor an extern call reads or returns."""
    views = [leaf for leaf in leaves((segment.args, segment.kwargs)) if isinstance(leaf, ConcreteView)]
    return views + [view for view in segment.outputs if view is not None]
