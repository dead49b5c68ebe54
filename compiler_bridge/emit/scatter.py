"""Scatter kernels: sequential over the places, parallel over columns that no place shares.

for r in range(begin, end):                 # a block of the columns
    for i in ...:                           # places, in order: deterministic, no atomics
        out[index[i], columns] += value[i, columns]
"""

from __future__ import annotations

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.emit.expression import ExpressionWriter, Scope
from compiler_bridge.emit.kernel import INDENT, KernelCode
from compiler_bridge.emit.names import Names
from compiler_bridge.ir import Apply, Axis, IndexValue, Load, Scatter, Size, walk


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


class ScatterWriter:
    def __init__(self, node: Scatter, dtypes: dict[str, str]) -> None:
        self.node = node
        self.dtypes = dtypes
        self.names = Names()
        self.vector = column_axis(node)
        self.lanes = NATIVE_LANES if self.vector else 1
        vector = self.vector.name if self.vector else None
        self.writer = ExpressionWriter(self.names, dtypes, vector, self.lanes, set())
        self.lines: list[str] = []

    def write(self) -> KernelCode:
        node, depth = self.node, 1
        length: Size = 1
        self.line(depth, "for r in range(begin, end):")
        depth += 1
        if self.vector is not None:
            extent = self.vector.extent
            length = (extent + self.lanes - 1) // self.lanes
            self.line(depth, f"{self.vector.name} = r * {self.lanes}")
            if not isinstance(extent, int) or extent % self.lanes:
                self.line(
                    depth, f"lanes_left = min({self.lanes}, {self.names.size(extent)} - {self.vector.name})"
                )
                self.writer.count = "lanes_left"
        for axis in node.axes:
            if axis != self.vector:
                self.line(depth, f"for {axis.name} in range({self.names.size(axis.extent)}):")
                depth += 1
        for text in self.body():
            self.line(depth, text)
        body = [INDENT + text for text in self.names.preamble()] + self.lines
        return KernelCode(body, self.names, length, 4)

    def line(self, depth: int, text: str) -> None:
        self.lines.append(INDENT * depth + text)

    def body(self) -> list[str]:
        node = self.node
        value, guard = node.value, None
        if isinstance(value, Apply) and value.op == "guard":
            guard, value = value.args
        self.writer.row = Scope()
        condition = self.writer.write(guard) if guard is not None else None
        head = list(self.writer.row.lines)
        self.writer.row.lines.clear()
        term = self.writer.write(value)
        offset = self.writer.offset_text(node.store)
        pointer = self.names.pointer(node.output, self.dtypes[node.output])
        text = self.writer.as_vector(term) if self.vector else term.text
        count = f", {self.writer.count}" if self.writer.count else ""
        if node.op == "add":
            lanes = f", {self.lanes}{count}" if self.vector else ""
            text = f"load({pointer}, {offset}{lanes}) + {text}"
        tail = [*self.writer.row.lines, f"store({pointer}, {offset}, {text}{count})"]
        self.writer.row.lines.clear()
        if condition is None:
            return head + tail
        return [*head, f"if {condition.text}:", *(INDENT + line for line in tail)]


def write_scatter(node: Scatter, dtypes: dict[str, str]) -> KernelCode:
    return ScatterWriter(node, dtypes).write()
