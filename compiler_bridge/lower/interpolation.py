"""Interpolation and its gradient: tables of the definitions' index and weight formulas (`lower/taps.py`)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from compiler_bridge.ir import Axis, BufferView, Expr
from compiler_bridge.lower.lowering import Lowering, NoLowering, apply, constant, lowers
from compiler_bridge.lower.taps import Table, adjoint, like_order, resample, weighted_sum
from pynn.modules._interpolation import OPERATIONS, in_fixed_point, options_of, taps_of


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


@functools.lru_cache(maxsize=256)
def table_of_bytes(
    mode: str, size: int, count: int, scale: float | None, align_corners: bool
) -> tuple[Table, int] | None:
    """(the definition's taps with whole weights, their binary places); None where the size stays."""
    with _disable_current_modes(), torch.no_grad():
        taps = taps_of(mode, size, count, scale, align_corners, torch.float64, "cpu")
        if taps.weights is None:
            return None
        whole, unit = in_fixed_point(taps)
        assert whole.weights is not None
        counts = (whole.weights != 0).any(1)
        weights = whole.weights[counts].to(torch.int32)
        return Table(whole.index[counts], weights), int(unit).bit_length() - 1


def resample_bytes(
    lowering: Lowering, x: BufferView, val: torch.Tensor, tables: list[tuple[int, Table, int]]
) -> BufferView:
    """x under (dimension, table, binary places) one after the other, rounded to bytes after each: C++'s sums."""
    if not tables:
        return lowering.map(val, lambda axes: lowering.load_view(x, axes))
    for number, (d, table, places) in enumerate(tables, 1):
        shape = [table.count if k == d else extent for k, extent in enumerate(x.shape)]
        buffer = (
            lowering.buffer_like(val) if number == len(tables) else like_order(lowering, x, shape, "uint8")
        )

        def value(
            axes: tuple[Axis, ...], x: Any = x, d: int = d, table: Table = table, n: int = places
        ) -> Expr:
            total = weighted_sum(lowering, x, axes, {d: table}, "int32")
            if n > 0:
                total = apply("add", total, constant(1 << (n - 1), "int32"))
                total = apply("right_shift", total, constant(n, "int32"))
            return apply("minimum", apply("maximum", total, constant(0, "int32")), constant(255, "int32"))

        x = lowering.map_into(buffer, value)
    return x


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
    x = lowering.view(node.args[0])
    if val.dtype == torch.uint8 and not mode.startswith("nearest"):
        each = enumerate(zip(spatial, counts, scales, strict=True), 2)
        found = [
            (d, table_of_bytes(mode, size, count, scale, bool(align_corners)))
            for d, (size, count, scale) in each
            if size != count or has_many_channels(x)
        ]
        return resample_bytes(lowering, x, val, [(d, *made) for d, made in reversed(found) if made])
    if not val.dtype.is_floating_point and not mode.startswith("nearest"):
        raise NoLowering(f"{mode} interpolation of {val.dtype}")
    dtype = torch.float64 if val.dtype == torch.float64 else torch.float32
    tables = {
        2 + d: table_of(mode, size, count, scale, bool(align_corners), dtype, transposed)
        for d, (size, count, scale) in enumerate(zip(spatial, counts, scales, strict=True))
    }
    return resample(lowering, x, val, tables)


def has_many_channels(x: BufferView) -> bool:
    """Whether the definition interpolates also where the size stays: of bytes, from 5 channels on."""
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise NoLowering("interpolation of bytes in channels known only at run time")
    return channels > 4


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
