"""Contract nodes as matrix products with plain strides.

    C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]

`matrix_form` sorts the axes of a Contract into batch, m, n and k and merges those that one stride steps
through. An operand that is not a plain strided array (a gather with padding, arithmetic) is first written
into one by `make_contracts_plain`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from compiler_bridge.ir import (
    Axis,
    Buffer,
    Contract,
    Expr,
    Graph,
    Load,
    Map,
    Node,
    Size,
    expr_axes,
    size_equal,
    strided_index,
)


@dataclass(frozen=True)
class Dimension:
    """A merged axis with its stride in A, B and C."""

    extent: Size
    a: Size
    b: Size
    c: Size


@dataclass(frozen=True)
class MatrixForm:
    """outer and inner batch, m, n, k; an absent one has extent 1."""

    batch: tuple[Dimension, Dimension]
    m: Dimension
    n: Dimension
    k: Dimension
    lhs: Load
    rhs: Load


ONE = Dimension(1, 0, 0, 0)


def is_plain(expr: Expr) -> bool:
    return isinstance(expr, Load) and expr.mask is None and not expr.index.values()


def merge_dimensions(dimensions: list[Dimension]) -> list[Dimension]:
    """Merge pairs that every array steps through as one."""
    dimensions = list(dimensions)
    for x in dimensions:
        for y in dimensions:
            if x is y:
                continue
            if all(size_equal(p, q * y.extent) for p, q in ((x.a, y.a), (x.b, y.b), (x.c, y.c))):
                rest = [d for d in dimensions if d is not x and d is not y]
                return merge_dimensions([*rest, Dimension(x.extent * y.extent, y.a, y.b, y.c)])
    return dimensions


def matrix_form(node: Contract) -> MatrixForm | None:
    """The matrix product a Contract is, or None when strides cannot express it."""
    if not (is_plain(node.lhs) and is_plain(node.rhs)):
        return None
    lhs, rhs = node.lhs, node.rhs
    assert isinstance(lhs, Load) and isinstance(rhs, Load)

    def dimension(axis: Axis) -> Dimension:
        return Dimension(axis.extent, *(i.coefficient(axis.name) for i in (lhs.index, rhs.index, node.store)))

    kept = [dimension(a) for a in node.axes]
    batch = merge_dimensions([d for d in kept if (d.a != 0) == (d.b != 0)])
    rows = merge_dimensions([d for d in kept if d.a != 0 and d.b == 0])
    columns = merge_dimensions([d for d in kept if d.a == 0 and d.b != 0])
    inner = merge_dimensions([dimension(a) for a in node.reduce_axes])
    for group in (rows, columns):  # one dimension is the matrix's own, others join the batch
        group.sort(key=lambda d: 0 if isinstance(d.c, int) and d.c == 1 else 1)
        batch += group[1:]
    if len(batch) > 2 or len(inner) > 1:
        return None
    outer_inner = (*[ONE] * (2 - len(batch)), *batch)
    return MatrixForm(outer_inner, first(rows), first(columns), first(inner), lhs, rhs)  # pyright: ignore


def first(dimensions: Iterable[Dimension]) -> Dimension:
    return next(iter(dimensions), ONE)


def make_contracts_plain(graph: Graph) -> Graph:
    """Write operands that are no plain strided arrays into temporaries that are."""
    buffers, nodes = dict(graph.buffers), list[Node]()
    for node in graph.nodes:
        if isinstance(node, Contract):
            node = unify_dtypes(node, buffers, nodes)
        if isinstance(node, Contract) and matrix_form(node) is None:
            for side in ("lhs", "rhs"):
                if matrix_form(node) is None:
                    node = materialize(node, side, buffers, nodes)
        nodes.append(node)
    return replace(graph, buffers=buffers, nodes=nodes)


def unify_dtypes(node: Contract, buffers: dict[str, Buffer], nodes: list[Node]) -> Contract:
    """Operands stored in different dtypes (autocast): the 16-bit one is widened first."""
    stored = {x.buffer: buffers[x.buffer].dtype for x in (node.lhs, node.rhs) if isinstance(x, Load)}
    if len(set(stored.values())) < 2:
        return node
    for side in ("lhs", "rhs"):
        operand = getattr(node, side)
        if buffers[operand.buffer].dtype != operand.dtype:
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
