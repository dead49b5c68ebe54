"""Groups of loops -> a `Program`: the module's source, its buffers and the steps that run it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from compiler_bridge import program as p
from compiler_bridge.contract import IndirectForm, IndirectPanels, MatrixForm, packed_form
from compiler_bridge.emit.epilogue import EpilogueWriter, place_of_product
from compiler_bridge.emit.functions import ModuleFunctions, append_size
from compiler_bridge.emit.kernel import INDENT, KernelCode, KernelWriter
from compiler_bridge.emit.names import MODULE_HEADER, PHILOX_IMPORT, Names
from compiler_bridge.emit.once import Once
from compiler_bridge.emit.prologue import PackWriter, PlacesWriter, SegmentsWriter
from compiler_bridge.emit.scan import write_scan
from compiler_bridge.emit.scatter import write_scatter
from compiler_bridge.emit.sinks import combine_nodes
from compiler_bridge.emit.transpose import transposition_of, write_transposition
from compiler_bridge.emit.window import WindowWriter, schedule_window
from compiler_bridge.errors import UnsupportedOp
from compiler_bridge.group import Group
from compiler_bridge.ir import (
    BufferView,
    Contract,
    Extern,
    Graph,
    Load,
    Map,
    Reduce,
    Scan,
    Scatter,
    Scheduled,
    Size,
    all_axes,
    node_reads,
)
from compiler_bridge.ops import DTYPES, compute_dtype
from compiler_bridge.schedule import schedule_epilogue, schedule_group
from compiler_bridge.unroll import unrolled
from compiler_bridge.window import window_form

if TYPE_CHECKING:
    from compiler_bridge.emit.gemm_step import Function, GemmFunctions


@dataclass
class KernelInfo:
    """What `explain` shows of a kernel."""

    name: str
    nodes: list[Any]
    notes: list[str] = field(default_factory=list)


def is_even(size: Size) -> bool:
    return isinstance(size, int) and size % 2 == 0


class ProgramBuilder:
    def __init__(self, graph: Graph, groups: list[Group], name: str, frozen: Sequence[int] = ()) -> None:
        self.graph = graph
        self.groups = groups
        self.name = name
        self.reads = [{name for node in group.nodes for name in node_reads(node)} for group in groups]
        self.dtypes = {n: b.dtype for n, b in graph.buffers.items()}
        self.even = frozenset(n for n, b in graph.buffers.items() if is_even(b.numel()))
        self.functions = ModuleFunctions()
        self.steps: list[Any] = []
        self.kernels: list[KernelInfo] = []
        self.extra: list[p.Buffer] = []
        self.extern_buffers: set[str] = set()
        self.alias: dict[str, str] = {}
        self.returned = {v.buffer for v in graph.outputs if isinstance(v, BufferView)}
        self.once = Once(graph, frozen)

    # ------------------------------------------------------------ the whole program

    def build(self) -> p.Program:
        self.alias_scatter_bases()
        self.reuse_products()
        for position, group in enumerate(self.groups):
            outputs = self.read_elsewhere(position)
            reads = self.reads[position] - group.outputs()
            if self.once.can_take(group, reads, outputs) and not outputs & self.returned:
                self.build_once(group, outputs)
            else:
                self.build_group(group, outputs)
        title = f"{self.name}: {len(self.kernels)} kernels"
        self.functions.share_sizes()
        kernels = self.functions.source()
        imports = PHILOX_IMPORT if "philox_uniform" in kernels else ""
        source = MODULE_HEADER.format(title=title, description=self.description(), imports=imports) + kernels
        inputs = [self.input_spec(i, name) for i, name in enumerate(self.graph.inputs)]
        outputs = [self.output_spec(o) for o in self.graph.outputs]
        once = self.once.program(source, self.buffers, inputs, self.name)
        if once is not None and not self.graph.checks:  # else ATen may have to run the graph
            inputs = self.once.without_unused(inputs, self.steps, outputs)
            once.unused = [i for i, spec in enumerate(inputs) if isinstance(spec, p.UnusedInput)]
        inputs += self.once.inputs_of_main()
        symbols = p.bind_symbols(inputs)
        return p.Program(
            source, self.buffers(self.steps), self.steps, inputs, outputs, symbols, self.name, once
        )

    def description(self) -> str:
        lines = []
        for info in self.kernels:
            origins = sorted({f"{n.origin.layer or '-'}: {n.origin.op}" for n in info.nodes})
            lines.append(f"{info.name}\n    " + "\n    ".join(origins[:8]))
        return "\n".join(lines) + "\n" if lines else ""

    def read_elsewhere(self, position: int) -> set[str]:
        """Buffers of a group that a later group or the caller reads."""
        read = self.returned.union(*(reads for i, reads in enumerate(self.reads) if i != position))
        return self.groups[position].outputs() & read

    def build_once(self, group: Group, outputs: set[str]) -> None:
        """A kernel of frozen values alone, in the program that runs when they have changed."""
        steps, self.steps = self.steps, self.once.steps
        group.notes.append("computed once, of frozen inputs")
        self.build_group(group, outputs)
        self.steps = steps
        for name in sorted(outputs):
            buffer = self.graph.buffers[name]
            self.once.keep(p.Buffer(name, torch_dtype(buffer.dtype), buffer.numel(), "input"))

    def build_group(self, group: Group, outputs: set[str]) -> None:
        node = group.nodes[0]
        if group.is_loop:
            self.build_loops(group, outputs)
        elif isinstance(node, Contract):
            self.build_contract(node, group, outputs)
        elif isinstance(node, Scatter):
            self.build_scatter(node)
        elif isinstance(node, Scan):
            self.build_scan(node)
        elif isinstance(node, Scheduled):
            self.build_scheduled(node)
        elif isinstance(node, Extern):
            self.build_extern(node)
        else:
            raise UnsupportedOp(type(node).__name__, "no code generator")

    # ------------------------------------------------------------ generated kernels

    def build_loops(self, group: Group, outputs: set[str]) -> None:
        if any(axis.extent == 0 for axis in group.axes):
            return  # nothing to compute (sums over nothing have become constants)
        nodes, turns = group.nodes, unrolled(group)
        if turns:
            for turn in turns:
                self.alias[turn.output] = nodes[0].output
                self.dtypes[turn.output] = self.dtypes[nodes[0].output]
            group = Group(list(turns), outer=turns[0].axes)
            outputs = group.outputs()
        form = window_form(group.nodes[0])
        copy = None if turns else transposition_of(group, self.dtypes, self.graph.symbol_hints)
        if copy is not None:
            code = write_transposition(copy, self.dtypes, self.graph.symbol_hints)
        elif form is not None:
            schedule = schedule_window(group, form, self.graph.symbol_hints)
            code = WindowWriter(schedule, form, self.dtypes, outputs, self.new_partial).write()
        else:
            schedule = schedule_group(group, outputs, self.graph.symbol_hints)
            code = KernelWriter(
                schedule, self.dtypes, outputs, self.new_partial, self.even, self.alias
            ).write()
        for sink in code.sinks:
            self.extra.append(p.Buffer(sink.buffer, DTYPES[sink.dtype], sink.width * code.blocks, "arena"))
            self.dtypes[sink.buffer] = sink.dtype
        self.add_kernel(code, nodes, group.notes)
        for sink in code.sinks:
            node = combine_nodes(sink, code.blocks)
            last = Group(
                [node], outer=node.axes, inner=node.reduce_axes, decided=True, lanes_outer=bool(node.axes)
            )
            self.build_loops(last, {node.output})

    def new_partial(self, node: Reduce, dtype: str) -> str:
        return f"{node.output}_partial"

    def build_scatter(self, node: Scatter) -> None:
        self.add_kernel(write_scatter(node, self.dtypes), [node], [])

    def build_scan(self, node: Scan) -> None:
        if all(axis.extent != 0 for axis in all_axes(node)):
            self.add_kernel(write_scan(node, self.dtypes, self.graph.symbol_hints), [node], [])

    def add_function(self, lines: list[str], nodes: list[Any], parameters: str) -> str:
        """The name of a function of the module with this body."""
        return self.functions.add(lines, main_op(nodes), docstring(nodes), parameters)

    def add_kernel(self, code: KernelCode, nodes: list[Any], notes: list[str]) -> None:
        name = self.add_function(code.body, nodes, "begin, end, thread")
        arguments: list[p.Argument] = [p.PointerArgument(self.resolve(b)) for b in code.names.pointers]
        for row, (_, dtype, elements) in code.names.scratch.items():
            buffer = f"{row}_row{len(self.kernels)}"
            self.extra.append(p.Buffer(buffer, DTYPES[dtype], elements, "thread_scratch"))
            arguments.append(p.PointerArgument(buffer))
        arguments += [p.SizeArgument(size) for size in code.names.sizes]
        self.functions.called_with(name, len(arguments), append_size(arguments))
        self.steps.append(p.KernelStep(name, arguments, code.length, code.grain, main_op(nodes)))
        self.kernels.append(KernelInfo(name, nodes, notes))

    def alias_scatter_bases(self) -> None:
        """A scatter works in place on its base (`legalize` has made sure that nobody else reads it)."""
        for group in self.groups:
            node = group.nodes[0]
            if isinstance(node, Scatter) and node.base is not None:
                self.alias[node.base] = node.output

    def resolve(self, buffer: str) -> str:
        while buffer in self.alias:
            buffer = self.alias[buffer]
        return buffer

    # ------------------------------------------------------------ scheduled kernels

    def build_contract(self, node: Contract, group: Group, outputs: set[str]) -> None:
        form = packed_form(node)
        if form is None:
            raise UnsupportedOp(node.origin.op, "contraction without a matrix form")
        operands = (form.lhs, form.rhs)
        plain = [x.buffer for x, made in zip(operands, form.made) if isinstance(x, Load) and not made]
        dtypes = {self.dtypes[name] for name in plain} or {node.lhs.dtype}
        if len(dtypes) != 1:
            raise UnsupportedOp(node.origin.op, f"operands of different dtypes {sorted(dtypes)}")
        functions = self.gemm_functions(node, form, group, outputs)
        sources = [
            x.buffer if isinstance(x, Load) and not made else node.output
            for x, made in zip(operands, form.made)
        ]
        for side, kind in ((0, IndirectForm), (1, IndirectPanels)):
            operand = operands[side]
            if isinstance(form, kind) and isinstance(operand, Load):
                sources[side] = operand.buffer
        a, b, c = (self.resolve(name) for name in (*sources, node.output))
        from compiler_bridge.emit.gemm_step import gemm_step

        dtype = dtypes.pop()
        packed = self.pack_once(form, dtype, b, functions.pack_b, group)
        self.steps.append(gemm_step(form, dtype, (a, b, c), node.store.const, functions, packed))
        name = " + ".join(["gemm", *(function.name for function in functions.by_slot().values())])
        self.kernels.append(KernelInfo(name, group.nodes, group.notes))

    def pack_once(
        self, form: MatrixForm, dtype: str, b: str, pack_b: Function | None, group: Group
    ) -> str | None:
        """The buffer where B lies packed, if B is frozen."""
        from compiler_bridge.emit.gemm_step import packed_bytes, packing_step

        hints = self.graph.symbol_hints
        nbytes = packed_bytes(form, dtype, hints) if self.once.can_pack(form) else 0
        if not nbytes:
            return None
        compute = DTYPES[compute_dtype(dtype)]
        packed = p.Buffer(f"packed{len(self.kernels)}", compute, nbytes // compute.itemsize, "input")
        self.once.steps.append(packing_step(form, dtype, b, packed.name, pack_b, hints))
        self.once.keep(packed)
        group.notes.append("its weight is packed once")
        return packed.name

    def gemm_functions(
        self, node: Contract, form: MatrixForm, group: Group, outputs: set[str]
    ) -> GemmFunctions:
        from compiler_bridge.emit.gemm_step import GemmFunctions

        epilogue = self.write_epilogue(node, group, outputs) if len(group.nodes) > 1 else None
        if isinstance(form, IndirectPanels):
            found = PlacesWriter(form.places_b(), [*form.batch[1].axes, *form.k.axes], form.segments)
            return GemmFunctions(epilogue=epilogue, places_b=self.write_places(node, found))
        pack_b = self.write_prologue(node, form, 1) if form.made[1] else None
        if not isinstance(form, IndirectForm):
            pack_a = self.write_prologue(node, form, 0) if form.made[0] else None
            return GemmFunctions(pack_a, pack_b, epilogue)
        rows = [*form.batch[1].axes, *form.m.axes]
        places_a = self.write_places(node, PlacesWriter(form.places_a(), rows, form.segments))
        places_c = self.write_places(node, PlacesWriter(form.places_c(node.store), rows, ()))
        return GemmFunctions(None, pack_b, epilogue, places_a, places_c)

    def write_places(self, node: Contract, writer: PlacesWriter) -> Function:
        name = self.add_function(writer.write(), [node], "panel, first, count, k_begin, k_count, thread")
        return self.function_of(name, writer.names)

    def write_prologue(self, node: Contract, form: MatrixForm, side: int) -> Function:
        dtype = compute_dtype(node.lhs.dtype)
        is_segmented = isinstance(form, IndirectForm)
        writer = (
            SegmentsWriter(form, self.dtypes, dtype)
            if is_segmented
            else PackWriter(form, side, self.dtypes, dtype)
        )
        parameters = "panel, first, count, k_begin, k_count, thread"
        name = self.add_function(writer.write(), [node], parameters)
        return self.function_of(name, writer.names)

    def write_epilogue(self, node: Contract, group: Group, outputs: set[str]) -> Function:
        schedule = schedule_epilogue(group, self.graph.symbol_hints)
        code = EpilogueWriter(schedule, self.dtypes, outputs, node).write()
        name = self.add_function(code.body, group.nodes[1:], "row_begin, row_end, column_begin, column_end")
        return self.function_of(name, code.names)

    def function_of(self, name: str, names: Names) -> Function:
        from compiler_bridge.emit.gemm_step import Function

        function = Function(name, [self.resolve(buffer) for buffer in names.pointers], list(names.sizes))
        self.functions.called_with(name, len(function.buffers) + len(function.sizes), function.sizes.append)
        return function

    def reuse_products(self) -> None:
        """A product only its epilogue reads is made where the epilogue's result goes."""
        for position, group in enumerate(self.groups):
            node = group.nodes[0]
            if isinstance(node, Contract) and len(group.nodes) > 1:
                outputs = self.read_elsewhere(position)
                target = place_of_product(node, group, outputs, self.dtypes)
                if target is not None:
                    self.alias[node.output] = target

    def build_scheduled(self, node: Scheduled) -> None:
        from compiler_bridge.emit.attention_step import attention_step

        whole = {n: BufferView(n, b.shape, b.strides) for n, b in self.graph.buffers.items()}
        step = attention_step(node, whole, self.dtypes, self.resolve)
        self.steps.append(step)
        self.kernels.append(KernelInfo("attention", [node]))

    def build_extern(self, node: Extern) -> None:
        def template(value: Any) -> Any:
            if isinstance(value, BufferView):
                return self.tensor_view(value)
            if isinstance(value, (list, tuple)):
                return type(value)(template(v) for v in value)
            return value

        outputs: list[p.TensorView | None] = []
        for name in node.outputs:
            if name is None:
                outputs.append(None)
                continue
            buffer = self.graph.buffers[name]
            self.extern_buffers.add(name)
            outputs.append(p.TensorView(name, buffer.shape, buffer.strides, 0, torch_dtype(buffer.dtype)))
        kwargs = {key: template(value) for key, value in node.kwargs.items()}
        self.steps.append(p.ExternStep(node.target, template(node.args), kwargs, outputs, node.reason))
        self.kernels.append(KernelInfo(f"extern {node.target}", [node]))

    # ------------------------------------------------------------ buffers, inputs, outputs

    def buffers(self, steps: list[Any]) -> list[p.Buffer]:
        """The buffers of a program made of these steps."""
        result = list(self.once.kept.values())
        for name, buffer in self.graph.buffers.items():
            if name in self.alias or name in self.once.kept:
                continue
            kind: Any = "arena"
            value = None
            if buffer.kind == "input":
                kind = "input"
            elif buffer.kind == "constant":
                kind, value = "constant", self.graph.constants[name]
            elif name in self.extern_buffers:
                kind = "extern"
            elif name in self.returned:
                kind = "output"
            result.append(p.Buffer(name, torch_dtype(buffer.dtype), buffer.numel(), kind, value))
        # others that no step touches are values that live in registers, or belong to the other program
        touched = {name for step in steps for name in step.buffer_names()}
        always = ("input", "output") if steps is self.steps else ()
        return [b for b in result + self.extra if b.kind in always or b.name in touched]

    def tensor_view(self, view: BufferView) -> p.TensorView:
        name = self.resolve(view.buffer)
        return p.TensorView(
            name, view.shape, view.strides, view.offset, torch_dtype(self.dtypes[view.buffer])
        )

    def input_spec(self, position: int, name: Any) -> p.Input:
        if isinstance(name, str):
            buffer = self.graph.buffers[name]
            return p.TensorInput(name, torch_dtype(buffer.dtype), buffer.shape, buffer.strides)
        return p.SizeInput(f"size{position}", 0 if name is None else name)

    def output_spec(self, output: Any) -> p.Output:
        if isinstance(output, BufferView):
            return self.tensor_view(output)
        if isinstance(output, tuple):
            return p.InputReference(output[1])
        return output


def torch_dtype(name: str) -> torch.dtype:
    """Of a buffer; kernels touch those in DTYPES, ATen calls may give others."""
    return DTYPES.get(name) or getattr(torch, name)


def main_op(nodes: list[Any]) -> str:
    """The operation that names a kernel: of the last reduction, else of the last node."""
    node = next((n for n in reversed(nodes) if isinstance(n, Reduce)), nodes[-1])
    parts = node.origin.op.split(".")
    return re.sub(r"\W", "_", parts[1] if len(parts) > 1 else parts[0] or "loop").strip("_")


def docstring(nodes: list[Any]) -> str:
    """Layers and source lines a kernel came from."""
    lines = []
    for node in nodes:
        if not isinstance(node, (Map, Reduce, Scan, Scatter)):
            continue
        where = " ".join(x for x in (node.origin.layer, node.origin.source) if x)
        names = ", ".join(node.origin.names[-6:])
        line = f"{names}  {where}".strip().replace("\\", "/").replace('"', "'")
        if line not in lines:
            lines.append(line)
    text = f"\n{INDENT}".join(lines[:12])
    return f'{INDENT}"""{text}\n{INDENT}"""\n'


def build_program(
    graph: Graph, groups: list[Group], name: str, frozen: Sequence[int] = ()
) -> tuple[p.Program, list[KernelInfo]]:
    """frozen: positions of inputs that seldom change; what needs only them goes into `Program.once`."""
    builder = ProgramBuilder(graph, groups, name, frozen)
    return builder.build(), builder.kernels
