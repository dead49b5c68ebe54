"""The mean of each window: average and adaptive average pooling."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pynn.definitions import defines, widen
from pynn.memory_format import image_in_format_of
from pynn.modules._max_pooling import adaptive_bounds, longest_window
from pynn.modules._pooling_checks import per_dim
from pynn.windows import along, output_size, overlap_add, sliding_windows

aten = torch.ops.aten


def counts_along(size: Any, count: Any, numbers: tuple, include_pad: bool, device: torch.device) -> Tensor:
    """How many elements each of `count` windows is divided by along one dimension.

    include_pad: count the padding too; what hangs over its end (ceil_mode) never counts
    """
    width, step, pad = numbers
    begin = torch.arange(count, device=device) * step - pad
    end = torch.clamp(begin + width, max=size + pad)
    if include_pad:
        return end - begin
    return torch.clamp(end, max=size) - torch.clamp(begin, min=0)


def divisors(
    x: Tensor, counts: Sequence[Any], numbers: list[tuple], include_pad: bool, override: int | None
) -> Tensor | int:
    """The number each window's sum is divided by: [O1 ... On], or one number for all."""
    dims = len(counts)
    if override is not None:
        return override
    if all(pad == 0 for _, _, pad in numbers) and not any(hangs_over(x, counts, numbers)):
        return torch.Size([width for width, _, _ in numbers]).numel()
    out = None
    for i, (count, each) in enumerate(zip(counts, numbers)):
        lengths = along(counts_along(x.size(x.dim() - dims + i), count, each, include_pad, x.device), i, dims)
        out = lengths if out is None else out * lengths
    assert out is not None
    return out


def hangs_over(x: Tensor, counts: Sequence[Any], numbers: list[tuple]) -> list[bool]:
    first = x.dim() - len(counts)
    return [
        (count - 1) * step + width > x.size(first + i) + 2 * pad
        for i, (count, (width, step, pad)) in enumerate(zip(counts, numbers))
    ]


def _geometry(
    x: Tensor, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, dims: int
) -> tuple[list[tuple], list[Any]]:
    """(kernel_size, stride, padding) of each dimension, and the number of windows."""
    width = per_dim(kernel_size, dims)
    numbers = list(zip(width, per_dim(stride, dims) or width, per_dim(padding, dims), strict=True))
    first = x.dim() - dims
    counts = [output_size(x.size(first + i), w, s, p, 1, ceil_mode) for i, (w, s, p) in enumerate(numbers)]
    return numbers, counts


def one_dimension(dim: int, dims: int, size: Any, count: Any, numbers: tuple) -> tuple:
    """Windows along one of the last `dims` dimensions, and of one element along the others.

    Returns: (kernel_size, stride, dilation) for each dimension, the padding before and after this one.
    Windows end where the padded input does: what hangs over (ceil_mode) holds nothing.
    """
    width, step, pad = numbers
    width = min(width, size + 2 * pad)
    kernel_size, stride = [1] * dims, [1] * dims
    kernel_size[dim], stride[dim] = width, step
    after = max((count - 1) * step + width - size - pad, pad)
    return (kernel_size, stride, [1] * dims), (pad, after)


def sum_along(x: Tensor, dim: int, dims: int, count: Any, numbers: tuple) -> Tensor:
    """out[.., o, ..] = sum over k of x[.., o * stride + k - padding, ..], one of the last `dims` dimensions."""
    geometry, (before, after) = one_dimension(dim, dims, x.size(x.dim() - dims + dim), count, numbers)
    if before or after:
        x = torch.constant_pad_nd(x, [0, 0] * (dims - 1 - dim) + [before, after])
    windows = sliding_windows(x, *geometry).narrow(x.dim() - dims + dim, 0, count)
    total = None
    for k in itertools.product(*map(range, geometry[0])):
        piece = windows[(..., *k)]
        total = piece if total is None else total + piece
    assert total is not None
    return total


def add_along(share: Tensor, dim: int, dims: int, size: Any, numbers: tuple) -> Tensor:
    """The adjoint of sum_along: every element of a window gets the window's share."""
    sizes = list(share.shape[share.dim() - dims :])
    geometry, (before, after) = one_dimension(dim, dims, size, sizes[dim], numbers)
    sizes[dim] = before + size + after
    total = overlap_add(lambda _: share, sizes, *geometry)
    return total.narrow(share.dim() - dims + dim, before, size)


def average(
    x: Tensor,
    dims: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    include_pad: bool,
    override: int | None,
) -> Tensor:
    """sum over k of x[o * stride + k - padding], divided by the number of elements (or by override).

    The sum over a box is a sum of sums, one dimension after the other.

    dtype:   adds in float32 for 16-bit inputs; int64 divides as C++ does, towards 0
    """
    numbers, counts = _geometry(x, kernel_size, stride, padding, ceil_mode, dims)
    total = widen(x)
    for dim, (count, each) in enumerate(zip(counts, numbers)):
        total = sum_along(total, dim, dims, count, each)
    divisor = divisors(x, counts, numbers, include_pad, override)
    if x.is_floating_point():
        return image_in_format_of(x, (total / divisor).to(x.dtype), dims)
    return image_in_format_of(x, torch.div(total, divisor, rounding_mode="trunc"), dims)


def average_backward(
    grad: Tensor,
    x: Tensor,
    dims: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    include_pad: bool,
    override: int | None,
) -> Tensor:
    """Every element of a window gets the window's gradient, divided by the number of elements."""
    numbers, counts = _geometry(x, kernel_size, stride, padding, ceil_mode, dims)
    total = widen(grad) / divisors(x, counts, numbers, include_pad, override)
    for dim, each in enumerate(numbers):
        total = add_along(total, dim, dims, x.size(x.dim() - dims + dim), each)
    return image_in_format_of(x, total.to(x.dtype), dims)


def _average(dims: int) -> Callable[..., Tensor]:
    def avg_pool(
        self: Tensor,
        kernel_size: list[int],
        stride: list[int] = (),  # type: ignore[assignment]
        padding: list[int] = 0,  # type: ignore[assignment]
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        return average(
            self, dims, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )

    return avg_pool


def _average_backward(dims: int) -> Callable[..., Tensor]:
    def avg_pool_backward(
        grad_output: Tensor,
        self: Tensor,
        kernel_size: list[int],
        stride: list[int],
        padding: list[int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Tensor:
        geometry = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        return average_backward(grad_output, self, dims, *geometry)

    return avg_pool_backward


def mean_along(x: Tensor, dim: int, count: int) -> Tensor:
    """The means of `count` windows along one dimension, from floor(o * L / O) up to ceil((o + 1) * L / O)."""
    size = x.size(dim)
    if count > 0 and size % count == 0:
        return x.unflatten(dim, (count, size // count)).mean(dim + 1)
    begin, end = adaptive_bounds(size, count, x.device)
    total = None
    for k in range(longest_window(int(size), count)):
        piece = x.index_select(dim, torch.minimum(begin + k, end - 1))
        inside = along(begin + k < end, dim, x.dim())
        piece = torch.where(inside, piece, 0) if k > 0 else piece
        total = piece if total is None else total + piece
    assert total is not None
    return total / along(end - begin, dim, x.dim())


def adaptive_average(x: Tensor, counts: Sequence[Any]) -> Tensor:
    """The mean over a box of windows is the mean of means, one dimension after the other.

    dtype:   adds in float32 for 16-bit inputs
    """
    out = widen(x)
    for i, count in enumerate(counts):
        out = mean_along(out, x.dim() - len(counts) + i, count)
    return image_in_format_of(x, out.to(x.dtype), len(counts))


def adaptive_average_backward(grad: Tensor, x: Tensor, dims: int) -> Tensor:
    """The adjoint of the mean, one dimension after the other."""
    out = widen(grad)
    for dim in range(x.dim() - dims, x.dim()):
        out = spread_along(out, dim, x.size(dim))
    return image_in_format_of(x, out.to(x.dtype), dims)


def _adaptive(dims: int) -> Callable[..., Tensor]:
    def adaptive_avg_pool(self: Tensor, output_size: list[int]) -> Tensor:
        return adaptive_average(self, output_size)

    return adaptive_avg_pool


def spread_along(grad: Tensor, dim: int, size: int) -> Tensor:
    """The adjoint of mean_along: every element of a window gets the window's gradient, divided by its length."""
    count = grad.size(dim)
    if count > 0 and size % count == 0:
        return (grad / (size // count)).repeat_interleave(size // count, dim)
    begin, end = adaptive_bounds(size, count, grad.device)
    share = grad / along(end - begin, dim, grad.dim())
    out = share.new_zeros(*grad.shape[:dim], size, *grad.shape[dim + 1 :])
    for k in range(longest_window(int(size), int(count))):
        inside = along(begin + k < end, dim, grad.dim())
        piece = torch.where(inside, share, 0) if k > 0 else share
        out = out.index_add(dim, torch.minimum(begin + k, end - 1), piece)
    return out


def _adaptive_backward(dims: int) -> Callable[..., Tensor]:
    def adaptive_avg_pool_backward(grad_output: Tensor, self: Tensor) -> Tensor:
        return adaptive_average_backward(grad_output, self, dims)

    return adaptive_avg_pool_backward


for _dims in (2, 3):
    for _name, _definition in {
        f"avg_pool{_dims}d": _average(_dims),
        f"avg_pool{_dims}d_backward": _average_backward(_dims),
        f"_adaptive_avg_pool{_dims}d": _adaptive(_dims),
        f"_adaptive_avg_pool{_dims}d_backward": _adaptive_backward(_dims),
    }.items():
        defines(getattr(aten, _name).default)(_definition)
