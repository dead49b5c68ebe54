"""One scheduled kernel to Python source.

for r in range(begin, end):            # rows, shared among the threads
    <decode r into the outer axes>
    <row values>
    for j in range(0, cols, lanes):    # loop 0: sums
    <row values that need the sums>
    for j in range(0, cols, lanes):    # loop 1: results
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler_bridge.emit.columns import sums_columns_only, write_columns
from compiler_bridge.emit.expression import ExpressionWriter, Scope, Term
from compiler_bridge.emit.names import Names, constant_text, decode_lines
from compiler_bridge.emit.sinks import Sink
from compiler_bridge.emit.streaming import is_aligned, passes_the_caches
from compiler_bridge.fuse import expr_cost, hint
from compiler_bridge.ir import Axis, Index, Map, Reduce, Size, node_exprs
from compiler_bridge.ops import REDUCTIONS, reduce_identity
from compiler_bridge.schedule import Schedule, numel

SUM_BLOCK = 2048  # columns summed in one accumulator before it is added to the row's total
INDENT = "    "
JOINED = {
    "float32": (
        "int64",
        'cast(bitcast({0}, "uint32"), "int64") | (cast(bitcast({1}, "uint32"), "int64") << 32)',
    ),
}
"""dtype -> (the integer that holds two elements, how they are put into it)"""


@dataclass
class KernelCode:
    """Source of one kernel and how to call it."""

    body: list[str]
    names: Names
    length: Size
    grain: int
    sinks: list[Sink] = field(default_factory=list)
    blocks: int = 0


class KernelWriter:
    def __init__(
        self,
        schedule: Schedule,
        dtypes: dict[str, str],
        outputs: set[str],
        sink_names: Any,
        even: frozenset[str] = frozenset(),
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.schedule = schedule
        self.outputs = outputs
        self.names = Names()
        self.dtypes = dtypes
        vector = schedule.vector.name if schedule.vector else None
        inner = {a.name for a in schedule.inner}
        self.writer = ExpressionWriter(self.names, dtypes, vector, schedule.lanes, inner)
        self.writer.even = even
        self.vector = schedule.vector  # of the loop being written
        self.aliases = aliases or {}
        self.lines: list[str] = []
        self.sinks = {
            n.output: self.make_sink(n, sink_names)
            for n in schedule.nodes
            if schedule.roles[n.output] == "sink"
        }
        self.blocks = self.choose_blocks() if self.sinks else 0
        self.beside = self.stores_beside()
        self.waiting: dict[str, str] = {}  # stored once the value beside is known
        self.accumulators: dict[str, str] = {}  # of sinks that are summed in registers
        self.streams = self.can_stream and passes_the_caches(schedule, outputs, dtypes, self.aliases)

    can_stream = True  # whether the vector axis only takes multiples of the lanes, where a vector is whole

    @property
    def lanes(self) -> int:
        """Of the loop being written."""
        return self.writer.lanes

    # ------------------------------------------------------------ the whole kernel

    def write(self) -> KernelCode:
        s = self.schedule
        rows, length = self.row_range()
        depth = 1
        if self.sinks:
            self.line(depth, "for block in range(begin, end):")
            depth += 1
            total = self.names.size(rows)
            begin = f"block * {total} // {self.blocks}"
            end = f"(block + 1) * {total} // {self.blocks}"
            if sums_columns_only(self):
                write_columns(self, depth, f"range({begin}, {end})")
                return self.finished(rows, length)
            for sink in self.sinks.values():
                pointer = self.names.pointer(sink.buffer, sink.dtype)
                width = self.names.size(sink.width)
                zero = constant_text(reduce_identity(sink.node.op, sink.dtype), sink.dtype, self.names)
                self.line(depth, f"for a in range(block * {width}, block * {width} + {width}):")
                self.line(depth + 1, f"store({pointer}, a, {zero})")
            self.line(depth, f"for r in range({begin}, {end}):")
        else:
            self.line(depth, "for r in range(begin, end):")
        depth += 1
        self.decode_rows(depth)
        for level in range(max(s.loops, 1 + max(s.level.values(), default=0))):
            self.write_level(level, depth)
        self.flush_row(depth)
        return self.finished(rows, length)

    def finished(self, rows: Size, length: Size) -> KernelCode:
        body = [INDENT + line for line in self.names.preamble()] + self.lines
        return KernelCode(body, self.names, length, self.grain(rows), list(self.sinks.values()), self.blocks)

    def line(self, depth: int, text: str) -> None:
        self.lines.append(INDENT * depth + text)

    def row_range(self) -> tuple[Size, Size]:
        """(rows, parallel length): with lanes along an outer axis a row is one vector of it."""
        s = self.schedule
        rows = numel(s.outer)
        if s.lanes_outer and s.vector is not None:
            rows = rows * self.vector_blocks()
        return rows, (self.blocks if self.sinks else rows)

    def vector_blocks(self) -> Size:
        s = self.schedule
        assert s.vector is not None
        extent = s.vector.extent
        return (extent + s.lanes - 1) // s.lanes

    def grain(self, rows: Size) -> int:
        s = self.schedule
        if self.sinks:
            return 1
        work = sum(1 + expr_cost(e) // 2 for n in s.nodes for e in node_exprs(n))
        row = hint(numel(s.inner), s.hints) * (s.lanes if s.lanes_outer else 1) * max(work, 1)
        return max(1, 32768 // max(row, 1))

    def decode_rows(self, depth: int) -> None:
        """r -> outer axes; the last one runs fastest."""
        s = self.schedule
        axes: list[tuple[str, Size]] = [(a.name, a.extent) for a in s.outer]
        if s.lanes_outer and s.vector is not None:
            axes.append(("block_of_lanes", self.vector_blocks()))
        for text in decode_lines(axes, self.names):
            self.line(depth, text)
        if s.lanes_outer and s.vector is not None:
            self.line(depth, f"{s.vector.name} = block_of_lanes * {s.lanes}")
            extent = s.vector.extent
            if not isinstance(extent, int) or extent % s.lanes:
                self.line(depth, f"lanes_left = min({s.lanes}, {self.names.size(extent)} - {s.vector.name})")
                self.writer.count = "lanes_left"

    # ------------------------------------------------------------ one level

    def write_level(self, level: int, depth: int) -> None:
        s = self.schedule
        for node in s.nodes:
            if s.level[node.output] == level and s.roles[node.output] == "row":
                self.write_row_map(node)
        needed = [n for n in s.nodes if s.level[n.output] == level and s.in_loop(n, self.outputs)]
        if needed:
            self.write_loop(needed, level, depth)

    def write_row_map(self, node: Map) -> None:
        term = self.writer.write(node.value)
        self.writer.values[node.output] = term
        if node.output in self.outputs:
            self.write_store(node, term, self.writer.row)

    def flush_row(self, depth: int) -> None:
        for text in self.writer.row.lines:
            self.line(depth, text)
        self.writer.row.lines.clear()

    def write_loop(self, nodes: list[Any], level: int, depth: int) -> None:
        s = self.schedule
        inner = [a for a in s.inner if a is not s.vector] if not s.lanes_outer else list(s.inner)
        run = s.runs.get(level)
        if run is not None:
            inner = []
            self.vector, self.writer.lanes = run.vector, run.lanes
        reduces = [n for n in nodes if s.roles[n.output] == "reduce"]
        accumulators = {n.output: self.names.fresh("acc") for n in reduces}
        blocked = self.sum_block(reduces, inner)
        # the loop bodies first: they may add row values, which belong before the loop
        chunks: list[tuple[str, list[str]]] = []
        if s.lanes_outer or s.vector is None:
            chunks.append(("", self.write_body(nodes, level, accumulators)))
        elif s.sections:
            chunks = self.section_chunks(nodes, level)
        else:
            self.writer.line = Scope() if inner else None
            chunks = self.vector_chunks(nodes, level, accumulators)
        self.flush_row(depth)
        for node in reduces:
            self.line(depth, f"{accumulators[node.output]} = {self.identity(node)}")
            if blocked:
                self.line(depth, f"{accumulators[node.output]}_total = {self.identity(node)}")
        inside = depth
        for axis in run.still if run is not None else ():
            self.line(depth, f"{axis.name} = 0")
        for axis in inner:
            self.line(inside, f"for {axis.name} in range({self.names.size(axis.extent)}):")
            inside += 1
        if self.writer.line is not None:
            for text in self.writer.line.lines:
                self.line(inside, text)
            self.writer.line = None
        for header, body in chunks:
            self.write_chunk(header, body, inside, reduces if blocked else [], accumulators)
        for node in reduces:
            self.finish_reduce(node, accumulators[node.output], blocked)
        self.vector, self.writer.lanes = s.vector, s.lanes

    def sum_block(self, reduces: list[Any], inner: list[Axis]) -> bool:
        """Whether long sums are cut into blocks, to keep rounding errors as small as ATen's."""
        if self.schedule.lanes_outer or self.vector is None or not any(n.op == "sum" for n in reduces):
            return False
        extent = self.vector.extent
        return not isinstance(extent, int) or extent > 2 * SUM_BLOCK or bool(inner)

    def write_chunk(
        self, header: str, body: list[str], depth: int, blocked: list[Any], accumulators: dict[str, str]
    ) -> None:
        if header.startswith("for ") and blocked:
            assert self.vector is not None
            name, stop = self.vector.name, header.split(", ")[1]
            self.line(depth, f"for first in range(0, {stop}, {SUM_BLOCK}):")
            self.line(
                depth + 1, f"for {name} in range(first, min(first + {SUM_BLOCK}, {stop}), {self.lanes}):"
            )
            for text in body:
                self.line(depth + 2, text)
            for node in blocked:
                acc = accumulators[node.output]
                combined = REDUCTIONS[node.op].combine.format(f"{acc}_total", acc)
                self.line(depth + 1, f"{acc}_total = {combined}")
                self.line(depth + 1, f"{acc} = {self.identity(node)}")
            return
        if header:
            self.line(depth, header)
        for text in body:
            self.line(depth + (1 if header.endswith(":") else 0), text)

    def vector_chunks(
        self, nodes: list[Any], level: int, accumulators: dict[str, str]
    ) -> list[tuple[str, list[str]]]:
        """Whole vectors, and one partial vector where the lanes do not divide the axis."""
        assert self.vector is not None
        name, extent, lanes = self.vector.name, self.vector.extent, self.lanes
        divides = isinstance(extent, int) and extent % lanes == 0
        chunks: list[tuple[str, list[str]]] = []
        if isinstance(extent, int):
            whole, left = str(extent - extent % lanes), str(extent % lanes)
        else:
            size = self.names.size(extent)
            whole, left = f"{size} - {size} % {lanes}", f"{size} % {lanes}"
        if not isinstance(extent, int) or extent >= lanes:
            chunks.append(
                (f"for {name} in range(0, {whole}, {lanes}):", self.write_body(nodes, level, accumulators))
            )
        if not divides:
            self.writer.count = f"({left})"
            body = self.write_body(nodes, level, accumulators)
            self.writer.count = None
            if isinstance(extent, int):
                chunks.append(("", [f"{name} = {whole}", *body]))
            else:
                chunks.append((f"if {left} > 0:", [f"{name} = {whole}", *body]))
        return chunks

    def section_chunks(self, nodes: list[Any], level: int) -> list[tuple[str, list[str]]]:
        """The chunks of every section, one after the other; `nodes` are those of the whole loop to be written."""
        whole, chunks = self.schedule, list[tuple[str, list[str]]]()
        wanted = {node.output for node in nodes}
        for section in whole.sections:
            self.enter(section)
            written = [node for node in section.nodes if node.output in wanted]
            if section.vector is None:
                (axis,) = section.inner
                body = self.write_body(written, level, {})
                chunks.append((f"for {axis.name} in range({axis.extent}):", body))
            else:
                chunks += self.vector_chunks(written, level, {})
        self.enter(whole)
        return chunks

    def enter(self, schedule: Schedule) -> None:
        """What is written next is this section of the loop, or the whole."""
        self.schedule, self.vector = schedule, schedule.vector
        self.writer.vector = schedule.vector.name if schedule.vector else None
        self.writer.lanes = schedule.lanes
        self.beside = self.stores_beside()

    def write_body(self, nodes: list[Any], level: int, accumulators: dict[str, str]) -> list[str]:
        """Lines of one pass through the loop for these nodes."""
        s = self.schedule
        self.writer.loop = Scope()
        # Values on demand: an earlier loop's are read back or computed again.
        full = {n.output: self.on_demand(n, level) for n in s.nodes if s.roles[n.output] == "full"}
        self.writer.values.update(full)
        for node in nodes:
            role = s.roles[node.output]
            if role == "full":
                term = full[node.output]()
                if node.output in self.outputs:
                    self.write_full(node, term)
                if node.output in s.kept:
                    self.keep(node, term)
            elif role == "reduce":
                self.accumulate(node, accumulators[node.output])
            elif role == "sink":
                self.write_sink(node)
            else:
                raise AssertionError(
                    f"{node} has no role in {s.outer} x {s.inner} (lanes outer: {s.lanes_outer})"
                )
        lines = self.writer.loop.lines
        self.writer.loop = Scope()
        return lines

    def begin_body(self) -> None:
        """What is to stand first in a loop."""

    def on_demand(self, node: Any, level: int) -> Callable[[], Term]:
        s = self.schedule

        def value() -> Term:
            key = ("full", node.output)
            known = self.writer.loop.known.get(key)
            if known is None:
                if node.output in s.kept and s.level[node.output] < level:
                    known = self.read_kept(node)
                else:
                    known = self.writer.write(node.value)
                self.writer.loop.known[key] = known
            return known

        return value

    # ------------------------------------------------------------ rows kept for a later loop

    def kept_place(self, node: Any) -> tuple[str, str]:
        """(pointer, index) of this lane's place in the scratch row."""
        s = self.schedule
        width: Size = s.lanes if s.lanes_outer else 1
        index = "0"
        for axis in reversed(s.inner):
            index = (
                f"{index} + {axis.name} * {self.names.size(width)}"
                if width != 1
                else f"{index} + {axis.name}"
            )
            width = width * axis.extent
        return self.names.scratch_row(node.output, node.value.dtype, (width + 127) // 64 * 64), index

    def keep(self, node: Any, term: Term) -> None:
        pointer, index = self.kept_place(node)
        self.writer.loop.lines.append(f"store({pointer}, {index}, {self.vector_text(term)})")

    def read_kept(self, node: Any) -> Term:
        pointer, index = self.kept_place(node)
        lanes = "" if self.schedule.vector is None else f", {self.lanes}"
        text = f"load({pointer}, {index}{lanes})"
        return self.writer.define(("kept", node.output), text, bool(lanes), True, node.value.dtype)

    def vector_text(self, term: Term) -> str:
        if self.schedule.vector is None:
            return term.text
        return self.writer.as_vector(term)

    # ------------------------------------------------------------ reductions

    def identity(self, node: Reduce) -> str:
        value = reduce_identity(node.op, node.value.dtype)
        text = constant_text(value, node.value.dtype, self.names)
        return text if self.schedule.vector is None else f"splat({text}, {self.lanes})"

    def accumulate(self, node: Reduce, accumulator: str) -> None:
        term = self.writer.write(node.value)
        text = self.vector_text(term)
        if self.writer.count is not None and not self.schedule.lanes_outer:
            text = f"where(lane_mask({self.writer.count}, {self.lanes}), {text}, {self.identity(node)})"
        combined = REDUCTIONS[node.op].combine.format(accumulator, text)
        self.writer.loop.lines.append(f"{accumulator} = {combined}")

    def finish_reduce(self, node: Reduce, accumulator: str, blocked: bool) -> None:
        s = self.schedule
        text = accumulator
        if blocked:
            text = REDUCTIONS[node.op].combine.format(f"{accumulator}_total", accumulator)
        vector = s.lanes_outer and s.vector is not None
        if not vector and s.vector is not None:
            text = REDUCTIONS[node.op].horizontal.format(text)
        term = self.writer.define(("reduce", node.output), text, vector, False, node.value.dtype)
        self.writer.values[node.output] = term
        if node.output in self.outputs:
            self.write_store(node, term, self.writer.row)

    # ------------------------------------------------------------ stores

    def write_full(self, node: Any, term: Term) -> None:
        """A store; of two that fill every second place of one row, the pairs of both."""
        other = self.beside.get(node.output)
        if other is None:
            self.write_store(node, term, self.writer.loop)
            return
        self.waiting[node.output] = self.vector_text(term)
        if other.output not in self.waiting:
            return
        low, high = (node, other) if node.store.const < other.store.const else (other, node)
        dtype = self.dtypes[node.output]
        pair, join = JOINED[dtype]
        pointer = self.names.pair_pointer(low.output, dtype, pair)
        place = Index(tuple((atom, step // 2) for atom, step in low.store.terms), low.store.const // 2)
        value = join.format(self.waiting.pop(low.output), self.waiting.pop(high.output))
        count = f", {self.writer.count}" if self.writer.count is not None else ""
        lines = self.writer.loop.lines
        lines.append(f"store({pointer}, {self.writer.offset_text(place)}, {value}{count})")

    def stores_beside(self) -> dict[str, Any]:
        """For each node, the one that stores right beside it, both at every second place."""
        s, found = self.schedule, dict[str, Any]()
        if s.vector is None or s.lanes_outer:
            return found
        for a, b in itertools.permutations([n for n in s.nodes if n.output in self.outputs], 2):
            steps = [step for _, step in a.store.terms]
            even = all(isinstance(step, int) and step % 2 == 0 for step in (*steps, a.store.const))
            if (
                even
                and self.aliases.get(a.output, a.output) == self.aliases.get(b.output)
                and a.store.coefficient(s.vector.name) == 2
                and b.store == a.store + 1
                and self.dtypes[a.output] in JOINED
            ):
                found[a.output], found[b.output] = b, a
        return found

    def write_store(self, node: Any, term: Term, scope: Scope) -> None:
        pointer = self.names.pointer(node.output, self.dtypes[node.output])
        stride = node.store.coefficient(self.writer.vector) if self.writer.vector else 0
        offset = self.writer.offset_text(node.store)
        count = f", {self.writer.count}" if self.writer.count is not None else ""
        if self.writer.vector is None or self.writer.vector not in node.store.axes():
            scope.lines.append(f"store({pointer}, {offset}, {term.text})")
        elif stride == 1:
            streamed = self.streams and not count and is_aligned(node.store, self.writer.vector, self.lanes)
            word = "store_stream" if streamed else "store"
            scope.lines.append(f"{word}({pointer}, {offset}, {self.vector_text(term)}{count})")
        else:
            step = self.names.size(stride)
            scope.lines.append(f"store_strided({pointer}, {offset}, {step}, {self.vector_text(term)}{count})")

    # ------------------------------------------------------------ sums over rows

    def make_sink(self, node: Reduce, sink_names: Any) -> Sink:
        inner = {a.name for a in self.schedule.inner}
        in_row = not (inner & {a.name for a in node.axes})
        dtype = node.value.dtype
        if in_row and dtype == "float32":
            dtype = "float64"  # few accumulators, many additions
        buffer = sink_names(node, dtype)
        self.dtypes = {**self.dtypes, buffer: dtype}
        # the vector axis last: a vector of accumulators is contiguous
        vector = self.schedule.vector.name if self.schedule.vector else None
        axes = tuple(sorted(node.axes, key=lambda axis: axis.name == vector))
        return Sink(node, buffer, dtype, numel(node.axes), axes)

    def choose_blocks(self) -> int:
        rows = hint(numel(self.schedule.outer), self.schedule.hints)
        width = max(hint(s.width, self.schedule.hints) for s in self.sinks.values())
        return max(1, min(rows // 64, 64, (1 << 20) // max(width, 1), rows))

    def sink_index(self, sink: Sink) -> Index:
        total = Index((("block", sink.width),), 0)
        width: Size = 1
        for axis in reversed(sink.axes):
            total = total + Index(((axis.name, width),), 0)
            width = width * axis.extent
        return total

    def write_sink(self, node: Reduce) -> None:
        sink = self.sinks[node.output]
        pointer = self.names.pointer(sink.buffer, sink.dtype)
        offset = self.writer.offset_text(self.sink_index(sink))
        term = self.writer.write(node.value)
        s = self.schedule
        lines = self.writer.loop.lines
        row = REDUCTIONS[node.op]
        in_row = s.vector is None or s.vector.name not in {a.name for a in sink.axes}
        text = self.vector_text(term)
        if in_row:
            if s.vector is not None:
                if self.writer.count is not None:
                    text = (
                        f"where(lane_mask({self.writer.count}, {self.lanes}), {text}, {self.identity(node)})"
                    )
                text = row.horizontal.format(text)
            text = f'cast({text}, "{sink.dtype}")'
            lines.append(
                f"store({pointer}, {offset}, {row.combine.format(f'load({pointer}, {offset})', text)})"
            )
            return
        count = f", {self.writer.count}" if self.writer.count is not None else ""
        if node.output in self.accumulators:
            accumulator = self.accumulators[node.output]
            lines.append(f"{accumulator} = {row.combine.format(accumulator, text)}")
            lines.append(f"store({pointer}, {offset}, {accumulator}{count})")  # after the last row
            return
        old = f"load({pointer}, {offset}, {self.lanes}{count})"
        lines.append(f"store({pointer}, {offset}, {row.combine.format(old, text)}{count})")
