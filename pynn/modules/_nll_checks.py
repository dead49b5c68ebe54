"""What nll_loss refuses, and cross_entropy of class indices, in ATen's words and order."""

import torch
from torch import Tensor

from pynn.argument_types import require_tensor
from pynn.definitions import can_read_values, require_floating_point, require_no_gradient, type_name


def check_target(input: Tensor, target: Tensor) -> None:
    """The checks of nll_loss_nd, nll_loss and nll_loss2d, in their order."""
    if input.dim() < 1:
        raise ValueError(f"Expected 1 or more dimensions (got {input.dim()})")
    if input.dim() != 1 and (target.dim() == 0 or input.size(0) != target.size(0)):
        got = target.size(0) if target.dim() > 0 else 0
        raise ValueError(f"Expected input batch_size ({input.size(0)}) to match target batch_size ({got}).")
    if input.dim() <= 2 and target.dim() > 1:
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
    if input.dim() == 4 and target.dim() != 3:
        raise RuntimeError(
            f"only batches of spatial targets supported (3D tensors) but got targets of dimension: {target.dim()}"
        )
    if input.dim() > 2 and target.shape[1:] != input.shape[2:]:
        if input.dim() == 4:
            raise RuntimeError(
                f"size mismatch (got input: {list(input.shape)} , target: {list(target.shape)}"
            )
        wanted = [input.size(0), *input.shape[2:]]
        raise RuntimeError(f"Expected target size {wanted}, got {list(target.shape)}")
    if input.dim() not in (1, 2, 4) and input.numel() == 0 and target.numel() > 0:
        # C++ calls them areas of input.size(0) images, and those of nothing have no pixels
        found = [*input.shape[:2], 0, 0], [input.size(0), 1, target.shape[1:].numel()]
        raise RuntimeError(f"size mismatch (got input: {found[0]} , target: {found[1]}")
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"expected target dtype to be Long or Byte, but got {type_name(target)}")
    if input.dim() == 1 and target.dim() == 1 and target.size(0) != 1:
        raise ValueError(f"For 1D input, 1D target must have size 1, but got target size: {target.size(0)}")


def check_weight_and_dtypes(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """The weight's size too, and for areas only how many: C++ takes any shape of it there."""
    classes, is_area = input.size(0 if input.dim() == 1 else 1), input.dim() > 2
    if weight is not None:
        require_tensor("nll_loss_nd", 3, "weight", weight)
        require_no_gradient(f"nll_loss{'2d' * is_area}_forward", weight=weight)
        if is_area and weight.numel() != classes:
            raise RuntimeError("weight tensor should be defined either for all or no classes")
        if not is_area and (weight.dim() != 1 or weight.numel() != classes):
            raise RuntimeError(
                f"weight tensor should be defined either for all {classes} classes or no classes but got weight "
                f"tensor of shape: {list(weight.shape)}"
            )
    require_floating_point(f"nll_loss{'2d_forward' * is_area}_out_frame", input)
    if is_area and target.dtype != torch.int64:
        raise RuntimeError(f"expected scalar type Long but found {type_name(target)}")
    if weight is not None and weight.dtype != input.dtype:
        raise RuntimeError(f"expected scalar type {type_name(input)} but found {type_name(weight)}")


def check_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raises: IndexError for a target that is no class"""
    if can_read_values(target) and target.device.type == "cpu":
        is_outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
        if is_outside.any():
            raise IndexError(f"Target {int(target[is_outside][0])} is out of bounds.")
