"""The mathematics of convolution: a sum over windows times weights, and its two adjoints.

    out[n, f, o] = sum over c, k of weight[f, c, k] * x[n, c, o * stride + k * dilation - padding]

o and k stand for one index a spatial dimension, groups split the channels c and f. The map is linear in x and in
weight, so its derivatives are the two adjoints: in x (`spread`, which is also what "transposed convolution" computes)
and in weight (`correlate`). Each of the three is one matrix product a group over the windows laid out as columns, or,
with one channel a group (depthwise), a sum over the offsets k of shifted slices.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pynn.definitions import NARROW_DTYPES, Function, defines, widen
from pynn.flops import counted_as
from pynn.memory_format import in_format_of
from pynn.modules._convolution_checks import expanded
from pynn.windows import crop, overlap_add, pad_both_sides, place_of, sliding_windows

aten = torch.ops.aten

MOST_COLUMNS = 2**22
"""Elements of the windows laid out at once: the batch is taken in parts of at most this many (16 MB of float32)."""


@dataclass(frozen=True)
class Geometry:
    """How the window moves: one number a spatial dimension each, and the groups of channels."""

    stride: Sequence[Any]
    padding: Sequence[Any]
    dilation: Sequence[Any]
    groups: int

    def windows(
        self, x: Tensor, kernel_size: Sequence[Any], positions: Sequence[Any] | None = None
    ) -> Tensor:
        """[batch, channels, L...] -> [batch, channels, O..., K...]

        positions: how many are wanted, where x has room for more (output_padding beyond the stride)
        """
        windows = sliding_windows(pad_both_sides(x, self.padding), kernel_size, self.stride, self.dilation)
        for i, count in enumerate(positions or ()):
            windows = windows.narrow(2 + i, 0, count)
        return windows


def geometry_of(dims: int, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    """From numbers, or lists with one number for all dimensions or one each."""
    numbers = {"stride": stride, "padding": padding, "dilation": dilation}
    return Geometry(**{name: expanded(name, value, dims) for name, value in numbers.items()}, groups=groups)


def convolve(x: Tensor, weight: Tensor, geometry: Geometry, positions: Sequence[Any] | None = None) -> Tensor:
    """out[n, f, o] = sum over c, k of weight[f, c, k] * x[n, c, o * stride + k * dilation - padding].

    Shape:   x: [batch, channels, L...]   weight: [features, channels / groups, K...]
             returns: [batch, features, O...]
    """
    windows = geometry.windows(x, weight.shape[2:], positions)
    if weight.size(1) == 1 and geometry.groups > 1:
        return convolve_depthwise(windows, weight)
    out_size = windows.shape[2 : x.dim()]

    def part(windows: Tensor) -> Tensor:
        # [groups, features / groups, batch * O]
        out = torch.matmul(by_group(weight, geometry.groups), as_columns(windows, geometry.groups))
        return out.view(weight.size(0), windows.size(0), *out_size).transpose(0, 1)

    return in_parts(part, windows)


def spread(y: Tensor, weight: Tensor, size: Sequence[Any], geometry: Geometry) -> Tensor:
    """The adjoint in x: out[n, c, o * stride + k * dilation - padding] += weight[f, c, k] * y[n, f, o].

    Shape:   y: [batch, features, O...]   weight: [features, channels / groups, K...]
             returns: [batch, channels, *size]
    """
    groups, channels, kernel_size = geometry.groups, weight.size(1), weight.shape[2:]
    padded = [length + 2 * width for length, width in zip(size, geometry.padding)]

    def part(y: Tensor) -> Tensor:
        batch, _, *out_size = y.shape
        if channels == 1 and groups > 1:
            total = spread_depthwise(y, weight, padded, geometry)
        else:
            # [groups, channels / groups * K, batch * O]
            columns = torch.matmul(by_group(weight, groups).transpose(1, 2), by_rows(y, groups))
            columns = columns.view(groups, channels, *kernel_size, batch, *out_size)
            places = [2 + len(out_size) + 1 + i for i in range(len(out_size))]
            offsets = [2 + i for i in range(len(out_size))]
            # [batch, groups, channels / groups, O..., K...]
            windows = columns.permute(2 + len(out_size), 0, 1, *places, *offsets)
            total = overlap_add(lambda k: windows[(..., *k)], padded, kernel_size, *steps(geometry))
        return crop(total, geometry.padding).reshape(batch, groups * channels, *size)

    return in_parts(part, y, weight[:1].numel() * groups)


def correlate(x: Tensor, y: Tensor, kernel_size: Sequence[Any], geometry: Geometry) -> Tensor:
    """The adjoint in weight: out[f, c, k] = sum over n, o of y[n, f, o] * x[n, c, o * stride + k * dilation - padding].

    Shape:   x: [batch, channels, L...]   y: [batch, features, O...]
             returns: [features, channels / groups, *kernel_size]
    """
    groups, channels = geometry.groups, x.size(1) // geometry.groups
    windows = geometry.windows(x, kernel_size, y.shape[2:])
    if channels == 1 and groups > 1:
        return correlate_depthwise(windows, y, kernel_size, groups)
    total = None
    for some_windows, some_y in zip(*split_batch([windows, y], windows)):
        # [groups, features / groups, channels / groups * K]
        part = torch.matmul(by_rows(some_y, groups), as_columns(some_windows, groups).transpose(1, 2))
        total = part if total is None else total + part
    assert total is not None
    return total.view(y.size(1), channels, *kernel_size)


# ---- one channel a group ---------------------------------------------------------------------------------


def offsets_of(windows: Tensor, kernel_size: Sequence[Any]) -> list[Tensor]:
    """windows[..., k] for every offset k, in row-major order: [batch, channels, O...] each."""
    flat = [windows]
    for _ in kernel_size:
        flat = [piece for w in flat for piece in w.unbind(windows.dim() - len(kernel_size))]
    return flat


def convolve_depthwise(windows: Tensor, weight: Tensor) -> Tensor:
    """One channel a group: out[n, (c, m), o] = sum over k of weight[(c, m), k] * window[n, c, o, k]."""
    spatial, channels = weight.dim() - 2, windows.size(1)
    # [channels, multiplier, 1..., K]
    kernel = weight.reshape(channels, weight.size(0) // channels, *[1] * spatial, weight[0].numel())
    out = None
    for k, window in enumerate(offsets_of(windows, weight.shape[2:])):
        term, factor = window.unsqueeze(2), kernel[..., k]
        out = term * factor if out is None else add_product(out, term, factor)
    assert out is not None
    return out.flatten(1, 2)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a * b: in one pass, but for vmap, which has no rule for that."""
    if torch._C._are_functorch_transforms_active():
        return total.add_(a * b)
    return total.addcmul_(a, b)


def spread_depthwise(y: Tensor, weight: Tensor, size: Sequence[Any], geometry: Geometry) -> Tensor:
    """The adjoint in x: out[n, c, o * stride + k * dilation] += weight[(c, m), k] * y[n, (c, m), o].

    overlap_add of products, but each is added as it is computed. The size includes the padding.
    """
    groups, spatial = geometry.groups, weight.dim() - 2
    # [batch, channels, multiplier, O...] and [channels, multiplier, 1..., K...]
    grouped = y.unflatten(1, (groups, weight.size(0) // groups))
    kernel = weight.view(groups, weight.size(0) // groups, *[1] * spatial, *weight.shape[2:])
    products = list(zip(grouped.unbind(2), kernel.unbind(1), strict=True))
    # batched under vmap where either factor is
    out = (y.new_zeros(()) + weight.new_zeros(())).new_zeros(y.size(0), groups, *size)
    for offsets in itertools.product(*map(range, weight.shape[2:])):
        place = out[(..., *place_of(offsets, y.shape[2:], *steps(geometry)))]
        for term, factor in products:
            add_product(place, term, factor[(..., *offsets)])
    return out


def correlate_depthwise(windows: Tensor, y: Tensor, kernel_size: Sequence[Any], groups: int) -> Tensor:
    """out[(c, m), k] = sum over n, o of y[n, (c, m), o] * window[n, c, o, k]."""
    # [batch, channels, multiplier, O...]
    grouped = y.unflatten(1, (groups, y.size(1) // groups))
    dims = [0, *range(3, grouped.dim())]
    sums = [(grouped * window.unsqueeze(2)).sum(dims) for window in offsets_of(windows, kernel_size)]
    return torch.stack(sums, -1).reshape(y.size(1), 1, *kernel_size)


# ---- layouts ---------------------------------------------------------------------------------------------


def steps(geometry: Geometry) -> tuple[Sequence[Any], Sequence[Any]]:
    return geometry.stride, geometry.dilation


def by_group(weight: Tensor, groups: int) -> Tensor:
    """[features, channels / groups, K...] -> [groups, features / groups, channels / groups * K]"""
    return weight.reshape(groups, weight.size(0) // groups, weight[:1].numel())


def by_rows(y: Tensor, groups: int) -> Tensor:
    """[batch, features, O...] -> [groups, features / groups, batch * O]"""
    return y.transpose(0, 1).reshape(groups, y.size(1) // groups, y[:, :1].numel())


def as_columns(windows: Tensor, groups: int) -> Tensor:
    """[batch, channels, O..., K...] -> [groups, channels / groups * K, batch * O]"""
    spatial = (windows.dim() - 2) // 2
    places, offsets = range(2, 2 + spatial), range(2 + spatial, windows.dim())
    columns = windows.permute(1, *offsets, 0, *places)
    rows = windows.size(1) // groups * windows.shape[2 + spatial :].numel()
    return columns.reshape(groups, rows, windows.size(0) * windows.shape[2 : 2 + spatial].numel())


def split_batch(tensors: list[Tensor], columns: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor in parts of the batch, so that a part of `columns` has at most MOST_COLUMNS elements."""
    batch = columns.size(0)
    count = max(1, MOST_COLUMNS // max(1, columns[:1].numel()))
    if batch <= count:
        return [(x,) for x in tensors]
    return [x.split(count) for x in tensors]


def in_parts(part: Callable[[Tensor], Tensor], x: Tensor, weight: int = 1) -> Tensor:
    """part(x), the batch taken in parts; weight: elements laid out for each element of x."""
    count = max(1, MOST_COLUMNS // max(1, x[:1].numel() * weight))
    if x.size(0) <= count:
        return part(x)
    return torch.cat([part(piece) for piece in x.split(count)])


# ---- definitions -----------------------------------------------------------------------------------------


def transposed_size(
    size: Any, kernel_size: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any
) -> Any:
    """How long the input of a convolution is whose output has `size` positions (output_padding: which of them)."""
    return (size - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1


@counted_as(aten.convolution)
@defines(aten.convolution.default)
def convolution_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """convolve(input, weight) + bias; transposed: the adjoint, spread(input, weight) + bias.

    Shape:   input: [batch, channels, L...]   weight: [features, channels / groups, K...], transposed:
             [channels, features / groups, K...]   bias: [features]   returns: [batch, features, O...],
             [batch, 0, O...] without channels
    dtype:   computes in float32 for 16-bit inputs, rounds once
    """
    geometry = geometry_of(input.dim() - 2, stride, padding, dilation, groups)
    x, kernel = widen(input), widen(weight)
    if input.size(1) == 0 and not transposed:
        kernel, bias = kernel[:0], None  # no channels in, none out: as in ATen
    if transposed:
        extra = expanded("output_padding", output_padding, input.dim() - 2)
        moves = geometry.stride, geometry.padding, extra, geometry.dilation
        sizes = zip(input.shape[2:], weight.shape[2:], *moves, strict=True)
        out = spread(x, kernel, [transposed_size(*numbers) for numbers in sizes], geometry)
    else:
        out = convolve(x, kernel, geometry)
    if bias is not None:
        out = out + widen(bias).view(-1, *[1] * (input.dim() - 2))
    return in_their_format(out.to(input.dtype), input, weight)


def in_their_format(out: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """Lay a result or a gradient out channels-last where input or weight is, and ATen has such a kernel."""
    if input.dim() == 5 and input.dtype not in (torch.float32, *NARROW_DTYPES):
        return out.contiguous()  # oneDNN has none, ATen's own are plain
    is_plain = suggest_memory_format(input) == torch.contiguous_format
    return in_format_of(weight if is_plain else input, out)


@counted_as(aten.convolution_backward)
@defines(aten.convolution_backward.default)
def convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The adjoints in input and in weight, and for the bias the sum over batch and positions."""
    geometry = geometry_of(input.dim() - 2, stride, padding, dilation, groups)
    grad, x, kernel = widen(grad_output), widen(input), widen(weight)
    grad_input = grad_weight = grad_bias = None
    if input.size(1) == 0 and not transposed:
        zeros = input.new_zeros, weight.new_zeros, weight.new_zeros
        shapes = input.shape, weight.shape, weight.shape[:1]
        found = [new(shape) if wanted else None for new, shape, wanted in zip(zeros, shapes, output_mask)]
        return found[0], found[1], found[2]
    if output_mask[0]:
        if transposed:
            grad_input = convolve(grad, kernel, geometry, input.shape[2:])
        else:
            grad_input = spread(grad, kernel, list(input.shape[2:]), geometry)
        grad_input = in_their_format(grad_input.to(input.dtype), input, weight)
    if output_mask[1]:
        x, y = (grad, x) if transposed else (x, grad)
        grad_weight = correlate(x, y, weight.shape[2:], geometry).to(weight.dtype)
        grad_weight = in_their_format(grad_weight, input, weight)
    if output_mask[2]:
        grad_bias = grad.sum([0, *range(2, grad.dim())]).to(grad_output.dtype)
    return grad_input, grad_weight, grad_bias


class Convolution(Function):
    """convolution_forward with convolution_backward."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        return convolution_forward(input, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, bias, *ctx.geometry = inputs
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(input, weight)
        ctx.save_for_forward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        input, weight = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        found = convolution_backward(
            grad, input.conj(), weight.conj(), ctx.bias_sizes, *ctx.geometry, output_mask=mask
        )
        return (*found, *[None] * len(ctx.geometry))

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: Any) -> Tensor:
        """It is linear in the input, in the weight and in the bias."""
        input, weight = ctx.saved_tensors
        terms = []
        if dx is not None:
            terms.append(convolution_forward(dx, weight, None, *ctx.geometry))
        if dweight is not None:
            terms.append(convolution_forward(input, dweight, None, *ctx.geometry))
        out = sum(terms[1:], terms[0]) if terms else None
        if dbias is not None:
            shifted = dbias[: 0 if input.size(1) == 0 else None].view(-1, *[1] * (input.dim() - 2))
            if out is None:
                out = torch.zeros_like(convolution_forward(input, weight, None, *ctx.geometry))
            out = out + shifted
        return out


@defines(aten.conv_tbc.default)
def conv_tbc_forward(self: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """out[t] = sum over k of x[t + k - pad] @ weight[k] + bias, time first.

    Shape:   self: [time, batch, channels]   weight: [K, channels, features]   bias: [features]
             returns: [time + 2 * pad - K + 1, batch, features]
    """
    x = torch.constant_pad_nd(widen(self), [0, 0, 0, 0, pad, pad], 0) if pad else widen(self)
    count = x.size(0) - weight.size(0) + 1
    out = widen(bias)
    for k, kernel in enumerate(widen(weight).unbind(0)):
        out = out + torch.matmul(x.narrow(0, k, count), kernel)
    return out.to(self.dtype)
