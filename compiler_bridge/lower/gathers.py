"""Reading at places that are data: embedding, index_select, gather, advanced indexing.

An index out of range reads 0 instead of foreign memory, and raises a flag: the graph then runs again through
ATen, which raises torch's own error (`Lowering.check`, `pipeline.with_checks`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import Axis, BufferView, Expr, Index, IndexValue, Size
from compiler_bridge.lower.lowering import Lowering, NoLowering, apply, both, constant, data_index, lowers


def checked_index(
    lowering: Lowering, arg: Any, axes: Any, extent: Size, wrap: bool = False
) -> tuple[Index, Expr]:
    """The index of data, and the condition that it is in range. wrap: negative ones count from the end."""
    if arg.meta["val"].is_floating_point():
        raise NoLowering("an index of floats")  # ATen refuses it; torch 2.11 not yet while it traces
    index = data_index(lowering.operand(arg, axes, "int64"), extent, wrap)
    position = IndexValue("int64", index)
    inside = both(
        apply("ge", position, constant(0, "int64")), apply("lt", position, constant(extent, "int64"))
    )
    lowering.check(inside, axes)
    return index, inside


@lowers("aten.embedding")
def lower_embedding(lowering: Lowering, node: fx.Node) -> Any:
    """out[..., column] = table[ids[...], column]"""
    table = lowering.view(node.args[0])
    rank = len(lowering.view(node.args[1]).shape)

    def value(axes: tuple[Axis, ...]) -> Expr:
        index, inside = checked_index(lowering, node.args[1], axes[:rank], table.shape[0])
        return lowering.load_view(table, [index, axes[rank]], mask=inside)

    return lowering.map(node.meta["val"], value)


@lowers("aten.index_select")
def lower_index_select(lowering: Lowering, node: fx.Node) -> Any:
    """out[i, j, k] = x[i, index[j], k]"""
    source = lowering.view(node.args[0])
    if not source.shape:
        raise NoLowering("index_select of a 0-d tensor")
    dim = int(node.args[1]) % len(source.shape)  # pyright: ignore

    def value(axes: tuple[Axis, ...]) -> Expr:
        place, inside = checked_index(lowering, node.args[2], axes[dim : dim + 1], source.shape[dim])
        index: list[Any] = list(axes)
        index[dim] = place
        return lowering.load_view(source, index, mask=inside)

    return lowering.map(node.meta["val"], value)


@lowers("aten.gather")
def lower_gather(lowering: Lowering, node: fx.Node) -> Any:
    """out[i, j, k] = x[i, index[i, j, k], k]"""
    source = lowering.view(node.args[0])
    if not source.shape:
        raise NoLowering("gather of a 0-d tensor")
    dim = int(node.args[1]) % len(source.shape)  # pyright: ignore

    def value(axes: tuple[Axis, ...]) -> Expr:
        place, inside = checked_index(lowering, node.args[2], axes, source.shape[dim])
        index: list[Any] = list(axes)
        index[dim] = place
        return lowering.load_view(source, index, mask=inside)

    return lowering.map(node.meta["val"], value)


def is_adjacent(given: list[int]) -> bool:
    return given == list(range(given[0], given[-1] + 1))


def advanced_index(
    lowering: Lowering, source: BufferView, indices: Any, axes: tuple[Axis, ...], index_rank: int
) -> tuple[list[Any], Expr]:
    """(one Index or Axis a source dimension, in-range condition) of x[indices] at the result's `axes`.

    Adjacent index tensors put their broadcast dimensions in their place, separated ones at the front.
    """
    given = [k for k, i in enumerate(indices) if i is not None]
    start = given[0] if is_adjacent(given) else 0
    index_axes = axes[start : start + index_rank]
    rest = list(axes[:start]) + list(axes[start + index_rank :])
    position: list[Any] = []
    mask: Expr | None = None
    for k in range(len(source.shape)):
        if k < len(indices) and indices[k] is not None:
            if lowering.meta(indices[k]).dtype in (torch.bool, torch.uint8):
                raise NoLowering("indexing by a boolean mask (the size depends on data)")
            index, inside = checked_index(lowering, indices[k], index_axes, source.shape[k], wrap=True)
            position.append(index)
            mask = both(mask, inside)
        else:
            position.append(rest.pop(0))
    assert mask is not None
    return position, mask


def index_rank_of(lowering: Lowering, indices: Any) -> int:
    return max(lowering.meta(i).dim() for i in indices if i is not None)


@lowers("aten.index", "aten._unsafe_index")
def lower_index(lowering: Lowering, node: fx.Node) -> Any:
    source = lowering.view(node.args[0])
    indices: Any = node.args[1]
    rank = index_rank_of(lowering, indices)

    def value(axes: tuple[Axis, ...]) -> Expr:
        position, inside = advanced_index(lowering, source, indices, axes, rank)
        return lowering.load_view(source, position, mask=inside)

    return lowering.map(node.meta["val"], value)
