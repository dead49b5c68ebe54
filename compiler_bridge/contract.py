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

from compiler_bridge.ir import (
    Axis,
    Buffer,
    Constant,
    Contract,
    Expr,
    Graph,
    Load,
    Map,
    Node,
    Size,
    expr_axes,
    size_equal,
    size_product,
    strided_index,
)


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
    """outer and inner batch, m, n, k; an absent one has extent 1. made: the operands that a function packs."""

    batch: tuple[Dimension, Dimension]
    m: Dimension
    n: Dimension
    k: Dimension
    lhs: Expr
    rhs: Expr
    made: tuple[bool, bool] = (False, False)


ONE = Dimension(1, 0, 0, 0)


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


def packed_form(node: Contract) -> MatrixForm | None:
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
        group.sort(key=lambda d: 0 if isinstance(d.c, int) and d.c == 1 else 1)
        batch += group[1:]
    if len(batch) > 2 or len(inner) > 1:
        return None
    outer_inner = (*[ONE] * (2 - len(batch)), *batch)
    return MatrixForm(outer_inner, first(rows), first(columns), first(inner), node.lhs, node.rhs, made)  # pyright: ignore


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
    return replace(node, lhs=node.rhs, rhs=node.lhs)


def first(dimensions: Iterable[Dimension]) -> Dimension:
    return next(iter(dimensions), ONE)


def make_contracts_plain(graph: Graph) -> Graph:
    """Write operands that stand in the way of a matrix form into temporaries."""
    buffers, nodes = dict(graph.buffers), list[Node]()
    for node in graph.nodes:
        if isinstance(node, Contract):
            node = unify_dtypes(node, buffers, nodes)
        if isinstance(node, Contract) and matrix_form(node) is None:
            # strides stand in the way only of the plain operand: the other is made in any order
            for side in sorted(("lhs", "rhs"), key=lambda side: not is_plain(getattr(node, side))):
                if packed_form(node) is None and overlaps(node, side, buffers):
                    node = replace(node, **{side: replace(getattr(node, side), mask=Constant("bool", True))})
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
