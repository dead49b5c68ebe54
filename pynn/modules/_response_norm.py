"""Normalisation by the magnitude of neighbouring channels. The classes are in normalization.py."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import Function, is_traced, traced_as, type_name, widen


def window_sum(x: Tensor, before: int, after: int) -> Tensor:
    """out[:, c] = sum of x[:, c - before ... c + after], zeros beyond the ends."""
    padded = torch.constant_pad_nd(x, [*[0, 0] * (x.dim() - 2), before, after])
    # [batch, channels, *, window] -> [batch, channels, *]
    return padded.unfold(1, before + 1 + after, 1).sum(-1)


class _ChannelWindowSum(Function):
    """window_sum, which is linear: its own derivative.

    The transposed sum, over all windows that hold a channel, is the same with before and after exchanged.
    """

    @staticmethod
    def forward(x: Tensor, before: int, after: int) -> Tensor:
        return window_sum(x, before, after)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.before, ctx.after = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _ChannelWindowSum.apply(grad, ctx.after, ctx.before), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _ChannelWindowSum.apply(tangent, ctx.before, ctx.after)


@traced_as(F.local_response_norm)
def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """out = x / (k + alpha * mean(x^2 over a window of channels))^beta.

    The window holds size // 2 channels before and (size - 1) // 2 behind; beyond the ends there are zeros.

    Shape:   input: [batch, channels, *] with at least 3 dimensions   returns: same as input
    dtype:   computes in float32 for 16-bit inputs (torch rounds after each step); int64 takes the mean's floor
    Raises:  ValueError for fewer dimensions, RuntimeError for size < 1
    Source:  Krizhevsky et al., ImageNet classification with deep convolutional neural networks, 2012
             differs from torch in: images and volumes may have 16 bits on the CPU, where avg_pool3d refuses them
    """
    if input.dim() < 3:
        spaces = " " * 26
        raise ValueError(f"Expected 3D or higher dimensionality{spaces}input (got {input.dim()} dimensions)")
    if input.numel() == 0:
        return input
    before, after = size // 2, (size - 1) // 2
    pool, ones = ("avg_pool2d", "kW: 1") if input.dim() == 3 else ("avg_pool3d_out_frame", "kH: 1 kW: 1")
    if size <= 0:
        first = "kH" if input.dim() == 3 else "kT"
        raise RuntimeError(f"kernel size should be greater than zero, but got {first}: {size} {ones}")
    if not input.is_floating_point() and input.dtype != torch.int64:
        raise NotImplementedError(f"\"{pool}\" not implemented for '{type_name(input)}'")
    if input.dim() > 3 and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        input = widen(input)  # torch's average over volumes is in autocast's list for float32
    values = widen(input)
    total = _ChannelWindowSum.apply(values * values, before, after)
    mean = total / size if total.is_floating_point() else total.div(size, rounding_mode="floor")
    out = values / mean.mul(alpha).add(k).pow(beta)
    return out.to(input.dtype) if input.is_floating_point() else out


def cross_map_lrn2d(input: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """out = x * (k + alpha / size * sum(x^2 over a window of channels))^-beta.

    The window of channel c is c - half ... c + half with half = (size - 1) // 2, and channel 0 wherever c > half:
    torch's running sum never lets go of it.

    Shape:   input: [batch, channels, height, width]   returns: same as input
    dtype:   computes in float32 for 16-bit inputs
    Raises:  ValueError unless input has 4 dimensions
    Source:  torch/nn/modules/_functions.py. Differs from torch in: the gradient is this formula's (torch's sums
             over windows that are one channel off, and fails for size 1)
    """
    if input.dim() != 4:
        raise ValueError(f"CrossMapLRN2d: Expected input to be 4D, got {input.dim()}D instead.")
    half, channels = (size - 1) // 2, input.size(1)
    values = widen(input.contiguous())
    squares = values * values
    total = (window_sum if is_traced() else _ChannelWindowSum.apply)(squares, half, half)
    keeps_first = (torch.arange(channels, device=input.device) > half).to(squares.dtype)
    total = total + keeps_first.reshape(1, channels, 1, 1) * squares[:, :1]
    return (values * (total * (alpha / size) + k).pow(-beta)).to(input.dtype)
