"""What a compiled graph is made of: pure data between the code generator and the run time.

A `Program` is one generated Python module (its kernels) and the list of steps that call them. Nothing here
runs anything; `runtime.load(program)` does. Sizes may be integers or sympy expressions over the symbols of
torch's ShapeEnv; they become integers once per distinct tuple of symbol values and are then remembered.

Memory is named by buffers. A step names buffers and offsets, never addresses; the run time turns
`(buffer, element offset)` into an address by one addition per argument, natively, at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import sympy
import torch

Size = int | sympy.Expr
BufferKind = Literal["input", "output", "arena", "thread_scratch", "constant", "extern"]


class CompiledKernel(Protocol):
    """A library kernel (GEMM, attention): machine code `kernel(tab, begin, end, thread)` at an address."""

    @property
    def address(self) -> int: ...


@dataclass
class Buffer:
    """A piece of memory.

    kind: input           storage of a graph input (the input has the buffer's name)
          output          storage of a fresh tensor returned to the caller
          arena           temporary; packed into the graph's arena by lifetime
          thread_scratch  temporary of `numel` elements for each thread: the memory is `threads` parts of
                          numel * itemsize bytes, a multiple of 64; thread t works at base + t * numel
          constant        `value`, a tensor that lives as long as the graph
          extern          produced by an ExternStep: its address is known once that step has run
    """

    name: str
    dtype: torch.dtype
    numel: Size
    kind: BufferKind
    value: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> Size:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class PointerArgument:
    """Address of element `element_offset` of a buffer."""

    buffer_name: str
    element_offset: Size = 0


@dataclass(frozen=True)
class SizeArgument:
    """An integer passed to a kernel by value."""

    value: Size


@dataclass(frozen=True)
class WorkspaceArgument:
    """Address of byte `byte_offset` of the workspace a DynamicStep asked for (64-byte aligned at 0)."""

    byte_offset: int = 0


@dataclass(frozen=True)
class FunctionArgument:
    """Address of another kernel or of a function it calls back (a GEMM's packing or epilogue).

    A name is a function of the generated module: decorated with `@kernel`, first parameter a table, the
    others int64 numbers, as many as its signature has. Interpreted, the slot holds the Python function itself.
    """

    kernel: str | CompiledKernel


Argument = PointerArgument | SizeArgument | WorkspaceArgument | FunctionArgument


@dataclass
class KernelStep:
    """One kernel over the range [0, length), cut into one contiguous part per thread.

    kernel: name of a function of the generated module, or a library kernel with an `.address`
    grain:  the least number of iterations worth a thread; a loop shorter than 2 * grain runs on one thread
    """

    kernel: str | CompiledKernel
    arguments: list[Argument]
    length: Size
    grain: int = 1
    description: str = ""

    def buffer_names(self) -> list[str]:
        return [a.buffer_name for a in self.arguments if isinstance(a, PointerArgument)]

    def kernels(self) -> list[str | CompiledKernel]:
        """The step's own kernel, then the functions it passes on."""
        return [self.kernel, *(a.kernel for a in self.arguments if isinstance(a, FunctionArgument))]


@dataclass
class DynamicPlan:
    """The concrete kernels of a DynamicStep for one set of sizes, and the bytes of workspace they share."""

    steps: list[KernelStep]
    workspace_bytes: int = 0


@dataclass
class DynamicStep:
    """Kernels whose number, arguments or blocking depend on the sizes and the number of threads.

    plan: (values of the symbols, number of threads) -> DynamicPlan. Called once at load for static sizes,
          else once per distinct tuple of sizes. Its steps hold integers only (no sympy), and may use
          `WorkspaceArgument`. `buffers` names every buffer they touch.
    kernels: kernels the plan may use, so that they compile when the program is loaded
    """

    plan: Callable[[Mapping[sympy.Symbol, int], int], DynamicPlan]
    buffers: list[str]
    kernels: list[str | CompiledKernel] = field(default_factory=list)
    description: str = ""

    def buffer_names(self) -> list[str]:
        return self.buffers


@dataclass(frozen=True)
class TensorView:
    """A strided view of a buffer (offset and strides count elements of `dtype`)."""

    buffer_name: str
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    offset: Size
    dtype: torch.dtype


@dataclass
class ExternStep:
    """An ATen call made from Python between two native segments.

    args, kwargs: a template; TensorView and sympy expressions inside (also within lists, tuples) are replaced
    outputs:      one TensorView per tensor the op returns, over a buffer of kind "extern" (offset 0), or None
                  for a result nobody reads. A result with other strides than stated is copied into them.
    reason:       why no kernel does this, shown by `explain`
    """

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[TensorView | None]
    reason: str

    def buffer_names(self) -> list[str]:
        views = [v for v in leaves((self.args, self.kwargs)) if isinstance(v, TensorView)]
        return [v.buffer_name for v in views] + [v.buffer_name for v in self.outputs if v is not None]


Step = KernelStep | DynamicStep | ExternStep


@dataclass(frozen=True)
class TensorInput:
    """Graph input that is a tensor; the buffer of kind "input" has the same name."""

    name: str
    dtype: torch.dtype
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]


@dataclass(frozen=True)
class SizeInput:
    """Graph input that is an integer (a SymInt)."""

    name: str
    value: Size


@dataclass(frozen=True)
class UnusedInput:
    """Graph input that no step needs; it may be anything."""

    name: str


Input = TensorInput | SizeInput | UnusedInput


@dataclass(frozen=True)
class InputReference:
    """Output that is the graph input at this position, handed back as it came."""

    index: int


Output = TensorView | InputReference | Size | None


@dataclass(frozen=True)
class SymbolSource:
    """Where the value of a symbol is read from: an integer input, or a size or stride of a tensor input."""

    input_index: int
    what: Literal["value", "size", "stride"] = "value"
    dim: int = 0


@dataclass
class Program:
    """A compiled graph before it is loaded.

    source: text of a Python module; its functions decorated with `@kernel` are the kernels
    """

    source: str
    buffers: list[Buffer]
    steps: list[Step]
    inputs: list[Input]
    outputs: list[Output]
    symbols: dict[sympy.Symbol, SymbolSource] = field(default_factory=dict)
    name: str = "graph"
    once: OnceProgram | None = None

    def __str__(self) -> str:
        return describe_program(self)


@dataclass
class OnceProgram:
    """What a program wants computed whenever a frozen input has changed.

    The inputs of `program` are those of the other program at `positions`; its outputs follow the other program's
    own inputs, of which those at `unused` are then needed no more.
    """

    program: Program
    positions: list[int]
    unused: list[int]


def leaves(tree: Any) -> Iterable[Any]:
    """Every leaf of nested tuples, lists and dicts."""
    if isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from leaves(branch)
    elif isinstance(tree, dict):
        yield from leaves(list(tree.values()))
    else:
        yield tree


def bind_symbols(inputs: Sequence[Input]) -> dict[sympy.Symbol, SymbolSource]:
    """Find for each symbol an input that carries it bare: an integer input first, then a size, then a stride.

    A symbol that occurs only inside expressions has no entry; whoever needs its value reports it.
    """
    found: dict[sympy.Symbol, SymbolSource] = {}

    def bind(value: Size, source: SymbolSource) -> None:
        if isinstance(value, sympy.Symbol):
            found.setdefault(value, source)

    for index, spec in enumerate(inputs):
        if isinstance(spec, SizeInput):
            bind(spec.value, SymbolSource(index))
    for what in ("size", "stride"):
        for index, spec in enumerate(inputs):
            if isinstance(spec, TensorInput):
                for dim, value in enumerate(spec.shape if what == "size" else spec.strides):
                    bind(value, SymbolSource(index, what, dim))
    return found


def describe_program(program: Program) -> str:
    """The program as Python-like text: inputs, buffers, steps, outputs."""
    lines = [f"program {program.name}"]
    for index, spec in enumerate(program.inputs):
        lines.append(f"  input {index}: {spec}")
    for symbol, source in program.symbols.items():
        lines.append(f"  {symbol} = {source.what} {source.dim} of input {source.input_index}")
    for buffer in program.buffers:
        lines.append(f"  {buffer.name}: {buffer.dtype}[{buffer.numel}]  # {buffer.kind}")
    for step in program.steps:
        lines.append("  " + describe_step(step))
    lines.append(f"  return {', '.join(str(output) for output in program.outputs)}")
    return "\n".join(lines)


def describe_step(step: Step) -> str:
    """One step as one line."""
    if isinstance(step, ExternStep):
        outputs = ", ".join(view.buffer_name if view else "_" for view in step.outputs)
        return f"{outputs} = {step.op}{step.args}  # extern: {step.reason}"
    if isinstance(step, DynamicStep):
        return f"dynamic({', '.join(step.buffers)})  # {step.description}"
    arguments = ", ".join(describe_argument(argument) for argument in step.arguments)
    loop = f"for [0, {step.length}) grain {step.grain}"
    return f"{kernel_name(step.kernel)}({arguments}) {loop}  # {step.description}"


def kernel_name(kernel: str | CompiledKernel) -> str:
    """How to call a kernel in print."""
    return kernel if isinstance(kernel, str) else str(getattr(kernel, "name", "library kernel"))


def describe_argument(argument: Argument) -> str:
    if isinstance(argument, PointerArgument):
        offset = f" + {argument.element_offset}" if argument.element_offset != 0 else ""
        return argument.buffer_name + offset
    if isinstance(argument, WorkspaceArgument):
        return f"workspace + {argument.byte_offset}"
    if isinstance(argument, FunctionArgument):
        return kernel_name(argument.kernel)
    return str(argument.value)
