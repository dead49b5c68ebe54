"""Losses between real numbers: the definitions with ATen's signatures, then the public functions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import (
    can_read_values,
    computes_in_float32,
    defines,
    differentiable,
    refuse_complex_half,
    require_floating_point,
    traced_as,
    type_name,
)
from pynn.modules._reduction import (
    MEAN,
    NONE,
    broadcast_with_warning,
    named_reduction,
    reduced,
    reduced_backward,
    reduction_number,
)

__all__ = [
    "gaussian_nll_loss",
    "huber_loss",
    "l1_loss",
    "mse_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


@defines(aten.mse_loss.default)
@computes_in_float32
def mse_loss_forward(x: Tensor, target: Tensor, reduction: int = MEAN) -> Tensor:
    """(x - target)^2."""
    difference = x - target
    return reduced(difference * difference, reduction)


@defines(aten.mse_loss_backward.default)
@computes_in_float32
def mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    """2 * (x - target) * grad."""
    return 2 * (x - target) * reduced_backward(grad, x, reduction)


@defines(aten.l1_loss.default)
@computes_in_float32
def l1_loss_forward(x: Tensor, target: Tensor, reduction: int = MEAN) -> Tensor:
    """|x - target|."""
    return reduced((x - target).abs(), reduction)


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    """d^2 / (2 * beta) where |d| < beta, else |d| - beta / 2.

    With m = min(|d|, beta) both are m * (|d| - m / 2) / beta.
    """
    size = difference.abs()
    bounded = torch.clamp(size, max=beta)
    return bounded * (size - 0.5 * bounded) / beta


def smooth_l1_backward(grad: Tensor, difference: Tensor, beta: float) -> Tensor:
    """grad * d / beta, held at -grad and grad from |d| = beta on."""
    return grad * torch.clamp(difference, -beta, beta) / beta


def huber(difference: Tensor, delta: float) -> Tensor:
    """d^2 / 2 where |d| <= delta, else delta * (|d| - delta / 2): with m = min(|d|, delta), m * (|d| - m / 2)."""
    size = difference.abs()
    bounded = torch.clamp(size, max=delta)
    return bounded * (size - 0.5 * bounded)


def huber_backward(grad: Tensor, difference: Tensor, delta: float) -> Tensor:
    """grad * d, held at -delta * grad and delta * grad from |d| = delta on."""
    return grad * torch.clamp(difference, -delta, delta)


@defines(aten.smooth_l1_loss.default)
@computes_in_float32
def smooth_l1_loss_forward(x: Tensor, target: Tensor, reduction: int = MEAN, beta: float = 1.0) -> Tensor:
    """smooth_l1(x - target); beta 0 is the L1 loss."""
    return reduced((x - target).abs() if beta == 0 else smooth_l1(x - target, beta), reduction)


@defines(aten.smooth_l1_loss_backward.default)
@computes_in_float32
def smooth_l1_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float) -> Tensor:
    """Derivative in x."""
    grad = reduced_backward(grad, x, reduction)
    return grad * torch.sign(x - target) if beta == 0 else smooth_l1_backward(grad, x - target, beta)


@defines(aten.huber_loss.default)
@computes_in_float32
def huber_loss_forward(x: Tensor, target: Tensor, reduction: int = MEAN, delta: float = 1.0) -> Tensor:
    """huber(x - target)."""
    return reduced(huber(x - target, delta), reduction)


@defines(aten.huber_loss_backward.default)
@computes_in_float32
def huber_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int, delta: float) -> Tensor:
    """Derivative in x."""
    return huber_backward(reduced_backward(grad, x, reduction), x - target, delta)


# ---- public functions ------------------------------------------------------------------------------------

_smooth_l1 = differentiable(smooth_l1, smooth_l1_backward)
_huber = differentiable(huber, huber_backward)


@computes_in_float32
def _smooth_l1_loss(input: Tensor, target: Tensor, reduction: int, beta: float) -> Tensor:
    return reduced(_smooth_l1(input - target, beta), reduction)


@computes_in_float32
def _huber_loss(input: Tensor, target: Tensor, reduction: int, delta: float) -> Tensor:
    return reduced(_huber(input - target, delta), reduction)


def _huber_of_common_dtype(x: Tensor, target: Tensor, delta: float) -> Tensor:
    x, target = _in_one_dtype(x, target)
    return huber_loss_forward(x, target, NONE, delta)


def _refuse_dtypes(x: Tensor, other: Tensor) -> Tensor:
    """C++ has losses of two dtypes, but no gradient."""
    raise RuntimeError(f"Found dtype {type_name(other)} but expected {type_name(x)}")


_huber_of_two_dtypes = differentiable(
    _huber_of_common_dtype,
    lambda grad, x, target, delta: _refuse_dtypes(x, target),
    lambda grad, x, target, delta: _refuse_dtypes(target, x),
)


@computes_in_float32
def _weighted(losses: Tensor, weight: Tensor, reduction: str, mean_over_weight: bool) -> Tensor:
    """sum(weight * losses), divided for a mean by sum(weight) or by how many there are."""
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"Invalid reduction mode: {reduction}. Expected one of 'none', 'mean', 'sum'.")
    weighted = losses * weight
    if reduction == "mean" and mean_over_weight:
        return weighted.sum() / weight.sum()
    return reduced(weighted, reduction_number(reduction))


def _in_one_dtype(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype == target.dtype:
        return x, target
    common = torch.promote_types(x.dtype, target.dtype)
    return x.to(common), target.to(common)


def _check_weight(weight: Tensor, input: Tensor) -> None:
    if weight.size() != input.size():
        raise ValueError("Weights and input must have the same size.")


@traced_as(F.mse_loss)
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """out = (input - target)^2, reduced.

    Args:    reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
             weight: one factor an element; the mean is then over the weights
    Shape:   input, target: broadcastable (with a warning)   returns: their shape, or a scalar when reduced
    dtype:   floating point (integers too with a weight), promoted; computes in float32 for 16-bit inputs, but
             with a weight the losses are rounded first
    Raises:  ValueError for an unknown reduction or a weight of another shape; RuntimeError when the shapes do
             not broadcast; NotImplementedError for integers and complex numbers without a weight
    Source:  aten/native/Loss.cpp
    """
    x, target = broadcast_with_warning(input, target)
    if weight is not None:
        _check_weight(weight, input)
        reduction = named_reduction(reduction, size_average, reduce)
        return _weighted(mse_loss_forward(x, target, NONE), weight, reduction, mean_over_weight=True)
    number = reduction_number(reduction, size_average, reduce)
    x, target = _in_one_dtype(x, target)
    require_floating_point("mse_cpu", x)
    return mse_loss_forward(x, target, number)


@traced_as(F.l1_loss)
def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """out = |input - target|, reduced; the gradient at equality is 0.

    Args:    reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
             weight: one factor an element; the mean is then over the weights
    Shape:   input, target: broadcastable (with a warning)   returns: their shape, or a scalar when reduced
    dtype:   promoted; integers have no mean, complex numbers give real losses; sums in float32 for 16-bit
             inputs, but with a weight the losses are rounded first
    Raises:  ValueError for an unknown reduction or a weight of another shape; RuntimeError for bool, a mean
             of integers and shapes that do not broadcast
    Source:  aten/native/Loss.cpp
    """
    x, target = broadcast_with_warning(input, target)
    if weight is not None:
        _check_weight(weight, input)
        reduction = named_reduction(reduction, size_average, reduce)
        return _weighted(l1_loss_forward(x, target, NONE), weight, reduction, mean_over_weight=True)
    number = reduction_number(reduction, size_average, reduce)
    return l1_loss_forward(x, target, number)


@traced_as(F.smooth_l1_loss)
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """out = d^2 / (2 * beta) where |d| < beta, else |d| - beta / 2, d = input - target; reduced.

    Args:    beta: where the square meets the line, default 1; 0 is l1_loss
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: broadcastable (with a warning)   returns: their shape, or a scalar when reduced
    dtype:   floating point, promoted; computes in float32 for 16-bit inputs
    Raises:  RuntimeError for a negative beta and shapes that do not broadcast, ValueError for an unknown
             reduction; NotImplementedError for integers and complex numbers
    Source:  Girshick, Fast R-CNN, 2015; aten/native/Loss.cpp
    """
    x, target = broadcast_with_warning(input, target)
    number = reduction_number(reduction, size_average, reduce)
    if beta == 0:
        return l1_loss_forward(x, target, number)
    if not beta >= 0:  # NaN too
        raise RuntimeError("smooth_l1_loss does not support negative values for beta.")
    x, target = _in_one_dtype(x, target)
    require_floating_point("smooth_l1_cpu", x)
    return _smooth_l1_loss(x, target, number, beta)


@traced_as(F.huber_loss)
def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """out = d^2 / 2 where |d| <= delta, else delta * (|d| - delta / 2), d = input - target; reduced.

    Args:    reduction: mean, sum or none; delta: where the square meets the line, default 1
             weight: one factor an element
    Shape:   input, target: broadcastable (with a warning)   returns: their shape, or a scalar when reduced
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs, but with a weight the
             losses are rounded first
    Raises:  RuntimeError unless delta > 0, and for a target that input's dtype can't hold; ValueError for an
             unknown reduction or a weight of another shape; NotImplementedError for integers and complex
             numbers
    Source:  Huber, Robust estimation of a location parameter, 1964; aten/native/Loss.cpp
    """
    x, target = broadcast_with_warning(input, target)
    if weight is not None:
        _check_weight(weight, input)
    if not delta > 0:  # NaN too
        raise RuntimeError("huber_loss does not support non-positive values for delta.")
    common, _ = _in_one_dtype(x, target)
    if not torch.can_cast(common.dtype, input.dtype):
        raise RuntimeError(
            f"result type {type_name(common)} can't be cast to the desired output type {type_name(input)}"
        )
    require_floating_point("huber_cpu", common)
    number = NONE if weight is not None else reduction_number(reduction)
    if x.dtype == target.dtype:
        losses = _huber_loss(x, target, number, delta)
    else:
        losses = reduced(_huber_of_two_dtypes(x, target, delta), number).to(input.dtype)
    return losses if weight is None else _weighted(losses, weight, reduction, mean_over_weight=False)


@traced_as(F.poisson_nll_loss)
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = exp(input) - target * input, or input - target * log(input + eps) unless log_input; reduced.

    Args:    log_input: input is the logarithm of the rate (default)
             eps: else keeps log(0) away, default 1e-8
             full: add Stirling's approximation of log(target!) where target > 1
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: broadcastable   returns: their shape, or a scalar when reduced
    dtype:   promoted; integers give float32; 16 bits round at every step
    Raises:  ValueError for an unknown reduction; RuntimeError when the shapes do not broadcast, or both are
             bool
    Source:  aten/native/Loss.cpp
    """
    if size_average is None and reduce is None and reduction not in ("none", "mean", "sum"):
        raise ValueError(reduction + " is not a valid value for reduction")
    number = reduction_number(reduction, size_average, reduce)
    if log_input:
        loss = torch.exp(input) - target * input
    else:
        loss = input - target * torch.log(input + eps)
    if full:
        stirling = target * torch.log(target) - target + 0.5 * torch.log(2 * math.pi * target)
        loss = loss + torch.where(target <= 1, 0, stirling).to(loss.dtype)
    return reduced(loss, number)


@traced_as(F.gaussian_nll_loss)
def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """out = (log(v) + (input - target)^2 / v) / 2, v = max(var, eps), reduced.

    Args:    full: add log(2 * pi) / 2; eps: takes no part in the gradient, default 1e-6
             reduction: mean, sum or none
    Shape:   input, target: [*]   var: the same, or without or with 1 in the last dimension, or a number
             returns: [*], or a scalar when reduced
    dtype:   floating point, promoted (integers, beside a var that is a number, give float32); 16 bits round
             at every step
    Raises:  ValueError for a negative variance, one of the wrong shape or an unknown reduction; TypeError for
             neither tensor nor float; RuntimeError for a var of integers
    Source:  Nix and Weigend, Estimating the mean and variance of the target distribution, 1994;
             torch.nn.functional
    """
    if isinstance(var, float):
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = var * torch.ones_like(input)
    elif not hasattr(var, "size"):
        raise TypeError(
            f"gaussian_nll_loss(): argument 'var' (position 3) must be Tensor or float, not {type(var).__name__}"
        )
    elif can_read_values(var) and torch.any(var < 0):
        raise ValueError("var has negative entry/entries")
    if var.size() != input.size():
        if input.size()[:-1] == var.size():
            var = var.unsqueeze(-1)
        elif input.ndim != var.ndim or _differing_ones(input, var) != 1:
            raise ValueError("var is of incorrect size")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(reduction + " is not valid")
    var = var.clone()
    with torch.no_grad():
        var.clamp_(min=eps)
    difference = input - target
    refuse_complex_half("pow", difference)  # which squares it, in C++
    loss = 0.5 * (torch.log(var) + difference * difference / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduced(loss, reduction_number(reduction))


def _differing_ones(input: Tensor, var: Tensor) -> int:
    """The sum of var's sizes that differ from input's: 1 when exactly one differs and is 1."""
    return sum(size for wanted, size in zip(input.size(), var.size(), strict=True) if wanted != size)
