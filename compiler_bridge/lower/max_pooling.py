"""Max pooling: the largest element of each window and its place, and the gradient that goes back there.

Two loops at the same points, which become one kernel: the largest element, and the place of the first tap that
equals it (of the last NaN, as in ATen). The gradient is a scatter within each image and channel, or, where channels
lie side by side and windows are few and small, a sum over those that may cover an element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.ir import (
    Axis,
    BufferView,
    Expr,
    Index,
    Size,
    Value,
    exact_quotient,
    size_product,
    strided_index,
)
from compiler_bridge.lower.gathers import checked_index
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
    index_expr,
    lowers,
    sizes,
)
from compiler_bridge.lower.pool_windows import (
    Adaptive,
    Covering,
    Placed,
    Sliding,
    Windows,
    adaptive_steps,
    all_taps,
    channels_side_by_side,
    combine,
    covering_adaptive,
    covering_counts,
    covering_sliding,
    element,
    finished,
    flat_place,
    gradient_loops,
    is_small,
    masked,
    pairwise,
    per_dim,
    position_value,
    sliding,
    spatial_dims,
)
from compiler_bridge.lower.scatters import scatter
from compiler_bridge.ops import compute_dtype, dtype_kind, reduce_identity


@lowers("aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices")
def lower_max_pool(lowering: Lowering, node: fx.Node) -> Any:
    given: dict[str, Any] = dict(zip(("self", "kernel_size", "stride", "padding", "dilation"), node.args))
    given.update(node.kwargs)
    x, dims = lowering.view(given["self"]), spatial_dims(node)
    padding, dilation = given.get("padding", 0), given.get("dilation", 1)
    windows = sliding(lowering, x.shape, given["kernel_size"], given.get("stride"), padding, dims, dilation)
    return largest(lowering, x, windows, node)


@lowers("aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d")
def lower_adaptive_max_pool(lowering: Lowering, node: fx.Node) -> Any:
    x, dims, vals = lowering.view(node.args[0]), spatial_dims(node), node.meta["val"]
    windows = Adaptive.over(x.shape[len(x.shape) - dims :], sizes(vals[0].shape)[len(x.shape) - dims :])
    return largest(lowering, x, windows, node)


@lowers("aten.fractional_max_pool2d", "aten.fractional_max_pool3d")
def lower_fractional_max_pool(lowering: Lowering, node: fx.Node) -> Any:
    source, size, _, samples = node.args
    x, dims, vals = lowering.view(source), spatial_dims(node), node.meta["val"]
    first = len(x.shape) - dims
    extents, counts = x.shape[first:], sizes(vals[0].shape)[first:]
    widths = per_dim(lowering, size, dims)
    lead = [*[Axis("one", 1)] * (2 - first), *axes_of(x.shape)[:first]]
    order = (1, 0) if dims == 2 else (0, 1, 2)  # C++ takes the first sample for the width of an image
    numbers = zip(order, extents, counts, widths)
    tables = [random_starts(lowering, samples, x.shape[:first], *each) for each in numbers]

    def starts(places: Sequence[Axis]) -> list[Index]:
        loads = [lowering.load_view(table, [*lead, place]) for table, place in zip(tables, places)]
        return [Index(((Value(load), 1),), 0) for load in loads]

    return largest(lowering, x, Placed(widths, extents, starts), node)


def random_starts(
    lowering: Lowering, samples: Any, shape: Sequence[Size], which: int, size: Size, count: Size, width: Size
) -> BufferView:
    """start[o] = floor((o + u) * alpha) - floor(u * alpha), alpha = (size - width) / (count - 1); the last at the end.

    [batch, channels, count], in the dtype of the samples, rounded after every step as in C++
    """
    stored = dtype_name(lowering.meta(samples).dtype)
    dtype = compute_dtype(stored)

    def rounded(value: Expr) -> Expr:
        return value if dtype == stored else apply(f"to_{stored}", value)

    def value(axes: tuple[Axis, ...]) -> Expr:
        last = constant(size - width, "int64")
        if count == 1:
            return last
        o, end = index_expr(axes[2]), constant(count - 1, "int64")
        u = lowering.load_view(lowering.view(samples), [axes[0], axes[1], Index((), which)])
        alpha = rounded(
            apply("div", rounded(constant(size - width, dtype)), rounded(constant(count - 1, dtype)))
        )
        moved = rounded(apply("mul", rounded(apply("add", rounded(cast(o, dtype)), u)), alpha))
        phase = rounded(apply("mul", u, alpha))
        start = apply("sub", cast(moved, "int64"), cast(phase, "int64"))
        return apply("where", apply("eq", o, end), last, start)

    batch = [1] * (2 - len(shape)) + list(shape)
    return lowering.map_into(lowering.new_buffer([*batch, count], "int64"), value)


def largest(
    lowering: Lowering, x: BufferView, windows: Windows, node: fx.Node
) -> tuple[BufferView, BufferView]:
    """(the largest element of each window, its place in the flattened spatial dimensions)"""
    vals = node.meta["val"]
    stored = dtype_name(vals[0].dtype)
    dtype = compute_dtype(stored)
    lowest = reduce_identity("max", dtype)
    buffer = lowering.buffer_like(vals[0])
    axes = axes_of(buffer.shape)

    def seen(tap: Sequence[Index]) -> tuple[Expr, Expr | None]:
        return element(lowering, windows, x, axes, tap, dtype, lowest)

    places = windows.split(axes)[1]
    if is_small(windows.taps) and windows.begins_with_first_tap and is_place_wanted(node):
        best, index = place_by_taps(windows, places, [(tap, seen(tap)[0]) for tap in all_taps(windows.taps)])
        return lowering.map_into(buffer, lambda _: best), lowering.map(vals[1], lambda _: index)
    store = strided_index(axes, buffer.strides)
    values = combine(lowering, buffer, axes, store, windows.taps, "max", lambda tap: seen(tap)[0])
    best = lowering.load_view(values, axes)
    return values, place_by_reduction(lowering, windows, places, seen, best, vals[1])


def is_place_wanted(node: fx.Node) -> bool:
    """Alone, a maximum takes one operation a tap less."""
    return any(user.args[1:] == (1,) and user.users for user in node.users)


def place_by_taps(
    windows: Windows, places: Sequence[Axis], taps: list[tuple[list[Index], Expr]]
) -> tuple[Expr, Expr]:
    """The largest element, or the last NaN, and its place; that in int32, which has as many lanes as a float, until
    the end.

    Taps outside of the input are as small as can be, so the first one inside has to be known.
    """
    extents = windows.extents
    offsets: list[Expr] = [
        constant(flat_place(windows.offset(tap), extents).const, "int32") for tap, _ in taps
    ]
    offsets[0] = cast(first_inside(windows, places), "int32")
    best, chosen = pairwise(later_if_better, list(zip((value for _, value in taps), offsets)))
    origin = position_value(flat_place(windows.begin(places), extents))
    dtype = place_dtype(extents)
    place = apply("add", cast(chosen, dtype), cast(origin, dtype))
    return best, unless_empty(windows, places, cast(place, "int64"))


def later_if_better(first: tuple[Expr, Expr], later: tuple[Expr, Expr]) -> tuple[Expr, Expr]:
    """(element, place) of the later one where that is larger, or NaN."""
    (best, chosen), (value, offset) = first, later
    if dtype_kind(value.dtype) == "float":
        # not <= also holds for a NaN, and where `best` is one nothing else exceeds infinity: one comparison, not two
        infinity = constant(math.inf, value.dtype)
        bar = apply("where", apply("lt", best, infinity), best, infinity)
        better = apply("logical_not", apply("le", value, bar))
    else:
        better = apply("gt", value, best)
    return apply("where", better, value, best), apply("where", better, offset, chosen)


def place_dtype(extents: Sequence[Size]) -> str:
    """What a place in the flattened dimensions is computed in."""
    count = size_product(extents)
    return "int32" if isinstance(count, int) and count < 2**31 else "int64"


def first_inside(windows: Windows, places: Sequence[Axis]) -> Expr:
    """Where the first tap in the input lies, counted in elements from the beginning of its window."""
    zero, total = constant(0, "int64"), constant(0, "int64")
    if not isinstance(windows, Sliding):
        return total
    numbers = zip(windows.begin(places), windows.padding, windows.dilation, windows.extents)
    for begin, padding, step, size in numbers:
        offset: Expr = zero
        if padding != 0:
            outside = apply("neg", position_value(begin))
            if step != 1:
                above = apply("add", outside, constant(step - 1, "int64"))
                taps = apply("floor_divide", above, constant(step, "int64"))
                outside = apply("mul", taps, constant(step, "int64"))
            offset = apply("where", apply("lt", position_value(begin), zero), outside, zero)
        total = apply("add", apply("mul", total, constant(size, "int64")), offset)
    return total


def place_by_reduction(
    lowering: Lowering, windows: Windows, places: Sequence[Axis], seen: Any, best: Expr, val: torch.Tensor
) -> BufferView:
    """The smallest place of an element that is the best; where that is NaN, the largest place of a NaN.

    With all their bits flipped the smallest place is the one that was largest.
    """
    extents = windows.extents
    dtype = place_dtype(extents)
    is_float = dtype_kind(best.dtype) == "float"
    flip = apply("where", apply("isnan", best), constant(-1, dtype), constant(0, dtype))

    def flipped(place: Expr) -> Expr:
        return apply("bitwise_xor", place, flip) if is_float else place

    def found(tap: Sequence[Index]) -> Expr:
        value, mask = seen(tap)
        hit = apply("eq", value, best)
        hit = apply("bitwise_or", hit, apply("isnan", value)) if is_float else hit
        place = cast(position_value(flat_place(windows.position(places, tap)[0], extents)), dtype)
        return masked(hit if mask is None else both(mask, hit), flipped(place), reduce_identity("min", dtype))

    axes = axes_of(sizes(val.shape))
    buffer = lowering.buffer_like(val, dtype)
    store = strided_index(axes, buffer.strides)
    smallest = lowering.load_view(combine(lowering, buffer, axes, store, windows.taps, "min", found), axes)
    index = unless_empty(windows, places, cast(flipped(smallest), "int64"))
    return lowering.map(val, lambda _: index)


def unless_empty(windows: Windows, places: Sequence[Axis], index: Expr) -> Expr:
    """The index, but ATen's where a window has no element: only steps wider than the input pass over it."""
    if not isinstance(windows, Sliding):
        return index
    if all(
        step == 1 or (isinstance(size, int) and isinstance(step, int) and step <= size)
        for step, size in zip(windows.dilation, windows.extents)
    ):
        return index
    zero, one, total = constant(0, "int64"), constant(1, "int64"), constant(0, "int64")
    empty = constant(False, "bool")
    for place, step, size in zip(windows.begin(places), windows.dilation, windows.extents):
        begin, limit = position_value(place), constant(size, "int64")
        inside = apply("remainder", begin, constant(step, "int64"))
        first = apply("where", apply("lt", begin, zero), inside, begin)
        empty = apply("bitwise_or", empty, apply("ge", first, limit))
        held = apply("minimum", first, apply("sub", limit, one))
        total = apply("add", apply("mul", total, limit), held)
    return apply("where", empty, total, index)


# ---- the gradient ----------------------------------------------------------------------------------------


MOST_COMPARISONS = NATIVE_LANES * 3 // 8
"""How often each window is compared with an element while the gradient is gathered, every time in one lane of a
vector; where it would be more often, looking up the place of its largest element is faster."""


@lowers("aten.max_pool2d_with_indices_backward", "aten.max_pool3d_with_indices_backward")
def lower_max_pool_backward(lowering: Lowering, node: fx.Node) -> Any:
    grad, x, size, stride, padding, dilation, _, indices = node.args
    val, dims = node.meta["val"], spatial_dims(node)
    windows = sliding(lowering, lowering.view(x).shape, size, stride, padding, dims, dilation)
    even = all(exact_quotient(size, step) is not None for size, step in zip(windows.extents, windows.stride))
    counts = lowering.view(grad).shape[val.dim() - dims :]
    if not should_gather(val, windows, counts, covering_counts(windows)):
        return scatter_gradient(lowering, node, grad, indices, dims)
    loops = gradient_loops(lowering, val, dtype_name(val.dtype), windows.stride, split=even)
    covering = covering_sliding(windows, loops[-1], counts)
    return gather_gradient(lowering, node, grad, indices, loops, windows, covering)


@lowers("aten.adaptive_max_pool2d_backward", "aten.adaptive_max_pool3d_backward")
def lower_adaptive_max_pool_backward(lowering: Lowering, node: fx.Node) -> Any:
    grad, _, indices = node.args
    val, dims = node.meta["val"], spatial_dims(node)
    shape = sizes(val.shape)
    windows = Adaptive.over(shape[len(shape) - dims :], lowering.view(grad).shape[len(shape) - dims :])
    loops = gradient_loops(lowering, val, dtype_name(val.dtype), adaptive_steps(windows), split=True)
    covering = covering_adaptive(windows, loops[-1])
    if not should_gather(val, windows, windows.counts, covering.counts):
        return scatter_gradient(lowering, node, grad, indices, dims)
    return gather_gradient(lowering, node, grad, indices, loops, windows, covering)


def should_gather(
    val: torch.Tensor, windows: Windows, counts: Sequence[Size], covering: Sequence[Size]
) -> bool:
    """Whether each element had better look at the windows that may cover it, in vectors along the channels.

    Else each window adds to its element, one at a time; of sizes known only at run time that would be slow.

    Args:    counts: how many windows there are along each dimension
             covering: how many may cover an element
    """
    if not channels_side_by_side(val, windows.dims):
        return False
    comparisons, number = size_product([*windows.extents, *covering]), size_product(counts)
    if isinstance(comparisons, int) and isinstance(number, int):
        return comparisons <= MOST_COMPARISONS * number
    return is_small(covering)


@lowers("aten.fractional_max_pool2d_backward", "aten.fractional_max_pool3d_backward")
def lower_fractional_max_pool_backward(lowering: Lowering, node: fx.Node) -> Any:
    return scatter_gradient(lowering, node, node.args[0], node.args[-1], spatial_dims(node))


def scatter_gradient(lowering: Lowering, node: fx.Node, grad: Any, indices: Any, dims: int) -> BufferView:
    """dx[n, c, index[n, c, o]] += grad[n, c, o]"""
    val = node.meta["val"]
    axes = axes_of(lowering.view(grad).shape)
    lead = list(axes[: len(axes) - dims])
    shape, strides = sizes(val.shape)[val.dim() - dims :], sizes(val.stride())[val.dim() - dims :]
    for k in range(dims - 1):
        if strides[k] != strides[k + 1] * shape[k + 1]:
            raise NoLowering("a gradient whose spatial dimensions cannot be seen as one")
    place, inside = checked_index(lowering, indices, axes, size_product(shape))
    value = lowering.operand(grad, axes, compute_dtype_of(node))
    position: list[Any] = [*lead, *[Axis("one", 1)] * (dims - 1), place]
    return scatter(lowering, node, axes, position, inside, value, "add")


def gather_gradient(
    lowering: Lowering,
    node: fx.Node,
    grad: Any,
    indices: Any,
    loops: Any,
    windows: Windows,
    covering: Covering,
) -> BufferView:
    """dx[n, c, y] = sum over the windows o that may cover y of grad[n, c, o] where index[n, c, o] == y"""
    val, dtype = node.meta["val"], compute_dtype_of(node)
    gradient, index = lowering.view(grad), lowering.view(indices)
    buffer, lead, inner, store, places = loops
    here = position_value(flat_place([place.y for place in places], windows.extents))

    def term(tap: Sequence[Index]) -> Expr:
        position = [begin + j for begin, j in zip(covering.first, tap)]
        mask = covering.covers(position)
        found = lowering.load_view(index, [*lead, *position], mask=mask)
        share = lowering.load_view(gradient, [*lead, *position], mask=mask)
        mine = apply("eq", found, here)
        return masked(mine if mask is None else both(mask, mine), cast(share, dtype), 0)

    total = combine(lowering, buffer, [*lead, *inner], store, covering.counts, "sum", term)
    return finished(lowering, val, total)
