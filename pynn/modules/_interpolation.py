"""The mathematics of interpolation: along each dimension an output element is a weighted sum of a few input elements.

    out[o] = sum over k of weights[k, o] * x[index[k, o]]

A mode is a table of *taps*: which elements, with which weights. In several dimensions the same is done one dimension
after the other. The map is linear, so its derivative is its adjoint, which adds where the forward took.
Index and weight formulas are those of aten/src/ATen/native/UpSample.h, in the precision in which C++ computes them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pynn.definitions import Function, defines, widen
from pynn.memory_format import in_format_of
from pynn.windows import along

aten = torch.ops.aten


@dataclass(frozen=True)
class Taps:
    """index: [taps, outputs] int64   weights: [taps, outputs], or None where each output is one element as it is"""

    index: Tensor
    weights: Tensor | None


def source_scale(
    size: Any, count: Any, scale: float | None, align_corners: bool, dtype: torch.dtype, device: Any
) -> Tensor:
    """How far apart two outputs lie in the input, a scalar tensor.

    (size - 1) / (count - 1) with align_corners, else 1 / scale_factor, or size / count where there is none
    """
    if align_corners:
        wanted = (size - 1, count - 1) if count > 1 else (0, 1)
    elif scale is not None and scale > 0:
        wanted = (1.0, scale)
    else:
        wanted = (size, count)
    if wanted == (1.0, scale):  # C++ divides in float64 and rounds
        return torch.full((), 1.0 / scale, dtype=dtype, device=device)  # type: ignore[operator]
    above, below = (torch.full((), number, dtype=dtype, device=device) for number in wanted)
    return above / below


def source_positions(scale: Tensor, count: Any, align_corners: bool) -> Tensor:
    """Where the outputs lie in the input: o * scale, or (o + 1/2) * scale - 1/2 as pixels are areas."""
    o = torch.arange(count, device=scale.device).to(scale.dtype)
    return scale * o if align_corners else scale * (o + 0.5) - 0.5


def nearest_taps(
    size: Any, count: Any, scale: float | None, exact: bool, dtype: torch.dtype, device: Any
) -> Taps:
    """floor(o * scale), or with `exact` floor((o + 1/2) * scale)."""
    step = source_scale(size, count, scale, False, torch.float32, device)
    o = torch.arange(count, device=device).to(torch.float32)
    index = torch.floor((o + 0.5) * step if exact else o * step).to(torch.int64)
    return Taps(torch.clamp(index, max=size - 1).unsqueeze(0), None)


def linear_taps(
    size: Any, count: Any, scale: float | None, align_corners: bool, dtype: torch.dtype, device: Any
) -> Taps:
    """The two neighbours of the position s, with weights 1 - (s - floor(s)) and s - floor(s)."""
    if size == count:
        index = torch.arange(count, device=device).unsqueeze(0)
        return Taps(index, None)
    position = source_positions(
        source_scale(size, count, scale, align_corners, dtype, device), count, align_corners
    )
    position = position if align_corners else torch.clamp(position, min=0)
    first = torch.clamp(torch.floor(position).to(torch.int64), max=size - 1)
    part = torch.clamp(position - first, 0, 1)
    second = torch.clamp(first + 1, max=size - 1)
    return Taps(torch.stack([first, second]), torch.stack([1 - part, part]))


def near_cubic(x: Tensor, a: float) -> Tensor:
    """(a + 2) |x|^3 - (a + 3) |x|^2 + 1, for |x| <= 1."""
    return ((a + 2) * x - (a + 3)) * x * x + 1


def far_cubic(x: Tensor, a: float) -> Tensor:
    """a |x|^3 - 5 a |x|^2 + 8 a |x| - 4 a, for 1 < |x| < 2."""
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


def cubic_taps(
    size: Any, count: Any, scale: float | None, align_corners: bool, dtype: torch.dtype, device: Any
) -> Taps:
    """Four neighbours, weighted by Keys' cubic convolution with a = -3/4; outside the input the edge is repeated."""
    if size == count:
        return Taps(torch.arange(count, device=device).unsqueeze(0), None)
    position = source_positions(
        source_scale(size, count, scale, align_corners, dtype, device), count, align_corners
    )
    first = torch.clamp(torch.floor(position).to(torch.int64), max=size - 1)
    part = torch.clamp(position - first, 0, 1)
    index = torch.stack([torch.clamp(first + k, 0, size - 1) for k in (-1, 0, 1, 2)])
    a, rest = -0.75, 1 - part
    weights = [far_cubic(part + 1, a), near_cubic(part, a), near_cubic(rest, a), far_cubic(rest + 1, a)]
    return Taps(index, torch.stack(weights))


def triangle(x: Tensor) -> Tensor:
    """1 - |x|, and 0 outside of (-1, 1)."""
    return torch.clamp(1 - x.abs(), min=0)


def keys_cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2, as in PIL."""
    x, a = x.abs(), -0.5
    return torch.where(x < 1, near_cubic(x, a), torch.where(x < 2, far_cubic(x, a), 0))


def lanczos(x: Tensor) -> Tensor:
    """sinc(x) * sinc(x / 3), and 0 outside of (-3, 3)."""

    def sinc(x: Tensor) -> Tensor:
        angle = x * math.pi
        return torch.where(x == 0, 1, torch.sin(angle) / torch.where(x == 0, 1, angle))

    return torch.where((x >= -3) & (x < 3), sinc(x) * sinc(x / 3), 0)


FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "linear": (triangle, 2), "cubic": (keys_cubic, 4), "lanczos": (lanczos, 6),
}  # fmt: skip


def antialias_taps(
    filter: str,
    size: Any,
    count: Any,
    scale: float | None,
    align_corners: bool,
    dtype: torch.dtype,
    device: Any,
) -> Taps:
    """The filter stretched over the input elements that an output stands for, its weights scaled to add up to 1."""
    function, width = FILTERS[filter]
    step = source_scale(size, count, scale, align_corners, dtype, device)
    stretch = torch.clamp(step, min=1)
    support = 0.5 * width * stretch
    centre = step * (torch.arange(count, device=device).to(dtype) + 0.5)
    first = torch.clamp((centre - support + 0.5).to(torch.int64), min=0)
    end = torch.clamp((centre + support + 0.5).to(torch.int64), max=size)
    ratio = number_of(size, count, scale, align_corners)
    taps = math.ceil(0.5 * width * max(ratio, 1.0)) * 2 + 1
    index = first + torch.arange(taps, device=device).unsqueeze(1)
    weights = function((index - centre + 0.5) / stretch)
    weights = torch.where(index < end, weights, 0)
    return Taps(torch.clamp(index, max=size - 1), weights / weights.sum(0))


def number_of(size: Any, count: Any, scale: float | None, align_corners: bool) -> float:
    """source_scale as a Python number, for the number of taps."""
    if align_corners:
        return (size - 1) / (count - 1) if count > 1 else 0.0
    return 1.0 / scale if scale is not None and scale > 0 else size / count


def taps_of(
    mode: str, size: Any, count: Any, scale: float | None, align_corners: bool, dtype: Any, device: Any
) -> Taps:
    """mode: nearest, nearest-exact, linear, cubic; linear, cubic, lanczos with " antialias"."""
    if mode.startswith("nearest"):
        return nearest_taps(size, count, scale, mode == "nearest-exact", dtype, device)
    if mode.endswith(" antialias"):
        return antialias_taps(
            mode.removesuffix(" antialias"), size, count, scale, align_corners, dtype, device
        )
    return {"linear": linear_taps, "cubic": cubic_taps}[mode](
        size, count, scale, align_corners, dtype, device
    )


def gather_along(x: Tensor, dim: int, taps: Taps) -> Tensor:
    """out[o] = sum over k of weights[k, o] * x[index[k, o]] along one dimension."""
    out = None
    for k in range(taps.index.size(0)):
        piece = x.index_select(dim, taps.index[k])
        if taps.weights is not None:
            piece = piece * along(taps.weights[k], dim, x.dim())
        out = piece if out is None else out + piece
    assert out is not None
    return out


def scatter_along(grad: Tensor, dim: int, taps: Taps, size: Any) -> Tensor:
    """The adjoint of gather_along: x[index[k, o]] += weights[k, o] * grad[o]."""
    out = grad.new_zeros(*grad.shape[:dim], size, *grad.shape[dim + 1 :])
    for k in range(taps.index.size(0)):
        piece = grad if taps.weights is None else grad * along(taps.weights[k], dim, grad.dim())
        out = out.index_add(dim, taps.index[k], piece)
    return out


def tables(
    mode: str,
    sizes: Sequence[Any],
    counts: Sequence[Any],
    align_corners: bool,
    scales: Sequence[float | None],
    like: Tensor,
) -> list[Taps]:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [
        taps_of(mode, size, count, scale, align_corners, dtype, like.device)
        for size, count, scale in zip(sizes, counts, scales, strict=True)
    ]


def interpolate_forward(
    x: Tensor, mode: str, counts: Sequence[Any], align_corners: bool, scales: Sequence[float | None]
) -> Tensor:
    """One dimension after the other, the last one first.

    Shape:   x: [batch, channels, L...]   returns: [batch, channels, *counts]
    dtype:   computes in float32 for 16-bit inputs; uint8 in fixed point, as C++ does
    """
    if x.dtype == torch.uint8 and not mode.startswith("nearest"):
        return interpolate_bytes(x, mode, counts, align_corners, scales)
    out, first = in_order_of_memory(x if mode.startswith("nearest") else widen(x))
    each = tables(mode, x.shape[2:], counts, align_corners, scales, x)
    for i, taps in reversed(list(enumerate(each))):
        out = gather_along(out, first + i, taps)
    return in_format_of(x, in_order_of_dimensions(out, first).to(x.dtype))


def interpolate_backward(
    grad: Tensor, mode: str, sizes: Sequence[Any], align_corners: bool, scales: Sequence[float | None]
) -> Tensor:
    """The adjoint of interpolate_forward. Shape: grad: [batch, channels, O...]   returns: [batch, channels, *sizes]"""
    out, first = in_order_of_memory(widen(grad))
    each = tables(mode, sizes, grad.shape[2:], align_corners, scales, grad)
    for i, taps in enumerate(each):
        out = scatter_along(out, first + i, taps, sizes[i])
    return in_format_of(grad, in_order_of_dimensions(out, first).to(grad.dtype))


def in_order_of_memory(x: Tensor) -> tuple[Tensor, int]:
    """(x with its channels last where they are so in memory, which dimension of it is the first spatial one)"""
    if suggest_memory_format(x) == torch.contiguous_format:
        return x, 2
    return x.movedim(1, -1), 1


def in_order_of_dimensions(x: Tensor, first: int) -> Tensor:
    """[batch, channels, L...] again"""
    return x if first == 2 else x.movedim(-1, 1)


def interpolate_bytes(
    x: Tensor, mode: str, counts: Sequence[Any], align_corners: bool, scales: Sequence[float | None]
) -> Tensor:
    """uint8: 16-bit weights with as many binary places as fit, sums in integers, rounded after each dimension.

    Source:  aten/native/cpu/UpSampleKernel.cpp, after Pillow-SIMD
    """
    out, first = in_order_of_memory(x)
    for i in reversed(range(len(counts))):
        if x.size(2 + i) == counts[i] and x.size(1) <= 4:
            continue  # C++ passes over it for images of up to 4 channels, whatever scale_factor says
        taps = taps_of(mode, x.size(2 + i), counts[i], scales[i], align_corners, torch.float64, x.device)
        if taps.weights is None:
            continue  # the size stays
        whole, unit = in_fixed_point(taps)
        total = gather_along(out.to(torch.float64), first + i, whole)
        out = torch.clamp(torch.floor(total / unit + 0.5), 0, 255).to(torch.uint8)
    return in_format_of(x, in_order_of_dimensions(out, first))


def in_fixed_point(taps: Taps) -> tuple[Taps, Tensor]:
    """(the taps with weights * unit rounded to whole numbers, unit): a power of two, a scalar tensor.

    Sums of them times bytes are whole numbers that float64 holds exactly, and so are their quotients by the unit.
    """
    assert taps.weights is not None
    weights = added_where_equal(taps.index, taps.weights)
    unit = fixed_point_unit(weights)
    scaled = weights * unit
    return Taps(taps.index, torch.trunc(scaled + torch.where(scaled < 0, -0.5, 0.5))), unit


def added_where_equal(index: Tensor, weights: Tensor) -> Tensor:
    """The weights of taps that take the same element (at an edge) added up before they are rounded."""
    rows = list(weights)
    for k in range(1, len(rows)):
        is_same = index[k] == index[k - 1]
        rows[k] = rows[k] + torch.where(is_same, rows[k - 1], 0)
        rows[k - 1] = torch.where(is_same, 0, rows[k - 1])
    return torch.stack(rows)


def fixed_point_unit(weights: Tensor) -> Tensor:
    """The largest power of two, at most 2^22, with which the largest weight is below 2^15: a scalar tensor."""
    units = torch.full((22,), 2.0, dtype=weights.dtype, device=weights.device).cumprod(0)
    return torch.where(torch.floor(weights.amax() * units + 0.5) < 2**15, units, 1).amax()


class Interpolation(Function):
    """interpolate_forward with its adjoint."""

    @staticmethod
    def forward(x: Tensor, mode: str, counts: Any, align_corners: bool, scales: Any) -> Tensor:
        return interpolate_forward(x, mode, counts, align_corners, scales)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.mode, ctx.counts, ctx.align_corners, ctx.scales = inputs
        ctx.sizes = list(x.shape[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return (
            interpolate_backward(grad, ctx.mode, ctx.sizes, ctx.align_corners, ctx.scales),
            None,
            None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return interpolate_forward(dx, ctx.mode, ctx.counts, ctx.align_corners, ctx.scales)


# ---- definitions -----------------------------------------------------------------------------------------

# ATen's name -> (mode, whether it takes align_corners)
OPERATIONS = {
    "upsample_nearest1d": ("nearest", False), "upsample_nearest2d": ("nearest", False),
    "upsample_nearest3d": ("nearest", False), "_upsample_nearest_exact1d": ("nearest-exact", False),
    "_upsample_nearest_exact2d": ("nearest-exact", False), "_upsample_nearest_exact3d": ("nearest-exact", False),
    "upsample_linear1d": ("linear", True), "upsample_bilinear2d": ("linear", True),
    "upsample_trilinear3d": ("linear", True), "upsample_bicubic2d": ("cubic", True),
    "_upsample_bilinear2d_aa": ("linear antialias", True), "_upsample_bicubic2d_aa": ("cubic antialias", True),
    "_upsample_lanczos2d_aa": ("lanczos antialias", True),
}  # fmt: skip


def _forward(mode: str, has_corners: bool) -> Callable[..., Tensor]:
    def upsample(self: Tensor, output_size: list[int], *rest: Any, **named: Any) -> Tensor:
        return interpolate_forward(
            self, mode, output_size, *options_of(rest, named, has_corners, len(output_size))
        )

    return upsample


def _backward(mode: str, has_corners: bool) -> Callable[..., Tensor]:
    def upsample_backward(
        grad_output: Tensor, output_size: list[int], input_size: list[int], *rest: Any, **named: Any
    ) -> Tensor:
        options = options_of(rest, named, has_corners, len(output_size))
        return interpolate_backward(grad_output, mode, input_size[2:], *options)

    return upsample_backward


def options_of(rest: tuple, named: dict, has_corners: bool, dims: int) -> tuple[bool, list[float | None]]:
    """(align_corners, one scale a dimension) from ATen's arguments: [align_corners,] scales_d, scales_h, scales_w."""
    values = list(rest)
    corners = (values.pop(0) if values else named["align_corners"]) if has_corners else False
    names = ["scales"] if dims == 1 else ["scales_d", "scales_h", "scales_w"][-dims:]
    values += [named.get(name) for name in names[len(values) :]]
    return corners, values


for _name, (_mode, _has_corners) in OPERATIONS.items():
    if hasattr(aten, _name):
        defines(getattr(aten, _name).default)(_forward(_mode, _has_corners))
        defines(getattr(aten, f"{_name}_backward").default)(_backward(_mode, _has_corners))
