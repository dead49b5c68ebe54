"""Strides of results: layers over images keep channels-last inputs channels-last, as ATen's kernels do."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def in_format_of(x: Tensor, out: Tensor) -> Tensor:
    """Lay `out` out channels-last where x is, else contiguously; the same values.

    Under vmap nothing is moved: there the strides are those of the batch.
    """
    return in_format(suggest_memory_format(x), out)


def in_format(layout: torch.memory_format, out: Tensor) -> Tensor:
    """Lay `out` out as `layout` says, except under vmap."""
    if torch._C._are_functorch_transforms_active():
        return out
    return out.contiguous(memory_format=layout)


def image_in_format_of(x: Tensor, out: Tensor, dims: int) -> Tensor:
    """in_format_of for images; contiguous for volumes, where not every kernel of ATen's knows channels-last."""
    return in_format_of(x, out) if dims < 3 else in_format(torch.contiguous_format, out)
