"""Convolutions that put their input channels-last, whatever its layout: what `layout.py` writes into a graph.

    [batch, channels, height, width] in the order [batch, height, width, channels] of memory

The result of a convolution of a channels-last input is channels-last, and pointwise operations, norms and poolings
keep the layout of what they are given: the first convolution of a network copies its input, the others find
theirs as they want it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

aten = torch.ops.aten

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(x: Tensor) -> Tensor:
    """x in channels-last order, x itself where it is.

    Where there is one channel, or one place, both layouts are one order of memory; then the strides alone are
    made those of channels-last, so that torch takes the tensor for it.
    """
    if x.dim() not in FORMATS or suggest_memory_format(x) == FORMATS[x.dim()]:
        return x
    if x.dim() == 5 and x.dtype == torch.float64:  # torch's convolution of it is contiguous all the same
        return x
    batch, channels, *places = x.shape
    if known_one(channels) or all(known_one(place) for place in places):
        last = x.contiguous().reshape(batch, *places, channels)
        return last.permute(0, x.dim() - 1, *range(1, x.dim() - 1))
    return x.contiguous(memory_format=FORMATS[x.dim()])


def known_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def of_channels_last(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """convolution(input, ...) -> convolution(channels_last(input), ...)"""

    def convolve(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return convolution(channels_last(input), *args, **kwargs)

    return convolve


def with_row(steps: Any, along: int) -> Any:
    """A step of a 1-d convolution as those of a 2-d one of height 1, whose step along the height is `along`."""
    if isinstance(steps, str):
        return steps
    return (along, *steps) if isinstance(steps, (tuple, list)) else (along, steps)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """torch.conv1d as a convolution of images of height 1: there is no channels-last of 3 dimensions."""
    if input.dim() != 3 or weight.dim() != 3:
        return torch.conv1d(input, weight, bias, stride, padding, dilation, groups)
    steps = with_row(stride, 1), with_row(padding, 0), with_row(dilation, 1)
    image = channels_last(input.unsqueeze(2))  # [batch, channels, 1, width]
    return torch.conv2d(image, weight.unsqueeze(2), bias, *steps, groups).squeeze(2)


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
    """torch.conv_transpose1d as one of images of height 1."""
    if input.dim() != 3 or weight.dim() != 3:
        return torch.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    steps = with_row(stride, 1), with_row(padding, 0), with_row(output_padding, 0)
    image = channels_last(input.unsqueeze(2))  # [batch, channels, 1, width]
    out = torch.conv_transpose2d(image, weight.unsqueeze(2), bias, *steps, groups, with_row(dilation, 1))
    return out.squeeze(2)


CONVOLUTIONS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: conv1d,
    torch.conv_transpose1d: conv_transpose1d,
    **{
        function: of_channels_last(function)
        for function in (
            torch.conv2d,
            torch.conv3d,
            torch.conv_transpose2d,
            torch.conv_transpose3d,
            torch.convolution,
            aten.conv2d.default,
            aten.conv3d.default,
            aten.convolution.default,
        )
    },
}
"""What a Dynamo graph calls -> the same, its input channels-last."""


def convolution_backward(gradient: Tensor, input: Tensor, weight: Tensor, *rest: Any) -> Any:
    """aten.convolution_backward of a channels-last input: the incoming gradient is channels-last too."""
    if suggest_memory_format(input) != FORMATS.get(input.dim()):
        return NotImplemented
    laid_out = channels_last(gradient)
    if laid_out is gradient:
        return NotImplemented
    return aten.convolution_backward.default(laid_out, input, weight, *rest)


DECOMPOSITIONS = {aten.convolution_backward.default: convolution_backward}
"""For AOTAutograd's table; NotImplemented means that the operation stays as it is."""
