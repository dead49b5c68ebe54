"""Interleaving groups of channels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.construction import init_module
from pynn.definitions import defines, refuse_complex_half, traced_as
from pynn.memory_format import in_format_of

__all__ = ["ChannelShuffle", "channel_shuffle", "native_channel_shuffle"]

aten = torch.ops.aten


@traced_as(F.channel_shuffle)
def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """out[:, i * groups + g] = input[:, g * channels / groups + i].

    Args:    groups: how many groups of neighbouring channels to interleave
    Shape:   input: [batch, channels, *], at least one dimension more   returns: same as input
    dtype:   any but 16-bit complex numbers, returned as input's
    Raises:  RuntimeError when groups is not positive or does not divide the channels, and for fewer than 3
             dimensions; NotImplementedError for 16-bit complex numbers
    Source:  Zhang et al., ShuffleNet, 2017; aten/native/ChanelShuffle.cpp
    """
    if input.dim() <= 2:
        raise RuntimeError(
            f"channel_shuffle expects input with > 2 dims, but got input with sizes {list(input.shape)}"
        )
    if groups <= 0:
        raise RuntimeError(
            f"Number of groups to divide channels in must be positive. Value of groups:{groups}"
        )
    channels = input.size(1)
    if channels % groups != 0:
        raise RuntimeError(
            f"Number of channels must be divisible by groups. Got {channels} channels and {groups} groups."
        )
    if input.numel() > 0:
        refuse_complex_half("channel_shuffle", input)
    grouped = input.unflatten(1, (groups, channels // groups))
    # a copy also where nothing changes places
    shuffled = grouped.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return in_format_of(input, shuffled.view(input.shape))


defines(aten.channel_shuffle.default, aten.native_channel_shuffle.default)(channel_shuffle.__wrapped__)


@traced_as(F.native_channel_shuffle)
def native_channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """The same as `channel_shuffle`."""
    return channel_shuffle.__wrapped__(input, groups)


class ChannelShuffle(torch.nn.ChannelShuffle):
    """out[:, i * groups + g] = x[:, g * channels / groups + i].

    Args:    groups: how many groups of neighbouring channels to interleave
    Shape:   x: [batch, channels, *]   returns: same as x
    Raises:  RuntimeError unless groups divides the channels
    Source:  see `channel_shuffle`
    """

    __constants__ = ["groups"]

    def __init__(self, groups: int) -> None:
        init_module(ChannelShuffle, self)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        return channel_shuffle(input, self.groups)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
