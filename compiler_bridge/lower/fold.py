"""Windows laid out as columns (im2col, nn.Unfold), and the sum of columns where windows overlap (col2im, nn.Fold)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from compiler_bridge.ir import (
    BufferView,
    Expr,
    Index,
    Map,
    Size,
    size_product,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    both,
    cast,
    compute_dtype_of,
    constant,
    dtype_name,
    lowers,
    real_axes,
    to_storage,
)
from compiler_bridge.lower.pool_windows import (
    Place,
    combine,
    finished,
    floor_of,
    gradient_loops,
    position_value,
    within,
)
from compiler_bridge.lower.window import Window, input_places, padded, window_load


def images(view: BufferView) -> BufferView:
    """With a batch dimension."""
    if len(view.shape) == 4:
        return view
    return BufferView(view.buffer, (1, *view.shape), (0, *view.strides), view.offset)


def window(dilation: Any, padding: Any, stride: Any) -> Window:
    return Window(list(stride), list(padding), list(dilation))


@lowers("aten.im2col")
def lower_im2col(lowering: Lowering, node: fx.Node) -> Any:
    """out[n, (c, k), o] = x[n, c, o * stride + k * dilation - padding]"""
    source, kernel, dilation, padding, stride = node.args
    x, steps = images(lowering.view(source)), window(dilation, padding, stride)
    counts = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, d, p, s in zip(x.shape[2:], kernel, dilation, padding, stride)  # pyright: ignore
    ]
    val = node.meta["val"]
    buffer = lowering.new_buffer(val.shape, dtype_name(val.dtype))
    shape: list[Any] = [*x.shape[:2], *kernel, *counts]  # pyright: ignore
    axes = axes_of(shape)
    load = window_load(
        lowering, x, list(axes[:2]), input_places(steps, list(axes[4:]), list(axes[2:4])), padded(steps)
    )
    dense = [size_product(shape[d + 1 :]) for d in range(6)]
    store = strided_index(axes, dense)
    value = to_storage(load, buffer.dtype)
    lowering.append(Map(buffer.name, lowering.origin(), real_axes(axes), store, value))
    return lowering.whole(buffer)


@dataclass(frozen=True)
class Spread:
    """One dimension of col2im, whose size and padding may be known only at run time."""

    size: Size
    kernel: Any
    dilation: Any
    padding: Size
    stride: Any

    @property
    def count(self) -> Size:
        """How many windows there are."""
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def most_terms(self) -> int:
        """How many windows one element may lie in, at most."""
        return self.kernel if self.stride == 1 else -(-((self.kernel - 1) * self.dilation + 1) // self.stride)

    def at(self, place: Place, tap: Index) -> tuple[Index, Index, Expr]:
        """(kernel position, window, whether there are these): the `tap`th of the windows `place` may lie in."""
        if self.stride == 1:
            window = place.y + self.padding + tap.scaled(-self.dilation)
            return tap, window, within([window], [self.count])
        window = place.window(self.stride, self.padding) + tap.scaled(-1)
        distance = place.y + self.padding + window.scaled(-self.stride)
        exists = within([window], [self.count])
        if self.dilation == 1:
            return distance, window, both(exists, within([distance], [self.kernel]))
        position = floor_of(distance, self.dilation)
        rest = position_value(distance + position.scaled(-self.dilation))
        exists = both(exists, apply("eq", rest, constant(0, "int64")))
        return position, window, both(exists, within([position], [self.kernel]))


@lowers("aten.col2im")
def lower_col2im(lowering: Lowering, node: fx.Node) -> Any:
    """x[n, c, y] = sum over the (k, o) with o * stride + k * dilation - padding = y of columns[n, (c, k), o]

    The loops over the elements are split by the stride, so that the windows they lie in are at affine places.
    """
    source, *numbers = node.args
    spread = [Spread(*map(lowering.size_of, each)) for each in zip(*numbers)]  # pyright: ignore
    known = [number for each in spread for number in (each.kernel, each.dilation, each.stride)]
    if not all(isinstance(number, int) for number in known):
        raise NoLowering("col2im of windows known only at run time")
    columns = columns_apart(lowering.view(source), spread)
    val, dtype = node.meta["val"], compute_dtype_of(node)
    loops = gradient_loops(lowering, val, dtype, [each.stride for each in spread], True)
    buffer, lead, inner, store, places = loops

    def term(tap: Sequence[Index]) -> Expr:
        found = [each.at(place, t) for each, place, t in zip(spread, places, tap)]
        taps, windows, conditions = zip(*found)
        return cast(lowering.load_view(columns, [*lead, *taps, *windows], mask=both(*conditions)), dtype)

    counts: list[Size] = [each.most_terms for each in spread]
    total = combine(lowering, buffer, [*lead, *inner], store, counts, "sum", term)
    return finished(lowering, val, total)


def columns_apart(columns: BufferView, spread: list[Spread]) -> BufferView:
    """[batch, channels * K * K, O * O] or without batch -> [batch, channels, K, K, O, O]"""
    *batch, rows, _ = columns.shape
    *step, row, place = columns.strides
    high, wide = spread
    taps = high.kernel * wide.kernel
    shape = (*batch, rows // taps, high.kernel, wide.kernel, high.count, wide.count)
    strides = (*step, row * taps, row * wide.kernel, row, place * wide.count, place)
    return BufferView(columns.buffer, shape, strides, columns.offset)
