"""Sums of products over the windows of a tensor: depthwise convolutions and their gradients.

    gathering  out[row, column, lane] = sum over taps of source[row + tap, column + tap, lane] * factor[tap, lane]
    by tap     out[tap, lane] = sum over rows, columns of source[row + tap, column + tap, lane]
                                                          * factor[row, column, lane]

`window_form` tells such a Reduce from others. Vectors run along the lanes, an axis along which everything lies side
by side (the channels, where they come last). The column axis runs through neighbouring windows: the results of some
columns, or of the taps along it, stand in registers together. `emit/window.py` writes the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler_bridge.ir import (
    Apply,
    Axis,
    Constant,
    Expr,
    Index,
    IndexValue,
    Load,
    Reduce,
    Value,
    all_axes,
    expr_axes,
    size_product,
)

MOST_COLUMN_TAPS = 16
"""Taps along the columns whose sums stand in registers together."""

NO_AXIS = Axis("", 1)


@dataclass(frozen=True)
class WindowForm:
    """source: the operand with the windows, without its mask; factor: the other one.

    rows and column move the window; taps and column_tap move within it (column_tap: along the columns). An axis that
    is not there is NO_AXIS. conditions: indices that are >= 0 where the window lies inside the source.
    """

    source: Load
    factor: Load
    gathers: bool  # the taps are summed over; else the rows and columns are
    lane: Axis
    rows: tuple[Axis, ...]
    column: Axis
    taps: tuple[Axis, ...]
    column_tap: Axis
    conditions: tuple[Index, ...]


def window_form(node: object) -> WindowForm | None:
    """How a Reduce is a sum over windows, or None when it is none."""
    if not isinstance(node, Reduce) or node.op != "sum" or any(a.extent == 0 for a in all_axes(node)):
        return None
    value = node.value
    if not isinstance(value, Apply) or value.op != "mul":
        return None
    for source, factor in (value.args, value.args[::-1]):
        if isinstance(source, Load) and isinstance(factor, Load) and factor.mask is None:
            form = form_of(node, source, factor)
            if form is not None:
                return form
    return None


def form_of(node: Reduce, source: Load, factor: Load) -> WindowForm | None:
    conditions = conditions_of(source.mask)
    lane = next((a for a in node.axes if is_lane(a, source, factor)), None)
    if conditions is None or lane is None or not is_window(source, all_axes(node), conditions):
        return None
    kept = [a for a in node.axes if a is not lane]
    gathers = points(node.reduce_axes) <= points(kept)
    moving, taps = (kept, list(node.reduce_axes)) if gathers else (list(node.reduce_axes), kept)
    in_factor = expr_axes(factor)
    stepping = [a for a in moving if source.index.coefficient(a.name) != 0]
    if gathers:
        stepping = [a for a in stepping if a.name not in in_factor]
    column = min(stepping, key=lambda a: step(source, a), default=None)
    if column is None:
        return None
    tap = column_tap(column, taps, source, conditions)
    # what lies apart in the source goes slowest, so that the next row finds it in cache
    rows = tuple(sorted((a for a in moving if a is not column), key=lambda a: -step(source, a)))
    rest = tuple(a for a in taps if a is not tap)
    unmasked = replace(source, mask=None, shifts=())
    form = WindowForm(unmasked, factor, gathers, lane, rows, column, rest, tap, tuple(conditions))
    return form if is_regular(form) else None


def points(axes: list[Axis] | tuple[Axis, ...]) -> int:
    size = size_product(a.extent for a in axes)
    return size if isinstance(size, int) else 1 << 40


def step(load: Load, axis: Axis) -> int:
    coefficient = load.index.coefficient(axis.name)
    return abs(coefficient) if isinstance(coefficient, int) else 1 << 40


def is_lane(axis: Axis, source: Load, factor: Load) -> bool:
    """Whether both operands lie side by side along the axis, whatever the data."""
    loads = (source, factor)
    if any(load.index.coefficient(axis.name) != 1 for load in loads):
        return False
    inner = [value.expr for load in loads for value, _ in load.index.values()]
    inner += [source.mask] if source.mask is not None else []
    return not any(axis.name in expr_axes(expr) for expr in inner)


def is_window(source: Load, axes: tuple[Axis, ...], conditions: list[Index]) -> bool:
    """Whether elements of the source are read several times, or places outside of it."""
    if conditions:
        return True
    used = [a for a in axes if source.index.coefficient(a.name) != 0]
    span = 1 + sum(step(source, a) * (points([a]) - 1) for a in used)
    return points(used) > span


def conditions_of(mask: Expr | None) -> list[Index] | None:
    """Indices that are all >= 0 exactly where the mask is true, or None."""
    if mask is None:
        return []
    if not isinstance(mask, Apply):
        return None
    if mask.op == "bitwise_and":
        left, right = (conditions_of(arg) for arg in mask.args)
        return None if left is None or right is None else left + right
    sides = [as_index(arg) for arg in mask.args]
    if mask.op not in ("ge", "lt") or len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    difference = sides[0] + sides[1].scaled(-1)
    return [difference if mask.op == "ge" else difference.scaled(-1) + (-1)]


def as_index(expr: Expr) -> Index | None:
    if isinstance(expr, IndexValue):
        return expr.index
    if isinstance(expr, Constant) and expr.dtype == "int64":
        return Index((), expr.value)
    return None


def index_axes(index: Index) -> set[str]:
    """The axes an index varies along, also through its data."""
    return set(index.axes()).union(*(expr_axes(value.expr) for value, _ in index.values()))


def column_tap(column: Axis, taps: list[Axis], source: Load, conditions: list[Index]) -> Axis:
    """The tap that moves the window along the columns: bounded together with them, or else of the smallest step."""
    inside = [a for a in taps if source.index.coefficient(a.name) != 0]
    bound = [c for c in conditions if column.name in c.axes()]
    beside = [a for a in inside if any(a.name in c.axes() for c in bound)]
    if not bound:
        free = [a for a in inside if not any(a.name in c.axes() for c in conditions)]
        beside = sorted(free, key=lambda a: step(source, a))[:1]
    return beside[0] if beside else NO_AXIS


def is_regular(form: WindowForm) -> bool:
    """Whether every condition bounds the column, one tap or the row, and data depends on the rows alone."""
    rows = {a.name for a in form.rows}
    taps = {a.name for a in (*form.taps, form.column_tap)}
    for condition in form.conditions:
        bounded = set(condition.axes()) & taps
        if form.column.name in condition.axes():
            bounded -= {form.column_tap.name}
            if bounded:
                return False
        if len(bounded) > 1:
            return False
    indices = (form.source.index, form.factor.index, *form.conditions)
    atoms = [atom for index in indices for atom, _ in index.terms if isinstance(atom, Value)]
    if not all(expr_axes(atom.expr) <= rows for atom in atoms):
        return False
    if form.gathers:
        return True
    extent = form.column_tap.extent
    constant = isinstance(extent, int) and extent <= MOST_COLUMN_TAPS
    return constant and form.column_tap.name not in index_axes(form.factor.index)
