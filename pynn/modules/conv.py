"""Convolution layers: a window slides over the input, each position is a weighted sum of what it covers."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import conv as torch_conv

from pynn.definitions import refuse_complex_gradient, refuse_complex_half, traced_as, type_name
from pynn.modules._convolution import Convolution, conv_tbc_forward
from pynn.modules._convolution_checks import (
    check_batched,
    check_dtypes,
    check_shapes,
    expanded,
)
from pynn.modules.padding import pad

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_tbc",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]

_ConvNd, _ConvTransposeNd = torch_conv._ConvNd, torch_conv._ConvTransposeNd


# ---- public functions ------------------------------------------------------------------------------------


def _convolution(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    transposed: bool = False,
    output_padding: Any = 0,
) -> Tensor:
    """Check, add the batch dimension where there is none, convolve."""
    function = f"conv{'_transpose' * transposed}{dims}d"
    check_batched(function, input, dims)
    if weight.dim() < 3:
        raise RuntimeError("weight should have at least three dimensions")
    is_batched = input.dim() == dims + 2
    x = input if is_batched else input.unsqueeze(0)
    spatial = weight.dim() - 2
    if not isinstance(padding, str):
        # a number stands for one a dimension of the function, though the weight may have more or fewer
        stride, dilation = expanded("stride", stride, dims), expanded("dilation", dilation, dims)
    same = isinstance(padding, str) and padding == "same"
    stride, dilation = (
        expanded(name, value, spatial, same) for name, value in (("stride", stride), ("dilation", dilation))
    )
    if isinstance(padding, str):
        x, padding = _padded_as_named(x, weight, stride, padding, dilation)
    geometry = stride, expanded("padding", padding, spatial), dilation, transposed
    geometry = *geometry, expanded("output_padding", output_padding, spatial), groups
    check_shapes(x, weight, bias, *geometry)
    check_dtypes(x, weight, bias, dims, dilation, transposed)
    out = Convolution.apply(x, weight, None if bias is None else bias.to(x.dtype), *geometry)
    return out if is_batched else out.squeeze(0)


def _padded_as_named(
    x: Tensor, weight: Tensor, stride: list[Any], padding: str, dilation: list[Any]
) -> tuple[Tensor, list[Any]]:
    """ "valid": no padding; "same": as much as keeps the size, an odd element going to the right."""
    if padding == "valid":
        return x, [0] * len(dilation)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if any(step != 1 for step in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    totals = [spread * (size - 1) for spread, size in zip(dilation, weight.shape[2:])]
    if all(total % 2 == 0 for total in totals):
        return x, [total // 2 for total in totals]
    warnings.warn(
        "Using padding='same' with even kernel lengths and odd dilation may require a zero-padded copy of the input "
        "be created",
        stacklevel=4,
    )
    extra = [width for total in reversed(totals) for width in (0, total % 2)]
    return torch.constant_pad_nd(x, extra, 0), [total // 2 for total in totals]


@traced_as(F.conv1d)
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """out[n, f, o] = bias[f] + sum over c, k of weight[f, c, k] * input[n, c, o * stride + k * dilation - padding].

    Args:    stride, padding, dilation: a number; padding also "same" or "valid"
             groups: blocks of channels that see each other only
    Shape:   input: [batch, channels, L] or without batch   bias: [features]
             weight: [features, channels / groups, K]   returns: [batch, features, O],
             O = (L + 2 * padding - dilation * (K - 1) - 1) // stride + 1
    dtype:   accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit
    Source:  Le Cun et al., Gradient-based learning applied to document recognition, 1998; Dumoulin and Visin,
             A guide to convolution arithmetic, 2016; aten/native/Convolution.cpp
    """
    return _convolution(1, input, weight, bias, stride, padding, dilation, groups)


@traced_as(F.conv2d)
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """out[n, f, o] = bias[f] + sum over c, k of weight[f, c, k] * input[n, c, o * stride + k * dilation - padding].

    Args:    stride, padding, dilation: a number or 2; padding also "same" or "valid"
             groups: blocks of channels that see each other only
    Shape:   input: [batch, channels, height, width] or without batch   bias: [features]
             weight: [features, channels / groups, K, K]   returns: [batch, features, O, O],
             O = (L + 2 * padding - dilation * (K - 1) - 1) // stride + 1
    dtype:   accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit
    Source:  Le Cun et al., Gradient-based learning applied to document recognition, 1998; Dumoulin and Visin,
             A guide to convolution arithmetic, 2016; aten/native/Convolution.cpp
    """
    return _convolution(2, input, weight, bias, stride, padding, dilation, groups)


@traced_as(F.conv3d)
def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """out[n, f, o] = bias[f] + sum over c, k of weight[f, c, k] * input[n, c, o * stride + k * dilation - padding].

    Args:    stride, padding, dilation: a number or 3; padding also "same" or "valid"
             groups: blocks of channels that see each other only
    Shape:   input: [batch, channels, depth, height, width] or without batch   bias: [features]
             weight: [features, channels / groups, K, K, K]   returns: [batch, features, O, O, O],
             O = (L + 2 * padding - dilation * (K - 1) - 1) // stride + 1
    dtype:   accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit
    Source:  Le Cun et al., Gradient-based learning applied to document recognition, 1998; Dumoulin and Visin,
             A guide to convolution arithmetic, 2016; aten/native/Convolution.cpp
    """
    return _convolution(3, input, weight, bias, stride, padding, dilation, groups)


@traced_as(F.conv_transpose1d)
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The adjoint of conv1d: out[n, f, i * stride + k * dilation - padding] += weight[c, f, k] * input[n, c, i].

    Args:    stride, padding, dilation, groups: those of the convolution; output_padding: added to one side of the
             result, which tells apart the sizes that the convolution maps to one
    Shape:   input: [batch, channels, L] or without batch   bias: [features]
             weight: [channels, features / groups, K]   returns: [batch, features, O],
             O = (L - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1
    dtype:   accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit
    Source:  aten/native/Convolution.cpp; Zeiler et al., Deconvolutional networks, 2010
    """
    return _convolution(1, input, weight, bias, stride, padding, dilation, groups, True, output_padding)


@traced_as(F.conv_transpose2d)
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The adjoint of conv2d: out[n, f, i * stride + k * dilation - padding] += weight[c, f, k] * input[n, c, i].

    Args:    stride, padding, dilation, groups: those of the convolution; output_padding: added to one side of the
             result, which tells apart the sizes that the convolution maps to one
    Shape:   input: [batch, channels, height, width] or without batch   bias: [features]
             weight: [channels, features / groups, K, K]   returns: [batch, features, O, O],
             O = (L - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1
    dtype:   accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit
    Source:  aten/native/Convolution.cpp; Zeiler et al., Deconvolutional networks, 2010
    """
    return _convolution(2, input, weight, bias, stride, padding, dilation, groups, True, output_padding)


@traced_as(F.conv_transpose3d)
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """The adjoint of conv3d: out[n, f, i * stride + k * dilation - padding] += weight[c, f, k] * input[n, c, i].

    Args:    stride, padding, dilation, groups: those of the convolution; output_padding: added to one side of the
             result, which tells apart the sizes that the convolution maps to one
    Shape:   input: [batch, channels, depth, height, width] or without batch   bias: [features]
             weight: [channels, features / groups, K, K, K]   returns: [batch, features, O, O, O],
             O = (L - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1
    dtype:   accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit
    Source:  aten/native/Convolution.cpp; Zeiler et al., Deconvolutional networks, 2010
    """
    return _convolution(3, input, weight, bias, stride, padding, dilation, groups, True, output_padding)


@traced_as(F.conv_tbc)
def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """conv1d with time first: out[t] = sum over k of input[t + k - pad] @ weight[k] + bias.

    Args:    pad: zeros before and after in time, default 0
    Shape:   input: [time, batch, channels]   weight: [K, channels, features]   bias: [features]
             returns: [time + 2 * pad - K + 1, batch, features]
    dtype:   any but bool and 16-bit complex numbers, the same for all; accumulates in float32 for 16-bit
             inputs
    Raises:  RuntimeError when sizes or dtypes do not fit; NotImplementedError for bool
    Source:  aten/native/ConvolutionTBC.cpp
    """
    if input.dim() != 3:
        raise RuntimeError("Input must have 3 dims: time, batch, in_channel")
    if weight.dim() != 3:
        raise RuntimeError("Weight tensor must have 3 dims: kernel_width, in_channels, out_channels.")
    if bias.dim() != 1:
        raise RuntimeError("Bias must be 1-D")
    if input.size(2) != weight.size(1):
        raise RuntimeError("Input dim 2 (input channels) is not == dim 1 in the weight tensor")
    if weight.size(2) != bias.size(0):
        raise RuntimeError("Bias size must equal dim 2 in the weight tensor (output channels).")
    if input.dtype != weight.dtype:
        raise RuntimeError(
            f"self and mat2 must have the same dtype, but got {type_name(input)} and {type_name(weight)}"
        )
    if input.dtype == torch.bool:
        raise NotImplementedError("\"addmm_impl_cpu_\" not implemented for 'Bool'")
    refuse_complex_half("addmm_impl_cpu_", input)
    refuse_complex_gradient("conv_tbc", input, weight)
    return conv_tbc_forward(input, weight, bias.to(input.dtype), pad)


# ---- classes ---------------------------------------------------------------------------------------------


class _Convolve:
    """What the three layers share: pad as padding_mode says, then convolve. torch's constructor is kept."""

    function: Callable[..., Tensor]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * len(self.kernel_size)
        return type(self).function(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias)


class _ConvolveTransposed:
    """What the three layers share: choose the output padding, then convolve. torch's constructor is kept."""

    function: Callable[..., Tensor]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        dims = len(self.kernel_size)
        if self.padding_mode != "zeros":
            raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{dims}d")
        if not isinstance(self.padding, tuple):
            raise AssertionError("self.padding must be a tuple")
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        return type(self).function(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class Conv1d(_Convolve, torch.nn.Conv1d):
    """Learned windows over 1 dimension, a weighted sum of each for every output channel.

    Args:    in_channels, out_channels, kernel_size: of the weight; bias: learn one (default)
             stride, dilation, groups: as `conv1d`'s
             padding: number(s), "same" or "valid"; padding_mode: zeros, reflect, replicate or circular
    Shape:   x: [batch, in_channels, L] or without batch
             weight: [out_channels, in_channels / groups, *kernel_size]   returns: [batch, out_channels, O]
    Raises:  ValueError for channels that groups do not divide, padding that is no number nor a known word
    Source:  see `conv1d`
    """

    function = staticmethod(conv1d)


class Conv2d(_Convolve, torch.nn.Conv2d):
    """Learned windows over 2 dimensions, a weighted sum of each for every output channel.

    Args:    in_channels, out_channels, kernel_size: of the weight; bias: learn one (default)
             stride, dilation, groups: as `conv2d`'s
             padding: number(s), "same" or "valid"; padding_mode: zeros, reflect, replicate or circular
    Shape:   x: [batch, in_channels, height, width] or without batch
             weight: [out_channels, in_channels / groups, *kernel_size]   returns: [batch, out_channels, O, O]
    Raises:  ValueError for channels that groups do not divide, padding that is no number nor a known word
    Source:  see `conv2d`
    """

    function = staticmethod(conv2d)


class Conv3d(_Convolve, torch.nn.Conv3d):
    """Learned windows over 3 dimensions, a weighted sum of each for every output channel.

    Args:    in_channels, out_channels, kernel_size: of the weight; bias: learn one (default)
             stride, dilation, groups: as `conv3d`'s
             padding: number(s), "same" or "valid"; padding_mode: zeros, reflect, replicate or circular
    Shape:   x: [batch, in_channels, depth, height, width] or without batch
             weight: [out_channels, in_channels / groups, *kernel_size]   returns: [batch, out_channels, O, O, O]
    Raises:  ValueError for channels that groups do not divide, padding that is no number nor a known word
    Source:  see `conv3d`
    """

    function = staticmethod(conv3d)


class ConvTranspose1d(_ConvolveTransposed, torch.nn.ConvTranspose1d):
    """The adjoint of Conv1d, learned.

    Args:    in_channels, out_channels, kernel_size: of the weight; bias: learn one (default)
             stride, padding, output_padding, dilation, groups: as `conv_transpose1d`'s; padding_mode: zeros
             output_size (of forward): the size wanted, among those that differ by output_padding
    Shape:   x: [batch, in_channels, L] or without batch
             weight: [in_channels, out_channels / groups, *kernel_size]   returns: [batch, out_channels, O]
    Raises:  ValueError for an output_size out of reach, and for another padding_mode than zeros
    Source:  see `conv_transpose1d`
    """

    function = staticmethod(conv_transpose1d)


class ConvTranspose2d(_ConvolveTransposed, torch.nn.ConvTranspose2d):
    """The adjoint of Conv2d, learned.

    Args:    in_channels, out_channels, kernel_size: of the weight; bias: learn one (default)
             stride, padding, output_padding, dilation, groups: as `conv_transpose2d`'s; padding_mode: zeros
             output_size (of forward): the size wanted, among those that differ by output_padding
    Shape:   x: [batch, in_channels, height, width] or without batch
             weight: [in_channels, out_channels / groups, *kernel_size]   returns: [batch, out_channels, O, O]
    Raises:  ValueError for an output_size out of reach, and for another padding_mode than zeros
    Source:  see `conv_transpose2d`
    """

    function = staticmethod(conv_transpose2d)


class ConvTranspose3d(_ConvolveTransposed, torch.nn.ConvTranspose3d):
    """The adjoint of Conv3d, learned.

    Args:    in_channels, out_channels, kernel_size: of the weight; bias: learn one (default)
             stride, padding, output_padding, dilation, groups: as `conv_transpose3d`'s; padding_mode: zeros
             output_size (of forward): the size wanted, among those that differ by output_padding
    Shape:   x: [batch, in_channels, depth, height, width] or without batch
             weight: [in_channels, out_channels / groups, *kernel_size]   returns: [batch, out_channels, O, O, O]
    Raises:  ValueError for an output_size out of reach, and for another padding_mode than zeros
    Source:  see `conv_transpose3d`
    """

    function = staticmethod(conv_transpose3d)


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):
    """A Conv1d that takes in_channels from its first input, and becomes a Conv1d then.

    Args:    as `Conv1d`'s, without in_channels
    Shape:   as `Conv1d`'s
    Source:  see `conv1d`
    """

    cls_to_become = Conv1d


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """A Conv2d that takes in_channels from its first input, and becomes a Conv2d then.

    Args:    as `Conv2d`'s, without in_channels
    Shape:   as `Conv2d`'s
    Source:  see `conv2d`
    """

    cls_to_become = Conv2d


class LazyConv3d(torch.nn.LazyConv3d, Conv3d):
    """A Conv3d that takes in_channels from its first input, and becomes a Conv3d then.

    Args:    as `Conv3d`'s, without in_channels
    Shape:   as `Conv3d`'s
    Source:  see `conv3d`
    """

    cls_to_become = Conv3d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):
    """A ConvTranspose1d that takes in_channels from its first input, and becomes a ConvTranspose1d then.

    Args:    as `ConvTranspose1d`'s, without in_channels
    Shape:   as `ConvTranspose1d`'s
    Source:  see `conv_transpose1d`
    """

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):
    """A ConvTranspose2d that takes in_channels from its first input, and becomes a ConvTranspose2d then.

    Args:    as `ConvTranspose2d`'s, without in_channels
    Shape:   as `ConvTranspose2d`'s
    Source:  see `conv_transpose2d`
    """

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d, ConvTranspose3d):
    """A ConvTranspose3d that takes in_channels from its first input, and becomes a ConvTranspose3d then.

    Args:    as `ConvTranspose3d`'s, without in_channels
    Shape:   as `ConvTranspose3d`'s
    Source:  see `conv_transpose3d`
    """

    cls_to_become = ConvTranspose3d
