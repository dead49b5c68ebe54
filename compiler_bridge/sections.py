"""A loop cut where conditions along its vectors change, so that each part has plain vectors.

    for j in range(58): out[j] = where(1 <= j < 57, x[j - 1], x[table[j]])
    ->  j in 0..0: x[table[j]];   1..56: x[j - 1];   57: x[table[j]]

Padding, concatenation, windows at the border of an image: most elements lie where every condition is known. Places
may be symbols (sizes known only at run time), if their order is the same for all sizes; a section may then be empty.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sympy

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.fuse import count_ops
from compiler_bridge.ir import (
    Apply,
    Axis,
    Expr,
    Index,
    Load,
    Size,
    expr_axes,
    map_expr,
    node_exprs,
    substitute_node,
    walk,
)
from compiler_bridge.rules import FALSE, TRUE, as_index, simplify_node

MOST_SECTIONS = 5
MOST_OPERATIONS = 120
"""In all sections together: Numba's front end is superlinear in the length of a kernel."""


def cut_of(expr: Expr, axis: Axis) -> Size | None:
    """The first place along the axis where a comparison of indices turns out otherwise than at 0, if it depends on
    nothing else."""
    found = difference_of(expr, axis)
    if found is None:
        return None
    op, step, start = found
    if op in ("le", "gt"):  # d <= 0 is d < 1
        start -= 1
    # the first place where step * place + start is no longer on its side of 0
    if abs(step) == 1:
        return -start if step == 1 else start + 1
    return (-(start // step) if step > 0 else start // -step + 1) if isinstance(start, int) else None


def difference_of(expr: Expr, axis: Axis) -> tuple[str, int, Size] | None:
    """(op, step, start) of `step * place + start op 0`, which a comparison of indices along the axis is."""
    if (
        not isinstance(expr, Apply)
        or expr.op not in ("lt", "le", "gt", "ge")
        or expr.args[0].dtype != "int64"
    ):
        return None
    a, b = (as_index(arg) for arg in expr.args)
    if a is None or b is None:
        return None
    difference = a + b.scaled(-1)
    step = difference.coefficient(axis.name)
    if len(difference.terms) != 1 or not isinstance(step, int) or step == 0:
        return None
    return expr.op, step, difference.const


def is_at_most(a: Size, b: Size) -> bool:
    """Whether a <= b for every value of the symbols."""
    between = distance(a, b)
    return between >= 0 if isinstance(between, int) else between.is_nonnegative is True


def distance(a: Size, b: Size) -> Size:
    """b - a, a number where symbols cancel."""
    if isinstance(a, int) and isinstance(b, int):
        return b - a
    between = sympy.expand(sympy.sympify(b) - sympy.sympify(a))
    return int(between) if between.is_Integer else between


def cuts_of(nodes: list[Any], axis: Axis) -> list[Size] | None:
    """The places within the axis, in order; None where that depends on the symbols in them."""
    found = {cut_of(part, axis) for node in nodes for expr in node_exprs(node) for part in walk(expr)}
    cuts: list[Size] = []
    for cut in found:
        if cut is None or is_at_most(cut, 0) or is_at_most(axis.extent, cut):
            continue
        place = sum(is_at_most(other, cut) for other in cuts)
        if not all(is_at_most(a, cut) for a in [0, *cuts[:place]]):
            return None
        if not all(is_at_most(cut, b) for b in [*cuts[place:], axis.extent]):
            return None
        cuts.insert(place, cut)
    return cuts


def merge_narrow(bounds: list[int]) -> list[int]:
    """Bounds of sections: those that share a vector are one, but for the longest."""
    longest = max(zip(bounds, bounds[1:]), key=lambda ends: ends[1] - ends[0])
    merged = bounds[:2]
    for end in bounds[2:]:
        first, last = merged[-2:]
        apart = (first, last) == longest or (last, end) == longest
        if end - first <= NATIVE_LANES and not apart:
            merged[-1] = end
        else:
            merged.append(end)
    return merged


def cost_of(nodes: list[Any], axis: Axis) -> int:
    """Roughly the operations of the loop along this axis. A gathered element counts as three."""
    extent = axis.extent
    assert isinstance(extent, int)
    parts = {part for node in nodes for expr in node_exprs(node) for part in walk(expr)}
    loads = [part.index for part in parts if isinstance(part, Load) and axis.name in expr_axes(part)]
    once = len(nodes) + len(loads) + sum(isinstance(part, Apply) for part in parts)
    if is_short(axis):
        return extent * once
    gathers = sum(index.coefficient(axis.name) != 1 for index in loads)
    return -(-extent // NATIVE_LANES) * (once + 3 * NATIVE_LANES * gathers)


def is_short(axis: Axis) -> bool:
    """Whether the elements of a section had better come one after the other."""
    return isinstance(axis.extent, int) and axis.extent <= NATIVE_LANES // 4


def cut_sections(nodes: list[Any], axis: Axis) -> list[tuple[Axis, list[Any]]]:
    """(the axis with the extent of a section, the Maps there, their indices counted from its beginning) for each
    section; [] where it is better not to cut."""
    cuts = cuts_of(nodes, axis)
    if not cuts:
        return []
    bounds = [0, *cuts, axis.extent]
    known = [bound for bound in bounds if isinstance(bound, int)]
    all_known = len(known) == len(bounds)
    bounds = merge_narrow(known) if all_known else bounds
    if not 2 < len(bounds) <= MOST_SECTIONS + 1:
        return []
    sections = [section(nodes, axis, *ends) for ends in zip(bounds, bounds[1:])]
    operations = sum(count_ops(e) for _, part in sections for node in part for e in node_exprs(node))
    if operations > MOST_OPERATIONS:
        return []
    if all_known and sum(cost_of(part, short) for short, part in sections) > cost_of(nodes, axis):
        return []
    return sections


def section(nodes: list[Any], axis: Axis, first: Size, end: Size) -> tuple[Axis, list[Any]]:
    short = Axis(axis.name, distance(first, end))
    values = {axis.name: Index(((axis.name, 1),), first)}

    def moved(node: Any) -> Any:
        axes = tuple(short if a.name == axis.name else a for a in node.axes)
        settled = replace(node, value=settle(node.value, axis, first, end))
        return simplify_node(substitute_node(settled, values, axes))

    return short, [moved(node) for node in nodes]


def settle(expr: Expr, axis: Axis, first: Size, end: Size) -> Expr:
    """The expression with every comparison that is the same for all places from first up to end said to be so."""

    def outcome(part: Apply) -> Expr:
        found, cut = difference_of(part, axis), cut_of(part, axis)
        if found is None or cut is None:
            return part
        op, step, _ = found
        holds_before = (op in ("lt", "le")) == (step > 0)
        if is_at_most(end, cut):
            return TRUE if holds_before else FALSE
        if is_at_most(cut, first):
            return FALSE if holds_before else TRUE
        return part

    return map_expr(expr, lambda index: index, lambda load: load, outcome)
