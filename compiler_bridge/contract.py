"""Contract nodes as matrix products with plain strides.

    C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]

`matrix_form` sorts the axes of a Contract into batch, m, n and k and merges those that one stride steps
through. An operand that is not a plain strided array (a gather with padding, arithmetic) is packed by a
function generated for it, the prologue (`MatrixForm.made`), or, where no matrix form exists even so, written
into an array first by `make_contracts_plain`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from compiler_bridge.cpu.gemm_plan import SHORTEST_RUN
from compiler_bridge.ir import (
    Axis,
    Buffer,
    Constant,
    Contract,
    Expr,
    Graph,
    Index,
    IndexValue,
    Load,
    Map,
    Node,
    Size,
    expr_axes,
    size_equal,
    size_product,
    strided_index,
    substitute,
)
from compiler_bridge.lower.lowering import apply, constant


@dataclass(frozen=True)
class Dimension:
    """A merged axis with its stride in A, B and C, and the axes it was made of, slowest first.

    In an operand made by a function a stride only says whether the operand varies along the axis (1) or not.
    """

    extent: Size
    a: Size
    b: Size
    c: Size
    axes: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class MatrixForm:
    """outer and inner batch, m, n, k; an absent one has extent 1. made: the operands that a function packs.
    k_segments: where no one stride steps through the sum, it runs through k once for each of these."""

    batch: tuple[Dimension, Dimension]
    m: Dimension
    n: Dimension
    k: Dimension
    lhs: Expr
    rhs: Expr
    made: tuple[bool, bool] = (False, False)
    k_segments: Dimension = Dimension(1, 0, 0, 0)


ONE = Dimension(1, 0, 0, 0)

SHORTEST_K_RUN = 32
"""The sum may run in two loops, over segments and within them, from this length of a segment on: C is read and
written once more for each."""


def is_plain(expr: Expr) -> bool:
    return isinstance(expr, Load) and expr.mask is None and not expr.index.values()


def merge_dimensions(dimensions: list[Dimension], arrays: str = "abc") -> list[Dimension]:
    """Merge pairs that every one of the arrays steps through as one."""
    dimensions = list(dimensions)
    for x in dimensions:
        for y in dimensions:
            if x is y:
                continue
            if all(size_equal(getattr(x, array), getattr(y, array) * y.extent) for array in arrays):
                rest = [d for d in dimensions if d is not x and d is not y]
                merged = Dimension(x.extent * y.extent, y.a, y.b, y.c, x.axes + y.axes)
                return merge_dimensions([*rest, merged], arrays)
    return dimensions


def matrix_form(node: Contract) -> MatrixForm | None:
    """The matrix product of two plain strided arrays that a Contract is, or None when strides cannot express
    it."""
    form = packed_form(node)
    return None if form is None or any(form.made) else form


@dataclass(frozen=True)
class IndirectForm(MatrixForm):
    """A product whose A is read where it lies though no stride leads from row to row: each segment of the sum is
    a run of contiguous elements, and a function says where it begins (the windows of a channels-last
    convolution). m counts `m.axes`, slowest first; m.c is 0 where rows of C are not evenly apart. k.b is B's stride
    along the run, b_segment that from segment to segment."""

    segments: tuple[Axis, ...] = ()
    run: Axis | None = None
    b_segment: Size = 0

    def places_a(self) -> Expr:
        """Where a row's segment begins: the element of A's buffer, -1 in the padding."""
        assert self.run is not None
        return places(self.lhs, self.run)

    def places_c(self, store: Index) -> Expr:
        """Where a row of C begins."""
        return substitute(IndexValue("int64", store), {axis.name: Index() for axis in self.n.axes})


@dataclass(frozen=True)
class IndirectPanels(MatrixForm):
    """A product whose B is copied into panels from where it lies, run by run: a column is an element of the run of
    a segment, and a function says where the segment begins for each k (the gradient of a channels-last
    convolution's weight)."""

    segments: tuple[Axis, ...] = ()
    run: Axis | None = None

    def places_b(self) -> Expr:
        """Where a segment begins for one k: the element of B's buffer, -1 in the padding."""
        assert self.run is not None
        return places(self.rhs, self.run)


def places(operand: Expr, run: Axis) -> Expr:
    load = substitute(operand, {run.name: Index()})
    assert isinstance(load, Load)
    place = IndexValue("int64", load.index)
    return place if load.mask is None else apply("where", load.mask, place, constant(-1, "int64"))


def packed_form(node: Contract) -> MatrixForm | None:
    """The matrix product a Contract is when functions make, or find, what is no plain strided array, or None."""
    form = strided_form(node)
    if form is not None and not any(form.made):
        return form
    return indirect_form(node) or indirect_panels(node) or form


def indirect_form(node: Contract) -> IndirectForm | None:
    """The product with A's rows found by a function, if A's elements lie side by side along an axis of the sum."""
    lhs, rhs = node.lhs, node.rhs
    run = contiguous_axis(lhs, node.reduce_axes)
    if run is None or (isinstance(run.extent, int) and run.extent < SHORTEST_RUN):
        return None
    left, right = expr_axes(lhs), expr_axes(rhs)
    segments = tuple(axis for axis in node.reduce_axes if axis is not run)
    kept = {side: [a for a in node.axes if (a.name in left, a.name in right) == side] for side in SIDES}
    if kept[False, False] or not all(axis.name in right for axis in node.reduce_axes):
        return None

    def dimension(axis: Axis) -> Dimension:
        return Dimension(
            axis.extent, 1, stride_along(rhs, axis.name), node.store.coefficient(axis.name), (axis,)
        )

    def columns_and_batch(arrays: str) -> list[list[Dimension]]:
        return [
            merge_dimensions([dimension(a) for a in kept[s]], arrays) for s in ((False, True), (True, True))
        ]

    taps = in_order([dimension(a) for a in segments], "b") if is_plain(rhs) else None
    columns, batch = columns_and_batch("bc")
    plain = taps is not None and len(columns) <= 1 and len(batch) <= 1
    if not plain:
        columns, batch = columns_and_batch("c")
    if len(columns) > 1 or len(batch) > 1:
        return None
    rows = kept[True, False]
    m = in_order([dimension(a) for a in rows], "c")
    m = m or Dimension(size_product(a.extent for a in rows), 1, 0, 0, tuple(rows))
    made, along = (True, not plain), dimension(run).b if plain else 1
    inner = Dimension(size_product(a.extent for a in node.reduce_axes), 1, along, 0, (*segments, run))
    step = taps.b if plain and taps is not None else 0
    return IndirectForm(
        (ONE, first(batch)), m, first(columns), inner, lhs, rhs, made,
        segments=segments, run=run, b_segment=step,
    )  # fmt: skip


def indirect_panels(node: Contract) -> IndirectPanels | None:
    """The product with B's columns found by a function, if B's elements lie side by side along an axis of C."""
    left = expr_axes(node.lhs)
    run = contiguous_axis(node.rhs, tuple(axis for axis in node.axes if axis.name not in left))
    if run is None or not is_plain(node.lhs) or (isinstance(run.extent, int) and run.extent < SHORTEST_RUN):
        return None
    form = strided_form(replace(node, rhs=replace(node.rhs, mask=node.rhs.mask or TRUE)))  # pyright: ignore
    if form is None or form.n.c != 1 or form.n.axes[-1:] != (run,) or not size_equal(form.batch[0].extent, 1):
        return None
    return IndirectPanels(
        form.batch,
        form.m,
        form.n,
        form.k,
        node.lhs,
        node.rhs,
        (False, True),
        segments=form.n.axes[:-1],
        run=run,
    )


TRUE = Constant("bool", True)
SIDES = ((True, False), (False, True), (True, True), (False, False))


def contiguous_axis(operand: Expr, axes: tuple[Axis, ...]) -> Axis | None:
    """The axis along which a load's elements lie side by side, all of them there or none."""
    if not isinstance(operand, Load):
        return None
    moving = expr_axes(operand.mask) if operand.mask is not None else set[str]()
    moving = moving.union(*(expr_axes(value.expr) for value, _ in operand.index.values()))
    for axis in axes:
        if operand.index.coefficient(axis.name) == 1 and axis.name not in moving:
            return axis
    return None


def in_order(dimensions: list[Dimension], arrays: str) -> Dimension | None:
    """The dimensions, slowest first, as one, if every one of the arrays steps through them so."""
    if not dimensions:
        return ONE
    merged = dimensions[0]
    for d in dimensions[1:]:
        if not all(size_equal(getattr(merged, array), getattr(d, array) * d.extent) for array in arrays):
            return None
        merged = Dimension(merged.extent * d.extent, d.a, d.b, d.c, merged.axes + d.axes)
    return merged


def strided_form(node: Contract) -> MatrixForm | None:
    """The matrix product a Contract is when a function makes what is no plain strided array, or None."""
    made = (not is_plain(node.lhs), not is_plain(node.rhs))
    arrays = "".join(name for name, is_made in zip("ab", made) if not is_made) + "c"

    def dimension(axis: Axis) -> Dimension:
        a, b = (stride_along(operand, axis.name) for operand in (node.lhs, node.rhs))
        return Dimension(axis.extent, a, b, node.store.coefficient(axis.name), (axis,))

    kept = [dimension(a) for a in node.axes]
    batch = merge_dimensions([d for d in kept if (d.a != 0) == (d.b != 0)], arrays)
    rows = merge_dimensions([d for d in kept if d.a != 0 and d.b == 0], arrays)
    columns = merge_dimensions([d for d in kept if d.a == 0 and d.b != 0], arrays)
    # the sum may run through its axes in any order, so C's strides (0) do not matter
    inner = merge_dimensions([dimension(a) for a in node.reduce_axes], arrays)
    for group in (rows, columns):  # one dimension is the matrix's own, others join the batch
        group.sort(key=suits_the_matrix, reverse=True)
        batch += group[1:]
    inner.sort(key=lambda d: 0 if 1 in (d.a, d.b) else 1)
    # segments of the sum pay where C is one matrix: rows or columns that join the batch leave short ones
    has_segments = not any(made) and is_long(first(inner)) and max(len(rows), len(columns)) <= 1
    if len(batch) > 2 or len(inner) > 1 + has_segments:
        return None
    outer, inner_batch = (*[ONE] * (2 - len(batch)), *batch)
    return MatrixForm(
        (outer, inner_batch),
        first(rows),
        first(columns),
        first(inner),
        node.lhs,
        node.rhs,
        made,
        first(inner[1:]),
    )


def suits_the_matrix(dimension: Dimension) -> tuple[bool, int]:
    """Contiguous in C before long, long before short: each matrix of the batch reads the other operand anew."""
    extent = dimension.extent if isinstance(dimension.extent, int) else 0
    return isinstance(dimension.c, int) and dimension.c == 1, extent


def is_long(run: Dimension) -> bool:
    """Whether the sum may run in segments of this one; of sizes known only at run time, yes."""
    return not isinstance(run.extent, int) or run.extent >= SHORTEST_K_RUN


def stride_along(operand: Expr, axis: str) -> Size:
    """The stride of a plain operand; of another, 1 if it varies along the axis."""
    if is_plain(operand):
        assert isinstance(operand, Load)
        return operand.index.coefficient(axis)
    return int(axis in expr_axes(operand))


def offset_of(operand: Expr) -> Size:
    """Elements from the start of its buffer to a plain operand's first."""
    return operand.index.const if isinstance(operand, Load) else 0


def with_contiguous_columns(node: Contract) -> Contract:
    """lhs * rhs -> rhs * lhs where that makes the columns of C contiguous: an operand a function makes cannot be
    exchanged later, as plain ones are (`cpu/gemm_plan.py`)."""
    form = packed_form(node)
    if form is None or not any(form.made) or form.n.c == 1 or form.m.c != 1:
        return node
    swapped = replace(node, lhs=node.rhs, rhs=node.lhs)
    return node if packed_form(swapped) is None else swapped


def first(dimensions: Iterable[Dimension]) -> Dimension:
    return next(iter(dimensions), ONE)


def make_contracts_plain(graph: Graph) -> Graph:
    """Write operands that stand in the way of a matrix form into temporaries."""
    buffers, nodes = dict(graph.buffers), list[Node]()
    for node in graph.nodes:
        if isinstance(node, Contract):
            if isinstance(packed_form(node), IndirectForm):
                node = widen_source(node, buffers, nodes)
            node = unify_dtypes(node, buffers, nodes)
        if isinstance(node, Contract) and matrix_form(node) is None:
            # strides stand in the way only of the plain operand: the other is made in any order
            for side in sorted(("lhs", "rhs"), key=lambda side: not is_plain(getattr(node, side))):
                if packed_form(node) is None and overlaps(node, side, buffers):
                    node = replace(node, **{side: replace(getattr(node, side), mask=TRUE)})
                elif packed_form(node) is None:
                    node = materialize(node, side, buffers, nodes)
            node = with_contiguous_columns(node)
        nodes.append(node)
    return replace(graph, buffers=buffers, nodes=nodes)


def overlaps(node: Contract, side: str, buffers: dict[str, Buffer]) -> bool:
    """Whether an operand reads elements several times (windows of a convolution): an array of it would be larger
    than its source. A mask that is always true has a function pack it instead."""
    operand = getattr(node, side)
    if not is_plain(operand):
        return False
    used = [a.extent for a in (*node.axes, *node.reduce_axes) if operand.index.coefficient(a.name) != 0]
    elements, held = size_product(used), buffers[operand.buffer].numel()
    return isinstance(elements, int) and isinstance(held, int) and elements > held


def unify_dtypes(node: Contract, buffers: dict[str, Buffer], nodes: list[Node]) -> Contract:
    """Operands stored in different dtypes (autocast): the 16-bit one is widened first."""
    stored = {x.buffer: buffers[x.buffer].dtype for x in (node.lhs, node.rhs) if isinstance(x, Load)}
    if len(set(stored.values())) < 2:
        return node
    for side in ("lhs", "rhs"):
        operand = getattr(node, side)
        if isinstance(operand, Load) and buffers[operand.buffer].dtype != operand.dtype:
            node = materialize(node, side, buffers, nodes)
    return node


def widen_source(node: Contract, buffers: dict[str, Buffer], nodes: list[Node]) -> Contract:
    """A read where it lies must be of the dtype of the sums: a copy of its 16-bit buffer, not of its windows."""
    lhs = node.lhs
    assert isinstance(lhs, Load)
    source = buffers[lhs.buffer]
    if source.dtype == lhs.dtype:
        return node
    name = f"{node.output}_wide"
    buffers[name] = replace(source, name=name, dtype=lhs.dtype, kind="temporary")
    axes = tuple(Axis(f"i{k}", extent) for k, extent in enumerate(source.shape) if extent != 1)
    strides = [stride for stride, extent in zip(source.strides, source.shape) if extent != 1]
    index = strided_index(axes, strides)
    nodes.append(Map(name, node.origin, axes, index, Load(lhs.dtype, source.name, index)))
    return replace(node, lhs=replace(lhs, buffer=name))


def materialize(node: Contract, side: str, buffers: dict[str, Buffer], nodes: list[Node]) -> Contract:
    """operand -> temporary[axes it uses, reduced axes last], contiguous"""
    operand: Expr = getattr(node, side)
    used = expr_axes(operand)
    axes = tuple(a for a in (*node.axes, *node.reduce_axes) if a.name in used)
    strides: list[Size] = []
    stride: Size = 1
    for axis in reversed(axes):
        strides.insert(0, stride)
        stride = stride * axis.extent
    name = f"{node.output}_{side}"
    buffers[name] = Buffer(name, operand.dtype, tuple(a.extent for a in axes), tuple(strides))
    index = strided_index(axes, strides)
    nodes.append(Map(name, node.origin, axes, index, operand))
    return replace(node, **{side: Load(operand.dtype, name, index)})
