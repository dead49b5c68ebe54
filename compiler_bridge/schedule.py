"""From a group of loops to a kernel's shape: merged axes, the vector axis, lanes, phases.

    rows (parallel, one range)  x  inner axes (loops, the last one in vectors)

Phases: a value that needs a row's complete sum belongs to the loop after it. A value needed again in a later
loop is computed again when cheap, else kept in a scratch row that stays in the first-level cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from compiler_bridge.cpu.gemm_plan import panel_columns
from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.fuse import expr_cost, hint, rewrite_node
from compiler_bridge.group import Group, row_of
from compiler_bridge.ir import (
    Apply,
    Axis,
    Constant,
    Expr,
    Index,
    IndexValue,
    Load,
    Reduce,
    Size,
    axis_index,
    expr_axes,
    map_expr,
    node_exprs,
    node_loads,
    size_equal,
    size_product,
    split_axis,
    substitute_node,
    walk,
)
from compiler_bridge.sections import cut_sections, is_short

RECOMPUTE = 7  # a value dearer than this is kept in a scratch row for later loops
FLAT_BLOCK = 4096  # elements of one parallel iteration of a one-dimensional kernel


@dataclass(frozen=True)
class Run:
    """The inner axes of a loop that goes through a row's memory as through one line: the vector axis is all of them."""

    still: tuple[Axis, ...]  # the others, at 0
    vector: Axis
    lanes: int


@dataclass
class Schedule:
    """What `emit` needs to know of one kernel."""

    nodes: list[Any]
    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    vector: Axis | None  # the axis that runs along the lanes
    lanes: int
    lanes_outer: bool
    roles: dict[str, str] = field(default_factory=dict)  # output -> role
    level: dict[str, int] = field(default_factory=dict)  # output -> loop in which it is computed
    kept: set[str] = field(default_factory=set)  # full values kept in a scratch row
    runs: dict[int, Run] = field(default_factory=dict)  # loops that need not tell the inner axes apart
    sections: list[Schedule] = field(default_factory=list)  # the parts of the only loop, where it is cut
    hints: dict[Any, int] = field(default_factory=dict)

    @property
    def loops(self) -> int:
        looped = [self.level[n.output] for n in self.nodes if self.roles[n.output] != "row"]
        return max(looped, default=-1) + 1

    def in_loop(self, node: Any, outputs: set[str]) -> bool:
        """Full values that are neither stored nor kept are computed where they are used, row values before the loop."""
        role = self.roles[node.output]
        return role != "row" and (role != "full" or node.output in outputs or node.output in self.kept)


def schedule_group(group: Group, outputs: set[str], hints: dict[Any, int]) -> Schedule:
    """outputs: the buffers of the group that someone outside of it reads."""
    group = merge_axes(group)
    nodes, outer, inner = list(group.nodes), group.outer, group.inner
    lanes_outer = group.lanes_outer
    vector = choose_vector(nodes, outer if lanes_outer or not group.decided else inner, hints)
    if not group.decided and vector is not None:
        inner, outer = (vector,), tuple(a for a in outer if a != vector)
        if only_gathers(nodes, vector):
            vector = None
        else:
            nodes, outer, inner = cut_long_rows(nodes, outer, inner, hints)
            vector = inner[-1]
    elif vector is not None and not lanes_outer:
        inner = (*(a for a in inner if a != vector), vector)
    outer = order_axes(nodes, tuple(a for a in outer if not (lanes_outer and a == vector)), hints)
    framed = replace(
        group, nodes=nodes, outer=outer + ((vector,) if lanes_outer and vector else ()), inner=inner
    )
    roles = {n.output: "full" if not group.decided else framed.role(n) for n in nodes}
    schedule = Schedule(nodes, outer, inner, vector, 1, lanes_outer, roles, hints=hints)
    schedule.lanes = choose_lanes(schedule)
    assign_levels(schedule)
    choose_kept(schedule, outputs)
    schedule.runs = {
        level: run for level in range(schedule.loops) if (run := run_of(schedule, level, outputs)) is not None
    }
    if not group.decided and vector is not None:
        schedule.sections = [
            section_schedule(schedule, axis, part) for axis, part in cut_sections(schedule.nodes, vector)
        ]
    return schedule


def section_schedule(whole: Schedule, axis: Axis, nodes: list[Any]) -> Schedule:
    """Of one section; the elements of a short one come one after the other."""
    if is_short(axis):
        return replace(whole, nodes=nodes, inner=(axis,), vector=None, lanes=1)
    return replace(
        whole, nodes=nodes, inner=(axis,), vector=axis, lanes=lanes_along(axis, nodes, whole.hints)
    )


def schedule_epilogue(group: Group, hints: dict[Any, int]) -> Schedule:
    """The Maps of a contraction's epilogue, over a region of its rows and columns."""
    nodes = group.nodes[1:]
    roles = {node.output: "full" for node in nodes}
    schedule = Schedule(nodes, group.outer, group.inner, group.inner[0], 1, False, roles, hints=hints)
    schedule.lanes = min(choose_lanes(schedule), panel_columns("float32"))  # regions are whole panels
    assign_levels(schedule)
    return schedule


# ---------------------------------------------------------------- axes


def node_indices(node: Any) -> list[Index]:
    found = [node.store]
    for expr in node_exprs(node):
        for part in walk(expr):
            if isinstance(part, (Load, IndexValue)):
                found.append(part.index)
    return found


def merge_axes(group: Group) -> Group:
    """Two axes that every access steps through as one become one."""
    nodes, outer, inner = list(group.nodes), list(group.outer), list(group.inner)
    changed = True
    while changed:
        changed = False
        indices = [index for node in nodes for index in node_indices(node)]
        for axes in (outer, inner):
            pairs = [(a, b) for a in axes for b in axes if a is not b]
            pair = next(((a, b) for a, b in pairs if mergeable(a, b, nodes, indices)), None)
            if pair is None:
                pair, nodes = next(
                    ((p, made) for p in pairs if (made := with_conditions_scaled(*p, nodes))), (None, nodes)
                )
            if pair is None:
                continue
            a, b = pair
            merged = Axis(b.name, a.extent * b.extent)
            nodes = [merge_in_node(node, a, merged) for node in nodes]
            axes[:] = [merged if x is b else x for x in axes if x is not a]
            changed = True
            break
    return replace(group, nodes=nodes, outer=tuple(outer), inner=tuple(inner))


def mergeable(a: Axis, b: Axis, nodes: list[Any], indices: list[Index]) -> bool:
    for node in nodes:
        kept, reduced = {x.name for x in node.axes}, {x.name for x in getattr(node, "reduce_axes", ())}
        if (a.name in kept) != (b.name in kept) or (a.name in reduced) != (b.name in reduced):
            return False
    return all(size_equal(i.coefficient(a.name), i.coefficient(b.name) * b.extent) for i in indices)


def with_conditions_scaled(a: Axis, b: Axis, nodes: list[Any]) -> list[Any] | None:
    """The nodes with `a + c >= d` as `a * B + b + c * B >= d * B` (and so with <), where b runs over B elements, if the
    axes can be merged then: the pixels and channels of a padded image."""
    if not isinstance(b.extent, int) or not all(
        size_equal(i.coefficient(a.name), i.coefficient(b.name) * b.extent)
        for node in nodes
        for i in (node.store, *(load.index for load in node_loads(node)))
    ):
        return None
    step = b.extent

    def scale(old: Apply) -> Expr:
        place, limit = old.args[0], old.args[-1]
        if (
            old.op not in ("ge", "lt")
            or not isinstance(place, IndexValue)
            or not isinstance(limit, Constant)
            or place.index.values()
            or place.index.coefficient(a.name) != 1
            or place.index.coefficient(b.name) != 0
        ):
            return old
        finer = IndexValue(place.dtype, place.index.scaled(step) + axis_index(b.name))
        return replace(old, args=(finer, replace(limit, value=limit.value * step)))

    def rewrite(expr: Expr) -> Expr:
        return map_expr(expr, lambda index: index, lambda load: load, scale)

    scaled = [rewrite_node(node, rewrite) for node in nodes]
    indices = [index for node in scaled for index in node_indices(node)]
    return scaled if mergeable(a, b, scaled, indices) else None


def merge_in_node(node: Any, gone: Axis, merged: Axis) -> Any:
    def shrink(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(merged if a.name == merged.name else a for a in axes if a.name != gone.name)

    reduced = shrink(node.reduce_axes) if isinstance(node, Reduce) else None
    return substitute_node(node, {gone.name: Index((), 0)}, shrink(node.axes), reduced)


def stride_cost(axis: Axis, indices: list[Index]) -> int:
    """How badly vectors along `axis` fit the accesses: strided ones are gathers."""
    cost = 0
    for index in indices:
        stride = index.coefficient(axis.name)
        data = any(
            axis.name in part.index.axes()
            for value, _ in index.values()
            for part in walk(value.expr)
            if isinstance(part, (Load, IndexValue))
        )
        if data or not isinstance(stride, int) or stride not in (0, 1):
            cost += 4
        elif stride == 1:
            cost -= 1
    return cost


def only_gathers(nodes: list[Any], vector: Axis) -> bool:
    """Whether vectors would be part empty, and every load a gather: one element after the other is faster then.

    Every second element is no gather: vectors of pairs are taken apart, which pays unless they are mostly empty.
    """
    if not isinstance(vector.extent, int) or vector.extent >= NATIVE_LANES:
        return False
    cheap = (2,) if 2 * vector.extent > NATIVE_LANES else ()
    loads = [load.index for node in nodes for load in node_loads(node)]
    gathers = [stride_cost(vector, [i]) > 0 and i.coefficient(vector.name) not in cheap for i in loads]
    return bool(gathers) and all(gathers)


def choose_vector(nodes: list[Any], candidates: tuple[Axis, ...], hints: dict[Any, int]) -> Axis | None:
    accesses = [i for n in nodes for i in [n.store, *(x.index for x in node_loads(n))]]

    def key(axis: Axis) -> tuple[int, int]:
        return stride_cost(axis, accesses), -hint(axis.extent, hints)

    return min(candidates, key=key, default=None)


def order_axes(nodes: list[Any], axes: tuple[Axis, ...], hints: dict[Any, int]) -> tuple[Axis, ...]:
    """Rows in the order in which memory is laid out."""
    stores = [n.store for n in nodes] + [x.index for n in nodes for x in node_loads(n)]
    main = max(stores, key=lambda index: len(index.axes()), default=Index())
    return tuple(sorted(axes, key=lambda a: -abs(hint(main.coefficient(a.name), hints))))


def cut_long_rows(
    nodes: list[Any], outer: tuple[Axis, ...], inner: tuple[Axis, ...], hints: dict[Any, int]
) -> Any:
    """A long one-dimensional loop becomes rows, so that threads can share it."""
    axis = inner[0]
    rows = hint(size_product(a.extent for a in outer), hints)
    if not isinstance(axis.extent, int) or axis.extent <= FLAT_BLOCK or rows >= 64:
        return nodes, outer, inner
    block = row_of(axis.extent)
    if block == 1:
        return nodes, outer, inner
    nodes = [split_axis(n, axis.name, block, axis.extent // block) for n in nodes]
    return nodes, (*outer, Axis(f"{axis.name}o", axis.extent // block)), (Axis(f"{axis.name}i", block),)


def choose_lanes(schedule: Schedule) -> int:
    return 1 if schedule.vector is None else lanes_along(schedule.vector, schedule.nodes, schedule.hints)


def lanes_along(vector: Axis, nodes: list[Any], hints: dict[Any, int]) -> int:
    """Several registers a value where few values are live: independent chains hide latency.

    Where the extent is known only at run time, no more than it was while tracing: a part of a vector costs as much as
    all of it.
    """
    exprs = [e for n in nodes for e in node_exprs(n)]
    cost = sum(expr_cost(e) for e in exprs)
    wide = any(
        part.dtype in ("float64", "int64")
        and not isinstance(part, IndexValue)
        and vector.name in expr_axes(part)
        for e in exprs
        for part in walk(e)
    )
    lanes = NATIVE_LANES * (1 if wide or cost > 60 else 4 if cost <= 8 else 2)
    extent = hint(vector.extent, hints)
    divides = isinstance(vector.extent, int)
    while lanes > NATIVE_LANES and (lanes > extent or (divides and extent % lanes)):
        lanes //= 2
    return lanes


def run_of(schedule: Schedule, level: int, outputs: set[str]) -> Run | None:
    """The loop of this level over all inner axes at once, if everything in it steps through them as through one."""
    s = schedule
    if s.vector is None or s.lanes_outer or len(s.inner) < 2:
        return None
    written = [n for n in s.nodes if s.level[n.output] == level and s.in_loop(n, outputs)]
    nodes = computed_with(written, level, schedule)
    if any(s.roles[n.output] == "sink" for n in nodes):
        return None
    indices = [
        x.index for n in nodes for e in node_exprs(n) for x in walk(e) if isinstance(x, (Load, IndexValue))
    ]
    indices += [n.store for n in written if s.roles[n.output] == "full" and n.output in outputs]
    for a, b in zip(s.inner, s.inner[1:]):
        if any(not size_equal(i.coefficient(a.name), i.coefficient(b.name) * b.extent) for i in indices):
            return None
    vector = Axis(s.vector.name, numel(s.inner))
    return Run(s.inner[:-1], vector, lanes_along(vector, nodes, s.hints))


def computed_with(written: list[Any], level: int, schedule: Schedule) -> list[Any]:
    """These nodes of a loop, and the full values that they compute again on the way."""
    by_name = {n.output: n for n in schedule.nodes if schedule.roles[n.output] == "full"}
    found: dict[str, Any] = {}
    waiting = list(written)
    while waiting:
        node = waiting.pop()
        if node.output in found:
            continue
        found[node.output] = node
        waiting += [
            by_name[name]
            for name in local_reads(node, schedule)
            if name in by_name and not (name in schedule.kept and schedule.level[name] < level)
        ]
    return list(found.values())


# ---------------------------------------------------------------- phases


def local_reads(node: Any, schedule: Schedule) -> list[str]:
    return [x.buffer for x in node_loads(node) if x.buffer in schedule.roles]


def assign_levels(schedule: Schedule) -> None:
    for node in schedule.nodes:
        level = 0
        for name in local_reads(node, schedule):
            finished = 1 if schedule.roles[name] == "reduce" else 0
            level = max(level, schedule.level[name] + finished)
        schedule.level[node.output] = level


def choose_kept(schedule: Schedule, outputs: set[str]) -> None:
    """Which full values later loops read back instead of computing again."""
    cost: dict[str, int] = {}
    for node in schedule.nodes:
        if schedule.roles[node.output] != "full":
            continue
        again = expr_cost(node.value) + sum(isinstance(p, Load) for p in walk(node.value))
        for name in set(local_reads(node, schedule)):
            again += 1 if name in schedule.kept else cost.get(name, 0)
        cost[node.output] = again
        later = any(
            schedule.level[n.output] > schedule.level[node.output] and schedule.roles[n.output] != "row"
            for n in consumers(node.output, schedule)
        )
        if later and again > RECOMPUTE:
            schedule.kept.add(node.output)


def consumers(name: str, schedule: Schedule) -> list[Any]:
    """Nodes that read a full value, directly or through values computed on the fly; each once, they may share much."""
    found: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        source = waiting.pop()
        for node in schedule.nodes:
            if node.output in found or source not in local_reads(node, schedule):
                continue
            found[node.output] = node
            if schedule.roles[node.output] == "full" and node.output not in schedule.kept:
                waiting.append(node.output)
    return list(found.values())


def numel(axes: tuple[Axis, ...]) -> Size:
    return size_product(a.extent for a in axes)
