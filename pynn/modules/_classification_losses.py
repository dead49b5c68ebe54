"""Losses of classes and probabilities: the definitions with ATen's signatures, then the public functions."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.argument_types import require_float, require_int, require_tensor
from pynn.definitions import (
    can_read_values,
    computes_in_float32,
    defines,
    differentiable,
    linear_in,
    refuse_complex_gradient,
    require_floating_point,
    require_no_gradient,
    traced_as,
    type_name,
)
from pynn.modules._nll_checks import check_classes, check_target, check_weight_and_dtypes
from pynn.modules._reduction import MEAN, NONE, SUM, reduced, reduced_backward, reduction_number
from pynn.modules._smooth_activations import log_sigmoid_forward, logsigmoid
from pynn.modules._softmax import log_softmax

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "kl_div",
    "nll_loss",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


def _class_dim(x: Tensor) -> int:
    return 0 if x.dim() == 1 else 1


def class_weights(x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """weight[target], 1 without weights, and 0 where target is ignore_index."""
    is_counted = target != ignore_index
    if weight is None or x.size(_class_dim(x)) == 0:
        return is_counted.to(x.dtype)
    safe_target = torch.where(is_counted, target, 0)
    picked = weight.reshape(-1).index_select(0, safe_target.reshape(-1)).view(target.shape)
    return torch.where(is_counted, picked, 0)


@defines(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
@computes_in_float32
def nll_loss_forward(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """-weight[target] * x[.., target, ..] and the sum of those weights, by which a mean divides."""
    target = target.to(torch.int64)
    weights = class_weights(x, target, weight, ignore_index)
    is_counted = target != ignore_index
    safe_target = torch.where(is_counted, target, 0)
    dim = _class_dim(x)
    if x.size(dim) > 0:
        picked = x.gather(dim, safe_target.unsqueeze(dim)).squeeze(dim)
    else:  # no target is counted
        picked = x.sum(dim)
    losses = torch.where(is_counted, -picked * weights, 0)
    if reduction == NONE and x.dim() > 1:
        return losses, torch.zeros((), dtype=x.dtype, device=x.device)
    total_weight = weights.sum()
    if reduction == MEAN:
        return losses.sum() / total_weight, total_weight
    return losses.sum() if reduction == SUM else losses, total_weight


@defines(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
@computes_in_float32
def nll_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    """-weight[target] * grad at the target's class, 0 elsewhere.

    Written as a comparison with every class instead of a scatter, so that it fuses with what follows.
    """
    grad = grad / total_weight if reduction == MEAN else grad
    dim = _class_dim(x)
    scale = (-class_weights(x, target, weight, ignore_index) * grad).unsqueeze(dim)
    classes = torch.arange(x.size(dim), device=x.device)
    classes = classes.view([-1 if i == dim else 1 for i in range(x.dim())])
    return torch.where(classes == target.unsqueeze(dim), scale, 0)


def bernoulli_cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    """-target * log(x) - (1 - target) * log(1 - x), each logarithm held above -100."""
    log_x = torch.clamp(torch.log(x), min=-100)
    log_rest = torch.clamp(torch.log1p(-x), min=-100)
    return (target - 1) * log_rest - target * log_x


def bernoulli_cross_entropy_backward(grad: Tensor, x: Tensor, target: Tensor) -> Tensor:
    """grad * (x - target) / max(x * (1 - x), 1e-12)."""
    return grad * (x - target) / torch.clamp((1 - x) * x, min=1e-12)


def bernoulli_cross_entropy_target_backward(grad: Tensor, x: Tensor, target: Tensor) -> Tensor:
    """grad * (log(1 - x) - log(x))."""
    return grad * (torch.log1p(-x) - torch.log(x))


@defines(aten.binary_cross_entropy.default)
@computes_in_float32
def binary_cross_entropy_forward(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> Tensor:
    """weight * bernoulli_cross_entropy(x, target)."""
    losses = bernoulli_cross_entropy(x, target)
    return reduced(losses if weight is None else losses * weight, reduction)


@defines(aten.binary_cross_entropy_backward.default)
@computes_in_float32
def binary_cross_entropy_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> Tensor:
    """Derivative in x."""
    grad = reduced_backward(grad, x, reduction)
    return bernoulli_cross_entropy_backward(grad if weight is None else grad * weight, x, target)


def logistic_cross_entropy(
    x: Tensor, log_sigmoid: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    """(1 - target) * x - (1 + (pos_weight - 1) * target) * log(sigmoid(x)), times weight."""
    if pos_weight is not None:
        log_sigmoid = log_sigmoid * ((pos_weight - 1) * target + 1)
    losses = (1 - target) * x - log_sigmoid
    return losses if weight is None else losses * weight


@defines(aten.binary_cross_entropy_with_logits.default)
@computes_in_float32
def binary_cross_entropy_with_logits_forward(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = MEAN,
) -> Tensor:
    """logistic_cross_entropy, reduced."""
    log_sigmoid, _ = log_sigmoid_forward(x)
    return reduced(logistic_cross_entropy(x, log_sigmoid, target, weight, pos_weight), reduction)


# ---- negative log likelihood and cross entropy -----------------------------------------------------------


@traced_as(F.nll_loss)
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = -weight[target] * input[.., target, ..], reduced; a mean divides by the sum of the weights.

    Args:    ignore_index: a target that counts for nothing, default -100
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input: [batch, classes, *] or [classes]   target: [batch, *] or []   weight: [classes]
             returns: that of target, a scalar when reduced
    dtype:   floating point, returned as input's, weight's the same; target int64 (of matrices uint8 too);
             computes in float32 for 16-bit inputs
    Raises:  ValueError, RuntimeError, IndexError as torch for shapes, dtypes and targets that do not fit
    Source:  aten/native/LossNLL.cpp, LossNLL2d.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    require_tensor("nll_loss_nd", 2, "target", target)
    require_int("nll_loss_nd", 5, "ignore_index", ignore_index)
    return _checked_nll_loss(linear_in(input), target, weight, number, ignore_index)


def _checked_nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> Tensor:
    check_target(input, target)
    check_weight_and_dtypes(input, target, weight)
    check_classes(target, input.size(_class_dim(input)), ignore_index)
    if input.dim() == 1:
        target = target.reshape(())
    return nll_loss_forward(input, target, weight, reduction, ignore_index)[0]


@traced_as(F.cross_entropy)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """out = -sum over classes of p * weight * log(softmax(input)), reduced.

    p is 1 at the target's class, or the target itself if it has input's shape; label_smoothing mixes in the
    uniform distribution. A mean over class indices divides by the sum of the targets' weights.

    Args:    ignore_index: a target that counts for nothing, default -100; for class indices only
             label_smoothing: from 0 (default) to 1
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input: [batch, classes, *] or [classes]   target: [batch, *] or [], or as input
             weight: [classes]   returns: [batch, *] or [], a scalar when reduced
    dtype:   floating point, weight's the same; indices as `nll_loss`'s, probabilities are promoted with
             input; of 16-bit inputs log(softmax) is computed in float32, rounded and weighed in float32 again
    Raises:  ValueError, RuntimeError, IndexError as torch for what does not fit
    Source:  aten/native/LossNLL.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    require_tensor("cross_entropy_loss", 2, "target", target)
    if weight is not None:
        require_tensor("cross_entropy_loss", 3, "weight", weight)
    require_int("cross_entropy_loss", 5, "ignore_index", ignore_index)
    require_float("cross_entropy_loss", 6, "label_smoothing", label_smoothing)
    if target.shape == input.shape and not target.is_floating_point():
        raise RuntimeError(
            f"Expected floating point type for target with class probabilities, got {type_name(target)}"
        )
    if label_smoothing > 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    dim = _class_dim(input)
    log_probabilities = log_softmax.__wrapped__(input, dim)
    classes = input.size(dim)
    if target.shape == input.shape:
        if weight is not None and (weight.dim() != 1 or weight.numel() != classes):
            raise RuntimeError(
                f"cross_entropy: weight tensor should be defined either for all {classes} classes or no classes but "
                f"got weight tensor of shape: {list(weight.shape)}"
            )
        if ignore_index >= 0:
            raise RuntimeError("ignore_index is not supported for floating point target")
        return _soft_target_loss(log_probabilities, target, weight, number, label_smoothing)
    loss = _checked_nll_loss(log_probabilities, target, weight, number, ignore_index)
    if not label_smoothing > 0:
        return loss
    target = target.reshape(()) if input.dim() == 1 else target
    smooth = _uniform_target_loss(log_probabilities, target, weight, number, ignore_index)
    # of one more dimension: torch.func.jvp makes tangents float64 where a number meets a scalar
    parts = loss.unsqueeze(0) * (1 - label_smoothing), smooth.unsqueeze(0) * (label_smoothing / classes)
    return (parts[0] + parts[1]).squeeze(0)


@computes_in_float32
def _soft_target_loss(
    log_probabilities: Tensor, target: Tensor, weight: Tensor | None, reduction: int, label_smoothing: float
) -> Tensor:
    """-sum over classes of target * weight * log_probabilities; a mean divides by the batch positions."""
    dim = _class_dim(log_probabilities)
    classes = log_probabilities.size(dim)
    if label_smoothing > 0:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    terms = log_probabilities * target
    if weight is not None:
        terms = terms * _along(weight, dim, terms.dim())
    losses = -terms.sum(dim)
    if reduction == MEAN:
        return losses.sum() / losses.numel() if classes else losses.sum() * math.nan  # 0 / 0
    return reduced(losses, reduction)


@computes_in_float32
def _uniform_target_loss(
    log_probabilities: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> Tensor:
    """-sum over classes of weight * log_probabilities where target counts; a mean divides as nll_loss."""
    dim = _class_dim(log_probabilities)
    terms = log_probabilities
    if weight is not None:
        terms = terms * _along(weight, dim, terms.dim())
    losses = torch.where(target == ignore_index, 0, -terms.sum(dim))
    if reduction != MEAN:
        return reduced(losses, reduction)
    return losses.sum() / class_weights(log_probabilities, target, weight, ignore_index).sum()


def _along(weight: Tensor, dim: int, ndim: int) -> Tensor:
    return weight.view([-1 if i == dim else 1 for i in range(ndim)])


# ---- probabilities ---------------------------------------------------------------------------------------

_bernoulli = differentiable(
    bernoulli_cross_entropy, bernoulli_cross_entropy_backward, bernoulli_cross_entropy_target_backward
)


def refuse_complex_weight(target: Tensor, weight: Tensor | None) -> None:
    """The losses are multiplied by it in place, in C++."""
    if weight is not None and weight.is_complex() and not target.is_complex():
        result = type_name(weight.new_empty(0, dtype=torch.promote_types(target.dtype, weight.dtype)))
        raise RuntimeError(
            f"result type {result} can't be cast to the desired output type {type_name(target)}"
        )


@computes_in_float32
def _binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int) -> Tensor:
    losses = _bernoulli(input, target)
    return reduced(losses if weight is None else losses * weight, reduction)


@traced_as(F.binary_cross_entropy)
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = -weight * (target * log(input) + (1 - target) * log(1 - input)), logs held above -100; reduced.

    Args:    reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: the same   weight: broadcastable to them
             returns: their shape, or a scalar when reduced
    dtype:   floating point, target's the same, returned so; computes in float32 for 16-bit inputs
    Raises:  ValueError when the shapes differ or for an unknown reduction; RuntimeError for elements outside
             [0, 1] and a target of another dtype; NotImplementedError for integers and complex numbers
    Source:  aten/native/Loss.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    if target.size() != input.size():
        raise ValueError(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}) is "
            "deprecated. Please ensure they have the same size."
        )
    if weight is not None:
        weight = weight.expand(torch.broadcast_shapes(target.size(), weight.size()))
    require_no_gradient("binary_cross_entropy", weight=weight)
    if target.dtype != input.dtype:
        raise RuntimeError(f"Found dtype {type_name(target)} but expected {type_name(input)}")
    require_floating_point("binary_cross_entropy", input)
    for name, x in (("input", input), ("target", target)):
        if can_read_values(x) and not ((x >= 0) & (x <= 1)).all():
            raise RuntimeError(f"all elements of {name} should be between 0 and 1")
    refuse_complex_weight(target, weight)
    return _binary_cross_entropy(input, target, weight, number).to(input.dtype)


@computes_in_float32
def _logistic(
    input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> Tensor:
    log_sigmoid = logsigmoid.__wrapped__(input)
    return reduced(logistic_cross_entropy(input, log_sigmoid, target, weight, pos_weight), reduction)


@traced_as(F.binary_cross_entropy_with_logits)
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """out = -weight * (pos_weight * target * log(s) + (1 - target) * log(1 - s)), s = sigmoid(input).

    Written with log(sigmoid(input)), which neither overflows nor loses digits.

    Args:    pos_weight: a factor for the positive targets
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: the same   weight, pos_weight: broadcastable to them
             returns: their shape, or a scalar when reduced
    dtype:   floating point, returned as target's; computes in float32 for 16-bit inputs
    Raises:  ValueError when the shapes differ or for an unknown reduction; RuntimeError for targets, and
             NotImplementedError for inputs, that are no floating-point numbers
    Source:  aten/native/Loss.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    if target.size() != input.size():
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({input.size()})")
    if not torch._C._are_functorch_transforms_active():  # there C++ is made of parts that have the gradients
        require_no_gradient("binary_cross_entropy_with_logits", weight=weight, pos_weight=pos_weight)
    require_floating_point("log_sigmoid_cpu", input)
    if target.dtype != torch.bool and not torch.can_cast(input.dtype, target.dtype):
        raise RuntimeError(
            f"result type {type_name(input)} can't be cast to the desired output type {type_name(target)}"
        )
    refuse_complex_weight(target, pos_weight)
    if pos_weight is not None:  # pos_weight * target multiplies log(s)
        refuse_complex_weight(input, target)
    refuse_complex_weight(target, weight)
    refuse_complex_gradient("binary_cross_entropy_with_logits", input, target)
    return _logistic(input, target, weight, pos_weight, number).to(target.dtype)


@traced_as(F.kl_div)
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """out = target * (log(target) - input), reduced; with log_target exp(target) * (target - input).

    Args:    input: logarithms of probabilities; log_target: target too (default False)
             reduction: mean, sum, none or batchmean, the sum divided by the first size
             size_average, reduce: its deprecated forerunners
    Shape:   input, target: broadcastable   returns: their shape, or a scalar when reduced
    dtype:   floating point, promoted; 16 bits round at every step
    Raises:  ValueError for an unknown reduction, RuntimeError unless both are floating-point numbers
    Source:  Kullback and Leibler, On information and sufficiency, 1951; aten/native/Loss.cpp
    """
    is_batchmean = size_average is None and reduce is None and reduction == "batchmean"
    if reduction == "mean" and size_average is None and reduce is None:
        warnings.warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size."
            "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
            "'mean' will be changed to behave the same as 'batchmean' in the next major release.",
            stacklevel=3,
        )
    number = SUM if is_batchmean else reduction_number(reduction, size_average, reduce)
    if input.is_complex() or target.is_complex():
        raise RuntimeError("kl_div: Complex inputs not supported.")
    if not (input.is_floating_point() and target.is_floating_point()):
        raise RuntimeError("kl_div: Integral inputs not supported.")
    if log_target:
        losses = torch.exp(target) * (target - input)
    else:
        losses = torch.xlogy(target, target) - target * input
    loss = reduced(losses, number)
    return loss / input.size(0) if reduction == "batchmean" and input.dim() != 0 else loss
