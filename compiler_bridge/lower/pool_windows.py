"""Windows over the last dimensions: where their elements lie, and which windows cover an element.

Small windows are written out tap by tap; larger ones become a Reduce over the window's axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    Buffer,
    BufferView,
    Expr,
    Index,
    IndexValue,
    Map,
    Reduce,
    Size,
    Value,
    exact_quotient,
    strided_index,
)
from compiler_bridge.lower.lowering import (
    Lowering,
    NoLowering,
    apply,
    axes_of,
    both,
    cast,
    constant,
    real_axes,
    sizes,
    to_storage,
)

MOST_TAPS = 16
"""Windows up to this size are written out; Numba's front end is superlinear in the length of a kernel."""

Position = list[Index]
Term = Callable[[Sequence[Index]], Expr]


# ---- indices ---------------------------------------------------------------------------------------------


def axis_place(axis: Axis) -> Index:
    return Index() if axis.extent == 1 else Index(((axis.name, 1),), 0)


def position_value(place: Index) -> Expr:
    return IndexValue("int64", place) if place.terms else constant(place.const, "int64")


def floor_of(place: Index, step: Size) -> Index:
    """floor(place / step), which is data to the loop IR"""
    return Index(((Value(apply("floor_divide", position_value(place), constant(step, "int64"))), 1),), 0)


def flat_place(position: Position, extents: Sequence[Size]) -> Index:
    """Row-major, over the spatial dimensions."""
    total = Index()
    for place, extent in zip(position, extents):
        total = total.scaled(extent) + place
    return total


def within(position: Position, extents: Sequence[Size]) -> Expr:
    """Whether a position is in range; conditions that always hold are folded later (`rules.py`)."""
    mask: Expr | None = None
    for place, extent in zip(position, extents):
        value = position_value(place)
        mask = both(mask, apply("ge", value, constant(0, "int64")))
        mask = both(mask, apply("lt", value, constant(extent, "int64")))
    assert mask is not None
    return mask


def masked(mask: Expr | None, value: Expr, other: Any) -> Expr:
    return value if mask is None else apply("where", mask, value, constant(other, value.dtype))


# ---- windows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Which elements each window holds. size: of the largest window; extents: of what it slides over."""

    size: list[Size]
    extents: tuple[Size, ...]

    @property
    def dims(self) -> int:
        return len(self.size)

    def split(self, axes: Sequence[Axis]) -> tuple[list[Axis], list[Axis]]:
        """(batch and channels, places)"""
        return list(axes[: len(axes) - self.dims]), list(axes[len(axes) - self.dims :])

    def begin(self, places: Sequence[Axis]) -> Position:
        raise NotImplementedError

    @property
    def taps(self) -> list[Size]:
        """How many elements to go through along each dimension: no more than there are."""
        return self.size

    @property
    def begins_with_first_tap(self) -> bool:
        """Whether a tap's distance from the beginning of its window is the same in all windows: `offset`."""
        return True

    def offset(self, tap: Sequence[Index]) -> Position:
        """How far a tap is from where its window begins."""
        return list(tap)

    def position(self, places: Sequence[Axis], tap: Sequence[Index]) -> tuple[Position, Expr | None]:
        """Where a tap of each window lies, and whether the window has that tap."""
        raise NotImplementedError

    def lengths(self, places: Sequence[Axis], include_pad: bool) -> list[Expr | Size]:
        """How many elements a window has along each dimension."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sliding(Windows):
    """Window o begins at o * stride - padding. The taps of windows longer than the input are the input's places."""

    stride: list[Size]
    padding: list[Size]
    dilation: list[Size]

    def is_longer(self, dim: int) -> bool:
        width, extent = self.size[dim], self.extents[dim]
        return (
            self.dilation[dim] == 1 and isinstance(width, int) and isinstance(extent, int) and width > extent
        )

    @property
    def taps(self) -> list[Size]:
        return [self.extents[k] if self.is_longer(k) else width for k, width in enumerate(self.size)]

    @property
    def begins_with_first_tap(self) -> bool:
        return not any(self.is_longer(k) for k in range(self.dims))

    def begin(self, places: Sequence[Axis]) -> Position:
        numbers = zip(places, self.stride, self.padding)
        return [axis_place(o).scaled(step) + -pad for o, step, pad in numbers]

    def offset(self, tap: Sequence[Index]) -> Position:
        return [k.scaled(spread) for k, spread in zip(tap, self.dilation)]

    def position(self, places: Sequence[Axis], tap: Sequence[Index]) -> tuple[Position, Expr | None]:
        begins, offsets, position = self.begin(places), self.offset(tap), Position()
        mask: Expr | None = None
        for k, (begin, offset) in enumerate(zip(begins, offsets)):
            if self.is_longer(k):
                position.append(tap[k])
                mask = both(mask, within([tap[k] + begin.scaled(-1)], self.size[k : k + 1]))
            else:
                position.append(begin + offset)
                mask = both(mask, within(position[-1:], self.extents[k : k + 1]))
        return position, mask

    def lengths(self, places: Sequence[Axis], include_pad: bool) -> list[Expr | Size]:
        """The padding counts if so wished; what hangs over its end (ceil_mode) never does."""
        found: list[Expr | Size] = []
        for o, begin, width, size, step, pad in zip(
            places, self.begin(places), self.size, self.extents, self.stride, self.padding
        ):
            if (include_pad or pad == 0) and stays_inside((o.extent - 1) * step + width, size + 2 * pad):
                found.append(width)
                continue
            first, last = position_value(begin), position_value(begin + width)
            last = apply("minimum", last, constant(size + pad if include_pad else size, "int64"))
            first = first if include_pad else apply("maximum", first, constant(0, "int64"))
            found.append(apply("sub", last, first))
        return found


def stays_inside(end: Size, size: Size) -> bool:
    return isinstance(end, int) and isinstance(size, int) and end <= size


@dataclass(frozen=True)
class Adaptive(Windows):
    """Window o of count covers floor(o * L / count) up to, not including, ceil((o + 1) * L / count)."""

    counts: tuple[Size, ...]

    @staticmethod
    def over(extents: tuple[Size, ...], counts: tuple[Size, ...]) -> Adaptive:
        widths: list[Size] = []
        for size, count in zip(extents, counts):
            even = None if count == 0 else exact_quotient(size, count)
            widths.append(longest(size, count) if even is None else even)
        return Adaptive(widths, extents, counts)

    def along(self, dim: int) -> Adaptive:
        """The windows of one dimension alone."""
        return Adaptive([self.size[dim]], (self.extents[dim],), (self.counts[dim],))

    def is_even(self, dim: int) -> bool:
        return exact_quotient(self.extents[dim], self.counts[dim]) is not None

    def begin(self, places: Sequence[Axis]) -> Position:
        found = []
        for k, (o, size, count) in enumerate(zip(places, self.extents, self.counts)):
            index = axis_place(o)
            even = self.is_even(k)
            found.append(index.scaled(self.size[k]) if even else floor_of(index.scaled(size), count))
        return found

    def end(self, place: Axis, dim: int) -> Expr:
        size, count = self.extents[dim], self.counts[dim]
        above = axis_place(place).scaled(size) + (size + count - 1)
        return position_value(floor_of(above, count))

    def position(self, places: Sequence[Axis], tap: Sequence[Index]) -> tuple[Position, Expr | None]:
        position = [begin + k for begin, k in zip(self.begin(places), tap)]
        mask: Expr | None = None
        for k, (place, here) in enumerate(zip(places, position)):
            if not self.is_even(k):
                mask = both(mask, apply("lt", position_value(here), self.end(place, k)))
        return position, mask

    def lengths(self, places: Sequence[Axis], include_pad: bool) -> list[Expr | Size]:
        begins = self.begin(places)
        return [
            self.size[k] if self.is_even(k) else apply("sub", self.end(place, k), position_value(begins[k]))
            for k, place in enumerate(places)
        ]


@dataclass(frozen=True)
class Placed(Windows):
    """Windows of one size that begin where data says."""

    starts: Callable[[Sequence[Axis]], Position]

    def begin(self, places: Sequence[Axis]) -> Position:
        return self.starts(places)

    def position(self, places: Sequence[Axis], tap: Sequence[Index]) -> tuple[Position, Expr | None]:
        position = [begin + k for begin, k in zip(self.begin(places), tap)]
        return position, within(position, self.extents)


def longest(size: Size, count: Size) -> Size:
    """The size of the largest adaptive window; of unknown sizes a bound."""
    if isinstance(size, int) and isinstance(count, int):
        return max((-(-(o + 1) * size // count) - o * size // count for o in range(count)), default=1)
    return (size + count - 1) // count + 1


def per_dim(lowering: Lowering, values: Any, dims: int) -> list[Size]:
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    return [lowering.size_of(value) for value in values] * (dims if len(values) == 1 else 1)


def sliding(
    lowering: Lowering,
    shape: Sequence[Size],
    size: Any,
    stride: Any,
    padding: Any,
    dims: int,
    dilation: Any = 1,
) -> Sliding:
    widths = per_dim(lowering, size, dims)
    return Sliding(
        widths,
        tuple(shape[len(shape) - dims :]),
        per_dim(lowering, stride, dims) if stride else widths,
        per_dim(lowering, padding, dims),
        per_dim(lowering, dilation, dims),
    )


def spatial_dims(node: fx.Node) -> int:
    return 3 if "3d" in str(node.target) else 2


# ---- sums over taps --------------------------------------------------------------------------------------


def is_small(counts: Sequence[Size]) -> bool:
    return all(isinstance(count, int) for count in counts) and math.prod(counts) <= MOST_TAPS  # pyright: ignore


def all_taps(counts: Sequence[Size]) -> list[list[Index]]:
    return [[Index((), k) for k in tap] for tap in itertools.product(*(range(n) for n in counts))]  # pyright: ignore


T = TypeVar("T")


def pairwise(combined: Callable[[T, T], T], values: Sequence[T]) -> T:
    """Neighbours first, then what came of two pairs: no long chain in which each operation waits for the last."""
    while len(values) > 1:
        pairs = [combined(*pair) for pair in zip(values[::2], values[1::2])]
        values = [*pairs, *values[2 * len(pairs) :]]
    return values[0]


def combine(
    lowering: Lowering, buffer: Buffer, axes: Sequence[Axis], store: Index, counts: Sequence[Size],
    op: str, term: Term,
) -> BufferView:  # fmt: skip
    """buffer[store] = op over all taps of term(tap): one expression for few taps, else a Reduce over tap axes."""
    origin, real = lowering.origin(), real_axes(axes)
    if is_small(counts):
        word = {"max": "maximum", "min": "minimum", "sum": "add"}[op]
        total = pairwise(lambda a, b: apply(word, a, b), [term(tap) for tap in all_taps(counts)])
        lowering.append(Map(buffer.name, origin, real, store, to_storage(total, buffer.dtype)))
    else:
        taps = [Axis(f"w{k}", extent) for k, extent in enumerate(counts)]
        value = term([axis_place(tap) for tap in taps])
        lowering.append(Reduce(buffer.name, origin, real, real_axes(taps), store, value, op))
    return lowering.whole(buffer)


# ---- which windows cover an element ----------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """An element along one dimension: y = quotient * step + remainder where the loops are split so."""

    y: Index
    quotient: Index | None = None
    remainder: Index | None = None

    def window(self, step: Size, pad: Size) -> Index:
        """The last window that begins at or before y: floor((y + padding) / step); affine where it can be."""
        if step == 1:
            return self.y + pad
        if self.quotient is None or self.remainder is None:
            return floor_of(self.y + pad, step)
        if isinstance(pad, int) and isinstance(step, int) and pad % step == 0:
            return self.quotient + pad // step
        if step == 2 and isinstance(pad, int):
            return self.quotient + self.remainder + pad // 2  # (remainder + 1) // 2 is the remainder
        return self.quotient + floor_of(self.remainder + pad, step)


def covering_counts(windows: Sliding) -> list[Size]:
    """How many windows may cover an element, along each dimension."""
    counts: list[Size] = []
    for width, step, spread in zip(windows.size, windows.stride, windows.dilation):
        if not (isinstance(width, int) and isinstance(step, int) and isinstance(spread, int)):
            raise NoLowering(f"the gradient of pooling of size {width}, stride {step}, dilation {spread}")
        counts.append(-(-((width - 1) * spread + 1) // step))
    return counts


def covering_begin(windows: Sliding, places: Sequence[Place]) -> Position:
    """The first window that may cover each place."""
    numbers = zip(places, windows.stride, windows.padding, covering_counts(windows))
    return [place.window(step, pad) + (1 - count) for place, step, pad, count in numbers]


def reaches(windows: Sliding, places: Sequence[Place], position: Position) -> Expr:
    """Whether the windows are long enough to cover the places."""
    mask: Expr | None = None
    for place, o, width, step, pad, spread in zip(
        places, position, windows.size, windows.stride, windows.padding, windows.dilation
    ):
        offset = position_value(place.y + pad + o.scaled(-1 * step))
        mask = both(mask, apply("le", offset, constant((width - 1) * spread, "int64")))
    assert mask is not None
    return mask


@dataclass(frozen=True)
class Covering:
    """For each place the first window that may cover it, how many may, and which of them do."""

    first: Position
    counts: list[Size]
    covers: Callable[[Position], Expr | None]


def covering_sliding(windows: Sliding, places: Sequence[Place], counts: Sequence[Size]) -> Covering:
    def covers(position: Position) -> Expr | None:
        return both(within(position, counts), reaches(windows, places, position))

    return Covering(covering_begin(windows, places), covering_counts(windows), covers)


def covering_adaptive(windows: Adaptive, places: Sequence[Place]) -> Covering:
    """Windows floor(y * count / L) up to floor(((y + 1) * count - 1) / L)"""
    first: Position = []
    numbers: list[Size] = []
    for k, (place, size, count) in enumerate(zip(places, windows.extents, windows.counts)):
        if windows.is_even(k):
            first.append(place.window(windows.size[k], 0))
            numbers.append(1)
        else:
            first.append(floor_of(place.y.scaled(count), size))
            numbers.append(most_covering(size, count))

    def covers(position: Position) -> Expr | None:
        mask: Expr | None = None
        for k, (place, o, size, count) in enumerate(zip(places, position, windows.extents, windows.counts)):
            if not windows.is_even(k):
                last = floor_of(place.y.scaled(count) + (count - 1), size)
                mask = both(mask, apply("le", position_value(o), position_value(last)))
        return mask

    return Covering(first, numbers, covers)


def most_covering(size: Size, count: Size) -> Size:
    """The most adaptive windows that cover one element; of unknown sizes a bound."""
    if isinstance(size, int) and isinstance(count, int):
        return max((((y + 1) * count - 1) // size - y * count // size + 1 for y in range(size)), default=1)
    return (count + size - 1) // size + 1


def adaptive_steps(windows: Adaptive) -> list[Size]:
    return [windows.size[k] if windows.is_even(k) else 1 for k in range(windows.dims)]


def gradient_loops(
    lowering: Lowering, val: torch.Tensor, dtype: str, steps: Sequence[Size], split: bool
) -> tuple[Buffer, list[Axis], list[Axis], Index, list[Place]]:
    """(buffer, loops over batch and channels, loops over elements, store, places) for a gradient like val.

    split: each dimension in two loops, over multiples of the step and the rest, so that the windows which cover
    an element lie at affine places; the buffer is rounded up to whole steps.
    """
    dims = len(steps)
    shape = list(sizes(val.shape))
    first = len(shape) - dims
    rounded = list(shape)
    for k, step in enumerate(steps):
        if split and step != 1 and exact_quotient(shape[first + k], step) is None:
            rounded[first + k] = (shape[first + k] + step - 1) // step * step
    buffer = lowering.buffer_like(val, dtype) if rounded == shape else lowering.new_buffer(rounded, dtype)
    lead = list(axes_of(rounded[:first]))
    store = strided_index(lead, buffer.strides)
    loops, places = [], []
    for k, step in enumerate(steps):
        extent, stride = rounded[first + k], buffer.strides[first + k]
        whole = exact_quotient(extent, step)
        if step == 1 or whole is None or not split:
            loops.append(Axis(f"y{k}", extent))
            place = Place(axis_place(loops[-1]))
        else:
            high, low = Axis(f"q{k}", whole), Axis(f"r{k}", step)
            loops += [high, low]
            quotient, remainder = axis_place(high), axis_place(low)
            place = Place(quotient.scaled(step) + remainder, quotient, remainder)
        places.append(place)
        store = store + place.y.scaled(stride)
    return buffer, lead, loops, store, places


def finished(lowering: Lowering, val: torch.Tensor, whole: BufferView) -> BufferView:
    """The gradient as val is: cropped and rounded if its buffer is not."""
    if whole.shape == sizes(val.shape) and lowering.graph.buffers[whole.buffer].dtype == str(val.dtype)[6:]:
        return whole
    return lowering.map(val, lambda axes: lowering.load_view(whole, axes))


def channels_side_by_side(val: torch.Tensor, dims: int) -> bool:
    channel = val.dim() - dims - 1
    return val.stride(channel) == 1 and val.size(channel) > 1 and val.stride(val.dim() - 1) != 1


def element(
    lowering: Lowering, windows: Windows, x: BufferView, axes: Sequence[Axis], tap: Sequence[Index],
    dtype: str, outside: Any,
) -> tuple[Expr, Expr | None]:  # fmt: skip
    """(the element under a tap, or `outside`; whether the tap lies in the input)"""
    lead, places = windows.split(axes)
    position, mask = windows.position(places, tap)
    load = lowering.load_view(x, [*lead, *position], mask=mask)
    return masked(mask, cast(load, dtype), outside), mask
