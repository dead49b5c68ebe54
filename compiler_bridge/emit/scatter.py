"""Scatter kernels: sequential over the places, parallel over columns that no place shares.

for r in range(begin, end):                 # CHUNK of the columns
    for i in ...:                           # places, in order: deterministic, no atomics
        for j in range(first, last, lanes):
            out[index[i], j] += value[i, j]
"""

from __future__ import annotations

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.emit.expression import ExpressionWriter, Scope
from compiler_bridge.emit.kernel import INDENT, KernelCode
from compiler_bridge.emit.names import Names
from compiler_bridge.ir import Apply, Axis, Expr, IndexValue, Load, Scatter, Size, walk


def data_axes(node: Scatter) -> set[str]:
    """Axes on which a data-dependent index of the store depends."""
    return {
        a
        for value, _ in node.store.values()
        for part in walk(value.expr)
        if isinstance(part, (Load, IndexValue))
        for a in part.index.axes()
    }


def column_axis(node: Scatter) -> Axis | None:
    """An axis with stride 1 in the store that no data-dependent index uses."""
    data = data_axes(node)
    return next((a for a in node.axes if a.name not in data and node.store.coefficient(a.name) == 1), None)


CHUNK = 128
"""Columns of one parallel iteration: a place then touches several adjacent cache lines."""


class ScatterWriter:
    def __init__(self, node: Scatter, dtypes: dict[str, str]) -> None:
        self.node = node
        self.dtypes = dtypes
        self.names = Names()
        self.vector = column_axis(node)
        self.lanes = NATIVE_LANES if self.vector else 1
        vector = self.vector.name if self.vector else None
        self.writer = ExpressionWriter(
            self.names, dtypes, vector, self.lanes, {self.vector.name} if self.vector else set()
        )
        self.lines: list[str] = []

    def write(self) -> KernelCode:
        node, depth = self.node, 2
        length: Size = 1
        self.line(1, "for r in range(begin, end):")
        if self.vector is not None:
            extent = self.vector.extent
            length = (extent + CHUNK - 1) // CHUNK
            self.line(depth, f"first = r * {CHUNK}")
            self.line(depth, f"last = min(first + {CHUNK}, {self.names.size(extent)})")
        for axis in node.axes:
            if axis != self.vector:
                self.line(depth, f"for {axis.name} in range({self.names.size(axis.extent)}):")
                depth += 1
        self.write_place(depth)
        body = [INDENT + text for text in self.names.preamble()] + self.lines
        return KernelCode(body, self.names, length, 1)

    def line(self, depth: int, text: str) -> None:
        self.lines.append(INDENT * depth + text)

    def flush_row(self, depth: int) -> None:
        for text in self.writer.row.lines:
            self.line(depth, text)
        self.writer.row.lines.clear()

    def write_place(self, depth: int) -> None:
        """One place: where it is, whether it is in range, and its columns."""
        value, guard = self.node.value, None
        if isinstance(value, Apply) and value.op == "guard":
            guard, value = value.args
        if guard is not None:
            condition = self.writer.write(guard)
            self.flush_row(depth)
            self.line(depth, f"if {condition.text}:")
            depth += 1
        if self.vector is None:
            for text in self.update(value):
                self.line(depth, text)
            return
        name, left = self.vector.name, f"(last - first) % {self.lanes}"
        chunks = [(f"for {name} in range(first, last - {left}, {self.lanes}):", self.update(value))]
        if not isinstance(self.vector.extent, int) or self.vector.extent % self.lanes:
            self.writer.count = f"({left})"
            chunks.append((f"if {left} > 0:", [f"{name} = last - {left}", *self.update(value)]))
            self.writer.count = None
        self.flush_row(depth)
        for header, body in chunks:
            self.line(depth, header)
            for text in body:
                self.line(depth + 1, text)

    def update(self, value: Expr) -> list[str]:
        """Lines that put (or add) the value in its place; what does not vary along the columns stays in the
        row scope when there are columns."""
        self.writer.loop = Scope()
        term = self.writer.write(value)
        offset = self.writer.offset_text(self.node.store)
        pointer = self.names.pointer(self.node.output, self.dtypes[self.node.output])
        text = self.writer.as_vector(term) if self.vector else term.text
        count = f", {self.writer.count}" if self.writer.count else ""
        if self.node.op == "add":
            lanes = f", {self.lanes}{count}" if self.vector else ""
            text = f"load({pointer}, {offset}{lanes}) + {text}"
        lines = [*self.writer.loop.lines, f"store({pointer}, {offset}, {text}{count})"]
        if self.vector is None:
            lines = [*self.writer.row.lines, *lines]
            self.writer.row.lines.clear()
        return lines


def write_scatter(node: Scatter, dtypes: dict[str, str]) -> KernelCode:
    return ScatterWriter(node, dtypes).write()
