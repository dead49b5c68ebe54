"""Sums over the rows of a kernel: each block of rows adds into accumulators of its own, which are then added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compiler_bridge.ir import Axis, Index, Load, Reduce, Size


@dataclass
class Sink:
    """A sum over rows: block b of the rows accumulates into partial[b]."""

    node: Reduce
    buffer: str
    dtype: str
    width: Size  # accumulators
    axes: tuple[Axis, ...]  # kept axes, in order


def combine_nodes(sink: Sink, blocks: int) -> Reduce:
    """The Reduce that adds the blocks' partial sums."""
    width: Size = 1
    terms: dict[Any, Size] = {}
    for axis in reversed(sink.axes):
        terms[axis.name] = width
        width = width * axis.extent
    terms["block"] = sink.width
    load = Load(sink.dtype, sink.buffer, Index.of(terms))
    return Reduce(
        sink.node.output,
        sink.node.origin,
        sink.axes,
        (Axis("block", blocks),),
        sink.node.store,
        load,
        sink.node.op,
    )
