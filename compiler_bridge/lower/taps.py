"""Linear maps along single dimensions, by tables: out[o] = sum over k of weights[k, o] * x[index[k, o]].

Interpolation and padding are such a map along every dimension they touch, and so is their gradient, by the adjoint
table. Tables are constants of the graph. How many dimensions one loop does at once is a matter of cost: a weighted
sum along rows reads vectors, one along columns gathers, so they do best one after the other.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from compiler_bridge.ir import (
    Axis,
    Buffer,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Load,
    Map,
    Value,
    axis_index,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    both,
    cast,
    constant,
    dtype_name,
    real_axes,
    to_storage,
)
from compiler_bridge.ops import compute_dtype

GATHER = 4  # a gathered element costs as much as so many that lie side by side
SPARSE = 8  # elements so few steps apart are gathered by int32 indices, faster than a strided load
TOGETHER = 8  # terms that one loop adds, where none of them is gathered


@dataclass(frozen=True)
class Table:
    """index: [taps, outputs] int64   weights: the same shape; None: all are 1

    exists: the same shape; where False the output has no such tap and its place is not read (None: all exist). A
        tap of weight 0 exists: 0 times infinity is NaN, as in C++.
    """

    index: Tensor
    weights: Tensor | None = None
    exists: Tensor | None = None

    @property
    def taps(self) -> int:
        return self.index.shape[0]

    @property
    def count(self) -> int:
        return self.index.shape[1]

    @functools.cached_property
    def padded(self) -> list[bool]:
        """For each tap whether some outputs lack it."""
        return [False] * self.taps if self.exists is None else (~self.exists).any(1).tolist()

    @functools.cached_property
    def plain(self) -> bool:
        """Whether what is added is added as it is."""
        if self.weights is None:
            return True
        ones = self.weights == 1
        return bool((ones if self.exists is None else ones | ~self.exists).all())


def adjoint(table: Table, size: int) -> Table:
    """The table of the transposed map, of which `size` is the number of outputs."""
    taps, count = table.index.shape
    weights = torch.ones(taps, count) if table.weights is None else table.weights
    exists = torch.ones(taps, count, dtype=torch.bool) if table.exists is None else table.exists
    output = torch.arange(count).expand(taps, count)
    pairs, place = torch.unique((table.index * count + output)[exists], return_inverse=True)
    added = weights.new_zeros(len(pairs)).index_add(0, place, weights[exists])
    number = torch.bincount(pairs // max(count, 1), minlength=size)
    order = torch.argsort(rank_of(pairs, size, count), stable=True)
    pairs, added = pairs[order], added[order]
    target = pairs // max(count, 1)
    slot = torch.arange(len(pairs)) - (torch.cumsum(number, 0) - number)[target]
    most = max(int(number.max()), 1) if size else 1
    index = torch.zeros(most, size, dtype=torch.int64)
    index[slot, target] = pairs % max(count, 1)
    padded = weights.new_zeros(most, size)
    padded[slot, target] = added
    there = torch.zeros(most, size, dtype=torch.bool)
    there[slot, target] = True
    return Table(index, padded, there)


def rank_of(pairs: Tensor, size: int, count: int) -> Tensor:
    """Numbers that order the pairs (target * count + output) by target, those on a line through all targets first.

    On such a line outputs lie evenly apart (the interior of a padded image): no index needs to be looked up.
    """
    if size == 0 or count == 0:
        return pairs
    middle, step = size // 2, max(round(count / size), 1)
    away = torch.arange(size) - middle
    beside = torch.ones_like(pairs, dtype=torch.bool)
    for output in (pairs[pairs // count == middle] % count).tolist():
        line = output + step * away
        places = torch.arange(size) * count + line
        if int(line.min()) >= 0 and int(line.max()) < count and bool(torch.isin(places, pairs).all()):
            beside &= ~torch.isin(pairs, places)
    return pairs // count * (2 * count) + beside * count + pairs % count


def resample(lowering: Lowering, x: BufferView, val: Tensor, tables: dict[int, Table]) -> BufferView:
    """x under one table a dimension (dimensions without stay as they are), laid out as `val`.

    What lies between the passes is laid out as x.
    """
    dtype = compute_dtype(dtype_name(val.dtype))
    inner = min(range(len(x.shape)), key=lambda d: (layout_place(x, d), -d))
    passes = passes_of(x.shape, tables, inner)
    for dims in passes:
        last = dims is passes[-1]
        shape = [tables[d].count if d in dims else extent for d, extent in enumerate(x.shape)]
        buffer = lowering.buffer_like(val) if last else like_order(lowering, x, shape, dtype)
        x = resample_once(lowering, x, buffer, {d: tables[d] for d in dims}, dtype)
    return x


def like_order(lowering: Lowering, x: BufferView, shape: Sequence[Any], dtype: str) -> Buffer:
    """A dense buffer whose dimensions follow each other in memory as those of x do."""
    dense: list[Any] = [0] * len(shape)
    step: Any = 1
    for d in sorted(range(len(shape)), key=lambda d: (layout_place(x, d), -d)):
        dense[d] = step
        step = step * (1 if shape[d] == 0 else shape[d])
    return lowering.new_buffer(shape, dtype, dense)


def layout_place(x: BufferView, d: int) -> int:
    """Dimensions ordered by this number are ordered from the innermost outwards; those without steps are outside."""
    stride = known(x.strides[d])
    return stride if x.shape[d] != 1 and stride != 0 else sys.maxsize


def passes_of(shape: Sequence[Any], tables: dict[int, Table], inner: int) -> list[list[int]]:
    """Which dimensions are done together, in which order.

    Those with a single tap go along with any other. inner: the dimension along which elements lie side by side.
    """
    single = [d for d, table in tables.items() if table.taps == 1]
    several = [d for d in tables if d not in single]
    terms = 1
    for d in several:
        terms *= tables[d].taps
    if len(several) < 2 or (inner not in tables and terms <= TOGETHER):
        return [list(tables)]
    order = min(itertools.permutations(several), key=lambda order: cost_of(order, shape, tables, inner))
    passes = [[d] for d in order]
    growing = [d for d in single if tables[d].count > shape[d]]
    passes[0] += [d for d in single if d not in growing]
    passes[-1] += growing
    return passes


def cost_of(order: Sequence[int], shape: Sequence[Any], tables: dict[int, Table], inner: int) -> float:
    """Elements read by passes in this order, gathered ones weighted."""
    elements, total = 1.0, 0.0
    for d in order:
        elements *= tables[d].count / max(shape[d], 1)
        total += elements * (tables[d].taps * (GATHER if d == inner else 1) + 2)
    return total


def resample_once(
    lowering: Lowering, x: BufferView, buffer: Buffer, tables: dict[int, Table], dtype: str
) -> BufferView:
    """One loop over the result, the taps written out."""
    axes = axes_of(buffer.shape)
    value = to_storage(weighted_sum(lowering, x, axes, tables, dtype), buffer.dtype)
    store = strided_index(axes, buffer.strides)
    lowering.append(Map(buffer.name, lowering.origin(), real_axes(axes), store, value))
    return lowering.whole(buffer)


Column = tuple[Index, Expr | None, Expr | None]
"""A tap along a dimension: its place in the buffer, its weight (None: 1), whether there is one (None: always)."""


def weighted_sum(
    lowering: Lowering, x: BufferView, axes: tuple[Axis, ...], tables: dict[int, Table], dtype: str
) -> Expr:
    """sum over k of weights[k, o] * (the same along the other dimensions), the innermost an element of x"""
    start = Index((), x.offset)
    for d, axis in enumerate(axes):
        if d not in tables and axis.extent != 1 and x.shape[d] != 1:
            start = start + Index(((axis.name, x.strides[d]),), 0)
    with _disable_current_modes():  # tables are real tensors, also while a fake graph is traced
        columns = {
            d: columns_of(lowering, tables[d], tables[d].index * known(x.strides[d]), axes[d])
            for d in sorted(tables)
        }
        beside = next((d for d in sorted(tables) if x.strides[d] == 1), None)
        found = None if beside is None else interior_columns(tables[beside], columns[beside], axes[beside])
    value = sum_of_columns(lowering, x.buffer, start, list(columns.values()), dtype)
    if beside is None or found is None:
        return value
    inside, columns[beside] = found
    return apply(
        "where", inside, sum_of_columns(lowering, x.buffer, start, list(columns.values()), dtype), value
    )


def interior_of(table: Table) -> tuple[int, int] | None:
    """(first, end) of the longest run of outputs whose taps each go along with them, or do not exist, all the way.

    Along the vectors these are plain loads; None where no run is most of the outputs, or where it is all of them.
    """
    count = table.count
    if table.taps == 0 or count < 2:
        return None
    index = table.index if table.exists is None else torch.where(table.exists, table.index, -1)
    here, there = index[:, :-1], index[:, 1:]
    goes_on = ((here >= 0) & (there == here + 1)) | ((here < 0) & (there < 0))
    breaks = (~goes_on.all(0)).nonzero().flatten() + 1
    bounds = [0, *breaks.tolist(), count]
    first, end = max(zip(bounds, bounds[1:]), key=lambda ends: ends[1] - ends[0])
    return (first, end) if count <= 2 * (end - first) < 2 * count else None


def interior_columns(table: Table, columns: list[Column], axis: Axis) -> tuple[Expr, list[Column]] | None:
    """(whether an output belongs to the table's interior, the taps it then has); None without an interior."""
    interior = interior_of(table)
    if interior is None:
        return None
    first, end = interior
    here = IndexValue("int64", axis_index(axis.name))
    inside = both(apply("ge", here, constant(first, "int64")), apply("lt", here, constant(end, "int64")))
    found: list[Column] = []
    for k, (_, weight, _) in enumerate(columns):
        if table.exists is None or bool(table.exists[k, first]):
            line = Index(((axis.name, 1),), int(table.index[k, first]) - first)
            found.append((line, weight, inside))
    return (inside, found) if found else None


def sum_of_columns(
    lowering: Lowering, buffer: str, start: Index, columns: Sequence[list[Column]], dtype: str
) -> Expr:
    """The sum over all combinations of one tap a dimension."""

    def total(remaining: Sequence[list[Column]], index: Index, mask: Expr | None) -> Expr:
        if not remaining:
            return cast(Load(compute_dtype(lowering.graph.buffers[buffer].dtype), buffer, index, mask), dtype)
        result: Expr | None = None
        for place, weight, exists in remaining[0]:
            piece = total(remaining[1:], index + place, mask if exists is None else both(mask, exists))
            if weight is not None:
                piece = apply("mul", piece, cast(weight, dtype))
            result = piece if result is None else apply("add", result, piece)
        assert result is not None
        return result

    return total(columns, start, None)


def known(stride: Any) -> int:
    if not isinstance(stride, int):
        raise NoLowering(f"a table along a dimension of stride {stride}; expected a known number")
    return stride


def columns_of(lowering: Lowering, table: Table, places: Tensor, axis: Axis) -> list[Column]:
    """The taps of a table. places: [taps, outputs], where in memory what `table.index` means lies."""
    if table.exists is not None:
        places = torch.where(table.exists, places, -1)
    near = places.numel() == 0 or int(places.abs().max()) < 2**31
    place = tap_loader(lowering, places.to(torch.int32 if near else torch.int64), axis)
    weight = None if table.weights is None else tap_loader(lowering, table.weights, axis)
    columns: list[Column] = []
    for k in range(table.taps):
        factor = None if weight is None else weight(k)
        exists = None
        if table.padded[k]:
            exists = apply("ge", place(k), constant(0, place(k).dtype))
        index = None if exists is not None else on_a_line(places[k], axis)
        if index is None:
            index = Index(((Value(cast(place(k), "int64")), 1),), 0)
        columns.append((index, None if table.plain else factor, exists))
    return columns


def on_a_line(places: Tensor, axis: Axis) -> Index | None:
    """first + step * axis, where the places are that and a vector of them is no worse than a gather."""
    if len(places) == 0:
        return None
    first = int(places[0])
    step = int(places[1]) - first if len(places) > 1 else 0
    if 1 < step <= SPARSE or not torch.equal(places, first + step * torch.arange(len(places))):
        return None
    return strided_index([axis], [step], first)


def tap_loader(lowering: Lowering, table: Tensor, axis: Axis) -> Callable[[int], Expr]:
    """table[k, axis] as an expression: the table becomes a constant of the graph."""
    table = table.contiguous()
    name = dtype_name(table.dtype)
    buffer = lowering.constant_tensor(table)

    def load(k: int) -> Expr:
        index = strided_index([axis], [1], k * table.shape[1])
        return Load(compute_dtype(name), buffer.buffer, index)

    return load
