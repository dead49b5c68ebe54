"""How the losses of a batch become one number."""

import warnings

import torch
from torch import Tensor
from torch.nn import _reduction

NONE, MEAN, SUM = 0, 1, 2
"""ATen's numbers for the reductions."""


def named_reduction(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction, or what the deprecated size_average and reduce ask for instead."""
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce)


def reduction_number(reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> int:
    """ATen's number for a reduction, which the deprecated size_average and reduce override.

    Raises:  ValueError for an unknown reduction
    """
    return _reduction.get_enum(named_reduction(reduction, size_average, reduce))


def reduced(losses: Tensor, reduction: int) -> Tensor:
    """The losses themselves, their mean or their sum."""
    if reduction == MEAN:
        return losses.mean()
    return losses.sum() if reduction == SUM else losses


def reduced_backward(grad: Tensor, like: Tensor, reduction: int) -> Tensor:
    """The gradient of each single loss: grad, or for a mean grad / how many (then a scalar)."""
    return grad / like.numel() if reduction == MEAN else grad


def broadcast_with_warning(input: Tensor, target: Tensor, stacklevel: int = 4) -> tuple[Tensor, Tensor]:
    """Broadcast input and target; torch warns that this is seldom meant."""
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=stacklevel,
        )
    input, target = torch.broadcast_tensors(input, target)
    return input, target
