"""The mathematics of grid_sample: the value of an image at given places, interpolated from the elements around.

    out[n, c, o] = sum over taps k of (product over dimensions d of weight_d[k_d, n, o]) * x[n, c, index[k, n, o]]

A place is given from -1 to 1 a dimension. Each dimension yields a few taps: elements, their weights, and the slopes of
the weights in the place, with which the gradient in the grid is the same sum. Formulas of aten/native/GridSampler.h.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pynn.definitions import Function, defines, widen
from pynn.modules._interpolation import far_cubic, near_cubic

aten = torch.ops.aten

BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)


@dataclass(frozen=True)
class AxisTaps:
    """Along one dimension, lists with one tensor [batch, O...] a tap.

    index:   of the element, held inside the image
    inside:  whether the element is in the image; elsewhere its value is 0 (None: all are)
    weight, slope: of the element, and the weight's derivative in the grid's coordinate
    """

    index: list[Tensor]
    inside: list[Tensor] | None
    weight: list[Tensor]
    slope: list[Tensor]


def to_pixels(place: Tensor, size: Any, align_corners: bool) -> tuple[Tensor, Any]:
    """-1 and 1 are the centres of the outer pixels, or their outer edges; and the derivative."""
    if align_corners:
        return (place + 1) / 2 * (size - 1), half(size - 1, place)
    return ((place + 1) * size - 1) / 2, half(size, place)


def half(size: Any, like: Tensor) -> Any:
    """size / 2: a number; of a size known only at run time a tensor, which compilers know how to compute."""
    return (
        size / 2 if isinstance(size, int) else torch.full((), size, dtype=like.dtype, device=like.device) / 2
    )


def clipped(position: Tensor, size: Any) -> tuple[Tensor, Tensor]:
    """Held within [0, size - 1], NaN to 0; and the derivative, which is 0 on the edge as well."""
    free = (position > 0) & (position < size - 1)
    held = torch.where(torch.isnan(position), 0, torch.clamp(position, 0, size - 1))
    return torch.where(free, position, held.detach()), free.to(position.dtype)


def reflected(position: Tensor, size: Any, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Mirrored at the outer pixels (or their edges) until inside; and the derivative, 1 or -1."""
    low, span = (0.0, size - 1) if align_corners else (-0.5, size)
    if span == 0:
        return position * 0, torch.zeros_like(position)
    shifted = position - low
    distance, sign = shifted.abs(), torch.where(shifted < 0, -1.0, 1.0).to(position.dtype)
    turns = torch.floor(distance / span).detach()
    rest = distance - turns * span
    is_even = torch.floor(turns / 2) * 2 == turns
    mirrored = torch.where(is_even, rest + low, span - rest + low)
    return mirrored, torch.where(is_even, sign, -sign)


def padded_position(
    position: Tensor, size: Any, padding_mode: int, align_corners: bool
) -> tuple[Tensor, Tensor | float]:
    """Where the padding mode takes a position, and the derivative."""
    if padding_mode == BORDER:
        return clipped(position, size)
    if padding_mode == REFLECTION:
        mirrored, sign = reflected(position, size, align_corners)
        held, free = clipped(mirrored, size)
        return held, sign * free
    return position, 1.0


def element(number: Tensor, size: Any, padding_mode: int) -> tuple[Tensor, Tensor]:
    """The index for a whole number of any size (NaN too), held inside, and whether it was inside."""
    inside = (number >= 0) & (number <= size - 1)
    return torch.where(inside, number, 0).detach().to(torch.int64), inside


def axis_taps(place: Tensor, size: Any, mode: int, padding_mode: int, align_corners: bool) -> AxisTaps:
    position, scale = to_pixels(place, size, align_corners)
    if mode == BICUBIC:
        return cubic_axis(position, scale, size, padding_mode, align_corners)
    position, slope = padded_position(position, size, padding_mode, align_corners)
    if mode == NEAREST:
        numbers, weights = [torch.round(position)], [torch.ones_like(position)]
        slopes = [torch.zeros_like(position)]
    else:
        first = torch.floor(position).detach()
        part = position - first
        numbers, weights = [first, first + 1], [1 - part, part]
        rise = torch.ones_like(position) * (scale * slope)
        slopes = [-rise, rise]
    found = [element(number, size, padding_mode) for number in numbers]
    return AxisTaps([index for index, _ in found], [inside for _, inside in found], weights, slopes)


def cubic_axis(position: Tensor, scale: float, size: Any, padding_mode: int, align_corners: bool) -> AxisTaps:
    """Four elements, each taken where the padding mode puts it; Keys' cubic with a = -3/4."""
    a = -0.75
    first = torch.floor(position).detach()
    part = position - first
    rest = 1 - part
    weights = [far_cubic(part + 1, a), near_cubic(part, a), near_cubic(rest, a), far_cubic(rest + 1, a)]
    slopes = [far_slope(part + 1, a), near_slope(part, a), -near_slope(rest, a), -far_slope(rest + 1, a)]
    found = []
    for k in (-1, 0, 1, 2):
        number, _ = padded_position(first + k, size, padding_mode, align_corners)
        found.append(
            element(torch.trunc(number) if padding_mode == REFLECTION else number, size, padding_mode)
        )
    return AxisTaps(
        [index for index, _ in found], [inside for _, inside in found], weights, [s * scale for s in slopes]
    )


def near_slope(x: Tensor, a: float) -> Tensor:
    """The derivative of near_cubic."""
    return (3 * (a + 2) * x - 2 * (a + 3)) * x


def far_slope(x: Tensor, a: float) -> Tensor:
    """The derivative of far_cubic."""
    return (3 * a * x - 10 * a) * x + 8 * a


def all_taps(
    grid: Tensor, sizes: Sequence[Any], mode: int, padding_mode: int, align_corners: bool
) -> list[AxisTaps]:
    """One dimension after the other; the grid's last coordinate belongs to the first dimension.

    The elements around a place at infinity, or at NaN, weigh NaN. C++ multiplies an image's zeros outside by that,
    but leaves out what is outside of a volume.
    """
    dims = len(sizes)
    taps = [
        axis_taps(grid[..., dims - 1 - i], size, mode, padding_mode, align_corners)
        for i, size in enumerate(sizes)
    ]
    return [weighing_0_outside(axis) for axis in taps] if dims == 3 and padding_mode == ZEROS else taps


def weighing_0_outside(taps: AxisTaps) -> AxisTaps:
    assert taps.inside is not None
    weight = [torch.where(inside, weight, 0) for inside, weight in zip(taps.inside, taps.weight)]
    slope = [torch.where(inside, slope, 0) for inside, slope in zip(taps.inside, taps.slope)]
    return AxisTaps(taps.index, taps.inside, weight, slope)


def combinations(taps: list[AxisTaps], sizes: Sequence[Any]):
    """(flat index [batch, O...], inside, the tap's number in each dimension) for every combination of taps."""
    for numbers in itertools.product(*(range(len(axis.index)) for axis in taps)):
        index = inside = None
        for axis, number, size in zip(taps, numbers, sizes):
            index = axis.index[number] if index is None else index * size + axis.index[number]
            if axis.inside is not None:
                inside = axis.inside[number] if inside is None else inside & axis.inside[number]
        yield index, inside, numbers


def weight_of(taps: list[AxisTaps], numbers: Sequence[int], sloping: int | None = None) -> Tensor:
    """The product of the weights; in dimension `sloping` its slope instead."""
    out = None
    for i, (axis, number) in enumerate(zip(taps, numbers)):
        factor = axis.slope[number] if i == sloping else axis.weight[number]
        out = factor if out is None else out * factor
    assert out is not None
    return out


def values_at(x: Tensor, index: Tensor, inside: Tensor | None) -> Tensor:
    """x [batch, channels, L...] at index [batch, O...] -> [batch, channels, O...]; 0 where not inside."""
    flat = index.flatten(1).unsqueeze(1).expand(-1, x.size(1), -1)
    values = x.flatten(2).gather(2, flat).view(x.size(0), x.size(1), *index.shape[1:])
    return values if inside is None else torch.where(inside.unsqueeze(1), values, 0)


def sample_forward(x: Tensor, grid: Tensor, mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """Shape: x: [batch, channels, L...]   grid: [batch, O..., dims]   returns: [batch, channels, O...]"""
    sizes = x.shape[2:]
    taps, out = all_taps(widen(grid), sizes, mode, padding_mode, align_corners), None
    for index, inside, numbers in combinations(taps, sizes):
        term = values_at(widen(x), index, inside) * weight_of(taps, numbers).unsqueeze(1)
        out = term if out is None else out + term
    assert out is not None
    return out.to(x.dtype)


def sample_backward(
    grad: Tensor,
    x: Tensor,
    grid: Tensor,
    mode: int,
    padding_mode: int,
    align_corners: bool,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """In x, the adjoint of the sum; in the grid, the sum with one weight replaced by its slope."""
    sizes, dims = x.shape[2:], x.dim() - 2
    taps = all_taps(widen(grid), sizes, mode, padding_mode, align_corners)
    gradient, values = widen(grad), widen(x)
    flat_x = values.new_zeros(values.flatten(2).shape)
    slopes: list[Any] = [0.0] * dims
    for index, inside, numbers in combinations(taps, sizes):
        if mask[0]:
            part = gradient * weight_of(taps, numbers).unsqueeze(1)
            part = part if inside is None else torch.where(inside.unsqueeze(1), part, 0)
            flat = index.flatten(1).unsqueeze(1).expand(-1, x.size(1), -1)
            flat_x = flat_x.scatter_add(2, flat, part.flatten(2))
        if mask[1]:
            # [batch, O...]
            along_channels = (gradient * values_at(values, index, inside)).sum(1)
            for i in range(dims):
                slopes[i] = slopes[i] + along_channels * weight_of(taps, numbers, i)
    grad_x = flat_x.view(x.shape).to(x.dtype) if mask[0] else None
    grad_grid = torch.stack(slopes[::-1], -1).to(grid.dtype) if mask[1] else None
    return grad_x, grad_grid


class GridSample(Function):
    """sample_forward with sample_backward."""

    @staticmethod
    def forward(x: Tensor, grid: Tensor, mode: int, padding_mode: int, align_corners: bool) -> Tensor:
        return sample_forward(x, grid, mode, padding_mode, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, grid, *ctx.options = inputs
        ctx.save_for_backward(x, grid)
        ctx.save_for_forward(x, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, grid = ctx.saved_tensors
        return *sample_backward(grad, x, grid, *ctx.options, ctx.needs_input_grad[:2]), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dgrid: Tensor | None, *_: Any) -> Tensor:
        """It is linear in x; in the grid, each coordinate's part is the sum with that weight's slope."""
        x, grid = ctx.saved_tensors
        out = sample_forward(dx, grid, *ctx.options) if dx is not None else 0
        if dgrid is not None:
            sizes, dims = x.shape[2:], x.dim() - 2
            taps = all_taps(widen(grid), sizes, *ctx.options)
            for index, inside, numbers in combinations(taps, sizes):
                values = values_at(widen(x), index, inside)
                for i in range(dims):
                    slope = weight_of(taps, numbers, i) * widen(dgrid)[..., dims - 1 - i]
                    out = out + values * slope.unsqueeze(1)
        return out.to(x.dtype)  # type: ignore[union-attr]


@defines(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    return sample_forward(input, grid, interpolation_mode, padding_mode, align_corners)


@defines(aten.grid_sampler_2d_backward.default, aten.grid_sampler_3d_backward.default)
def grid_sampler_backward(
    grad_output: Tensor,
    input: Tensor,
    grid: Tensor,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """output_mask: ATen's kernel gives the gradient of the grid in any case."""
    return sample_backward(
        grad_output, input, grid, interpolation_mode, padding_mode, align_corners, [output_mask[0], True]
    )


@defines(aten.affine_grid_generator.default)
def affine_grid_generator(theta: Tensor, size: list[int], align_corners: bool) -> Tensor:
    """grid[n, o] = theta[n] @ (x, y, [z,] 1) for every output place.

    Shape:   theta: [batch, dims, dims + 1]   size: [batch, channels, L...]   returns: [batch, L..., dims]
    """
    dims = len(size) - 2
    values = widen(theta)
    axes = [
        places(count, align_corners, values).view(*[-1 if i == j else 1 for j in range(dims)])
        for i, count in enumerate(size[2:])
    ]
    ones = values.new_ones([1] * dims)
    # [L..., dims + 1], the last spatial dimension first
    base = torch.stack([part.expand(size[2:]) for part in (*reversed(axes), ones)], -1)
    grid = torch.matmul(base.view(1, -1, dims + 1), values.transpose(1, 2))
    return grid.view(size[0], *size[2:], dims).to(theta.dtype)


def places(count: Any, align_corners: bool, like: Tensor) -> Tensor:
    """From -1 to 1: the centres of `count` pixels whose outer edges are -1 and 1, or whose outer centres are.

    Rounded as C++ rounds them: what a map takes to 0 there is 0 here.
    """
    if count <= 1:
        return like.new_zeros([count])
    centres = torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)
    return centres if align_corners else centres * (count - 1) / count


@defines(aten.affine_grid_generator_backward.default)
def affine_grid_generator_backward(grad: Tensor, size: list[int], align_corners: bool) -> Tensor:
    """theta's gradient: sum over o of grad[n, o] (x, y, [z,] 1)^T."""
    dims = len(size) - 2
    identity = torch.eye(dims + 1, dtype=widen(grad).dtype, device=grad.device)[:dims].unsqueeze(0)
    ones = grad.new_ones([1], dtype=identity.dtype)
    base = affine_grid_generator(identity, [1, *size[1:]], align_corners).view(-1, dims)
    base = torch.cat([base, ones.expand(base.size(0)).unsqueeze(1)], 1)
    return torch.matmul(widen(grad).reshape(size[0], -1, dims).transpose(1, 2), base).to(grad.dtype)


class AffineGrid(Function):
    """affine_grid_generator with its adjoint; linear in theta, so that nothing is kept."""

    @staticmethod
    def forward(theta: Tensor, size: list[int], align_corners: bool) -> Tensor:
        return affine_grid_generator(theta, size, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.size, ctx.align_corners = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return affine_grid_generator_backward(grad, ctx.size, ctx.align_corners), None, None

    @staticmethod
    def jvp(ctx: Any, dtheta: Tensor, *_: Any) -> Tensor:
        return affine_grid_generator(dtheta, ctx.size, ctx.align_corners)
