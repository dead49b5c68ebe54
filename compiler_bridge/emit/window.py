"""Kernels of sums over windows (`window.py`): loops as long as the window stays inside, no masks.

for r in range(begin, end):                       # gathering: the results of one row
    for c in range(0, channels, lanes):
        for x in range(4, width - 4, 4):          # four columns in registers, and the borders written apart
            for w0 in range(first tap inside, last tap inside):
                for w1 in range(3):
                    f = load(factor, ...)
                    a0 = fma(load(source, ...), f, a0)
                    ...
                    a3 = fma(load(source, ...), f, a3)
            store(out, ..., a0)                   # and the loops that were fused behind the sum

By tap, a row adds to the sums of all taps: those of the taps along the columns stand in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compiler_bridge.cpu.host import NATIVE_LANES, cache_bytes
from compiler_bridge.emit.expression import Scope, Term
from compiler_bridge.emit.kernel import INDENT, KernelCode, KernelWriter
from compiler_bridge.emit.names import constant_text, decode_lines
from compiler_bridge.fuse import hint
from compiler_bridge.group import Group
from compiler_bridge.ir import Axis, Index, Load, Size, axis_index, substitute_index, substitute_node
from compiler_bridge.ops import reduce_identity
from compiler_bridge.rules import index_range
from compiler_bridge.schedule import Schedule, numel
from compiler_bridge.window import WindowForm

REGISTERS = 8  # accumulators: as many chains of additions keep two units of four cycles busy
MOST_BORDERS = 4  # blocks of columns at the borders that are written out
SUM_REGISTERS = 30  # by tap: sums, and the factor's and the source's elements that are added next
SUM_ROWS = 8  # by tap: rows are summed in so many blocks


def schedule_window(group: Group, form: WindowForm, hints: dict[Any, int]) -> Schedule:
    """Lanes are whole registers, several where that divides the channels and leaves registers enough."""
    native = NATIVE_LANES // (2 if form.source.dtype == "float64" else 1)
    registers = 1 if form.gathers else 4 if form.column_tap.extent in (1, 2, 3) else 2
    extent = form.lane.extent
    while registers > 1 and not (isinstance(extent, int) and extent % (native * registers) == 0):
        registers //= 2
    while isinstance(extent, int) and native * registers >= 2 * extent and native > 4:
        native //= 2  # few channels do not fill a register
    role = "reduce" if form.gathers else "sink"
    roles = {node.output: "row" for node in group.nodes} | {group.nodes[0].output: role}
    inner = () if form.gathers else (form.lane,)
    lanes = native * registers
    return Schedule(list(group.nodes), form.rows, inner, form.lane, lanes, False, roles, hints=hints)


@dataclass(frozen=True)
class Bounds:
    """begin <= column < end: there every tap lies inside; numbers, or text where they are known at run time."""

    begin: Any
    end: Any


class WindowWriter(KernelWriter):
    can_stream = False

    def __init__(
        self, schedule: Schedule, form: WindowForm, dtypes: dict[str, str], outputs: set[str], sink_names: Any
    ) -> None:
        self.form = form
        super().__init__(schedule, dtypes, outputs, sink_names)
        self.native = NATIVE_LANES // (2 if form.source.dtype == "float64" else 1)
        self.jam = (
            REGISTERS if schedule.lanes <= self.native else max(1, REGISTERS * self.native // schedule.lanes)
        )
        self.ranges: dict[str, tuple[str, str]] = {}
        self.vectors = self.choose_vectors()

    def choose_vectors(self) -> int:
        """By tap: vectors of lanes that are summed side by side, so that memory is read in fewer, longer runs."""
        form, lanes = self.form, self.schedule.lanes
        extent, taps = form.lane.extent, form.column_tap.extent
        if form.gathers or not isinstance(extent, int) or not isinstance(taps, int):
            return 1
        most = SUM_REGISTERS // ((taps + 2) * max(1, lanes // self.native))
        return max((n for n in range(1, most + 1) if extent % (lanes * n) == 0), default=1)

    def choose_blocks(self) -> int:
        return max(1, min(hint(numel(self.form.rows), self.schedule.hints), SUM_ROWS))

    # ------------------------------------------------------------ the whole kernel

    def write(self) -> KernelCode:
        rows = numel(self.form.rows)
        head = self.sink_lines(rows) if self.sinks else ["for r in range(begin, end):"]
        decode = decode_lines([(a.name, a.extent) for a in self.form.rows], self.names)
        limits = self.tap_limits()
        bounds = self.column_bounds()
        content = self.content(bounds)
        lines = [*decode, *self.writer.row.lines, *limits, *self.bound_lines(bounds), *content]
        depth = len(head[-1]) - len(head[-1].lstrip()) + len(INDENT)
        self.lines = [INDENT + text for text in head] + [INDENT + " " * depth + text for text in lines]
        body = [INDENT + line for line in self.names.preamble()] + self.lines
        length = self.blocks if self.sinks else rows
        return KernelCode(body, self.names, length, self.row_grain(), list(self.sinks.values()), self.blocks)

    def row_grain(self) -> int:
        form = self.form
        axes = (form.lane, form.column, *form.taps, form.column_tap)
        work = hint(numel(tuple(a for a in axes)), self.schedule.hints)
        return 1 if self.sinks else max(1, 131072 // max(work, 1))

    def sink_lines(self, rows: Size) -> list[str]:
        """Zero this block's sums, then go through its rows."""
        (sink,) = self.sinks.values()
        pointer, width, total = (
            self.names.pointer(sink.buffer, sink.dtype), self.names.size(sink.width), self.names.size(rows)
        )  # fmt: skip
        zero = constant_text(reduce_identity("sum", sink.dtype), sink.dtype, self.names)
        begin, end = f"block * {total} // {self.blocks}", f"(block + 1) * {total} // {self.blocks}"
        return [
            "for block in range(begin, end):",
            f"{INDENT}for a in range(block * {width}, block * {width} + {width}):",
            f"{INDENT * 2}store({pointer}, a, {zero})",
            f"{INDENT}for r in range({begin}, {end}):",
        ]

    def lane_loop(self, content: Callable[[], list[str]]) -> list[str]:
        """`content` for all lanes: whole vectors, and one partial vector where they do not divide the axis."""
        lane, lanes = self.form.lane, self.schedule.lanes * self.vectors
        extent, size = lane.extent, self.names.size(lane.extent)
        whole = str(extent - extent % lanes) if isinstance(extent, int) else f"{size} - {size} % {lanes}"
        lines: list[str] = []
        if not isinstance(extent, int) or extent >= lanes:
            lines += [f"for {lane.name} in range(0, {whole}, {lanes}):", *indented(content())]
        if not isinstance(extent, int) or extent % lanes:
            self.writer.count = "lanes_left"
            lines += [
                f"for {lane.name} in range({whole}, {size}, {lanes}):",
                f"{INDENT}lanes_left = {size} - {lane.name}",
                *indented(content()),
            ]
            self.writer.count = None
        return lines

    def content(self, bounds: Bounds) -> list[str]:
        """Lanes inside of the columns where all factors stay in the first-level cache: memory is then read in order.
        Else lanes outside, so that a vector of each factor serves the whole row."""
        if not self.form.gathers:
            return self.lane_loop(lambda: self.sums_by_tap(bounds))
        if self.factor_bytes() <= cache_bytes(1) // 2:
            return self.gathered_columns(bounds, lambda *at: self.lane_loop(lambda: self.block(*at)))
        return self.lane_loop(lambda: self.gathered_columns(bounds, self.block))

    def factor_bytes(self) -> int:
        form = self.form
        elements = hint(numel((form.lane, *form.taps, form.column_tap)), self.schedule.hints)
        return elements * (8 if form.factor.dtype == "float64" else 4)

    # ------------------------------------------------------------ where the window lies inside

    def is_column_bound(self, condition: Index) -> bool:
        return self.form.column.name in condition.axes()

    def tap_limits(self) -> list[str]:
        """Lines that say how far each tap's loop runs in this row."""
        form, lines = self.form, list[str]()
        for tap in (*form.taps, form.column_tap):
            begins, ends = ["0"], [self.names.size(tap.extent)]
            for condition in form.conditions:
                factor = condition.coefficient(tap.name)
                if self.is_column_bound(condition) or factor == 0:
                    continue
                rest = self.writer.offset_text(substitute_index(condition, {tap.name: Index()}))
                if isinstance(factor, int) and factor < 0:
                    ends.append(f"({rest}) // {-factor} + 1")
                else:
                    begins.append(f"-(({rest}) // {self.names.size(factor)})")
            begin, end = begins[0], ends[0]
            if len(begins) > 1:
                begin = f"{tap.name}_begin"
                lines.append(f"{begin} = max({', '.join(begins)})")
            if len(ends) > 1:
                end = f"{tap.name}_end"
                lines.append(f"{end} = min({', '.join(ends)})")
            self.ranges[tap.name] = begin, end
        return lines

    def row_conditions(self) -> list[str]:
        """Text of the conditions that no loop of the row changes."""
        form = self.form
        moving = {form.column.name, form.column_tap.name, *(a.name for a in form.taps)}
        fixed = [c for c in form.conditions if not moving & set(c.axes())]
        return [f"{self.writer.offset_text(c)} >= 0" for c in fixed]

    def extents(self) -> dict[str, Size]:
        """Of the axes that stand in a condition beside the column."""
        return {axis.name: axis.extent for axis in (*self.form.rows, self.form.column_tap)}

    def column_bounds(self) -> Bounds:
        """Where along the columns every tap lies inside the source."""
        form = self.form
        begins: list[Any] = [0]
        ends: list[Any] = [form.column.extent]
        for condition in filter(self.is_column_bound, form.conditions):
            factor: Any = condition.coefficient(form.column.name)
            rest = substitute_index(condition, {form.column.name: Index()})
            known = index_range(rest, self.extents())
            least: Any = known[0] if known else f"({self.least_text(rest)})"
            if not isinstance(factor, int) or factor > 0:
                step = self.names.size(factor)
                begins.append(-(least // factor) if known else f"-({least} // {step})")
            else:
                ends.append(least // -factor + 1 if known else f"{least} // {-factor} + 1")
        if all(isinstance(bound, int) for bound in begins + ends):
            return Bounds(max(begins), max(min(ends), 0))
        return Bounds(text_of("max", begins, self.names), text_of("min", ends, self.names))

    def least_text(self, rest: Index) -> str:
        """The smallest value of an index in the column's tap."""
        tap = self.form.column_tap.name
        factor = rest.coefficient(tap)
        text = self.writer.offset_text(substitute_index(rest, {tap: Index()}))
        begin, end = self.ranges[tap]
        if factor == 0:
            return text
        if isinstance(factor, int) and factor < 0:
            return f"{text} - {-factor} * ({end} - 1)"
        return f"{text} + {self.names.size(factor)} * {begin}"

    def bound_lines(self, bounds: Bounds) -> list[str]:
        if isinstance(bounds.begin, int):
            return []
        return [f"inside_begin = {bounds.begin}", f"inside_end = {bounds.end}"]

    def conditions_at(self, place: Index, tap: Index | None = None) -> list[str] | None:
        """Text of what must hold at a column; None where it cannot."""
        form, found = self.form, list[str]()
        extents = self.extents()
        for condition in filter(self.is_column_bound, form.conditions):
            at = substitute_index(condition, {form.column.name: place})
            if tap is not None:
                at = substitute_index(at, {form.column_tap.name: tap})
            known = index_range(at, extents)
            if known is not None and known[1] < 0:
                return None
            if known is None or known[0] < 0:
                found.append(f"{self.writer.offset_text(at)} >= 0")
        return found

    # ------------------------------------------------------------ gathering

    def gathered_columns(self, bounds: Bounds, block: Callable[..., list[str]]) -> list[str]:
        """Blocks of columns: those inside without conditions, those at the borders with them."""
        column, jam = self.form.column, self.jam
        extent, name = column.extent, column.name
        inside = [self.at(j) for j in range(jam)]
        if isinstance(extent, int) and isinstance(bounds.begin, int):
            first = -(-bounds.begin // jam) * jam
            last = max(bounds.end // jam * jam, first)
            borders = [x for x in range(0, extent, jam) if not first <= x < last]
            if len(borders) <= MOST_BORDERS:
                lines = []
                for x in (x for x in borders if x < first):
                    lines += block([Index((), x + j) for j in range(min(jam, extent - x))], True)
                if last > first:
                    lines += [f"for {name} in range({first}, {last}, {jam}):", *indented(block(inside))]
                for x in (x for x in borders if x >= last):
                    lines += block([Index((), x + j) for j in range(min(jam, extent - x))], True)
                return lines
        begin, end = (
            (bounds.begin, bounds.end) if isinstance(bounds.begin, int) else ("inside_begin", "inside_end")
        )
        return [
            f"for {name} in range(0, {self.names.size(extent)}, {jam}):",
            f"{INDENT}if {name} >= {begin} and {name} + {jam} <= {end}:",
            *indented(block(inside), 2),
            f"{INDENT}else:",
            f"{INDENT * 2}for {name}_one in range({name}, min({name} + {jam}, {self.names.size(extent)})):",
            *indented(block([axis_index(f"{name}_one")], True), 3),
        ]

    def at(self, offset: int) -> Index:
        return Index(((self.form.column.name, 1),), offset)

    def block(self, places: list[Index], checked: bool = False) -> list[str]:
        """The sums of some columns, and what is done with them."""
        form = self.form
        node = self.schedule.nodes[0]
        zero = f"splat({self.identity_text(node)}, {self.schedule.lanes})"
        totals = [self.names.fresh("acc") for _ in places]
        lines = [f"{total} = {zero}" for total in totals]
        factor = self.names.fresh("factor")
        inner = [f"{factor} = {self.load(form.factor.index, form.factor)}"]
        for total, place in zip(totals, places):
            conditions = self.conditions_at(place) if checked else []
            if conditions is None:
                continue
            source = substitute_index(form.source.index, {form.column.name: place})
            add = f"{total} = fma({self.load(source, form.source)}, {factor}, {total})"
            if conditions:
                inner += [f"if {' and '.join(conditions)}:", INDENT + add]
            else:
                inner.append(add)
        lines += self.tap_loops((*form.taps, form.column_tap), inner)
        for total, place in zip(totals, places):
            lines += self.finish_column(total, place)
        return lines

    def tap_loops(self, taps: tuple[Axis, ...], inner: list[str]) -> list[str]:
        for tap in reversed([tap for tap in taps if tap.name]):
            begin, end = self.ranges[tap.name]
            span = end if begin == "0" else f"{begin}, {end}"
            inner = [f"for {tap.name} in range({span}):", *indented(inner)]
        guards = self.row_conditions()
        return [f"if {' and '.join(guards)}:", *indented(inner)] if guards else inner

    def load(self, index: Index, operand: Load) -> str:
        """One vector of an operand."""
        pointer = self.names.pointer(operand.buffer, self.dtypes[operand.buffer])
        count = "" if self.writer.count is None else f", {self.writer.count}"
        return f"load({pointer}, {self.writer.offset_text(index)}, {self.schedule.lanes}{count})"

    def finish_column(self, total: str, place: Index) -> list[str]:
        """Store a sum, and what the loops fused behind it make of it."""
        outer, self.writer.row = self.writer.row, Scope()
        nodes = self.schedule.nodes
        self.writer.values[nodes[0].output] = Term(total, True, False, nodes[0].value.dtype)
        for node in nodes:
            at = substitute_node(node, {self.form.column.name: place}, node.axes)
            if node is not nodes[0]:
                term = self.writer.write(at.value)
                self.writer.values[node.output] = term
            if node.output in self.outputs:
                self.write_store(at, self.writer.values[node.output], self.writer.row)  # pyright: ignore
        lines, self.writer.row = self.writer.row.lines, outer
        return lines

    def identity_text(self, node: Any) -> str:
        dtype = node.value.dtype
        return constant_text(reduce_identity(node.op, dtype), dtype, self.names)

    # ------------------------------------------------------------ by tap

    def sums_by_tap(self, bounds: Bounds) -> list[str]:
        """For each tap across the columns: the sums of those along them, over this row."""
        form, node = self.form, self.schedule.nodes[0]
        count = form.column_tap.extent
        assert isinstance(count, int)
        zero = f"splat({self.identity_text(node)}, {self.schedule.lanes})"
        totals = [[self.names.fresh("acc") for _ in range(count)] for _ in range(self.vectors)]
        lines = [f"{total} = {zero}" for vector in totals for total in vector]
        begin, end, extent = self.inside_texts(bounds)
        name = form.column.name
        for span, checked in (((0, begin), True), ((begin, end), False), ((end, extent), True)):
            if span[0] != span[1]:
                lines += [f"for {name} in range({span[0]}, {span[1]}):", *indented(self.add(totals, checked))]
        (sink,) = self.sinks.values()
        pointer = self.names.pointer(sink.buffer, sink.dtype)
        left = "" if self.writer.count is None else f", {self.writer.count}"
        for vector, sums in enumerate(totals):
            for tap, total in enumerate(sums):
                index = substitute_index(self.sink_index(sink), {form.column_tap.name: Index((), tap)})
                place = self.writer.offset_text(self.at_vector(index, vector))
                old = f"load({pointer}, {place}, {self.schedule.lanes}{left})"
                lines.append(f"store({pointer}, {place}, {old} + {total}{left})")
        return self.tap_loops(form.taps, lines)

    def at_vector(self, index: Index, vector: int) -> Index:
        """The same for the lanes of one of the vectors side by side."""
        if vector == 0:
            return index
        lane = self.form.lane.name
        return substitute_index(index, {lane: Index(((lane, 1),), vector * self.schedule.lanes)})

    def inside_texts(self, bounds: Bounds) -> tuple[Any, Any, Any]:
        """Where the columns begin and end at which every tap lies inside, and where all end."""
        extent = self.form.column.extent
        if isinstance(bounds.begin, int) and isinstance(extent, int):
            begin = min(bounds.begin, extent)
            return begin, max(min(bounds.end, extent), begin), extent
        size = self.names.size(extent)
        begin, end = (
            (bounds.begin, bounds.end) if isinstance(bounds.begin, int) else ("inside_begin", "inside_end")
        )
        begin = f"min({begin}, {size})"
        return begin, f"max({begin}, {end})", size

    def add(self, totals: list[list[str]], checked: bool) -> list[str]:
        """One column's products to the sums."""
        form, lines, factors = self.form, list[str](), list[str]()
        for vector in range(self.vectors):
            factors.append(self.names.fresh("factor"))
            index = self.at_vector(form.factor.index, vector)
            lines.append(f"{factors[-1]} = {self.load(index, form.factor)}")
        for position in range(len(totals[0])):
            tap = Index((), position)
            conditions = self.conditions_at(self.at(0), tap) if checked else []
            source = substitute_index(form.source.index, {form.column_tap.name: tap})
            adds = list[str]()
            for vector, (sums, factor) in enumerate(zip(totals, factors)):
                value = self.load(self.at_vector(source, vector), form.source)
                adds.append(f"{sums[position]} = fma({value}, {factor}, {sums[position]})")
            if conditions:
                lines += [f"if {' and '.join(conditions)}:", *indented(adds)]
            elif conditions is not None:
                lines += adds
        return lines


def indented(lines: list[str], depth: int = 1) -> list[str]:
    return [INDENT * depth + line for line in lines]


def text_of(function: str, bounds: list[Any], names: Any) -> str:
    texts = [bound if isinstance(bound, str) else names.size(bound) for bound in bounds]
    return texts[0] if len(texts) == 1 else f"{function}({', '.join(texts)})"
