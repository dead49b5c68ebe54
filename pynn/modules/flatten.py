"""Merging dimensions into one and splitting one into several: views."""

import torch
from torch import Tensor
from torch.types import _size

from pynn.construction import init_module

__all__ = ["Flatten", "Unflatten"]


class Flatten(torch.nn.Flatten):
    """Merge the dimensions start_dim to end_dim into one.

    Args:    start_dim: default 1; end_dim: default the last
    Shape:   x: [*, s_start, ..., s_end, *]   returns: [*, s_start * ... * s_end, *]
    Source:  torch/nn/modules/flatten.py
    """

    __constants__ = ["start_dim", "end_dim"]

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        init_module(Flatten, self)
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(torch.nn.Unflatten):
    """Split dimension dim into unflattened_size, one of which may be -1.

    Args:    dim: a number, or a name of a named tensor; unflattened_size: the sizes in its place
    Shape:   x: [*, s, *]   returns: [*, *unflattened_size, *]
    Raises:  TypeError when unflattened_size is not a tuple of ints
    Source:  torch/nn/modules/flatten.py
    """

    __constants__ = ["dim", "unflattened_size"]

    def __init__(self, dim: int, unflattened_size: _size) -> None:
        init_module(Unflatten, self)
        self._require_tuple_int(unflattened_size)
        self.dim = dim
        self.unflattened_size = unflattened_size

    def _require_tuple_int(self, input) -> None:
        if not isinstance(input, (tuple, list)):
            raise TypeError(
                f"unflattened_size must be a tuple of ints, but found type {type(input).__name__}"
            )
        for position, element in enumerate(input):
            if not isinstance(element, int):
                raise TypeError(
                    "unflattened_size must be tuple of ints, "
                    f"but found element of type {type(element).__name__} at pos {position}"
                )

    def forward(self, input: Tensor) -> Tensor:
        return input.unflatten(self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
