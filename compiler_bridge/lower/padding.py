"""Padding with the input's own elements, mirrored or repeated, and its gradient (`lower/taps.py`)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from compiler_bridge.ir import Axis, BufferView, Expr, Index, IndexValue, Size, Value
from compiler_bridge.lower.lowering import Lowering, NoLowering, apply, both, constant, lowers
from compiler_bridge.lower.placement import axis_index_of
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
    if not transposed and not all(isinstance(number, int) for number in (*shape, *widths)):
        return at_run_time(lowering, node, mode, widths)
    tables: dict[int, Table] = {}
    for i in range(len(widths) // 2):
        dim = len(shape) - 1 - i
        left, right = widths[2 * i : 2 * i + 2]
        if not all(isinstance(number, int) for number in (shape[dim], left, right)):
            raise NoLowering(f"{mode} padding of sizes known only at run time")
        if left or right:
            tables[dim] = table_of(mode, shape[dim], left, right, transposed)
    return resample(lowering, lowering.view(node.args[0]), node.meta["val"], tables)


def at_run_time(lowering: Lowering, node: fx.Node, mode: str, widths: list[Size]) -> BufferView:
    """Between sizes known only at run time: three loads along the vectors, of which each place has one (the loop is
    cut where they change, `sections.py`); along the other dimensions the place is computed."""
    x = lowering.view(node.args[0])
    beside = next((d for d, stride in enumerate(x.strides) if stride == 1 and x.shape[d] != 1), None)

    def value(axes: tuple[Axis, ...]) -> Expr:
        index: list[Any] = list(axes)
        choices: list[tuple[Expr, Index]] = []
        for i in range(len(widths) // 2):
            d = len(axes) - 1 - i
            if widths[2 * i] == 0 and widths[2 * i + 1] == 0:
                continue
            places = sources(mode, axis_index_of(axes[d]) + -widths[2 * i], x.shape[d])
            if d == beside:
                choices, index[d] = places, places[-1][1]
            else:
                index[d] = Index(((Value(chosen(places)), 1),))
        return load_of_choice(lowering, x, index, beside, choices)

    return lowering.map(node.meta["val"], value)


def sources(mode: str, place: Index, size: Size) -> list[tuple[Expr, Index]]:
    """(condition, what is taken there), before, in and after the input; a place has the first that holds."""
    mirror = mode == "reflection"
    before = place.scaled(-1) if mirror else Index()
    after = place.scaled(-1) + 2 * (size - 1) if mirror else Index((), size - 1)
    here = IndexValue("int64", place)
    is_before = apply("lt", here, constant(0, "int64"))
    is_inside = apply("lt", here, constant(size, "int64"))
    return [
        (is_before, before),
        (both(apply("ge", here, constant(0, "int64")), is_inside), place),
        (apply("ge", here, constant(size, "int64")), after),
    ]


def chosen(places: list[tuple[Expr, Index]]) -> Expr:
    (is_before, before), (is_inside, inside), (_, after) = places
    values = [IndexValue("int64", index) for index in (before, inside, after)]
    return apply("where", is_before, values[0], apply("where", is_inside, values[1], values[2]))


def load_of_choice(
    lowering: Lowering, x: BufferView, index: list[Any], beside: int | None, choices: list[tuple[Expr, Index]]
) -> Expr:
    """x at index, along the dimension `beside` at the place that the condition of a choice says."""
    result: Expr | None = None
    for condition, place in reversed(choices):
        assert beside is not None
        at = [place if d == beside else other for d, other in enumerate(index)]
        load = lowering.load_view(x, at, mask=condition)
        result = load if result is None else apply("where", condition, load, result)
    return lowering.load_view(x, index) if result is None else result


@lowers(*NAMES)
def lower_pad(lowering: Lowering, node: fx.Node) -> Any:
    shape = lowering.view(node.args[0]).shape
    return lower_by_table(lowering, node, shape, node.args[1], False)


@lowers(*(f"{name}_backward" for name in NAMES))
def lower_pad_backward(lowering: Lowering, node: fx.Node) -> Any:
    """Each element of x receives the sum of the gradient over the places it was copied to."""
    shape = lowering.view(node.args[1]).shape
    return lower_by_table(lowering, node, shape, node.args[2], True)
