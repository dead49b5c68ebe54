"""Pointwise loops that follow a contraction run on its result while that is in cache.

    C = A B; y = gelu(C + bias)  ->  the GEMM calls y's loop on every finished region of C

A loop qualifies when it is a Map over exactly the elements of C, with C's columns contiguous wherever it goes
along them; reductions and permuted reads keep a kernel of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler_bridge.contract import Dimension, MatrixForm, packed_form
from compiler_bridge.group import Group, Mismatch, check_dependences, join
from compiler_bridge.ir import (
    Axis,
    Constant,
    Contract,
    Index,
    IndexValue,
    Load,
    Map,
    Size,
    exact_quotient,
    node_exprs,
    node_loads,
    size_equal,
    walk,
)
from compiler_bridge.schedule import merge_axes


def join_all(group: Group, members: list[Any], hints: Any) -> Group:
    """The group with all of `members`, in their own order, or Mismatch.

    They are joined in whatever order lets each be aligned with one that is in already.
    """
    waiting, order = list(range(len(members))), list[int]()
    count = len(group.nodes)
    while waiting:
        for position in waiting:
            try:
                group = join(group, members[position], hints)
            except Mismatch:
                continue
            waiting.remove(position)
            order.append(position)
            break
        else:
            raise Mismatch("the loops share no axes")
    joined = {position: group.nodes[count + k] for k, position in enumerate(order)}
    nodes = group.nodes[:count] + [joined[position] for position in range(len(members))]
    for end in range(count + 1, len(nodes) + 1):
        check_dependences(replace(group, nodes=nodes[:end]), nodes[end - 1])
    return replace(group, nodes=nodes)


def fuse_epilogue(node: Contract, loops: Group, hints: Any) -> Group:
    """The contraction with the loops as its epilogue: nodes [Contract, Map ...], outer rows, inner columns.

    Raises:  Mismatch, which says why they keep a kernel of their own
    """
    form = packed_form(node)
    if form is None or not isinstance(form.n.c, int) or form.n.c != 1:
        raise Mismatch("the columns of the product are not contiguous")
    if not all(isinstance(member, Map) for member in loops.nodes):
        raise Mismatch("a reduction is no epilogue")
    product = Map(node.output, node.origin, node.axes, node.store, Constant("float32", 0.0))
    joined = join_all(Group([product], outer=node.axes), loops.nodes, hints)
    joined = with_columns_inside(joined, form)
    product, *members = joined.nodes
    (column,) = joined.inner
    rows = row_axes(joined, product, form)
    for member in members:
        require_contiguous(member, column)
    return Group([node, *members], outer=rows, inner=(column,), notes=loops.notes)


def with_columns_inside(joined: Group, form: MatrixForm) -> Group:
    """The columns of the product as the one inner axis."""
    store = joined.nodes[0].store
    columns = places_within(form.n, list(joined.axes), store)
    rows = tuple(axis for axis in joined.axes if axis not in columns)
    framed = merge_axes(replace(joined, outer=rows, inner=tuple(columns)))
    if len(framed.inner) != 1:
        raise Mismatch("the product's columns are divided")
    return framed


def row_axes(joined: Group, product: Map, form: MatrixForm) -> tuple[Axis, ...]:
    """The outer axes, such that together they count rows as the GEMM does: batch * M + row."""
    remaining = list(joined.outer)
    ordered: list[Axis] = []
    for dimension in as_one_where_even([*form.batch, form.m]):
        ordered += places_within(dimension, remaining, product.store)
    if len(ordered) != len(remaining):
        raise Mismatch("the product's rows are not the loop's")
    return tuple(ordered)


def as_one_where_even(dimensions: list[Dimension]) -> list[Dimension]:
    """Neighbours that C steps through evenly, as one; dimensions of extent 1 left out."""
    found: list[Dimension] = []
    for inner in dimensions:
        if size_equal(inner.extent, 1):
            continue
        if found and size_equal(found[-1].c, inner.c * inner.extent):
            inner = replace(inner, extent=found.pop().extent * inner.extent)
        found.append(inner)
    return found


def places_within(dimension: Dimension, axes: list[Axis], store: Index) -> list[Axis]:
    """The axes that a merged dimension of C was made of, slowest first; Mismatch if they don't make it up."""
    found: list[tuple[Size, Axis]] = []
    left = dimension.extent
    while not size_equal(left, 1):  # the slowest axis of what is left: its place is left / its extent
        for axis in axes:
            place = exact_quotient(left, axis.extent)
            if place is not None and size_equal(store.coefficient(axis.name), dimension.c * place):
                found.append((place, axis))
                left = place
                break
        else:
            raise Mismatch("the product's rows are divided otherwise")
    return [axis for _, axis in found]


def require_contiguous(member: Map, column: Axis) -> None:
    """Vectors run along the columns: every access must step by 1 or stand still there."""
    loads = [
        part for expr in node_exprs(member) for part in walk(expr) if isinstance(part, (Load, IndexValue))
    ]
    indices = [member.store, *(load.index for load in loads if isinstance(load, Load))]
    if any(index.coefficient(column.name) not in (0, 1) for index in indices):
        raise Mismatch("it goes along the product's columns in steps")
    data = [
        part for load in node_loads(member) for value, _ in load.index.values() for part in walk(value.expr)
    ]
    if any(isinstance(part, (Load, IndexValue)) and column.name in part.index.axes() for part in data):
        raise Mismatch("it gathers along the product's columns")
