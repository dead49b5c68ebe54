"""Interpolation and the gradient of padding on their way into a graph: one operation at known sizes, else the
definition.

The lowering takes the operation by tables, which it makes while it compiles. Where sizes are known only at run time the
definition is traced, and makes its tables in kernels.

torch.nn.functional.interpolate calls the `vec` overloads, which take sizes or scales; their C++ composites read every
size as a number and so bind the graph to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynn.definitions import DEFINITIONS
from pynn.memory_format import in_format_of
from pynn.modules._interpolation import OPERATIONS

aten = torch.ops.aten


def is_known(sizes: Sequence[Any]) -> bool:
    return not any(isinstance(size, torch.SymInt) for size in sizes)


def sizes_of(sizes: Sequence[Any], output_size: Sequence[Any] | None, scales: Any) -> list[Any]:
    """The result's sizes: those given, or floor(size * scale)."""
    if output_size is not None:
        return list(output_size)
    return [
        size * int(scale) if scale == int(scale) else torch.sym_int(size * scale)
        for size, scale in zip(sizes, scales, strict=True)
    ]


def resizing(name: str) -> Callable[..., Tensor]:
    """What stands in for the `vec` overload of an operation."""

    def resize(input: Tensor, output_size: Any, *options: Any) -> Tensor:
        *corners, scales = options
        counts = sizes_of(input.shape[2:], output_size, scales)
        each = list(scales) if scales else [None] * len(counts)
        return getattr(aten, name).default(input, counts, *corners, *each)

    return resize


COMPOSITES = {
    getattr(aten, name).vec: resizing(name)
    for name in OPERATIONS
    if hasattr(aten, name) and "vec" in getattr(aten, name).overloads()
}
"""What stands in for the overloads of interpolation that torch.nn.functional calls."""


def padding_at_run_time(definition: Callable[..., Tensor]) -> Callable[..., Any]:
    """The definition where sizes are symbols; NotImplemented, the operation as it is, where none is."""

    def pad_backward(grad: Tensor, input: Tensor, padding: Sequence[Any]) -> Any:
        dims = len(padding) // 2
        if is_known([*grad.shape[-dims:], *input.shape[-dims:], *padding]):
            return NotImplemented
        return in_format_of(grad, definition(grad, input, padding))

    return pad_backward


def resized_at_run_time(definition: Callable[..., Tensor]) -> Callable[..., Any]:
    """As `padding_at_run_time`; the gradient's second list of sizes is what was resized."""

    def resize(input: Tensor, output_size: Sequence[Any], *rest: Any, **named: Any) -> Any:
        others = [size for sizes in rest if isinstance(sizes, (list, tuple)) for size in sizes[2:]]
        if is_known([*input.shape[2:], *output_size, *others]):
            return NotImplemented
        return definition(input, output_size, *rest, **named)

    return resize


PADDING = [
    getattr(aten, f"{mode}_pad{dims}d{suffix}").default
    for mode in ("reflection", "replication")
    for dims in (1, 2, 3)
    for suffix in ("", "_backward")
]
RESIZING = [
    getattr(aten, f"{name}{suffix}").default
    for name in OPERATIONS
    if hasattr(aten, name)
    for suffix in ("", "_backward")
]
DECOMPOSITIONS = {
    **{operation: padding_at_run_time(DEFINITIONS[operation]) for operation in PADDING[1::2]},
    **{operation: resized_at_run_time(DEFINITIONS[operation]) for operation in RESIZING},
}
"""For AOTAutograd's table."""
