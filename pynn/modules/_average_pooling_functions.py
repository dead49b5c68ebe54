"""The public functions of average and norm pooling: torch's checks around the definitions of _average_pooling.py."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pynn.definitions import (
    NARROW_DTYPES,
    Function,
    refuse_complex_gradient,
    refuse_complex_half,
    traced_as,
    type_name,
)
from pynn.memory_format import with_channels_last_strides
from pynn.modules import _average_pooling as average
from pynn.modules import _max_pooling as largest
from pynn.modules import _pooling_checks as checks
from pynn.modules._max_pooling_functions import max_pool1d, max_pool2d, max_pool3d
from pynn.modules._pooling_checks import adaptive_counts, per_dim
from pynn.modules._rectifiers import relu
from pynn.out import takes_out
from pynn.torch_version import SINCE_2_14

Numbers = int | Sequence[int]


class _AveragePool(Function):
    """The average of each window, and its adjoint; both linear."""

    @staticmethod
    def forward(x: Tensor, dims: int, *geometry: Any) -> Tensor:
        return average.average(x, dims, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.dims, *ctx.geometry = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        return average.average_backward(grad, x, ctx.dims, *ctx.geometry), *[None] * (1 + len(ctx.geometry))

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return average.average(dx, ctx.dims, *ctx.geometry)


def _avg_pool(
    dims: int, input: Tensor, kernel_size: Numbers, stride: Any, padding: Numbers, ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    name = f"avg_pool{dims}d"
    stride = [] if stride is None else stride
    if dims == 1:
        checks.check_1d("avg_pool1d", input, kernel_size=kernel_size, stride=stride, padding=padding)
    checks.require_numbers(name, dims, kernel_size=kernel_size, stride=stride, padding=padding)
    if divisor_override == 0 and (dims == 2 or input.dim() in (dims + 1, dims + 2)):
        raise RuntimeError("divisor must be not zero")
    rank = max(input.dim(), 1)
    if dims == 2 and rank < 3:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], but got -3)"
        )
    width = per_dim(kernel_size, dims)
    numbers = (width, per_dim(stride, dims) or width, per_dim(padding, dims))
    checks.check_window(name, input, [(*each, 1) for each in zip(*numbers)], ceil_mode)
    is_narrow_volume = dims == 3 and input.dtype in NARROW_DTYPES and input.device.type == "cpu"
    if is_narrow_volume or not (input.is_floating_point() or input.dtype == torch.int64):
        is_last = dims == 2 and suggest_memory_format(input) == torch.channels_last
        kernel = "avg_pool3d_out_frame" if dims == 3 else f"avg_pool2d{'_channels_last' * is_last}"
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")
    input = input.contiguous() if dims == 3 else input  # volumes lose the channels-last format, as in C++
    return _AveragePool.apply(input, dims, *numbers, ceil_mode, count_include_pad, divisor_override)


@traced_as(F.avg_pool1d)
def avg_pool1d(
    input: Tensor, kernel_size: Numbers, stride: Any = None, padding: Numbers = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """out[..., o] = mean over k of input[..., o * stride + k - padding].

    Args:    stride: default kernel_size; ceil_mode: keep a last window that hangs over the end
             count_include_pad: divide by the window's size also where it covers padding
    Shape:   input: [batch, channels, L] or without batch
             returns: [batch, channels, (L + 2 * padding - kernel_size) // stride + 1]
    dtype:   floating point or int64, returned as input's; adds in float32 for 16-bit inputs
    Raises:  RuntimeError when the numbers make no window; NotImplementedError for bool, complex numbers and
             integers other than int64
    Source:  aten/native/AveragePool2d.cpp
    """
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@traced_as(F.avg_pool2d)
@takes_out
def avg_pool2d(
    input: Tensor, kernel_size: Numbers, stride: Any = None, padding: Numbers = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """out[..., o] = mean over k of input[..., o * stride + k - padding], o and k over height and width.

    Args:    stride: default kernel_size; ceil_mode: keep a last window that hangs over the end
             count_include_pad: divide by the window's size also where it covers padding
             divisor_override: divide by this number instead
    Shape:   input: [batch, channels, height, width] or without batch
             returns: the last two (L + 2 * padding - kernel_size) // stride + 1
    dtype:   floating point or int64, returned as input's; adds in float32 for 16-bit inputs
    Raises:  RuntimeError when the numbers make no window; NotImplementedError for bool, complex numbers and
             integers other than int64
    Source:  aten/native/AveragePool2d.cpp
    """
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@traced_as(F.avg_pool3d)
@takes_out
def avg_pool3d(
    input: Tensor, kernel_size: Numbers, stride: Any = None, padding: Numbers = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """out[..., o] = mean over k of input[..., o * stride + k - padding], over depth, height and width.

    Args:    as `avg_pool2d`, three numbers
    Shape:   input: [batch, channels, depth, height, width] or without batch
             returns: the last three (L + 2 * padding - kernel_size) // stride + 1
    dtype:   float32, float64 or int64, returned as input's; as in C++, no 16 bits on the CPU (a compiled
             average takes them)
    Raises:  RuntimeError when the numbers make no window; NotImplementedError for other dtypes
    Source:  aten/native/AveragePool3d.cpp
    """
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _lp_pool(
    input: Tensor,
    norm_type: float,
    size: int,
    kernel_size: Any,
    stride: Any,
    ceil_mode: bool,
    average: Any,
    max: Any,
) -> Tensor:
    if SINCE_2_14 and norm_type == 0:
        raise ValueError(f"norm_type must be a non-zero value, but got {norm_type}")
    if isinstance(norm_type, (int, float)) and abs(norm_type) == torch.inf:
        sign = 1 if norm_type > 0 else -1
        return sign * max(sign * input.abs(), kernel_size, stride, 0, 1, ceil_mode)
    mean = average(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
    # relu makes the gradient 0, not infinite, where the sum is 0
    return (torch.sign(mean) * relu(mean.abs())).mul(size).pow(1.0 / norm_type)


@traced_as(F.lp_pool1d)
def lp_pool1d(
    input: Tensor, norm_type: int | float, kernel_size: int, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """out[..., o] = (sum over k of input[..., o * stride + k]^p)^(1/p), p = norm_type; p = inf: the largest |x|.

    Args:    norm_type: p, not 0; kernel_size, stride, ceil_mode: as `avg_pool1d`'s
    Shape:   input: [batch, channels, L] or without batch   returns: as avg_pool1d
    dtype:   floating point, returned as input's, or int64 (float32 is returned); 16 bits round after the
             power, the mean and the root
    Raises:  as `avg_pool1d`; ZeroDivisionError for norm_type 0 (ValueError from torch 2.14 on)
    Source:  torch.nn.functional.lp_pool1d
    """
    return _lp_pool(input, norm_type, kernel_size, kernel_size, stride, ceil_mode, avg_pool1d, max_pool1d)


@traced_as(F.lp_pool2d)
def lp_pool2d(
    input: Tensor, norm_type: int | float, kernel_size: Numbers, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """out[..., o] = (sum over k of input[..., o * stride + k]^p)^(1/p), over height and width; p = norm_type.

    Args:    norm_type: p, not 0; kernel_size, stride, ceil_mode: as `avg_pool2d`'s
    Shape:   input: [batch, channels, height, width] or without batch   returns: as avg_pool2d
    dtype:   floating point, returned as input's, or int64 (float32 is returned); 16 bits round after the
             power, the mean and the root
    Raises:  as `avg_pool2d`; ZeroDivisionError for norm_type 0 (ValueError from torch 2.14 on)
    Source:  torch.nn.functional.lp_pool2d
    """
    size = largest.product(per_dim(kernel_size, 2))
    return _lp_pool(input, norm_type, size, kernel_size, stride, ceil_mode, avg_pool2d, max_pool2d)


@traced_as(F.lp_pool3d)
def lp_pool3d(
    input: Tensor, norm_type: int | float, kernel_size: Numbers, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """out[..., o] = (sum over k of input[..., o * stride + k]^p)^(1/p), over depth, height and width; p = norm_type.

    Args:    norm_type: p, not 0; kernel_size, stride, ceil_mode: as `avg_pool3d`'s
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: as avg_pool3d
    dtype:   floating point, returned as input's, or int64 (float32 is returned); no 16 bits on the CPU
    Raises:  as `avg_pool3d`; ZeroDivisionError for norm_type 0 (ValueError from torch 2.14 on)
    Source:  torch.nn.functional.lp_pool3d
    """
    size = largest.product(per_dim(kernel_size, 3))
    return _lp_pool(input, norm_type, size, kernel_size, stride, ceil_mode, avg_pool3d, max_pool3d)


def _adaptive_avg_pool(dims: int, input: Tensor, output_size: Any) -> Tensor:
    counts = adaptive_counts(f"adaptive_avg_pool{dims}d", output_size, input, dims)
    function = f"adaptive_avg_pool{max(dims, 2)}d"
    if dims == 1:
        checks.check_1d("adaptive_avg_pool1d", input, output_size=output_size)
    x, sizes = (input, counts) if dims > 1 else (input.unsqueeze(-2), [1, *counts])
    is_mean = len(counts) == dims and all(size == 1 for size in sizes)
    if dims == 1 or not is_mean:  # the mean takes any other dimensions
        checks.check_adaptive(function, x, sizes, max(dims, 2))
    elif input.dim() < dims:
        rank = max(input.dim(), 1)
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], but got {-1 - rank})"
        )
    # C++ has what is empty over areas of any dtype, and the mean over everything of complex numbers
    is_empty = dims < 3 and 0 in (*x.shape[:-2], *sizes)
    has_kernel = input.is_complex() and (is_empty or is_mean)
    if is_mean:
        refuse_complex_half("sum_cpu" if input.numel() > 0 else "div_cpu", input)
    elif is_empty:
        refuse_complex_gradient("_adaptive_avg_pool2d", input)
    if not input.is_floating_point() and not has_kernel:
        if is_mean:
            raise RuntimeError(
                "mean(): could not infer output dtype. Input dtype must be either a floating point or complex dtype. "
                f"Got: {type_name(input)}"
            )
        if is_empty:
            return input.new_zeros([*input.shape[:-dims], *counts])
        kernel = "adaptive_avg_pool3d_cpu" if dims == 3 else "adaptive_avg_pool2d"
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")
    return _AdaptiveAveragePool.apply(input.contiguous() if dims == 3 else input, counts)


class _AdaptiveAveragePool(Function):
    """The means along each dimension, and their adjoint; both linear."""

    @staticmethod
    def forward(x: Tensor, counts: list[Any]) -> Tensor:
        out = average.adaptive_average(x, counts)
        if list(counts) == [1, 1] and x.dim() == 4 and suggest_memory_format(x) == torch.channels_last:
            return with_channels_last_strides(out)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.counts = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        dims = len(ctx.counts)
        if any(count != 1 for count in ctx.counts):  # else it is that of the mean
            checks.check_adaptive_gradient("avg", grad.unsqueeze(-2) if dims == 1 else grad, max(dims, 2))
        return average.adaptive_average_backward(grad, x, dims), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return average.adaptive_average(dx, ctx.counts)


@traced_as(F.adaptive_avg_pool1d)
def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """out[..., o] = mean of input[..., floor(o * L / O) : ceil((o + 1) * L / O)], O = output_size.

    Shape:   input: [batch, channels, L] or without batch   returns: [batch, channels, O]
    dtype:   floating point, returned as input's; adds in float32 for 16-bit inputs
    Raises:  RuntimeError for an empty input or a negative size; NotImplementedError for integers and complex
             numbers
    Source:  aten/native/AdaptiveAveragePooling.cpp
    """
    return _adaptive_avg_pool(1, input, output_size)


@traced_as(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """The mean over boxes from floor(o * L / O) up to ceil((o + 1) * L / O), in height and width.

    Args:    output_size: one number or two; None keeps the size
    Shape:   input: [batch, channels, height, width] or without batch   returns: the last two output_size
    dtype:   floating point, returned as input's; adds in float32 for 16-bit inputs
    Raises:  RuntimeError for an empty input or a negative size; NotImplementedError for integers
             (RuntimeError for their mean over everything)
    Source:  aten/native/AdaptiveAveragePooling.cpp
    """
    return _adaptive_avg_pool(2, input, output_size)


@traced_as(F.adaptive_avg_pool3d)
def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """The mean over boxes from floor(o * L / O) up to ceil((o + 1) * L / O), in depth, height and width.

    Args:    output_size: one number or three; None keeps the size
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: the last three output_size
    dtype:   floating point, returned as input's; adds in float32 for 16-bit inputs
    Raises:  RuntimeError for an empty input or a negative size; NotImplementedError for integers
             (RuntimeError for their mean over everything)
    Source:  aten/native/AdaptiveAveragePooling3d.cpp
    """
    return _adaptive_avg_pool(3, input, output_size)
