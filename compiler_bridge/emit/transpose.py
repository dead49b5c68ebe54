"""Copies into another layout: square tiles of registers, so that reads and writes both go along memory.

for r in range(begin, end):              # a block of b, and what else is copied
    for a in range(0, A, lanes):         # source[.., b, a] lies side by side along a, result[.., a, b] along b
        columns = transpose((load(source, b row 0), load(source, b row 1), ...))
        store(result, a row 0, columns[0]); store(result, a row 1, columns[1]); ...

Element by element, one side of such a copy would touch a cache line for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.emit.kernel import INDENT, KernelCode
from compiler_bridge.emit.names import Names, decode_lines
from compiler_bridge.fuse import hint
from compiler_bridge.group import Group
from compiler_bridge.ir import Axis, Index, Load, Map, Size, size_equal, size_product
from compiler_bridge.schedule import merge_axes

DTYPES = ("float32", "bfloat16", "float16")
"""Of buffers whose elements are float32 in registers."""

GRAIN = 32768  # elements worth a thread


@dataclass(frozen=True)
class Transposition:
    """A copy whose source lies side by side along `read`, and whose result along `written`."""

    node: Map
    source: Load
    read: Axis
    written: Axis


def transposition_of(group: Group, dtypes: dict[str, str], hints: dict[Any, int]) -> Transposition | None:
    """What a group copies, if it does nothing else and tiles fit."""
    if len(group.nodes) != 1 or group.decided or not isinstance(group.nodes[0], Map):
        return None
    if not isinstance(group.nodes[0].value, Load):
        return None
    (node,) = merge_axes(group).nodes
    source = node.value
    if (
        not isinstance(source, Load)
        or source.mask is not None
        or source.index.values()
        or node.store.values()
    ):
        return None
    if dtypes[source.buffer] != dtypes[node.output] or dtypes[node.output] not in DTYPES:
        return None
    wide = [axis for axis in node.axes if hint(axis.extent, hints) >= NATIVE_LANES]
    read = next((a for a in wide if moves_by_one(source.index, node.store, a)), None)
    written = next((a for a in wide if moves_by_one(node.store, source.index, a)), None)
    return None if read is None or written is None else Transposition(node, source, read, written)


def moves_by_one(here: Index, there: Index, axis: Axis) -> bool:
    """Whether elements lie side by side along the axis here, and apart there."""
    apart = there.coefficient(axis.name)
    return (
        size_equal(here.coefficient(axis.name), 1) and not size_equal(apart, 0) and not size_equal(apart, 1)
    )


def write_transposition(copy: Transposition, dtypes: dict[str, str], hints: dict[Any, int]) -> KernelCode:
    return TransposeWriter(copy, dtypes, hints).write()


class TransposeWriter:
    def __init__(self, copy: Transposition, dtypes: dict[str, str], hints: dict[Any, int]) -> None:
        self.copy, self.hints = copy, hints
        self.names = Names()
        self.source = self.names.pointer(copy.source.buffer, dtypes[copy.source.buffer])
        self.result = self.names.pointer(copy.node.output, dtypes[copy.node.output])
        self.lines: list[str] = []

    def write(self) -> KernelCode:
        copy, lanes = self.copy, NATIVE_LANES
        others = [axis for axis in copy.node.axes if axis.name not in (copy.read.name, copy.written.name)]
        blocks = (copy.written.extent + lanes - 1) // lanes
        rows: list[tuple[str, Size]] = [*((axis.name, axis.extent) for axis in others), ("block", blocks)]
        self.line(1, "for r in range(begin, end):")
        for text in decode_lines(rows, self.names):
            self.line(2, text)
        self.line(2, f"b = block * {lanes}")
        self.line(2, f"source = {self.offset(copy.source.index, others)}")
        self.line(2, f"result = {self.offset(copy.node.store, others)}")
        whole = self.names.size(copy.written.extent)
        self.line(2, f"if b + {lanes} <= {whole}:")
        self.write_tiles(3)
        self.line(2, "else:")
        self.line(3, f"for place in range(b, {whole}):")
        self.write_columns(4)
        lines = [INDENT + text for text in self.names.preamble()] + self.lines
        work = hint(copy.read.extent, self.hints) * lanes
        return KernelCode(lines, self.names, size_product(e for _, e in rows), max(1, GRAIN // max(work, 1)))

    def line(self, depth: int, text: str) -> None:
        self.lines.append(INDENT * depth + text)

    def offset(self, index: Index, axes: list[Axis]) -> str:
        """Where a block begins, but for its own axes."""
        terms = [f"{a.name} * {self.names.size(index.coefficient(a.name))}" for a in axes]
        return " + ".join([f"i64({self.names.size(index.const)})", *terms])

    @property
    def steps(self) -> tuple[str, str]:
        """By what the source moves along `written`, the result along `read`."""
        copy = self.copy
        across = copy.source.index.coefficient(copy.written.name), copy.node.store.coefficient(copy.read.name)
        return self.names.size(across[0]), self.names.size(across[1])

    def write_tiles(self, depth: int) -> None:
        """A whole block: square tiles, and what is left of the rows a vector across at a time."""
        lanes, extent = NATIVE_LANES, self.names.size(self.copy.read.extent)
        row, column = self.steps
        self.line(depth, f"for a in range(0, {extent} - {extent} % {lanes}, {lanes}):")
        rows = [f"load({self.source}, source + (b + {k}) * {row} + a, {lanes})" for k in range(lanes)]
        self.line(depth + 1, f"columns = transpose(({', '.join(rows)}))")
        for k in range(lanes):
            self.line(depth + 1, f"store({self.result}, result + (a + {k}) * {column} + b, columns[{k}])")
        self.line(depth, f"for a in range({extent} - {extent} % {lanes}, {extent}):")
        across = f"load_strided({self.source}, source + b * {row} + a, {row}, {lanes})"
        self.line(depth + 1, f"store({self.result}, result + a * {column} + b, {across})")

    def write_columns(self, depth: int) -> None:
        """One place along `written`: fewer than a tile has are left."""
        extent = self.names.size(self.copy.read.extent)
        row, column = self.steps
        self.line(depth, f"for a in range({extent}):")
        value = f"load({self.source}, source + place * {row} + a)"
        self.line(depth + 1, f"store({self.result}, result + a * {column} + place, {value})")
