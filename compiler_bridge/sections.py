"""A loop cut where conditions along its vectors change, so that each part has plain vectors.

    for j in range(58): out[j] = where(1 <= j < 57, x[j - 1], x[table[j]])
    ->  j in 0..0: x[table[j]];   1..56: x[j - 1];   57: x[table[j]]

Padding, concatenation, windows at the border of an image: most elements lie where every condition is known.
"""

from __future__ import annotations

from typing import Any

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.fuse import count_ops
from compiler_bridge.ir import Apply, Axis, Expr, Index, Load, expr_axes, node_exprs, substitute_node, walk
from compiler_bridge.rules import as_index, simplify_node

MOST_SECTIONS = 5
MOST_OPERATIONS = 120
"""In all sections together: Numba's front end is superlinear in the length of a kernel."""


def cut_of(expr: Expr, axis: Axis) -> int | None:
    """The first place along the axis where a comparison of indices turns out otherwise than at 0, if it depends on
    nothing else."""
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
    step, start = difference.coefficient(axis.name), difference.const
    if len(difference.terms) != 1 or not isinstance(step, int) or not isinstance(start, int) or step == 0:
        return None
    if expr.op in ("le", "gt"):  # d <= 0 is d < 1
        start -= 1
    # the first place where step * place + start is no longer on its side of 0
    return -(start // step) if step > 0 else start // -step + 1


def cuts_of(nodes: list[Any], axis: Axis) -> list[int]:
    cuts = {cut_of(part, axis) for node in nodes for expr in node_exprs(node) for part in walk(expr)}
    assert isinstance(axis.extent, int)
    return sorted(cut for cut in cuts if cut is not None and 0 < cut < axis.extent)


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
    if not isinstance(axis.extent, int):
        return []
    cuts = cuts_of(nodes, axis)
    if not cuts:
        return []
    bounds = merge_narrow([0, *cuts, axis.extent])
    if not 2 < len(bounds) <= MOST_SECTIONS + 1:
        return []
    sections = [section(nodes, axis, *ends) for ends in zip(bounds, bounds[1:])]
    operations = sum(count_ops(e) for _, part in sections for node in part for e in node_exprs(node))
    if operations > MOST_OPERATIONS or sum(cost_of(part, short) for short, part in sections) > cost_of(
        nodes, axis
    ):
        return []
    return sections


def section(nodes: list[Any], axis: Axis, first: int, end: int) -> tuple[Axis, list[Any]]:
    short = Axis(axis.name, end - first)
    values = {axis.name: Index(((axis.name, 1),), first)}

    def moved(node: Any) -> Any:
        axes = tuple(short if a.name == axis.name else a for a in node.axes)
        return simplify_node(substitute_node(node, values, axes))

    return short, [moved(node) for node in nodes]
