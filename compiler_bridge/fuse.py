"""Inline producers into consumers.

    b = f(a); c = g(b)  ->  c = g(f(a))

A Map is inlined where its value is loaded, by solving the load's index for the Map's axes: the Map stores
densely, so its strides are the places of a mixed radix number and every term of the load's index belongs to
one place. An axis of the consumer that spans two places (a reshape) is split in two, so no division appears.
Whether it pays is decided by `worth_inlining`; values used several times are left to `group.py`, which
computes them once inside the shared kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

from compiler_bridge.contract import IndirectForm, IndirectPanels, matrix_form, packed_form
from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.ir import (
    Apply,
    Constant,
    Contract,
    Expr,
    Graph,
    Index,
    IndexValue,
    Load,
    Map,
    Node,
    Reduce,
    Scan,
    Scatter,
    Size,
    Value,
    all_axes,
    children,
    exact_quotient,
    map_expr,
    node_exprs,
    node_loads,
    node_outputs,
    node_reads,
    size_equal,
    size_product,
    split_axis,
    substitute,
    walk,
)
from compiler_bridge.lower.lowering import apply, constant
from compiler_bridge.ops import OPS
from compiler_bridge.rules import one_hot_choice, simplify_node
from compiler_bridge.window import window_form

SYMBOL_HINT = 64  # a stand-in for an unknown size where only a guess of magnitude is needed
LARGEST_EXPRESSION = 60  # operations; Numba's front end is superlinear in the length of a function
CHEAP = 2
SHORT = 4 * NATIVE_LANES  # elements side by side that vectors had better not be confined to
MANY = 16  # times as many elements as a value has: writing and reading that is nothing beside them
FEW = 4  # a consumer that needs less than one in so many of the values made computes its own


def hint(size: Size, hints: dict[Any, int] | None = None) -> int:
    """A plausible integer for a size: for heuristics only, never for correctness."""
    if isinstance(size, int):
        return size
    values = [(s, (hints or {}).get(s, SYMBOL_HINT)) for s in size.free_symbols]
    return int(sympy.sympify(size).subs(values))


def expr_cost(expr: Expr) -> int:
    """Rough arithmetic operations to evaluate an expression once."""
    applied = (part for part in walk(expr) if isinstance(part, Apply))
    return sum(OPS[part.op].cost if part.op in OPS else 1 for part in applied)


def count_ops(expr: Expr) -> int:
    return sum(isinstance(part, Apply) for part in walk(expr))


def has_more_operations(exprs: Sequence[Expr], most: int) -> bool:
    """Whether a kernel that computes all of these has more than `most` operations; equal ones are computed once."""
    if sum(count_ops(expr) for expr in exprs) <= most:
        return False
    seen: set[Expr] = set()
    waiting = list(exprs)
    while waiting:
        expr = waiting.pop()
        if expr not in seen:
            seen.add(expr)
            waiting += children(expr)
    return sum(isinstance(expr, Apply) for expr in seen) > most


# ---------------------------------------------------------------- solving a load for the producer's axes


@dataclass
class NeedsSplit(Exception):
    """The consumer's axis `name` must be split with this inner extent before the load can be solved."""

    name: str
    inner: Size
    outer: Size


def producer_places(producer: Map, hints: Any) -> list[tuple[str, Size, Size]] | None:
    """(axis, stride, extent) of a Map's store, largest stride first; None unless dense."""
    if producer.store.const != 0 or producer.store.values():
        return None
    strides = producer.store.axes()
    if len(strides) != len(producer.axes):
        return None
    places = [(axis.name, strides[axis.name], axis.extent) for axis in producer.axes]
    places.sort(key=lambda place: -hint(place[1], hints))
    for (_, stride, _), (_, next_stride, next_extent) in zip(places, places[1:]):
        if not size_equal(stride, next_stride * next_extent):
            return None
    return places


def solve_load(
    load: Load, places: list[tuple[str, Size, Size]], extents: dict[str, Size]
) -> dict[str, Index] | None:
    """For each producer axis the index (in the consumer's axes) that the load asks for; None if there is none."""
    gathered = solve_data(load, places)
    if gathered is None or (load.mask is not None and not load.shifts and not gathered):
        return None
    shifts = {axis: offset for axis, offset, _ in load.shifts}
    admitted = {axis: extent for axis, _, extent in load.shifts}
    const = load.index.const
    solution: dict[str, Index] = {axis: Index((), 0) for axis, _, _ in places} | gathered
    for axis, coefficient in load.index.axes().items():
        if axis in shifts:
            const = const + coefficient * shifts[axis]
        place = next(((n, s, e) for n, s, e in places if exact_quotient(coefficient, s) is not None), None)
        if place is None:
            return None
        name, stride, extent = place
        factor = exact_quotient(coefficient, stride)
        assert factor is not None
        if axis in shifts:  # the part the mask admits must lie within the place; it can't be split
            if not fits(factor, admitted[axis], extent):
                return None
        else:
            require_fit(axis, factor, extents[axis], extent)
        solution[name] = solution[name] + Index(((axis, factor),), -factor * shifts.get(axis, 0))
    if any(axis not in extents for axis in shifts) or set(shifts) - set(load.index.axes()):
        return None  # a shifted axis was renamed or is no loop axis: its constant is ambiguous
    if not spread_constant(const, places, solution):
        return None
    if any(solution[name] != index for name, index in gathered.items()):
        return None  # something else moves along the axis that data indexes
    if all(n in gathered or in_range(solution[n], e, extents, shifts) for n, _, e in places):
        return solution
    return None


def solve_data(load: Load, places: list[tuple[str, Size, Size]]) -> dict[str, Index] | None:
    """The producer's axes that a gather indexes by data; None where the mask does not keep the data in range."""
    if not load.index.values():
        return {}
    if load.mask is None or load.shifts:
        return None
    conditions = conjuncts(load.mask)
    solution: dict[str, Index] = {}
    for value, coefficient in load.index.values():
        name, _, extent = next((p for p in places if size_equal(p[1], coefficient)), ("", 0, 0))
        index = Index(((value, 1),), 0)
        position = IndexValue("int64", index)
        needed = (("ge", constant(0, "int64")), ("lt", constant(extent, "int64")))
        guarded = all(apply(op, position, bound) in conditions for op, bound in needed)
        if not name or not guarded or name in solution:
            return None
        solution[name] = index
    return solution


def conjuncts(mask: Expr) -> list[Expr]:
    """Conditions that all hold where the mask does."""
    if isinstance(mask, Apply) and mask.op == "bitwise_and":
        return [part for arg in mask.args for part in conjuncts(arg)]
    return [mask]


def fits(factor: Size, extent: Size, place_extent: Size) -> bool:
    """Whether factor * (0 .. extent - 1) stays within a place."""
    if size_equal(factor * extent, place_extent):
        return True
    known = all(isinstance(v, int) for v in (factor, extent, place_extent))
    return known and 0 <= factor * (extent - 1) < place_extent  # pyright: ignore


def require_fit(axis: str, factor: Size, extent: Size, place_extent: Size) -> None:
    """Raise NeedsSplit when factor * axis runs over the end of its place."""
    if isinstance(factor, int) and factor < 0:
        factor = -factor
    if fits(factor, extent, place_extent):
        return
    inner = exact_quotient(place_extent, factor)
    outer = None if inner is None or inner == 1 else exact_quotient(extent, inner)
    if inner is None or outer is None or outer == 1:
        raise NeedsSplit(axis, 0, 0)  # no split helps
    raise NeedsSplit(axis, inner, outer)


def spread_constant(const: Size, places: list[tuple[str, Size, Size]], solution: dict[str, Index]) -> bool:
    for name, stride, _ in places:
        if isinstance(const, int) and isinstance(stride, int):
            digit: Size = const // stride
        else:
            digit = exact_quotient(const, stride) or 0
        solution[name] = solution[name] + digit
        const = const - digit * stride
    return size_equal(const, 0)


def in_range(index: Index, extent: Size, extents: dict[str, Size], shifts: dict[str, Size]) -> bool:
    if any(axis in shifts for axis in index.axes()):
        return True  # guarded by the load's mask
    low: Size = index.const
    high: Size = index.const
    for axis, coefficient in index.axes().items():
        last = coefficient * (extents[axis] - 1)
        if isinstance(coefficient, int) and coefficient < 0:
            low = low + last
        else:
            high = high + last
    if size_equal(low, 0) and size_equal(high, extent - 1):
        return True
    return all(isinstance(v, int) for v in (low, high, extent)) and low >= 0 and high < extent  # pyright: ignore


# ---------------------------------------------------------------- replacing the load


def inlined_value(producer: Map, load: Load, solution: dict[str, Index]) -> Expr:
    value = substitute(producer.value, solution)
    if load.mask is None:
        return value
    mask = load.mask
    # what the index itself reads is read anyway, outside of the mask
    data = {part for index in solution.values() for value, _ in index.values() for part in walk(value.expr)}

    def guard(inner: Load) -> Expr:
        if inner in data:
            return inner
        return replace(inner, mask=mask if inner.mask is None else apply("bitwise_and", inner.mask, mask))

    guarded = map_expr(value, lambda index: index, guard)
    return apply("where", mask, guarded, constant(0, guarded.dtype))


def replace_load(node: Any, old: Load, new: Expr) -> Any:
    def swap(load: Load) -> Expr:
        return new if load == old else load

    return rewrite_node(node, lambda expr: map_expr(expr, lambda index: index, swap))


def rewrite_node(node: Any, rewrite: Callable[[Expr], Expr]) -> Any:
    """The node with all its expressions rewritten."""
    if isinstance(node, Contract):
        return replace(node, lhs=rewrite(node.lhs), rhs=rewrite(node.rhs))
    if isinstance(node, Scatter):  # where it stores is data, too
        terms = [(Value(rewrite(a.expr)) if isinstance(a, Value) else a, c) for a, c in node.store.terms]
        node = replace(node, store=Index(tuple(terms), node.store.const))
    return replace(node, value=rewrite(node.value))


def try_inline(consumer: Any, load: Load, producer: Map, hints: Any) -> Any:
    """The consumer with `load` computed in place, or None when the index cannot be solved.

    Returns (node, done): done is False after an axis was split (the loads have changed: look again).
    """
    places = producer_places(producer, hints)
    if places is None:
        return None
    extents = {axis.name: axis.extent for axis in all_axes(consumer)}
    try:
        solution = solve_load(load, places, extents)
    except NeedsSplit as split:
        if split.inner == 0:
            return None
        return split_axis(consumer, split.name, split.inner, split.outer), False
    if solution is None:
        return None
    return replace_load(consumer, load, inlined_value(producer, load, solution)), True


def spoils_packing(node: Contract, attempt: Contract, done: bool) -> bool:
    """Whether packing would need more than strides once the copy is inlined, or a run of the sum is cut short."""
    if done:
        return not matrix_form(attempt)
    return isinstance(packed_form(node), (IndirectForm, IndirectPanels))


# ---------------------------------------------------------------- the pass


class Inliner:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.hints = graph.symbol_hints
        self.producers: dict[str, Node] = {}
        self.uses: dict[str, int] = {}
        self.pinned: set[str] = {view.buffer for view in graph.outputs if hasattr(view, "buffer")}
        for node in graph.nodes:
            for name in node_reads(node):
                self.uses[name] = self.uses.get(name, 0) + 1
            if not isinstance(node, (Map, Reduce, Contract, Scan, Scatter)):
                self.pinned |= node_reads(node)
            if isinstance(node, Scatter) and node.base is not None:
                self.pinned.add(node.base)

    def run(self) -> Graph:
        nodes: list[Node] = []
        for node in self.graph.nodes:
            if isinstance(node, (Map, Reduce, Contract, Scan, Scatter)):
                node = simplify_node(self.inline_into(simplify_node(node)))
            nodes.append(node)
            for name in node_outputs(node):
                self.producers[name] = node
        return remove_dead(replace(self.graph, nodes=nodes))

    def inline_into(self, node: Any) -> Any:
        """The node with what it reads computed in place; of a value that it has to read from memory anyway, because
        one of its loads cannot be solved, nothing is computed twice."""
        stored: set[str] = set()
        while True:
            inlined: set[str] = set()
            result = self.inline_but(node, stored, inlined)
            again = inlined & {load.buffer for load in node_loads(result)}
            if not again:
                return result
            stored |= again

    def inline_but(self, node: Any, stored: set[str], inlined: set[str]) -> Any:
        """The node with all but the `stored` buffers inlined that can be, whose names go into `inlined`."""
        declined: set[Load] = set()
        for _ in range(200):
            waiting = (x for x in node_loads(node) if x not in declined and x.buffer not in stored)
            load = next((x for x in waiting if self.candidate(node, x)), None)
            if load is None:
                return node
            producer = self.producers[load.buffer]
            assert isinstance(producer, Map)
            attempt = try_inline(node, load, producer, self.hints)
            if attempt is not None and isinstance(node, Contract) and spoils_packing(node, *attempt):
                attempt = None
            if attempt is not None and window_form(node) is not None and window_form(attempt[0]) is None:
                attempt = None  # vectors would not lie side by side any more: the copy stays
            if attempt is not None and self.cuts_vectors(node, attempt[0], producer):
                attempt = None
            if attempt is None or sum(count_ops(e) for e in node_exprs(attempt[0])) > LARGEST_EXPRESSION:
                declined.add(load)
                continue
            node, done = attempt
            if done:
                inlined.add(load.buffer)
                node = replace(
                    node, origin=replace(node.origin, names=producer.origin.names + node.origin.names)
                )
            else:
                declined = {x for x in node_loads(node) if x.buffer in {d.buffer for d in declined}}
        return node

    def cuts_vectors(self, node: Any, attempt: Any, producer: Map) -> bool:
        """Whether inlining splits the loop along which elements lie side by side into short ones, for the sake of a
        value with far fewer elements: read from memory (a group's mean, once for each channel) it costs little."""
        kept = {axis.name for axis in all_axes(attempt)}
        split = [axis for axis in all_axes(node) if axis.name not in kept]
        inner = {axis.name: axis.extent for axis in all_axes(attempt)}
        if not any(hint(inner.get(f"{axis.name}i", SHORT), self.hints) < SHORT for axis in split):
            return False
        places = [node.store, *(load.index for load in node_loads(node))]
        beside = any(index.coefficient(axis.name) == 1 for index in places for axis in split)
        work = hint(size_product(a.extent for a in all_axes(node)), self.hints)
        made = hint(size_product(a.extent for a in producer.axes), self.hints)
        return beside and work >= MANY * made

    def candidate(self, node: Any, load: Load) -> bool:
        producer = self.producers.get(load.buffer)
        if not isinstance(producer, Map) or any(a.extent == 0 for a in (*producer.axes, *all_axes(node))):
            return False
        return self.worth_inlining(producer, node)

    def worth_inlining(self, producer: Map, consumer: Any) -> bool:
        value = producer.value
        if isinstance(consumer, Reduce) and one_hot_choice(consumer.op, value) is not None:
            return True  # the sum will not be one any more (`rules.choose_one_hot`)
        # Packing reads memory as it is. Arithmetic in it was measured: 512 x 768 of silu(g) * u took 190 us while
        # rows of A were packed, whose lanes lie apart, and 55 us in a kernel of its own.
        if isinstance(consumer, Contract):
            return isinstance(value, Load) and value.mask is None and not value.index.values()
        if isinstance(value, (Load, Constant)) and not (isinstance(value, Load) and value.index.values()):
            return True
        cost = expr_cost(value)
        loads = {x for x in walk(value) if isinstance(x, Load)}
        if not loads and cost <= 3 * CHEAP:
            return True
        if producer.output in self.pinned:
            return cost <= 1 and len(loads) <= 1  # it is stored anyway: reading it back is as good
        work = hint(size_product(a.extent for a in all_axes(consumer)), self.hints)
        made = hint(size_product(a.extent for a in producer.axes), self.hints)
        if work * FEW <= made:  # a gather or slice: a few values again, where the whole would go to memory
            return True
        shared = self.uses.get(producer.output, 0) > 1
        if shared:
            axes = {a.name for a in producer.axes}
            # others are shorter than the value and stay in the cache
            long = [x for x in loads if x.index.values() or axes <= set(x.index.axes())]
            return cost <= CHEAP and len(long) <= 1
        return not (work >= 2 * max(made, 1) and cost >= 8)


def remove_dead(graph: Graph) -> Graph:
    """Drop nodes whose results nobody reads."""
    live = {view.buffer for view in graph.outputs if hasattr(view, "buffer")}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(name in live for name in node_outputs(node)):
            kept.append(node)
            live |= node_reads(node)
    used = live | {name for node in kept for name in node_outputs(node)}
    buffers = {n: b for n, b in graph.buffers.items() if n in used or b.kind == "input"}
    return replace(graph, nodes=kept[::-1], buffers=buffers)


def inline_producers(graph: Graph) -> Graph:
    return Inliner(graph).run()
