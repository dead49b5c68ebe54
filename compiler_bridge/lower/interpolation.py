"""Interpolation and its gradient: tables of the definitions' index and weight formulas (`lower/taps.py`)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from compiler_bridge.lower.lowering import Lowering, NoLowering, lowers
from compiler_bridge.lower.taps import Table, adjoint, resample
from pynn.modules._interpolation import OPERATIONS, options_of, taps_of


@functools.lru_cache(maxsize=256)
def table_of(
    mode: str,
    size: int,
    count: int,
    scale: float | None,
    align_corners: bool,
    dtype: torch.dtype,
    transposed: bool,
) -> Table:
    """The definition's taps along one dimension, or those of their adjoint."""
    with _disable_current_modes(), torch.no_grad():
        taps = taps_of(mode, size, count, scale, align_corners, dtype, "cpu")
        # windows of antialiasing are cut off where their weights become 0, also in C++
        exists = taps.weights != 0 if mode.endswith(" antialias") else None
        table = Table(taps.index, taps.weights, exists)
        return adjoint(table, size) if transposed else table


def lower_resampling(
    lowering: Lowering, node: fx.Node, spatial: Any, counts: Any, rest: Any, transposed: bool
) -> Any:
    """spatial: the input's sizes; counts: the output's; either may be what `node` has or makes."""
    mode, has_corners = OPERATIONS[operation_name(node)]
    val = node.meta["val"]
    named = {k: v for k, v in node.kwargs.items() if k not in ("output_size", "input_size")}
    align_corners, scales = options_of(rest, named, has_corners, len(counts))
    if any(not isinstance(size, int) for size in (*spatial, *counts)):
        raise NoLowering("interpolation between sizes known only at run time")
    if not val.dtype.is_floating_point and not mode.startswith("nearest"):
        raise NoLowering(f"{mode} interpolation of {val.dtype}")
    dtype = torch.float64 if val.dtype == torch.float64 else torch.float32
    tables = {
        2 + d: table_of(mode, size, count, scale, bool(align_corners), dtype, transposed)
        for d, (size, count, scale) in enumerate(zip(spatial, counts, scales, strict=True))
    }
    return resample(lowering, lowering.view(node.args[0]), val, tables)


def operation_name(node: fx.Node) -> str:
    return str(node.target).split(".")[1].removesuffix("_backward")


@lowers(*(f"aten.{name}" for name in OPERATIONS))
def lower_upsample(lowering: Lowering, node: fx.Node) -> Any:
    """out = the definition's taps, one dimension after the other"""
    counts = [lowering.size_of(size) for size in node.args[1]]  # pyright: ignore
    spatial = lowering.view(node.args[0]).shape[2:]
    return lower_resampling(lowering, node, spatial, counts, node.args[2:], False)


@lowers(*(f"aten.{name}_backward" for name in OPERATIONS))
def lower_upsample_backward(lowering: Lowering, node: fx.Node) -> Any:
    """Each input element adds what the outputs that took it were given."""
    counts = [lowering.size_of(size) for size in node.args[1]]  # pyright: ignore
    spatial = [lowering.size_of(size) for size in node.args[2][2:]]  # pyright: ignore
    return lower_resampling(lowering, node, spatial, counts, node.args[3:], True)
