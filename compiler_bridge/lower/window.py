"""The windows of a convolution: which element of the input a tap of an output's window is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from compiler_bridge.ir import Axis, BufferView, Expr, Index, IndexValue, Load, Size
from compiler_bridge.lower.lowering import Lowering, apply, both, constant


@dataclass(frozen=True)
class Window:
    """stride, padding and dilation of a convolution, one number a spatial dimension."""

    stride: list[Size]
    padding: list[Size]
    dilation: list[Size]


def window_of(lowering: Lowering, arguments: Any, spatial: int) -> Window:
    stride, padding, dilation = (
        [lowering.size_of(step) for step in steps] * (spatial if len(steps) == 1 else 1)
        for steps in arguments
    )
    return Window(stride, padding, dilation)


def affine(axis: Axis, factor: Size, const: Size = 0) -> Index:
    """factor * axis + const; an axis of extent 1 is 0."""
    return Index((), const) if axis.extent == 1 else Index(((axis.name, factor),), const)


def window_load(
    lowering: Lowering, x: BufferView, lead: list[Axis], places: list[Index], padded: list[bool]
) -> Expr:
    """x[lead..., places...], and 0 outside of x along the padded dimensions."""
    mask: Expr | None = None
    for place, extent, checked in zip(places, x.shape[len(lead) :], padded):
        if checked:
            position = IndexValue("int64", place)
            mask = both(mask, apply("ge", position, constant(0, "int64")))
            mask = both(mask, apply("lt", position, constant(extent, "int64")))
    load = lowering.load_view(x, [*lead, *places])
    assert isinstance(load, Load)
    return replace(load, mask=mask)


def input_places(window: Window, places: list[Axis], taps: list[Axis]) -> list[Index]:
    """y * stride + d * dilation - padding"""
    return [
        affine(place, stride) + affine(tap, dilation, -padding)
        for place, tap, stride, dilation, padding in zip(
            places, taps, window.stride, window.dilation, window.padding
        )
    ]


def padded(window: Window) -> list[bool]:
    return [padding != 0 for padding in window.padding]
