"""Losses that compare scores or distances with a margin. Each is max(0, ...) of a difference."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.argument_types import require_float
from pynn.definitions import (
    can_read_values,
    computes_in_float32,
    defines,
    require_no_gradient,
    traced_as,
    type_name,
)
from pynn.modules._reduction import MEAN, reduced, reduced_backward, reduction_number
from pynn.modules.distance import pairwise_distance

__all__ = [
    "cosine_embedding_loss",
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]

aten = torch.ops.aten

COSINE_EPSILON = 9.999999960041972e-13  # 1e-12 in float32, which ATen adds to float64 too


# ---- definitions -----------------------------------------------------------------------------------------


def above_zero(x: Tensor) -> Tensor:
    """max(x, 0) with gradient 0 at 0, and 0 for NaN."""
    return torch.where(x > 0, x, 0)


def _margins(x: Tensor, target: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """margin - x[target] + x[c] for each class c, and whether c is the target."""
    violations = above_zero(margin - x.gather(-1, target.unsqueeze(-1)) + x)
    is_target = torch.arange(x.size(-1), device=x.device) == target.unsqueeze(-1)
    return torch.where(is_target, 0, violations), is_target


def _weight_of(target: Tensor, weight: Tensor) -> Tensor:
    return weight.index_select(0, target.reshape(-1)).view(target.shape).unsqueeze(-1)


@defines(aten.multi_margin_loss.default)
@computes_in_float32
def multi_margin_loss_forward(
    x: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1,
    weight: Tensor | None = None,
    reduction: int = MEAN,
) -> Tensor:
    """sum over c != target of weight[target] * max(0, margin - x[target] + x[c])^p / classes."""
    x = x.reshape(*target.shape, x.size(-1) if x.dim() > 0 else 1)  # [*, classes]
    violations, _ = _margins(x, target, margin)
    violations = violations if p == 1 else violations * violations
    if weight is not None:
        violations = violations * _weight_of(target, weight)
    return reduced(violations.sum(-1) / x.size(-1), reduction)


@defines(aten.multi_margin_loss_backward.default)
@computes_in_float32
def multi_margin_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    p: float,
    margin: float,
    weight: Tensor | None = None,
    reduction: int = MEAN,
) -> Tensor:
    """weight[target] * p * max(0, ..)^(p - 1) / classes at c != target, minus their sum at the target."""
    shape = x.shape
    x = x.reshape(*target.shape, x.size(-1) if x.dim() > 0 else 1)  # [*, classes]
    violations, is_target = _margins(x, target, margin)
    slopes = (violations > 0).to(x.dtype) if p == 1 else 2 * violations
    if weight is not None:
        slopes = slopes * _weight_of(target, weight)
    slopes = torch.where(is_target, -slopes.sum(-1, keepdim=True), slopes) / x.size(-1)
    return (slopes * reduced_backward(grad, target, reduction).unsqueeze(-1)).view(shape)


def _labels(target: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions name a label (those before the first negative one), and the labels, 0 elsewhere."""
    is_label = (target >= 0).to(torch.int64).cumprod(-1) > 0
    return is_label, torch.where(is_label, target, 0)


def _label_margins(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """max(0, 1 - (x[label] - x[c])) for every label and every class c that is none, [*, labels, classes].

    Also returns [*, labels, classes]: whether this label names this class, and [*, classes]: any label does.
    """
    is_label, labels = _labels(target)
    classes = torch.arange(x.size(-1), device=x.device)
    names = (labels.unsqueeze(-1) == classes) & is_label.unsqueeze(-1)
    is_target = names.any(-2)
    margins = above_zero(1 - x.gather(-1, labels).unsqueeze(-1) + x.unsqueeze(-2))
    counts = is_label.unsqueeze(-1) & ~is_target.unsqueeze(-2)
    return torch.where(counts, margins, 0), names, is_target


@defines(aten.multilabel_margin_loss_forward.default)
@computes_in_float32
def multilabel_margin_loss_forward(x: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """sum over labels t and other classes c of max(0, 1 - (x[t] - x[c])) / classes, and 1 at the labels."""
    if x.dim() == 0:
        loss, is_target = multilabel_margin_loss_forward(x.unsqueeze(0), target.reshape(1), reduction)
        return loss, is_target.reshape(target.shape)
    margins, _, is_target = _label_margins(x, target)
    return reduced(margins.sum((-2, -1)) / x.size(-1), reduction), is_target.to(x.dtype)


@defines(aten.multilabel_margin_loss_backward.default)
@computes_in_float32
def multilabel_margin_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, is_target: Tensor
) -> Tensor:
    """For every violated margin 1 / classes at the other class and -1 / classes at the label."""
    if x.dim() == 0:
        return torch.zeros_like(x)
    margins, names, _ = _label_margins(x, target)
    is_violated = (margins > 0).to(x.dtype)
    at_labels = (names.to(x.dtype) * is_violated.sum(-1, keepdim=True)).sum(-2)
    slopes = (is_violated.sum(-2) - at_labels) / x.size(-1)
    batch = x.sum(-1) if x.dim() > 1 else grad
    return slopes * reduced_backward(grad, batch, reduction).unsqueeze(-1)


# ---- public functions ------------------------------------------------------------------------------------


@traced_as(F.margin_ranking_loss)
def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = max(0, -target * (input1 - input2) + margin), reduced.

    Args:    target: 1 where input1 should rank higher, -1 where input2 should; margin: by how much, default 0
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input1, input2, target: broadcastable   returns: their shape, or a scalar when reduced
    dtype:   promoted; integers give float32; 16 bits round at every step
    Raises:  RuntimeError when the numbers of dimensions differ, and for bool; ValueError for an unknown
             reduction; NotImplementedError for complex numbers
    Source:  aten/native/Loss.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    if input1.dim() != input2.dim() or input1.dim() != target.dim():
        raise RuntimeError(
            "margin_ranking_loss : All input tensors should have same dimension but got sizes: "
            f"input1: {input1.size()}, input2: {input2.size()}, target: {target.size()} "
        )
    require_float("margin_ranking_loss", 4, "margin", margin)
    difference = input1 - input2
    loss = -target * difference
    # a difference, because the tangent of a sum with a number is float64 under torch.func.jvp where there are no
    # dimensions
    loss = float(margin) - -loss if loss.is_floating_point() else loss + float(margin)
    return reduced(torch.clamp(loss, min=0), number)


@traced_as(F.hinge_embedding_loss)
def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = input where target is 1, max(0, margin - input) where it is -1, reduced.

    Args:    margin: how large input should be where target is -1, default 1
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: broadcastable   returns: their shape, or a scalar when reduced
    dtype:   returned as input's, to which margin is cast too; integers have no mean; 16 bits round at every
             step
    Raises:  ValueError for an unknown reduction; RuntimeError for bool and a mean of integers;
             NotImplementedError for complex numbers
    Source:  aten/native/Loss.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    require_float("hinge_embedding_loss", 3, "margin", margin)
    margin = torch.full((), margin, dtype=input.dtype, device=input.device)  # type: ignore[assignment]
    far = torch.where(target != 1, torch.clamp(margin - input, min=0), 0)
    near = torch.where(target != -1, input, 0)
    return reduced(far + near, number)


@traced_as(F.cosine_embedding_loss)
def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = 1 - cos where target is 1, max(0, cos - margin) where it is -1, reduced.

    Args:    margin: how large cos may be where target is -1, default 0
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input1, input2: [batch, features] or [features]   target: [batch] or []
             returns: as target, a scalar when reduced
    dtype:   promoted; integers give float32; 16 bits round at every step
    Raises:  RuntimeError for other shapes; ValueError for an unknown reduction; NotImplementedError for
             complex numbers
    Source:  aten/native/Loss.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    if target.dim() not in (0, 1):
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
    if input1.dim() != target.dim() + 1 or input2.dim() != target.dim() + 1:
        raise RuntimeError(
            f"{target.dim()}D target tensor expects {target.dim() + 1}D input tensors, but found "
            "inputs with sizes "
            f"{list(input1.shape)} and {list(input2.shape)}."
        )
    product = (input1 * input2).sum(-1)
    # differences, as in margin_ranking_loss
    squares1 = COSINE_EPSILON - -(input1 * input1).sum(-1)
    squares2 = COSINE_EPSILON - -(input2 * input2).sum(-1)
    cosine = product / torch.sqrt(squares1 * squares2)
    near = torch.where(target == 1, 1 - cosine, 0)
    far = torch.where(target == -1, torch.clamp(-(margin - cosine), min=0), 0)
    return reduced(near + far, number)


@traced_as(F.triplet_margin_loss)
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = max(0, margin + d(anchor, positive) - d(anchor, negative)), d the p-norm distance; reduced.

    Args:    margin: above 0, default 1; p, eps: of the distance, see `pairwise_distance`; default 2 and 1e-6
             swap: take the smaller of d(anchor, negative) and d(positive, negative); default False
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   anchor, positive, negative: [batch, cols] or [cols]
             returns: [batch] or [], or a scalar when reduced
    dtype:   as `pairwise_distance`; 16 bits round at every step
    Raises:  ValueError unless margin > 0, and for an unknown reduction; RuntimeError when the numbers of
             dimensions differ, and for bool
    Source:  Balntas et al., Learning local feature descriptors with triplets and shallow convolutional neural
             networks, 2016; aten/native/Loss.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return pairwise_distance.__wrapped__(a, b, p, eps)

    return reduced(_triplet(anchor, positive, negative, distance, margin, swap), number)


@traced_as(F.triplet_margin_with_distance_loss)
def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """triplet_margin_loss with a distance of one's own (default: pairwise_distance).

    Args:    distance_function: of two tensors; margin: above 0, default 1
             swap: take the smaller of d(anchor, negative) and d(positive, negative); default False
             reduction: mean, sum or none
    Shape:   anchor, positive, negative: what distance_function takes
             returns: what it returns, or a scalar when reduced
    dtype:   that of the distances; 16 bits round at every step
    Raises:  ValueError unless margin > 0 and for an unknown reduction; RuntimeError when the numbers of
             dimensions differ
    Source:  torch.nn.functional
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")
    distance = pairwise_distance.__wrapped__ if distance_function is None else distance_function
    losses = _triplet(anchor, positive, negative, distance, margin, swap)
    return reduced(losses, reduction_number(reduction))


def _triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    margin: float,
    swap: bool,
) -> Tensor:
    if not anchor.ndim == positive.ndim == negative.ndim:
        raise RuntimeError(
            "The anchor, positive, and negative tensors are expected to have the same number of "
            "dimensions, but "
            f"got: anchor {anchor.ndim}D, positive {positive.ndim}D, and negative {negative.ndim}D inputs"
        )
    to_positive = distance(anchor, positive)
    to_negative = distance(anchor, negative)
    if swap:
        to_negative = torch.minimum(to_negative, distance(positive, negative))
    return torch.clamp(margin - (to_negative - to_positive), min=0)


@traced_as(F.multi_margin_loss)
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = sum over c != target of weight[target] * max(0, margin - input[target] + input[c])^p / classes.

    Args:    p: 1 (default) or 2; margin: default 1
             reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input: [batch, classes] or [classes]   target: [batch] or []   weight: [classes]
             returns: as target, a scalar when reduced
    dtype:   float32 or float64, returned as input's, weight's the same; target int64; 16 bits on other
             devices than the CPU only, computed in float32
    Raises:  ValueError unless p is 1 or 2 and weight one-dimensional, and for an unknown reduction;
             RuntimeError for shapes, dtypes and targets that do not fit; NotImplementedError for 16 bits on
             the CPU and integers
    Source:  aten/native/LossMultiMargin.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    if weight is not None and weight.dim() != 1:
        raise ValueError("weight must be one-dimensional")
    require_no_gradient("multi_margin_loss", weight=weight)
    _check_scores_not_empty(input)
    rows = input.reshape(1, -1) if input.dim() < 2 else input
    indices = target.reshape(-1)
    batch, classes = rows.shape
    if indices.numel() != batch or target.dim() > 1 or (input.dim() == 2 and target.dim() == 0):
        raise RuntimeError(
            "multi_margin_loss: target tensor should be 1-D with size equal to the number of input samples "
            f"(batch size). Expected target size [{batch}], but got {list(target.shape)}. "
            f"Input has shape {list(input.shape)}."
        )
    if weight is not None and weight.numel() != classes:
        raise RuntimeError(f"inconsistent weight size, expected {classes} but got {list(weight.shape)}")
    _check_dtypes("multi_margin_loss_cpu_kernel", input, target)
    if weight is not None and weight.dtype != input.dtype:
        raise RuntimeError(f"expected scalar type {type_name(input)} but found {type_name(weight)}")
    if can_read_values(indices) and ((indices < 0) | (indices >= classes)).any():
        raise RuntimeError("target out of range")
    return multi_margin_loss_forward(input, target, p, margin, weight, number)


@traced_as(F.multilabel_margin_loss)
def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """out = sum over labels t and other classes c of max(0, 1 - (input[t] - input[c])) / classes, reduced.

    The labels of a row are its targets before the first negative one.

    Args:    reduction: mean, sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [batch, classes] or [classes]   returns: [batch] or [], a scalar when reduced
    dtype:   float32 or float64, returned as input's; target int64; 16 bits on other devices than the CPU
             only, computed in float32
    Raises:  RuntimeError when the shapes differ, a label is no class or no int64; NotImplementedError for 16
             bits on the CPU and integers; ValueError for an unknown reduction
    Source:  aten/native/LossMultiLabelMargin.cpp
    """
    number = reduction_number(reduction, size_average, reduce)
    _check_scores_not_empty(input)
    if input.dim() < 2 and input.numel() == target.numel() == 1 and target.dim() < 2:
        target = target.reshape(input.shape)
    if input.shape != target.shape:
        raise RuntimeError(
            f"inconsistent target size: {list(target.shape)} for input of size: {list(input.shape)}"
        )
    classes = input.size(-1) if input.dim() > 0 else 1
    if can_read_values(target) and ((target < -1) | (target >= classes)).any():
        raise RuntimeError("argument #2 'target' is out of range")
    _check_dtypes("multilabel_margin_loss_forward_out_frame", input, target)
    return multilabel_margin_loss_forward(input, target, number)[0]


def _check_dtypes(kernel: str, input: Tensor, target: Tensor) -> None:
    """C++ looks at them where there is something to compute. Raises: NotImplementedError, RuntimeError"""
    if input.numel() == 0:
        return
    takes_16_bits = not input.is_cpu and input.is_floating_point()
    if input.dtype not in (torch.float32, torch.float64) and not takes_16_bits:
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")
    if target.dtype != torch.int64:
        raise RuntimeError(f"expected scalar type Long but found {type_name(target)}")


def _check_scores_not_empty(input: Tensor) -> None:
    """Without a class there is nothing to rank; without a row there is nothing to do."""
    if input.dim() > 2 or (input.dim() > 0 and input.size(-1) == 0):
        raise RuntimeError(
            "Expected non-empty vector or matrix with optional 0-dim batch size, but got: "
            f"{list(input.shape)}"
        )
