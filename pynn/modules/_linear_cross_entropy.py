"""A linear layer and the cross-entropy of its outputs in one, without ever holding all logits."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

from pynn.construction import init_module
from pynn.definitions import Function, defines, traced_as, widen
from pynn.modules._classification_losses import class_weights, cross_entropy
from pynn.modules._softmax import log_softmax_of
from pynn.modules.linear import Linear, linear

__all__ = ["LinearCrossEntropyLoss", "linear_cross_entropy"]


# ---- definitions -----------------------------------------------------------------------------------------


def logits_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight^T + bias in float32 or wider: [rows, classes]."""
    logits = widen(x) @ widen(weight).t()
    return logits if bias is None else logits + widen(bias)


def chunk_losses(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """-log softmax(logits) at the target: [rows]."""
    return -log_probabilities.gather(1, target.unsqueeze(1)).squeeze(1)


def chunk_logit_gradient(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """d loss / d logits = softmax(logits) - onehot(target): [rows, classes]."""
    probabilities = log_probabilities.exp()
    classes = torch.arange(log_probabilities.size(1), device=target.device)
    return torch.where(classes == target.unsqueeze(1), probabilities - 1, probabilities)


def chunk_log_probabilities(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """log softmax(logits): [rows, classes]."""
    return log_softmax_of(logits_of(x, weight, bias), 1)


def losses_of_chunks(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk_size: int
) -> Tensor:
    """chunk_losses of all rows: [batch]."""
    chunks = zip(x.split(chunk_size), target.split(chunk_size), strict=True)
    return torch.cat(
        [chunk_losses(chunk_log_probabilities(rows, weight, bias), labels) for rows, labels in chunks]
    )


OPERATIONS = torch.ops.torch_nn
"""torch's own are Python, made of chunks written in place; tracers see one operation."""


@defines(OPERATIONS._linear_cross_entropy_batch_chunked_no_reduction.default)
def chunked_losses_forward(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    batch_chunk_size: int,
    acc_policy: str,
    acc_dtype: torch.dtype,
) -> Tensor:
    """The loss of each row times its class's factor: [batch]."""
    labels, factors = labels_and_factors(target, weight, ignore_index, widen(input).dtype)
    losses = losses_of_chunks(input, linear_weight, linear_bias, labels, batch_chunk_size)
    return torch.where(target != ignore_index, losses * factors, 0).to(input.dtype)


@defines(OPERATIONS._linear_cross_entropy_batch_chunked.default)
def chunked_loss_forward(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    batch_chunk_size: int,
    acc_policy: str,
    acc_dtype: torch.dtype,
    allow_retain_graph: bool,
    compute_input_grad: bool,
    compute_linear_weight_grad: bool,
    compute_linear_bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum or mean of the losses, and its gradients in input, linear_weight and linear_bias: each chunk's logits
    serve for both."""
    labels, factors = labels_and_factors(target, weight, ignore_index, widen(input).dtype)
    if reduction == "mean":
        factors = factors / factors.sum()
    loss = torch.zeros((), dtype=factors.dtype, device=input.device)
    grad_x: list[Tensor] = []
    grad_weight = grad_bias = loss
    is_counted = target != ignore_index
    rows = (t.split(batch_chunk_size) for t in (input, labels, factors, is_counted))
    for x, label, factor, counts in zip(*rows, strict=True):
        log_probabilities = chunk_log_probabilities(x, linear_weight, linear_bias)
        loss = loss + torch.where(counts, chunk_losses(log_probabilities, label) * factor, 0).sum()
        # [chunk, classes]
        slope = chunk_logit_gradient(log_probabilities, label) * factor.unsqueeze(1)
        if compute_input_grad:
            grad_x.append(slope @ widen(linear_weight))
        if compute_linear_weight_grad:
            grad_weight = grad_weight + slope.t() @ widen(x)
        if compute_linear_bias_grad:
            grad_bias = grad_bias + slope.sum(0)
    return (
        loss.to(input.dtype),
        torch.cat(grad_x).to(input.dtype) if compute_input_grad else input.new_empty(0, 0),
        grad_weight.to(input.dtype) if compute_linear_weight_grad else input.new_empty(0, 0),
        grad_bias.to(input.dtype) if compute_linear_bias_grad else input.new_empty(0),
    )


def labels_and_factors(
    target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Targets with 0 in place of ignore_index, and weight[target], 0 where it is ignored."""
    labels = torch.where(target != ignore_index, target, 0)
    weight = None if weight is None else widen(weight)
    like = torch.empty((), dtype=dtype, device=target.device) if weight is None else weight
    return labels, class_weights(like, target, weight, ignore_index)


class _ChunkedLosses(Function):
    """The loss of each row, chunk of rows by chunk of rows.

    Only one chunk's logits exist at a time: the backward computes them again. It is made of differentiable
    operations, so that, unlike in torch, it can be differentiated and repeated.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk_size: int) -> Tensor:
        return losses_of_chunks(x, weight, bias, target, chunk_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.chunk_size = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, bias, target = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x: list[Tensor] = []
        grad_weight = grad_bias = torch.zeros((), dtype=grad.dtype, device=grad.device)
        chunks = zip(*(t.split(ctx.chunk_size) for t in (x, target, grad)), strict=True)
        for rows, labels, grad_rows in chunks:
            # [chunk, classes]
            log_probabilities = chunk_log_probabilities(rows, weight, bias)
            gradient = chunk_logit_gradient(log_probabilities, labels) * grad_rows.unsqueeze(1)
            if needs_x:
                grad_x.append(gradient @ widen(weight))
            if needs_weight:
                grad_weight = grad_weight + gradient.t() @ widen(rows)
            if needs_bias:
                grad_bias = grad_bias + gradient.sum(0)
        return (
            torch.cat(grad_x).to(x.dtype) if needs_x else None,
            grad_weight.to(weight.dtype) if needs_weight else None,
            grad_bias.to(bias.dtype) if needs_bias else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_tangent: Any, weight_tangent: Any, bias_tangent: Any, *_: Any) -> Tensor:
        x, weight, bias, target = ctx.saved_tensors
        tangents = [None] * math.ceil(x.size(0) / ctx.chunk_size)
        x_tangents = tangents if x_tangent is None else x_tangent.split(ctx.chunk_size)
        chunks = zip(x.split(ctx.chunk_size), target.split(ctx.chunk_size), x_tangents, strict=True)
        losses = []
        for rows, labels, rows_tangent in chunks:
            slope = chunk_logit_gradient(chunk_log_probabilities(rows, weight, bias), labels)
            loss = torch.zeros_like(slope[:, 0])
            if rows_tangent is not None:
                loss = loss + (slope * logits_of(rows_tangent, weight, None)).sum(1)
            if weight_tangent is not None:
                loss = loss + (slope * logits_of(rows, weight_tangent, None)).sum(1)
            if bias_tangent is not None:
                loss = loss + (slope * widen(bias_tangent)).sum(1)
            losses.append(loss)
        return torch.cat(losses)


# ---- public functions ------------------------------------------------------------------------------------


@traced_as(F.linear_cross_entropy)
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
) -> Tensor:
    """out = cross_entropy(linear(input, linear_weight, linear_bias), target, ...).

    Args:    weight: a factor for each class; reduction: mean, sum or none
             ignore_index: a target that counts for nothing; for class indices only, None means -100
             label_smoothing: from 0 (default) to 1
             options: how many rows to take at a time, so that the logits of the others take no memory;
             ignored with a warning for probabilities, label smoothing and more than one output a class. Its
             acc_policy and acc_dtype change nothing here: 16-bit inputs are always computed with in float32
    Shape:   input: [batch, in_features] or [in_features]   linear_weight: [classes, *, in_features]
             target: [batch, *], or [batch, classes, *] probabilities   linear_bias: [classes, *]   weight: [classes]
             returns: a scalar, or as target with reduction none
    dtype:   floating point, returned as input's, weights and bias the same; computes in float32 for 16-bit
             inputs; without options the logits are rounded
    Raises:  RuntimeError for shapes and dtypes that do not fit; IndexError for a target that is no class;
             ValueError for an unknown reduction; NotImplementedError for integers
    Source:  torch/nn/functional.py, torch/nn/modules/linear_cross_entropy.py. differs from torch in: with options
             the gradient can be differentiated, repeated and taken forwards
    """
    logits_shape = _checked_logits_shape(input, linear_weight, linear_bias)
    out_features = linear_weight.shape[1:-1]
    if target.shape == logits_shape and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    ignore_index = -100 if ignore_index is None else ignore_index
    if options is not None:
        can_chunk = reduction in ("mean", "sum", "none") and label_smoothing == 0 and not out_features
        if can_chunk and target.dtype == torch.int64:
            return _chunked(
                input, linear_weight, target, linear_bias, weight, reduction, ignore_index, options
            )
        warnings.warn(
            "linear_cross_entropy: ``options`` ignored; chunked path needs reduction in {'mean','sum','none'}, "
            "label_smoothing == 0, target.dtype == int64, out_features == (). Got "
            f"reduction={reduction!r}, label_smoothing={label_smoothing}, target.dtype={target.dtype}, "
            f"out_features={tuple(out_features)}.",
            stacklevel=3,
        )
    if out_features:
        linear_weight = linear_weight.reshape(-1, linear_weight.size(-1))
        linear_bias = None if linear_bias is None else linear_bias.reshape(-1)
    # [batch, classes * prod(out_features)] -> [batch, classes, *out_features]
    logits = linear(input, linear_weight, linear_bias).reshape(logits_shape)
    return cross_entropy(
        logits,
        target,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def _chunked(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    options: LinearCrossEntropyOptions,
) -> Tensor:
    """The losses of rows, taken options' chunk at a time, weighted and reduced."""
    is_batched = input.dim() == 2
    if not is_batched:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    (rows, in_features), classes = input.shape, linear_weight.size(0)
    options = options._adjust(rows, in_features, classes, input.dtype, input.device)
    is_narrow = input.dtype in (torch.float16, torch.bfloat16)
    if options.acc_dtype != input.dtype and not (is_narrow and options.acc_dtype == torch.float32):
        raise RuntimeError(
            "linear_cross_entropy supports float32 acc_dtype with float16/bfloat16 inputs, but got "
            f"{options.acc_dtype} acc_dtype and {input.dtype} inputs."
        )
    labels, factors = labels_and_factors(target, weight, ignore_index, widen(input).dtype)
    losses = _ChunkedLosses.apply(input, linear_weight, linear_bias, labels, options.batch_chunk_size)
    losses = torch.where(target != ignore_index, losses * factors, 0)
    if reduction == "mean":
        losses = losses.sum() / factors.sum()
    elif reduction == "sum":
        losses = losses.sum()
    losses = losses.to(input.dtype)
    return losses if is_batched or reduction != "none" else losses.squeeze(0)


def _checked_logits_shape(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None
) -> tuple[int, ...]:
    """[batch, classes, *out_features], without batch for a single sample."""
    if not 1 <= input.dim() <= 2:
        raise RuntimeError(f"expected input with dimensionality 1 or 2, got {input.dim()}")
    if linear_weight.dim() < 2:
        raise RuntimeError(
            f"expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}"
        )
    in_features = input.size(-1)
    if in_features != linear_weight.size(-1):
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), "
            f"got {in_features} and {linear_weight.size(-1)}, respectively"
        )
    outputs = tuple(linear_weight.shape[:-1])
    if linear_bias is not None and tuple(linear_bias.shape) != outputs:
        raise RuntimeError(f"expected linear_bias shape {outputs}, got {tuple(linear_bias.shape)}")
    if len(outputs) > 1 and input.dim() == 1:
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {tuple(linear_weight.shape)} requires batched "
            f"input, (N, {in_features}), got unbatched input with shape {tuple(input.shape)}"
        )
    return (*input.shape[:-1], *outputs)


# ---- classes ---------------------------------------------------------------------------------------------


class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
    """cross_entropy(linear(input), target), with a linear layer of its own.

    Args:    in_features, num_classes, out_features: the linear layer gives num_classes * prod(out_features)
             bias: whether it has one   weight: a factor for each class
             reduction, ignore_index, label_smoothing, options: as `linear_cross_entropy`'s
    Shape:   input: [batch, in_features] or [in_features]
             target: [batch, *out_features], or [batch, num_classes, *out_features] probabilities
             returns: a scalar, or [batch, *out_features] with reduction none
    Raises:  RuntimeError for a weight of another shape or a label_smoothing outside [0, 1]
    Source:  see `linear_cross_entropy`
    """

    __constants__ = ["num_classes", "out_features", "reduction", "ignore_index", "label_smoothing"]

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device=None,
        dtype=None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}")
        if label_smoothing < 0 or label_smoothing > 1.0:
            raise RuntimeError(f"expected label_smoothing to be in range [0, 1], got {label_smoothing}")
        init_module(LinearCrossEntropyLoss, self)
        self.reduction = reduction
        self.register_buffer("weight", weight)
        self.num_classes = num_classes
        self.out_features = out_features
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        outputs = math.prod(out_features, start=num_classes)
        # flat, because a Linear has one output dimension; forward gives it its shape
        self.linear = Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)
        self.options = options

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        outputs, linear_bias = (self.num_classes, *self.out_features), self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*outputs, self.linear.in_features),
            target,
            linear_bias=None if linear_bias is None else linear_bias.reshape(outputs),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, "
            f"reduction={self.reduction}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, options={self.options}"
        )
