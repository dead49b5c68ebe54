"""Padding with the input's own elements, mirrored or repeated, and its gradient (`lower/taps.py`)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from compiler_bridge.lower.lowering import Lowering, NoLowering, lowers
from compiler_bridge.lower.taps import Table, adjoint, resample
from pynn.modules.padding import mirrored, nearest

SOURCES = {"reflection": mirrored, "replication": nearest}
NAMES = [f"aten.{mode}_pad{dims}d" for mode in SOURCES for dims in (1, 2, 3)]


@functools.lru_cache(maxsize=256)
def table_of(mode: str, size: int, left: int, right: int, transposed: bool) -> Table:
    """out[i] = x[source(i - left)], or the adjoint."""
    with _disable_current_modes(), torch.no_grad():
        index = SOURCES[mode](torch.arange(-left, size + right), size)
        table = Table(index.unsqueeze(0))
        return adjoint(table, size) if transposed else table


def lower_by_table(lowering: Lowering, node: fx.Node, shape: Any, padding: Any, transposed: bool) -> Any:
    """padding: (left, right) of the last dimension, then of the one before it, ..."""
    mode = str(node.target).split(".")[1].split("_")[0]
    widths = [lowering.size_of(width) for width in padding]
    tables: dict[int, Table] = {}
    for i in range(len(widths) // 2):
        dim = len(shape) - 1 - i
        left, right = widths[2 * i : 2 * i + 2]
        if not all(isinstance(number, int) for number in (shape[dim], left, right)):
            raise NoLowering(f"{mode} padding of sizes known only at run time")
        if left or right:
            tables[dim] = table_of(mode, shape[dim], left, right, transposed)
    return resample(lowering, lowering.view(node.args[0]), node.meta["val"], tables)


@lowers(*NAMES)
def lower_pad(lowering: Lowering, node: fx.Node) -> Any:
    shape = lowering.view(node.args[0]).shape
    return lower_by_table(lowering, node, shape, node.args[1], False)


@lowers(*(f"{name}_backward" for name in NAMES))
def lower_pad_backward(lowering: Lowering, node: fx.Node) -> Any:
    """Each element of x receives the sum of the gradient over the places it was copied to."""
    shape = lowering.view(node.args[1]).shape
    return lower_by_table(lowering, node, shape, node.args[2], True)
