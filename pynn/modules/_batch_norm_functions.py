"""The function batch_norm with its gradients; the mathematics is in _batch_norm, the classes in batchnorm.py."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from pynn.blocks import is_watched
from pynn.definitions import Function, traced_as, widen
from pynn.modules._batch_norm import (
    all_but_channels,
    along_channels,
    batch_norm_backward,
    moved_statistics,
    normalised_by_batch,
    normalised_by_running,
    normalised_in_float64,
    values_per_channel,
)
from pynn.modules._normalization_checks import (
    check_parameter_dtypes,
    check_statistics,
    require_several_values,
)

aten = torch.ops.aten


class _BatchNorm(Function):
    """normalised_by_batch with batch_norm_backward.

    The statistics are outputs with gradients of their own, so that what the backward pass makes of them is
    differentiated in its turn.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = normalised_by_batch(x, weight, bias, eps)
        return normalised_in_float64(x, weight, bias, eps) if overflows(found[2]) else found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, variance = output
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.save_for_forward(
            x, weight, mean, variance
        )  # as many: the generated vmap rule takes one list for both
        # gradients that nobody asks for stay None, which the generated vmap rule does not take
        ctx.set_materialize_grads(torch._C._are_functorch_transforms_active())

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor | None, grad_variance: Tensor | None) -> tuple:
        x, weight, mean, variance = ctx.saved_tensors
        gradients: tuple = (None, None, None)
        if grad is not None:
            rstd = torch.rsqrt(variance + ctx.eps)
            mask = list(ctx.needs_input_grad[:3])
            gradients = batch_norm_backward(grad, x, weight, None, None, mean, rstd, True, ctx.eps, mask)
        if ctx.needs_input_grad[0] and grad_mean is not None and grad_variance is not None:
            # d mean / dx = 1 / count,   d variance / dx = 2 * (x - mean) / count
            centred = widen(x) - along_channels(mean, x)
            through = along_channels(grad_mean, x) + 2 * centred * along_channels(grad_variance, x)
            through = (through / values_per_channel(x)).to(x.dtype)
            gradients = (through if grad is None else gradients[0] + through, *gradients[1:])
        return (*gradients, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, _: None) -> tuple:
        """The Jacobian of x -> n = (x - mean) * rstd is symmetric, so batch_norm_backward applies it."""
        x, weight, *_ = ctx.saved_tensors
        n, mean, variance = normalised_by_batch(widen(x), None, None, ctx.eps)
        out, mean_tangent, variance_tangent = (
            torch.zeros_like(n),
            torch.zeros_like(mean),
            torch.zeros_like(mean),
        )
        if dx is not None:
            dx, dims = widen(dx), all_but_channels(x)
            rstd, mask = torch.rsqrt(variance + ctx.eps), [True, False, False]
            out = batch_norm_backward(dx, widen(x), weight, None, None, mean, rstd, True, ctx.eps, mask)[0]
            mean_tangent = dx.mean(dims)
            variance_tangent = 2 * (dx * (widen(x) - along_channels(mean, x))).mean(dims)
        if dweight is not None:
            out = out + n * along_channels(dweight, x)
        if dbias is not None:
            out = out + along_channels(dbias, x)
        return out.to(x.dtype), mean_tangent, variance_tangent


class _RunningNorm(Function):
    """normalised_by_running with batch_norm_backward; the statistics get no gradient."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        return normalised_by_running(x, weight, bias, mean, variance, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _, mean, variance, ctx.eps = inputs
        # copies: a step of training between here and the backward pass moves the running statistics
        kept = x, weight, mean.clone(), variance.clone()
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, mean, variance = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        found = batch_norm_backward(grad, x, weight, mean, variance, None, None, False, ctx.eps, mask)
        return (*found, None, None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: Any) -> Tensor:
        x, weight, mean, variance = ctx.saved_tensors
        out = torch.zeros_like(widen(x))
        if dx is not None:
            out = normalised_by_running(widen(dx), weight, None, torch.zeros_like(mean), variance, ctx.eps)
        if dweight is not None:
            out = out + normalised_by_running(widen(x), dweight, None, mean, variance, ctx.eps)
        if dbias is not None:
            out = out + along_channels(dbias, x)
        return out.to(x.dtype)


def overflows(variance: Tensor) -> bool:
    """Whether one can be seen to be infinite or NaN: of plain tensors only, and without waiting for a GPU."""
    is_seen = type(variance) is Tensor and variance.is_cpu and not is_watched()
    return is_seen and not math.isfinite(variance.sum().item())


@traced_as(F.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel.

    In training, mean and (biased) variance are the batch's, and the running statistics move in place:

        running = (1 - momentum) * running + momentum * observed      (observed variance: the unbiased one)

    Args:    running_mean, running_var: used outside training; momentum: default 0.1; eps: default 1e-5
    Shape:   input: [batch, channels, *]   the others: [channels]   returns: same as input
    dtype:   computes in float32 for 16-bit inputs; the others may then all be float32
    Raises:  ValueError for one value per channel in training, or eps out of range; RuntimeError when sizes or
             dtypes do not match, or running statistics are missing outside training
    Source:  Ioffe and Szegedy, Batch normalization, 2015; aten/native/Normalization.cpp. Differs from torch in:
             a step of training between the evaluation and its backward pass does not change the gradient
    """
    if training:
        require_several_values(input.size())
    if eps < 0.0 or (training and eps <= 0.0):
        kind = "positive during training" if training else "non-negative"
        raise ValueError(f"batch_norm eps must be {kind}, but got {eps}")
    return normalise(input, running_mean, running_var, weight, bias, training, momentum, eps)


def normalise(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """batch_norm without the checks that torch makes in Python: at::batch_norm, which instance_norm calls too."""
    if input.numel() == 0:
        return _of_nothing(input, weight, bias)
    channels = input.size(1) if input.dim() > 1 else 0
    statistics = {"running_mean": running_mean, "running_var": running_var}
    for name, value in {**statistics, "weight": weight, "bias": bias}.items():
        if value is not None and value.numel() != channels:
            raise RuntimeError(f"{name} should contain {channels} elements not {value.numel()}")
        if value is None and name in statistics and not training:
            raise RuntimeError(f"{name} must be defined in evaluation mode")
    check_parameter_dtypes("batch_norm", input, weight, bias, running_mean, running_var)
    check_statistics(input, running_mean, running_var, training)
    input.size(1)  # raises IndexError where there are no channels
    if not training:
        if has_tangent(input, weight, bias) and has_tangent(running_mean, running_var):
            raise RuntimeError(
                "batch_norm is not differentiable wrt running_mean and running_var, they cannot have forward grad "
                "defined"
            )
        return _RunningNorm.apply(input, weight, bias, running_mean, running_var, eps)
    out, mean, variance = _BatchNorm.apply(input, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        running = running_mean, running_var
        observed = mean.detach(), variance.detach()
        write_statistics(running, moved_statistics(running, *observed, values_per_channel(input), momentum))
    return out


def write_statistics(running: Sequence[Tensor], moved: Sequence[Tensor]) -> None:
    """running <- moved, in place: one operation for all of them, as the update is one part of ATen's batch_norm.

    A tensor subclass meets it whole, and may have observed an input whose running statistics are plain tensors.
    """
    if not torch._C._are_functorch_transforms_active():
        if running:
            torch._foreach_copy_(running, moved)
        return
    # one by one, which vmap has rules for; aliases: these may be tensors from outside, which may not be written
    for old, new in zip(running, moved, strict=True):
        aten.alias(old).copy_(new)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode AD differentiates one of these."""
    if forward_ad._current_level < 0:
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def _of_nothing(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """No values: an empty result that gives its parameters gradients of 0, and no statistics."""
    out = input.clone()
    if weight is not None:
        out = out * weight.reshape([1, -1, *[1] * (input.dim() - 2)])
    if bias is not None:
        out = out + bias.reshape([1, -1, *[1] * (input.dim() - 2)])
    return out.to(input.dtype)
