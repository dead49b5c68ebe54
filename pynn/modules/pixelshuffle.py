"""Rearranging channels into pixels and back."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.construction import init_module
from pynn.definitions import defines, refuse_complex_half, traced_as
from pynn.memory_format import in_format_of

__all__ = ["PixelShuffle", "PixelUnshuffle", "pixel_shuffle", "pixel_unshuffle"]

aten = torch.ops.aten


@traced_as(F.pixel_shuffle)
def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """out[c, h * r + i, w * r + j] = input[c * r^2 + i * r + j, h, w], r = upscale_factor.

    Args:    upscale_factor: r, at least 1
    Shape:   input: [*, channels * r^2, height, width]   returns: [*, channels, height * r, width * r]
    dtype:   any but 16-bit complex numbers, returned as input's
    Raises:  RuntimeError when r^2 does not divide the channels, r is not positive or input has fewer than 3
             dimensions; ValueError when r^2 is no 64-bit integer; NotImplementedError for 16-bit complex
             numbers
    Source:  Shi et al., Real-time single image and video super-resolution, 2016; aten/native/PixelShuffle.cpp
    """
    _check("pixel_shuffle", "upscale_factor", input, upscale_factor)
    r = upscale_factor
    if r * r > torch.iinfo(torch.int64).max:
        raise ValueError(
            f"upscale factor is too large, (upscale_factor)^2 overflowed: upscale_factor={upscale_factor}"
        )
    *batch, channels, height, width = input.shape
    if channels % (r * r) != 0:
        raise RuntimeError(
            "pixel_shuffle expects its input's 'channel' dimension to be divisible by the square of "
            f"upscale_factor, but input.size(-3)={channels} is not divisible by {r * r}"
        )
    if input.numel() > 0:
        refuse_complex_half("pixel_shuffle", input)
    blocks = input.reshape(*batch, channels // (r * r), r, r, height, width)
    # [*, channels, height, r, width, r]
    pixels = copied(blocks.movedim((-2, -4, -1, -3), (-4, -3, -2, -1)))
    return in_format_of(input, pixels.view(*batch, channels // (r * r), height * r, width * r))


@traced_as(F.pixel_unshuffle)
def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """The inverse of `pixel_shuffle`: out[c * r^2 + i * r + j, h, w] = input[c, h * r + i, w * r + j].

    Args:    downscale_factor: r, at least 1
    Shape:   input: [*, channels, height * r, width * r]   returns: [*, channels * r^2, height, width]
    dtype:   any but 16-bit complex numbers, returned as input's
    Raises:  RuntimeError when r does not divide height and width, is not positive or input has fewer than 3
             dimensions; NotImplementedError for 16-bit complex numbers
    Source:  Shi et al., Real-time single image and video super-resolution, 2016; aten/native/PixelShuffle.cpp
    """
    _check("pixel_unshuffle", "downscale_factor", input, downscale_factor)
    r = downscale_factor
    *batch, channels, height, width = input.shape
    for name, dim, size in (("height", -2, height), ("width", -1, width)):
        if size % r != 0:
            raise RuntimeError(
                f"pixel_unshuffle expects {name} to be divisible by downscale_factor, "
                f"but input.size({dim})={size} is not divisible by {r}"
            )
    if input.numel() > 0:
        refuse_complex_half("pixel_unshuffle", input)
    blocks = input.reshape(*batch, channels, height // r, r, width // r, r)
    # [*, channels, r, r, height, width]
    pixels = copied(blocks.movedim((-3, -1, -4, -2), (-4, -3, -2, -1)))
    return in_format_of(input, pixels.view(*batch, channels * r * r, height // r, width // r))


def copied(x: Tensor) -> Tensor:
    """x in memory of its own, in order: also for factor 1 or a single pixel, where nothing changes places."""
    return x.clone(memory_format=torch.contiguous_format)


def _check(function: str, argument: str, input: Tensor, factor: int) -> None:
    if input.dim() < 3:
        raise RuntimeError(
            f"{function} expects input to have at least 3 dimensions, but got input with "
            f"{input.dim()} dimension(s)"
        )
    if factor <= 0:
        raise RuntimeError(f"{function} expects a positive {argument}, but got {factor}")


defines(aten.pixel_shuffle.default)(pixel_shuffle.__wrapped__)
defines(aten.pixel_unshuffle.default)(pixel_unshuffle.__wrapped__)


class PixelShuffle(torch.nn.PixelShuffle):
    """out[c, h * r + i, w * r + j] = x[c * r^2 + i * r + j, h, w], r = upscale_factor.

    Args:    upscale_factor: r, at least 1
    Shape:   x: [*, channels * r^2, height, width]   returns: [*, channels, height * r, width * r]
    Raises:  RuntimeError when r^2 does not divide the channels
    Source:  see `pixel_shuffle`
    """

    __constants__ = ["upscale_factor"]

    def __init__(self, upscale_factor: int) -> None:
        init_module(PixelShuffle, self)
        self.upscale_factor = upscale_factor

    def forward(self, input: Tensor) -> Tensor:
        return pixel_shuffle(input, self.upscale_factor)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


class PixelUnshuffle(torch.nn.PixelUnshuffle):
    """The inverse of PixelShuffle: out[c * r^2 + i * r + j, h, w] = x[c, h * r + i, w * r + j].

    Args:    downscale_factor: r, at least 1
    Shape:   x: [*, channels, height * r, width * r]   returns: [*, channels * r^2, height, width]
    Raises:  RuntimeError when r does not divide height and width
    Source:  see `pixel_unshuffle`
    """

    __constants__ = ["downscale_factor"]

    def __init__(self, downscale_factor: int) -> None:
        init_module(PixelUnshuffle, self)
        self.downscale_factor = downscale_factor

    def forward(self, input: Tensor) -> Tensor:
        return pixel_unshuffle(input, self.downscale_factor)

    def extra_repr(self) -> str:
        return f"downscale_factor={self.downscale_factor}"
