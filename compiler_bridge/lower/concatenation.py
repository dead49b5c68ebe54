"""Concatenation: out[i] = first[i] where i < n, else second[i - n], ...

Pieces of one tensor (a circular pad, a roll) are rows of it by a table of their places: one read each, where the
general form looks into every piece.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from compiler_bridge.ir import (
    Axis,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Load,
    Size,
    Value,
    axis_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    apply,
    both,
    cast,
    compute_dtype_of,
    constant,
    index_expr,
    lowers,
)
from compiler_bridge.lower.placement import shifted_load, with_dimension


@lowers("aten.cat")
def lower_cat(lowering: Lowering, node: fx.Node) -> Any:
    tensors: Any = node.args[0]
    rank = node.meta["val"].dim()
    # torch ignores empty 1-d tensors among others
    views = [lowering.view(t) for t in tensors if lowering.meta(t).dim() == rank]
    return concatenate(lowering, node, views)


@lowers("aten.stack")
def lower_stack(lowering: Lowering, node: fx.Node) -> Any:
    tensors: Any = node.args[0]
    dim = dim_argument(node)
    return concatenate(lowering, node, [with_dimension(lowering.view(t), dim) for t in tensors])


def dim_argument(node: fx.Node) -> int:
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return dim % max(node.meta["val"].dim(), 1)


def concatenate(lowering: Lowering, node: fx.Node, views: list[BufferView]) -> BufferView:
    """out[..., i, ...] = views[0][i] if i < n0 else views[1][i - n0] if i < n0 + n1 else ..."""
    dim, dtype = dim_argument(node), compute_dtype_of(node)
    if any(view.shape[dim] != 0 for view in views):
        views = [view for view in views if view.shape[dim] != 0]
    places = places_in_one(views, dim)
    if places is not None:
        return rows_by_table(lowering, node, views, dim, places)

    def value(axes: tuple[Axis, ...]) -> Expr:
        result: Expr | None = None
        offset: Size = 0
        for view in views:
            part = cast(shifted_load(lowering, view, axes, {dim: offset}), dtype)
            if result is None:
                result = part
            else:
                before = apply("lt", index_expr(axes[dim]), constant(offset, "int64"))
                result = apply("where", before, result, part)
            offset = offset + view.shape[dim]
        assert result is not None
        return result

    return lowering.map(node.meta["val"], value)


def places_in_one(views: list[BufferView], dim: int) -> list[int] | None:
    """Where along `dim` of one tensor each piece begins, the first of them at 0; None where they are no pieces of
    one tensor, or lie side by side in memory (vectors then run along them, and a table would be a gather)."""
    first = views[0]
    step = first.strides[dim]
    if len(views) < 2 or not isinstance(step, int) or step < 2:
        return None
    lowest: Size = first.offset
    for view in views:
        known = isinstance(view.offset, int) and isinstance(view.shape[dim], int)
        if not known or view.buffer != first.buffer or view.strides != first.strides:
            return None
        lowest = min(lowest, view.offset)  # pyright: ignore
    places = [divmod(view.offset - lowest, step) for view in views]  # pyright: ignore
    return None if any(rest for _, rest in places) else [place for place, _ in places]  # pyright: ignore


def rows_by_table(
    lowering: Lowering, node: fx.Node, views: list[BufferView], dim: int, places: list[int]
) -> BufferView:
    """out[..., i, ...] = x[..., table[i], ...]

    The condition that a place is in range always holds; it is what inlining wants to know (`fuse.solve_data`).
    """
    ends = [place + int(view.shape[dim]) for place, view in zip(places, views)]
    rows = list(itertools.chain.from_iterable(range(*ends) for ends in zip(places, ends)))
    with _disable_current_modes():
        table = lowering.constant_tensor(torch.tensor(rows, dtype=torch.int64))
    source = views[places.index(0)]

    def value(axes: tuple[Axis, ...]) -> Expr:
        row = Index(((Value(Load("int64", table.buffer, axis_index(axes[dim].name))), 1),))
        here = IndexValue("int64", row)
        inside = both(
            apply("ge", here, constant(0, "int64")), apply("lt", here, constant(max(ends), "int64"))
        )
        index: list[Any] = list(axes)
        index[dim] = row
        return cast(lowering.load_view(source, index, mask=inside), compute_dtype_of(node))

    return lowering.map(node.meta["val"], value)
