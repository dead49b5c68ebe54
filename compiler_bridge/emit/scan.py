"""Scan kernels: sequential along the scanned axes, parallel over the others.

for r in range(begin, end):                 # one row, or a vector of rows that lie side by side
    total = 0
    for j in range(n):
        total = total + value[r, j]
        out[r, j] = total
"""

from __future__ import annotations

from typing import Any

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.emit.expression import ExpressionWriter
from compiler_bridge.emit.kernel import INDENT, KernelCode
from compiler_bridge.emit.names import Names, constant_text, decode_lines
from compiler_bridge.fuse import expr_cost, hint
from compiler_bridge.ir import Axis, Scan, Size, size_product
from compiler_bridge.ops import REDUCTIONS, reduce_identity

FEWEST_LANES = 4  # an axis shorter than this is not worth a vector
GRAIN = 32768  # operations worth a thread


class ScanWriter:
    def __init__(self, node: Scan, dtypes: dict[str, str], hints: dict[Any, int]) -> None:
        self.node = node
        self.hints = hints
        self.names = Names()
        self.pointer = self.names.pointer(node.output, dtypes[node.output])
        self.vector = self.vector_axis()
        self.lanes = NATIVE_LANES if self.vector else 1
        vector = self.vector.name if self.vector else None
        scanned = {axis.name for axis in node.scan_axes}
        self.writer = ExpressionWriter(self.names, dtypes, vector, self.lanes, scanned)
        self.lines: list[str] = []

    def vector_axis(self) -> Axis | None:
        """An axis along which the results lie side by side."""
        beside = (a for a in self.node.axes if self.node.store.coefficient(a.name) == 1)
        return next((a for a in beside if hint(a.extent, self.hints) >= FEWEST_LANES), None)

    def write(self) -> KernelCode:
        node = self.node
        rows = [(axis.name, axis.extent) for axis in node.axes if axis is not self.vector]
        if self.vector is not None:
            rows.append(("block_of_lanes", (self.vector.extent + self.lanes - 1) // self.lanes))
        self.line(1, "for r in range(begin, end):")
        for text in [*decode_lines(rows, self.names), *self.lane_lines()]:
            self.line(2, text)
        body = self.body()
        for text in self.writer.row.lines:  # what does not vary along the scan
            self.line(2, text)
        self.line(2, f"total = {self.identity()}")
        depth = 2
        for axis in node.scan_axes:
            self.line(depth, f"for {axis.name} in range({self.names.size(axis.extent)}):")
            depth += 1
        for text in body:
            self.line(depth, text)
        lines = [INDENT + text for text in self.names.preamble()] + self.lines
        return KernelCode(lines, self.names, size_product(extent for _, extent in rows), self.grain())

    def line(self, depth: int, text: str) -> None:
        self.lines.append(INDENT * depth + text)

    def lane_lines(self) -> list[str]:
        """The first lane's place, and how many lanes there are where the axis may end within a vector."""
        if self.vector is None:
            return []
        name, extent = self.vector.name, self.vector.extent
        lines = [f"{name} = block_of_lanes * {self.lanes}"]
        if not isinstance(extent, int) or extent % self.lanes:
            lines.append(f"lanes_left = min({self.lanes}, {self.names.size(extent)} - {name})")
            self.writer.count = "lanes_left"
        return lines

    def identity(self) -> str:
        dtype = self.node.value.dtype
        text = constant_text(reduce_identity(self.node.op, dtype), dtype, self.names)
        return text if self.vector is None else f"splat({text}, {self.lanes})"

    def body(self) -> list[str]:
        term = self.writer.write(self.node.value)
        text = self.writer.as_vector(term) if self.vector else term.text
        count = f", {self.writer.count}" if self.writer.count else ""
        return [
            *self.writer.loop.lines,
            f"total = {REDUCTIONS[self.node.op].combine.format('total', text)}",
            f"store({self.pointer}, {self.writer.offset_text(self.node.store)}, total{count})",
        ]

    def grain(self) -> int:
        """Rows worth a thread."""
        length: Size = size_product(axis.extent for axis in self.node.scan_axes)
        work = hint(length, self.hints) * self.lanes * (1 + expr_cost(self.node.value) // 2)
        return max(1, GRAIN // max(work, 1))


def write_scan(node: Scan, dtypes: dict[str, str], hints: dict[Any, int]) -> KernelCode:
    """hints: a plausible value of each symbolic size."""
    return ScanWriter(node, dtypes, hints).write()
