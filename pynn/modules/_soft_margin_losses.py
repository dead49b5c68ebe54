"""Soft margins: log(1 + exp(-target * score)), for one label or for several."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import (
    computes_in_float32,
    defines,
    differentiable,
    refuse_complex_gradient,
    refuse_complex_half,
    require_no_gradient,
    traced_as,
    type_name,
)
from pynn.modules._reduction import MEAN, reduced, reduced_backward, reduction_number
from pynn.modules._smooth_activations import log_sigmoid_forward, logsigmoid

__all__ = [
    "multilabel_soft_margin_loss",
    "soft_margin_loss",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


def soft_margin(x: Tensor, target: Tensor) -> Tensor:
    """log(1 + exp(-x * target))."""
    return -log_sigmoid_forward(x * target)[0]


def soft_margin_backward(grad: Tensor, x: Tensor, target: Tensor) -> Tensor:
    """-target * sigmoid(-target * x) * grad; as in C++ the -target in the sigmoid wraps around where unsigned."""
    return -(target * torch.sigmoid(-target * x)) * grad


@defines(aten.soft_margin_loss.default)
@computes_in_float32
def soft_margin_loss_forward(x: Tensor, target: Tensor, reduction: int = MEAN) -> Tensor:
    """soft_margin, reduced."""
    return reduced(soft_margin(x, target), reduction)


@defines(aten.soft_margin_loss_backward.default)
@computes_in_float32
def soft_margin_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    """Derivative in x."""
    return soft_margin_backward(reduced_backward(grad, x, reduction), x, target)


# ---- public functions ------------------------------------------------------------------------------------


_soft_margin = differentiable(soft_margin, soft_margin_backward)


@computes_in_float32
def _soft_margin_loss(input: Tensor, target: Tensor, reduction: int) -> Tensor:
    if input.is_complex():
        return reduced(torch.log1p(torch.exp(-input * target)), reduction)
    return reduced(_soft_margin(input, target), reduction)


def _check_fits_input(input: Tensor, target: Tensor) -> Tensor:
    """The target in input's shape; C++ writes the losses over -input. Raises: RuntimeError"""
    if input.dtype == torch.bool:
        torch.neg(input)  # raises in the installed torch's words
    both, target = torch.broadcast_tensors(input, target)
    if both.shape != input.shape:
        raise RuntimeError(
            f"output with shape {list(input.shape)} doesn't match the broadcast shape {list(both.shape)}"
        )
    losses = torch.exp(torch.empty(0, dtype=torch.result_type(input, target)))
    if not torch.can_cast(losses.dtype, input.dtype):
        raise RuntimeError(
            f"result type {type_name(losses)} can't be cast to the desired output type {type_name(input)}"
        )
    return target


@traced_as(F.soft_margin_loss)
def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = log(1 + exp(-target * input)), target -1 or 1, reduced.

    Args:    reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input: [*]   target: broadcastable to input   returns: that of input, or a scalar when reduced
    dtype:   floating point or complex, returned as input's; computes in float32 for 16-bit inputs
    Raises:  RuntimeError for integer inputs, and targets of more elements or a wider kind of number than
             input; NotImplementedError for 16-bit complex numbers; ValueError for an unknown reduction
    Source:  aten/native/Loss.cpp. differs from torch in: a large -target * input gives itself, where C++ overflows
             to infinity
    """
    number = reduction_number(reduction, size_average, reduce)
    require_no_gradient("soft_margin_loss", target=target)
    target = _check_fits_input(input, target)
    refuse_complex_half("exp_vml_cpu", input)
    refuse_complex_gradient("soft_margin_loss", input)
    return _soft_margin_loss(input, target, number).to(input.dtype)


@traced_as(F.multilabel_soft_margin_loss)
def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = -mean over classes of weight * (target * log(s) + (1 - target) * log(1 - s)), s = sigmoid(input).

    Args:    weight: one factor a class
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input: [*, classes]   target, weight: broadcastable   returns: [*], or a scalar when reduced
    dtype:   floating point, promoted; 16 bits round at every step
    Raises:  ValueError for an unknown reduction; IndexError for a scalar; NotImplementedError for integers
             and complex numbers
    Source:  torch.nn.functional
    """
    if size_average is None and reduce is None and reduction not in ("none", "mean", "sum"):
        raise ValueError(reduction + " is not valid")
    number = reduction_number(reduction, size_average, reduce)
    log_sigmoid = logsigmoid.__wrapped__
    losses = -(target * log_sigmoid(input) + (1 - target) * log_sigmoid(-input))
    if weight is not None:
        losses = losses * weight
    class_dim = input.dim() - 1
    return reduced(losses.sum(class_dim) / input.size(class_dim), number)
