"""Scatter kernels: sequential over the places, parallel over what no two places share.

for r in range(begin, end):                 # a private part of the result, CHUNK of its columns
    for i in ...:                           # places, in order: deterministic, no atomics
        for j in range(first, last, lanes):
            out[r, index[i], j] += value[r, i, j]

Where the index depends on the column, too (the gradient of max pooling with channels side by side), columns come one
after the other.
"""

from __future__ import annotations

import sympy

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.emit.expression import ExpressionWriter, Scope
from compiler_bridge.emit.kernel import INDENT, KernelCode
from compiler_bridge.emit.names import Names, constant_text, decode_lines
from compiler_bridge.fuse import conjuncts
from compiler_bridge.ir import (
    Apply,
    Axis,
    Constant,
    Expr,
    Index,
    IndexValue,
    Load,
    Scatter,
    Size,
    Value,
    exact_quotient,
    size_product,
    walk,
)
from compiler_bridge.ops import SCATTERS, compute_dtype, reduce_identity


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


def inner_axis(node: Scatter) -> Axis | None:
    """A private axis along which elements lie side by side, though the data differ from one to the next: channels of
    an image, each with places of its own. One place after the other for all of them uses whole cache lines."""
    if any(step == 1 for _, step in node.store.values()):  # what the data choose from lies side by side
        return None
    return next((a for a in private_axes(node) if node.store.coefficient(a.name) == 1), None)


def private_axes(node: Scatter) -> tuple[Axis, ...]:
    """Loops of which each turn writes to a part of the result of its own.

    The guard bounds the data in the store; then the terms of the store are the digits of a mixed radix number, and
    different digits are different places.
    """
    extents = {axis.name: axis.extent for axis in node.axes}
    digits = [
        (step, extents[atom] if isinstance(atom, str) else guarded_extent(node, atom))
        for atom, step in node.store.terms
    ]
    while len(digits) > 1:  # however long the highest is
        lowest = next((d for d in digits if all(o is d or is_below(d, o) for o in digits)), None)
        if lowest is None:
            return ()
        digits.remove(lowest)
    return tuple(axis for axis in node.axes if node.store.coefficient(axis.name) != 0)


def is_below(low: tuple[Size, Size | None], high: tuple[Size, Size | None]) -> bool:
    """Whether all that the low digit counts (step, extent) is less than a step of the high one."""
    if low[1] is None:
        return False
    reach, step = low[0] * low[1], high[0]
    if isinstance(reach, int) and isinstance(step, int):
        return reach <= step
    quotient = exact_quotient(step, reach)
    return quotient is not None and sympy.sympify(quotient).is_positive is True


def guarded_extent(node: Scatter, atom: Value) -> Size | None:
    """n where the guard admits 0 <= data < n only."""
    if not isinstance(node.value, Apply) or node.value.op != "guard":
        return None
    position, conditions = IndexValue("int64", Index(((atom, 1),), 0)), conjuncts(node.value.args[0])
    if Apply("bool", "ge", (position, Constant("int64", 0))) not in conditions:
        return None
    for part in conditions:
        if isinstance(part, Apply) and part.op == "lt" and part.args[0] == position:
            bound = part.args[1]
            return bound.value if isinstance(bound, Constant) else None
    return None


def row_length(node: Scatter) -> int | None:
    """Places of the rows which a scatter can clear itself, each just before its use.

    They are what one index of data chooses from, one after the other (with one element for each turn of the inner
    axis, if there is one); every other part of the place is private.
    """
    (value, step), *more = node.store.values() or [(None, 0)]
    inner = None if column_axis(node) else inner_axis(node)
    private = tuple(axis for axis in private_axes(node) if axis != inner)
    length = None if value is None else guarded_extent(node, value)
    width = 1 if inner is None else inner.extent
    if (
        more
        or step != width
        or not (private or inner)
        or not isinstance(length, int)
        or node.store.const != 0
        or not all(isinstance(node.store.coefficient(axis.name), int) for axis in private)
    ):
        return None
    span: Size = length * width
    for axis in sorted(private, key=lambda axis: node.store.coefficient(axis.name)):  # pyright: ignore
        if not isinstance(span, int) or node.store.coefficient(axis.name) != span:
            return None
        span = span * axis.extent
    return length


CHUNK = 128
"""Columns of one parallel iteration: a place then touches several adjacent cache lines."""


class ScatterWriter:
    def __init__(self, node: Scatter, dtypes: dict[str, str]) -> None:
        self.node = node
        self.dtypes = dtypes
        self.names = Names()
        self.vector = column_axis(node)
        self.columns = self.vector or inner_axis(node)
        self.lanes = NATIVE_LANES if self.vector else 1
        vector = self.vector.name if self.vector else None
        self.writer = ExpressionWriter(
            self.names, dtypes, vector, self.lanes, {self.vector.name} if self.vector else set()
        )
        self.lines: list[str] = []

    def write(self) -> KernelCode:
        node, depth, columns = self.node, 2, self.columns
        private = tuple(axis for axis in private_axes(node) if axis != columns)
        parallel: list[tuple[str, Size]] = [(axis.name, axis.extent) for axis in private]
        if columns is not None:
            parallel.append(("chunk", (columns.extent + CHUNK - 1) // CHUNK))
        self.line(1, "for r in range(begin, end):")
        for text in decode_lines(parallel, self.names):
            self.line(depth, text)
        if columns is not None:
            self.line(depth, f"first = chunk * {CHUNK}")
            self.line(depth, f"last = min(first + {CHUNK}, {self.names.size(columns.extent)})")
        if node.base is None:
            self.clear_row(depth)
        for axis in node.axes:
            if axis != columns and axis not in private:
                self.line(depth, f"for {axis.name} in range({self.names.size(axis.extent)}):")
                depth += 1
        if columns is not None and self.vector is None:
            self.line(depth, f"for {columns.name} in range(first, last):")
            depth += 1
        self.write_place(depth)
        body = [INDENT + text for text in self.names.preamble()] + self.lines
        return KernelCode(body, self.names, size_product(extent for _, extent in parallel), 1)

    def clear_row(self, depth: int) -> None:
        """Zeros, while the row is about to be needed in the cache anyway."""
        length = row_length(self.node)
        assert length is not None, f"{self.node} needs a base"
        pointer = self.names.pointer(self.node.output, self.dtypes[self.node.output])
        inner = self.columns.name if self.columns else None
        terms = tuple(
            (atom, step) for atom, step in self.node.store.terms if isinstance(atom, str) and atom != inner
        )
        row = self.writer.offset_text(Index(terms, 0))
        if self.columns is None:
            self.clear(depth, pointer, row, str(length))
            return
        self.line(depth, f"for place in range({length}):")
        start = f"{row} + place * {self.names.size(self.columns.extent)} + first"
        self.clear(depth + 1, pointer, start, "(last - first)")

    def clear(self, depth: int, pointer: str, start: str, count: str) -> None:
        """Zeros in `count` elements."""
        dtype = self.dtypes[self.node.output]
        if dtype == "bool":  # splat makes no masks
            self.line(depth, f"for column in range({count}):")
            self.line(depth + 1, f"store({pointer}, {start} + column, False)")
            return
        wide = compute_dtype(dtype)
        zero = f"splat({constant_text(reduce_identity('sum', wide), wide, self.names)}, {NATIVE_LANES})"
        left = f"{count} % {NATIVE_LANES}"
        self.line(depth, f"for column in range(0, {count} - {left}, {NATIVE_LANES}):")
        self.line(depth + 1, f"store({pointer}, {start} + column, {zero})")
        self.line(depth, f"if {left} > 0:")
        self.line(depth + 1, f"store({pointer}, {start} + {count} - {left}, {zero}, {left})")

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
        if self.node.op != "set":
            lanes = f", {self.lanes}{count}" if self.vector else ""
            text = SCATTERS[self.node.op].format(f"load({pointer}, {offset}{lanes})", text)
        lines = [*self.writer.loop.lines, f"store({pointer}, {offset}, {text}{count})"]
        if self.vector is None:
            lines = [*self.writer.row.lines, *lines]
            self.writer.row.lines.clear()
        return lines


def write_scatter(node: Scatter, dtypes: dict[str, str]) -> KernelCode:
    return ScatterWriter(node, dtypes).write()
