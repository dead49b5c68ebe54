"""An operand of a contraction that a function makes: it computes the elements as it packs them.

def k(tab, panel, first, count, k_begin, k_count, thread):
    for k in range(k_begin, k_begin + k_count):          # rows of A, or columns of B, along the lanes
        store(out, (k - k_begin) * width, f(load(x, ...)), count)

or, where memory is contiguous along k, with vectors along k and one lane after the other. `first` counts rows
(columns) through the batches; what it stands for is taken apart into the operand's own axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler_bridge.contract import Dimension, IndirectForm, MatrixForm
from compiler_bridge.cpu.gemm_plan import ENTRY, ROWS, panel_columns
from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.emit.expression import ExpressionWriter, Scope
from compiler_bridge.emit.kernel import INDENT
from compiler_bridge.emit.names import Names
from compiler_bridge.ir import (
    Axis,
    Constant,
    Expr,
    Index,
    IndexValue,
    Load,
    Value,
    axis_index,
    substitute,
    walk,
)
from compiler_bridge.lower.lowering import apply, cast, constant

POSITION, SUM = "position", "k"
"""The two loop variables: the row or column, counted through the batches, and the place in the sum."""


def take_apart(name: str, axes: Sequence[Axis]) -> dict[str, Index]:
    """The axes (slowest first) that together count `name`: quotients and remainders by their extents."""
    if len(axes) == 1:
        return {axes[0].name: axis_index(name)}
    rest: Expr = IndexValue("int64", axis_index(name))
    found: dict[str, Index] = {}
    for axis in reversed(axes[1:]):
        extent = Constant("int64", axis.extent)
        quotient = quotient_of(rest, extent)
        remainder = apply("sub", rest, apply("mul", quotient, extent))
        found[axis.name] = Index(((Value(remainder), 1),))
        rest = quotient
    if axes:
        found[axes[0].name] = Index(((Value(rest), 1),))
    return found


def quotient_of(position: Expr, extent: Expr) -> Expr:
    """floor(position / extent) by float64: registers hold no quotients of integers.

    A half more keeps (position + 1/2) / extent at least 1 / (2 extent) away from a whole number; exact for
    positions below 2**50.
    """
    half = apply("add", cast(position, "float64"), constant(0.5, "float64"))
    return cast(apply("floor", apply("div", half, cast(extent, "float64"))), "int64")


def axes_of_dimensions(dimensions: Sequence[Dimension]) -> list[Axis]:
    return [axis for dimension in dimensions for axis in dimension.axes if axis.extent != 1]


class PackWriter:
    """side: 0 for A (lanes are rows), 1 for B (lanes are columns). dtype: of the panel."""

    def __init__(self, form: MatrixForm, side: int, dtypes: dict[str, str], dtype: str) -> None:
        operand = (form.lhs, form.rhs)[side]
        own = (form.m, form.n)[side]
        positions = take_apart(POSITION, axes_of_dimensions([*form.batch, own]))
        self.value = substitute(operand, {**positions, **take_apart(SUM, axes_of_dimensions([form.k]))})
        self.dtype = dtype
        self.width = ROWS if side == 0 else panel_columns(dtype)
        self.names = Names()
        self.along_sum = is_contiguous(self.value, SUM) and not is_contiguous(self.value, POSITION)
        lanes = NATIVE_LANES // (2 if dtype == "float64" else 1)
        self.lanes = lanes if self.along_sum else panel_lanes(self.width)
        vector, loop = (SUM, {SUM}) if self.along_sum else (POSITION, {SUM})
        self.writer = ExpressionWriter(self.names, dtypes, vector, self.lanes, loop)

    def write(self) -> list[str]:
        """The lines of the function's body."""
        lines = self.along_sum_lines() if self.along_sum else self.along_lanes_lines()
        head = [*self.names.preamble(), f'out = pointer_at(panel, "{self.dtype}")']
        return [INDENT + line for line in head + lines]

    def along_lanes_lines(self) -> list[str]:
        """All rows (columns) of the panel at once; whatever does not depend on k is computed before the loop."""
        self.writer.count = "count"
        text = self.writer.as_vector(self.writer.write(self.value))
        return [
            f"{POSITION} = first",
            *self.writer.row.lines,
            f"for {SUM} in range(k_begin, k_begin + k_count):",
            *(INDENT + line for line in self.writer.loop.lines),
            f"{INDENT}store(out, ({SUM} - k_begin) * {self.width}, {text}, count)",
        ]

    def along_sum_lines(self) -> list[str]:
        """One row (column) after the other, vectors along k, stored `width` apart."""
        left = f"k_count % {self.lanes}"
        whole = self.chunk(None)
        row = list(self.writer.row.lines)
        rest = self.chunk(f"({left})")
        row += self.writer.row.lines[len(row) :]
        end = f"k_begin + k_count - {left}"
        return [
            "for lane in range(count):",
            f"{INDENT}{POSITION} = first + lane",
            *(INDENT + line for line in row),
            f"{INDENT}for {SUM} in range(k_begin, {end}, {self.lanes}):",
            *(INDENT * 2 + line for line in whole),
            f"{INDENT}if {left} > 0:",
            f"{INDENT * 2}{SUM} = {end}",
            *(INDENT * 2 + line for line in rest),
        ]

    def chunk(self, count: str | None) -> list[str]:
        self.writer.loop = Scope()
        self.writer.count = count
        text = self.writer.as_vector(self.writer.write(self.value))
        place = f"({SUM} - k_begin) * {self.width} + lane, {self.width}"
        tail = "" if count is None else f", {count}"
        return [*self.writer.loop.lines, f"store_strided(out, {place}, {text}{tail})"]


class SegmentsWriter:
    """A function that packs a panel of B for a product whose sum is cut into segments (`gemm_indirect`):

    def k(tab, panel, first, count, k_begin, k_count, thread):
        for c in range(k_begin, k_begin + k_count):     # the run
            for w0 in range(3):                         # the segments: what lies side by side is read together
                store(out, (w0 * 64 + c) * width, f(load(w, ...)), count)
    """

    def __init__(self, form: IndirectForm, dtypes: dict[str, str], dtype: str) -> None:
        assert form.run is not None
        axes = axes_of_dimensions([*form.batch, form.n])
        self.value = substitute(form.rhs, take_apart(POSITION, axes))
        self.names, self.dtype = Names(), dtype
        self.run, self.segments = form.run, real(form.segments)
        self.width = panel_columns(dtype)
        loops = {self.run.name, *(axis.name for axis in self.segments)}
        self.writer = ExpressionWriter(self.names, dtypes, POSITION, panel_lanes(self.width), loops)

    def write(self) -> list[str]:
        """The lines of the function's body."""
        self.writer.count = "count"
        text = self.writer.as_vector(self.writer.write(self.value))
        heads, row, length = (
            [f"for {self.run.name} in range(k_begin, k_begin + k_count):"],
            [self.run.name],
            self.run.extent,
        )
        for axis in reversed(self.segments):
            row.append(f"{axis.name} * {self.names.size(length)}")
            length = length * axis.extent
        heads += [f"for {axis.name} in range({self.names.size(axis.extent)}):" for axis in self.segments]
        body = [*self.writer.loop.lines, f"store(out, ({' + '.join(row)}) * {self.width}, {text}, count)"]
        loops = [INDENT * depth + line for depth, line in enumerate(heads)]
        lines = [f'out = pointer_at(panel, "{self.dtype}")', f"{POSITION} = first", *self.writer.row.lines]
        lines += loops + [INDENT * len(heads) + line for line in body]
        return [INDENT + line for line in [*self.names.preamble(), *lines]]


class PlacesWriter:
    """A function that says where the rows of a tile begin, in one vector for each segment of the sum:

    def k(tab, panel, first, count, k_begin, k_count, thread):
        for k in range(k_begin, k_begin + k_count):
            store(out, (k - k_begin) * 8, <element of the buffer, -1 in the padding>)
    """

    def __init__(self, places: Expr, rows: Sequence[Axis], segments: Sequence[Axis]) -> None:
        axes = {**take_apart(POSITION, real(rows)), **take_apart(SUM, real(segments))}
        self.value = substitute(places, axes)
        self.names = Names()
        self.writer = ExpressionWriter(self.names, {}, POSITION, ENTRY, {SUM})

    def write(self) -> list[str]:
        """The lines of the function's body."""
        text = self.writer.as_vector(self.writer.write(self.value))
        lines = [
            *self.names.preamble(),
            'out = pointer_at(panel, "int64")',
            f"{POSITION} = first",
            *self.writer.row.lines,
            f"for {SUM} in range(k_begin, k_begin + k_count):",
            *(INDENT + line for line in self.writer.loop.lines),
            f"{INDENT}store(out, ({SUM} - k_begin) * {ENTRY}, {text})",
        ]
        return [INDENT + line for line in lines]


def real(axes: Sequence[Axis]) -> list[Axis]:
    return [axis for axis in axes if axis.extent != 1]


def panel_lanes(width: int) -> int:
    """The least power of two that holds the lanes of a panel."""
    return 1 << (width - 1).bit_length()


def is_contiguous(value: Expr, axis: str) -> bool:
    """Whether every load steps by 1 along the axis or does not move."""
    loads = [part for part in walk(value) if isinstance(part, Load)]
    plain = all(load.index.coefficient(axis) in (0, 1) and not moves_data(load, axis) for load in loads)
    return plain and any(load.index.coefficient(axis) == 1 for load in loads)


def moves_data(load: Load, axis: str) -> bool:
    """Whether the load's place depends on the axis through arithmetic or data."""
    parts: list[Any] = [part for value, _ in load.index.values() for part in walk(value.expr)]
    return any(isinstance(part, (Load, IndexValue)) and axis in part.index.axes() for part in parts)
