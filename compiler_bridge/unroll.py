"""Short loops whose turns read the same elements are written out, so that each element is read once.

    for q: for r in range(2): out[2 q + r] = f(r, x[q], x[q + 1])
    ->  for q: out[2 q] = f(0, x[q], x[q + 1]);  out[2 q + 1] = f(1, x[q], x[q + 1])

What depends on r alone becomes a constant: conditions fold, indices become affine.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from compiler_bridge.fuse import count_ops
from compiler_bridge.group import LARGEST_KERNEL, Group
from compiler_bridge.ir import Axis, Index, Map, node_loads, size_product, substitute_node
from compiler_bridge.rules import simplify_node

LONGEST = 4
MOST_TURNS = 16


def unrolled(group: Group) -> list[Map]:
    """The turns of a group's only Map, each with an output name of its own for the same buffer; [] to leave it."""
    if len(group.nodes) != 1 or not isinstance(group.nodes[0], Map):
        return []
    node = group.nodes[0]
    short = [axis for axis in node.axes if is_short(axis) and shares_loads(node, axis)]
    rest = tuple(axis for axis in node.axes if axis not in short)
    if not short or not rest or size_product(axis.extent for axis in short) > MOST_TURNS:
        return []
    turns = list(itertools.product(*(range(axis.extent) for axis in short)))  # pyright: ignore
    copies = [turn(node, short, rest, numbers) for numbers in turns]
    if sum(count_ops(copy.value) for copy in copies) > LARGEST_KERNEL:
        return []
    read = [elements_read(copy) for copy in copies]
    if 2 * len(set().union(*read)) > sum(len(places) for places in read):
        return []
    return [replace(copy, output=f"{node.output}_{k}") for k, copy in enumerate(copies)]


def is_short(axis: Axis) -> bool:
    return isinstance(axis.extent, int) and 1 < axis.extent <= LONGEST


def shares_loads(node: Map, axis: Axis) -> bool:
    """Whether two turns of this loop read one element."""
    rest = tuple(other for other in node.axes if other is not axis)
    seen: set[tuple[str, Index]] = set()
    for number in range(axis.extent):  # pyright: ignore
        read = elements_read(turn(node, [axis], rest, (number,)))
        if read & seen:
            return True
        seen |= read
    return False


def turn(node: Map, short: list[Axis], rest: tuple[Axis, ...], numbers: tuple[int, ...]) -> Map:
    values = {axis.name: Index((), number) for axis, number in zip(short, numbers)}
    return simplify_node(substitute_node(node, values, rest))


def elements_read(node: Map) -> set[tuple[str, Index]]:
    """What a turn reads anew all along its loops; an entry of a table that is the same throughout costs nothing."""
    return {(load.buffer, load.index) for load in node_loads(node) if load.index.axes()}
