"""Group loops into kernels that run over the same rows.

A kernel has a *frame*: outer axes (the rows) and inner axes (the columns of one row). Its nodes, all
rewritten to the frame's axes, play these roles:

    full   a Map over outer and inner axes
    row    a Map over the outer axes alone: one value a row
    reduce a Reduce over exactly the inner axes: one value a row
    sink   a Reduce over outer axes (and perhaps the inner ones too): accumulated over the rows, finished
           when the kernel has run, so nothing in the same kernel may read it

Softmax, layer norm and cross-entropy, forward and backward, each become one kernel: their intermediate rows
live in registers or in a scratch row, and memory is passed over once.

A node joins a kernel when its axes can be renamed (and split, where one side has merged two dimensions) so
that every value it reads from the kernel is the one made at the same point of the loops.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.fuse import has_more_operations, hint
from compiler_bridge.ir import (
    Axis,
    Index,
    Map,
    Reduce,
    Size,
    all_axes,
    axis_index,
    exact_quotient,
    node_exprs,
    node_loads,
    node_outputs,
    node_reads,
    size_equal,
    size_product,
    split_axis,
    substitute_node,
)
from compiler_bridge.window import window_form

LARGEST_KERNEL = 160  # operations in one kernel
LARGEST_SINK = 32768  # accumulators of one sink: they should stay in the second-level cache


@dataclass
class Group:
    """Nodes of one kernel. frame decided: `inner` is set by the first Reduce; before, all axes are outer."""

    nodes: list[Any]
    outer: tuple[Axis, ...] = ()
    inner: tuple[Axis, ...] = ()
    decided: bool = False
    lanes_outer: bool = False  # vectors run along an outer axis (the reduced axis is strided)
    notes: list[str] = field(default_factory=list)

    @property
    def is_loop(self) -> bool:
        return bool(self.nodes) and isinstance(self.nodes[0], (Map, Reduce))

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.outer + self.inner

    def outputs(self) -> set[str]:
        return {name for node in self.nodes for name in node_outputs(node)}

    def reads(self) -> set[str]:
        return {name for node in self.nodes for name in node_reads(node)} - self.outputs()

    def role(self, node: Any) -> str:
        kept = {a.name for a in node.axes}
        outer = {a.name for a in self.outer}
        inner = {a.name for a in self.inner}
        if isinstance(node, Map):
            return "full" if kept == outer | inner else "row" if kept == outer else "?"
        reduced = {a.name for a in node.reduce_axes}
        if reduced | kept != outer | inner:
            return "?"
        if reduced == inner and kept == outer:
            return "reduce"
        sums_rows = bool(reduced & outer) and (inner <= reduced or not (inner & reduced))
        return "sink" if sums_rows and not self.lanes_outer and node.value.dtype != "bool" else "?"


class Mismatch(Exception):
    """Two loops cannot share a frame; the message says why."""


# ---------------------------------------------------------------- a group of one node


def single(node: Any, hints: Any) -> Group:
    if not isinstance(node, (Map, Reduce)):
        return Group([node])
    group = Group([node], outer=node.axes + getattr(node, "reduce_axes", ()))
    if isinstance(node, Reduce):
        decide_frame(group, node, hints)
    return group


def main_load(node: Any) -> Index | None:
    """The access that covers the most axes: it decides which way vectors run."""
    loads = [load.index for load in node_loads(node)]
    return max(loads, key=lambda index: len(index.axes()), default=None)


def decide_frame(group: Group, node: Reduce, hints: Any) -> None:
    """Rows and columns for a kernel whose first Reduce is `node`."""
    if window_form(node) is not None:
        group.outer, group.inner, group.decided, group.lanes_outer = node.axes, node.reduce_axes, True, True
        return
    names = {a.name for a in node.reduce_axes}
    kept = tuple(a for a in group.axes if a.name not in names)
    reduced = tuple(a for a in group.axes if a.name in names)
    group.decided = True
    access = main_load(node)
    strides = access.axes() if access is not None else {}

    def stride(axis: Axis) -> int:
        return abs(hint(strides.get(axis.name, 0), hints))

    contiguous = [a for a in group.axes if stride(a) == 1]
    if access is not None and access.values() and kept and are_short(reduced, hints):
        group.outer, group.inner, group.lanes_outer = kept, reduced, True
        return
    if not contiguous or contiguous[0] in reduced or not kept:
        group.outer, group.inner = kept, reduced
        sums = node.value.dtype != "bool"
        if sums and not kept and len(reduced) > 1:  # the sum of everything: rows are the leading axes
            ordered = sorted(reduced, key=stride)
            group.inner = (ordered[0],)
            group.outer = tuple(a for a in reduced if a is not ordered[0])
        elif sums and not kept and can_split_rows(reduced):
            split_rows(group, hints)
        return
    width = hint(size_product(a.extent for a in kept), hints)
    if (
        node.value.dtype != "bool"
        and width <= LARGEST_SINK
        and all(stride(r) >= stride(k) for r in reduced for k in kept)
    ):
        group.outer, group.inner = reduced, kept
        return
    group.outer, group.inner, group.lanes_outer = kept, reduced, True


def are_short(reduced: tuple[Axis, ...], hints: Any) -> bool:
    """Whether sums along these axes had better be taken in several lanes at once: windows that begin at computed
    places, of a size known only at run time, where one does not fill a vector."""
    known = all(isinstance(axis.extent, int) for axis in reduced)
    return not known and hint(size_product(axis.extent for axis in reduced), hints) < NATIVE_LANES


ROW = 4096  # a one-dimensional reduction is cut into rows of this many elements


def can_split_rows(reduced: tuple[Axis, ...]) -> bool:
    extent = reduced[0].extent if len(reduced) == 1 else 0
    return isinstance(extent, int) and extent > 2 * ROW and row_of(extent) > 1


def row_of(extent: int) -> int:
    """The largest divisor that is at most ROW and at least 256, or 1."""
    return next((row for row in range(ROW, 255, -1) if extent % row == 0), 1)


def split_rows(group: Group, hints: Any) -> None:
    axis = group.axes[0]
    assert isinstance(axis.extent, int)
    inner = row_of(axis.extent)
    group.nodes = [split_axis(n, axis.name, inner, axis.extent // inner) for n in group.nodes]
    group.outer = (Axis(f"{axis.name}o", axis.extent // inner),)
    group.inner = (Axis(f"{axis.name}i", inner),)


# ---------------------------------------------------------------- aligning a node with a group


class Alignment:
    """Renames and splits the axes of `node` and of `group` until both agree; never changes its inputs."""

    def __init__(self, group: Group, node: Any) -> None:
        self.nodes = list(group.nodes)
        self.outer, self.inner = group.outer, group.inner
        names = {a.name: axis_index(f"n{k}") for k, a in enumerate(all_axes(node))}
        self.node = rename_axes(node, names)
        self.mapping: dict[str, str] = {}

    def group_axes(self) -> dict[str, Size]:
        return {a.name: a.extent for a in self.outer + self.inner}

    def accesses(self, buffer: str) -> list[Index]:
        stores = [n.store for n in self.nodes if n.output == buffer]
        return stores or [x.index for n in self.nodes for x in node_loads(n) if x.buffer == buffer]

    def run(self) -> Any:
        for _ in range(32):
            if not self.step():
                break
        names = {a.name for a in all_axes(self.node)}
        if set(self.mapping) != names:
            raise Mismatch(f"axes {sorted(names - set(self.mapping))} have no counterpart")
        return rename_axes(self.node, {a: axis_index(g) for a, g in self.mapping.items()})

    def step(self) -> bool:
        """Match one more axis or split one; False when nothing is left to do."""
        loads = sorted(
            node_loads(self.node), key=lambda x: (not self.produced(x.buffer), -len(x.index.axes()))
        )
        for load in loads:
            for index in self.accesses(load.buffer):
                if self.match(load.index, index):
                    return True
        made = self.node.output  # what the kernel reads already, when kernels merge
        readers = [x.index for n in self.nodes for x in node_loads(n) if x.buffer == made]
        if any(self.match(self.node.store, index) for index in readers):
            return True
        # axes that loads know through data alone (windows that begin anywhere)
        return any(self.match(self.node.store, n.store, whole=True) for n in self.nodes)

    def produced(self, buffer: str) -> bool:
        return any(n.output == buffer for n in self.nodes)

    def match(self, mine: Index, theirs: Index, whole: bool = False) -> bool:
        """Find one more axis that steps through both alike; unless `whole`, one of them may be split for it."""
        extents = self.group_axes()
        own = {a.name: a.extent for a in all_axes(self.node)}
        taken = set(self.mapping.values())
        for axis, stride in mine.axes().items():
            if axis in self.mapping:
                continue
            for other, other_stride in theirs.axes().items():
                if other in taken or not size_equal(stride, other_stride):
                    continue
                if size_equal(own[axis], extents[other]):
                    self.mapping[axis] = other
                    return True
                if not whole and self.split(axis, own[axis], other, extents[other]):
                    return True
        return False

    def split(self, axis: str, extent: Size, other: str, other_extent: Size) -> bool:
        outer = exact_quotient(extent, other_extent)
        if outer is not None and other_extent != 1:
            self.node = split_axis(self.node, axis, other_extent, outer)
            return True
        outer = exact_quotient(other_extent, extent)
        if outer is None or extent == 1:
            return False
        high, low = Axis(f"{other}o", outer), Axis(f"{other}i", extent)

        def expand(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
            return tuple(n for a in axes for n in ((high, low) if a.name == other else (a,)))

        self.nodes = [split_axis(n, other, extent, outer) for n in self.nodes]
        self.outer, self.inner = expand(self.outer), expand(self.inner)
        return True


def rename_axes(node: Any, names: dict[str, Index]) -> Any:
    def rename(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(replace(a, name=str(names[a.name].terms[0][0])) if a.name in names else a for a in axes)

    reduced = rename(node.reduce_axes) if isinstance(node, Reduce) else None
    return substitute_node(node, names, rename(node.axes), reduced)


# ---------------------------------------------------------------- joining


def join(group: Group, node: Any, hints: Any) -> Group:
    """The group with `node` in it, or Mismatch."""
    if any(a.extent == 0 for a in (*group.axes, *all_axes(node))):
        raise Mismatch("empty loops are not fused")
    require_no_window(group, node)
    alignment = Alignment(group, node)
    aligned = alignment.run()
    joined = replace(
        group,
        nodes=[*alignment.nodes, aligned],
        outer=alignment.outer,
        inner=alignment.inner,
        notes=list(group.notes),
    )
    if isinstance(node, Reduce) and not group.decided:
        if {a.name for a in all_axes(aligned)} != {a.name for a in joined.axes}:
            raise Mismatch("the reduction does not run over the kernel's loops")
        decide_frame(joined, aligned, hints)
        aligned = joined.nodes[-1]
    role = joined.role(aligned)
    if role == "?":
        raise Mismatch("its loops are not the kernel's rows and columns")
    if role == "sink" and hint(size_product(a.extent for a in aligned.axes), hints) > LARGEST_SINK:
        raise Mismatch("too many accumulators for a sum over rows")
    check_dependences(joined, aligned)
    if has_more_operations([e for n in joined.nodes for e in node_exprs(n)], LARGEST_KERNEL):
        raise Mismatch("the kernel would get too long")
    return joined


def require_no_window(group: Group, node: Any) -> None:
    """A sum over windows has a kernel of its own; only Maps follow one that gathers."""
    form = window_form(group.nodes[0])
    if window_form(node) is not None or (form is not None and not (form.gathers and isinstance(node, Map))):
        raise Mismatch("a sum over windows has a kernel of its own")


def check_dependences(group: Group, node: Any) -> None:
    """Every value read from the kernel must be made at the same point, and not by a sink."""
    stores = {n.output: n for n in group.nodes[:-1]}
    for load in node_loads(node):
        producer = stores.get(load.buffer)
        if producer is None:
            continue
        if load.index != producer.store or load.mask is not None:
            raise Mismatch(f"{load.buffer} is read at another place than it is made")
        if group.role(producer) == "sink":
            raise Mismatch(f"{load.buffer} is complete only after all rows")
