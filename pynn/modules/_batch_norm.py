"""Batch normalisation: the ATen operations' definitions and the function. Its classes are in batchnorm.py."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from pynn.blocks import in_slices
from pynn.definitions import Function, defines, traced_as, widen
from pynn.memory_format import in_contiguous_format_of
from pynn.modules._normalization_checks import (
    check_parameter_dtypes,
    check_statistics,
    require_several_values,
)

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


def along_channels(vector: Tensor, x: Tensor) -> Tensor:
    """[channels] -> [1, channels, 1, ...] with as many dimensions as x, in float32 where 16-bit."""
    return widen(vector).reshape([1, -1, *[1] * (x.dim() - 2)])


def all_but_channels(x: Tensor) -> list[int]:
    """The dimensions a batch's statistics are taken over."""
    return [0, *range(2, x.dim())]


def values_per_channel(x: Tensor) -> Any:
    """How many numbers each channel has: the product of all sizes but the channels'."""
    count = x.size(0)
    for size in x.shape[2:]:
        count = count * size
    return count


def moments(x: Tensor, average: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x - m, the mean's part that the rounding of m left out, the mean, and the biased variance.

        centred = x - m,   rest = average(centred),   mean = m + rest,   variance = average(centred^2) - rest^2

    m = average(x) misses the mean by some roundings: of m, not of the spread, so that they weigh where the mean
    is large. Being small, rest can be measured well. Where its square would overflow the variance does: it is held
    back there, so that the variance is infinite (and the numbers become 0, as in C++), not the NaN of inf - inf.

    Args:    average: over the numbers that are normalised together, in a shape that broadcasts against x
    Source:  Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983 (corrected two-pass)
    """
    approximate = average(x)
    centred = x - approximate
    bound = torch.finfo(x.dtype).max ** 0.5 / 2
    rest = average(centred).clamp(-bound, bound)
    variance = average(centred * centred) - rest * rest
    return centred, rest, approximate + rest, variance.clamp_min(0)  # rounding may have left it below


def average_per_channel(x: Tensor) -> Tensor:
    """[batch, channels, *] -> [1, channels, 1, ...]"""
    return x.mean(all_but_channels(x), keepdim=True)


def normalised_by_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias, the mean, and the biased variance.

    Shape:   x: [batch, channels, *]   returns: same as x, [channels], [channels]
    dtype:   computes in float32 for a 16-bit x, and leaves the statistics so
    """

    def of_channels(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        centred, rest, mean, variance = moments(widen(x), average_per_channel)
        scale = torch.rsqrt(variance + eps)
        scale = scale if weight is None else scale * along_channels(weight, x)
        shift = -rest * scale
        shift = shift if bias is None else shift + along_channels(bias, x)
        return (centred * scale + shift).to(x.dtype), mean.flatten(), variance.flatten()

    out, mean, variance = in_slices(of_channels, (x, weight, bias), (1, 0, 0), (1, 0, 0))
    return in_contiguous_format_of(x, out), mean, variance


def normalised_by_running(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias with given statistics, as x * scale + shift."""
    scale = torch.rsqrt(widen(variance) + eps)
    scale = scale if weight is None else scale * widen(weight)
    shift = -widen(mean) * scale
    shift = shift if bias is None else shift + widen(bias)
    out = widen(x) * along_channels(scale, x) + along_channels(shift, x)
    return in_contiguous_format_of(x, out.to(x.dtype))


def moved_statistics(
    running: tuple[Tensor, Tensor], mean: Tensor, variance: Tensor, count: Any, momentum: float
) -> tuple[Tensor, Tensor]:
    """(1 - momentum) * running + momentum * observed, for the mean and the unbiased variance.

    Args:    variance: the biased one, of count values
    """
    observed = mean, variance * count / (count - 1)
    moved = [(1 - momentum) * widen(old) + momentum * new for old, new in zip(running, observed, strict=True)]
    return moved[0].to(running[0].dtype), moved[1].to(running[1].dtype)


@defines(aten._native_batch_norm_legit_functional.default)
def batch_norm_functional(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, the batch's mean and 1 / sqrt(variance + eps), and the running statistics after it.

    dtype:   mean and rstd are float32 for a 16-bit x (ATen's CPU kernel may round them to 16 bits)
    """
    if not training:
        out, mean, rstd = batch_norm_inference(x, weight, bias, running_mean, running_var, momentum, eps)
        return out, mean, rstd, running_mean.clone(), running_var.clone()
    out, mean, variance = normalised_by_batch(x, weight, bias, eps)
    running = running_mean, running_var
    moved = moved_statistics(running, mean, variance, values_per_channel(x), momentum)
    return out, mean, torch.rsqrt(variance + eps), *moved


@defines(aten._native_batch_norm_legit.no_stats)
def batch_norm_without_running(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the batch's mean and 1 / sqrt(variance + eps)."""
    out, mean, variance = normalised_by_batch(x, weight, bias, eps)
    return out, mean, torch.rsqrt(variance + eps)


@defines(aten._native_batch_norm_legit_no_training.default)
def batch_norm_inference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and two empty tensors in the place of the batch's statistics."""
    out = normalised_by_running(x, weight, bias, running_mean, running_var, eps)
    return out, running_mean.new_empty(0), running_mean.new_empty(0)


@defines(aten.native_batch_norm.default, aten._native_batch_norm_legit.default)
def batch_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same; in training the running statistics, if any, are moved in place."""
    if running_mean is None or running_var is None:
        return batch_norm_without_running(x, weight, bias, training, momentum, eps)
    if not training:
        return batch_norm_inference(x, weight, bias, running_mean, running_var, momentum, eps)
    out, mean, rstd, *moved = batch_norm_functional(
        x, weight, bias, running_mean, running_var, training, momentum, eps
    )
    running_mean.copy_(moved[0])
    running_var.copy_(moved[1])
    return out, mean, rstd


def _no_reserve(x: Tensor) -> Tensor:
    """What other backends keep for the backward pass besides the statistics: nothing here."""
    return torch.empty(0, dtype=torch.uint8, device=x.device)


@defines(aten._batch_norm_with_update_functional.default)
def batch_norm_with_update_functional(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """batch_norm_functional in training, with an empty reserve."""
    out, mean, rstd, *moved = batch_norm_functional(
        x, weight, bias, running_mean, running_var, True, momentum, eps
    )
    return out, mean, rstd, _no_reserve(x), moved[0], moved[1]


@defines(aten._batch_norm_with_update.default)
def batch_norm_with_update(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """batch_norm_forward in training, with an empty reserve."""
    out = batch_norm_forward(x, weight, bias, running_mean, running_var, True, momentum, eps)
    return *out, _no_reserve(x)


@defines(aten._batch_norm_no_update.default)
def batch_norm_no_update(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """batch_norm_forward in evaluation, with an empty reserve."""
    out = batch_norm_forward(x, weight, bias, running_mean, running_var, False, momentum, eps)
    return *out, _no_reserve(x)


@defines(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    training: bool,
    eps: float,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With n = (x - mean) * rstd, and means and sums over all but the channels:

    dx = weight * rstd * (grad - mean(grad) - n * mean(grad * n))     in training
    dx = weight * rstd * grad                                         with the running statistics
    dweight = sum(grad * n),   dbias = sum(grad)
    """
    if not training:
        mean, rstd = running_mean, torch.rsqrt(widen(running_var) + eps)
    wants_dx, wants_dweight, wants_dbias = output_mask

    def of_channels(grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor) -> tuple:
        values, gradient, dims = widen(x), widen(grad), all_but_channels(x)
        centred, rstd = values - along_channels(mean, x), along_channels(rstd, x)
        scale = rstd if weight is None else rstd * along_channels(weight, x)
        dx = dweight = dbias = None
        if training or wants_dweight:
            products = (gradient * centred).sum(dims, keepdim=True)
            dweight = (products * rstd).flatten()
        if training or wants_dbias:
            total = gradient.sum(dims, keepdim=True)
            dbias = total.flatten()
        if wants_dx and training:
            count = values_per_channel(x)
            slope, level = -products * rstd * rstd * scale / count, -total * scale / count
            dx = torch.addcmul(centred * slope + level, gradient, scale).to(x.dtype)
        elif wants_dx:
            dx = (gradient * scale).to(x.dtype)
        return dx, dweight, dbias

    dx, dweight, dbias = in_slices(of_channels, (grad, x, weight, mean, rstd), (1, 1, 0, 0, 0), (1, 0, 0))
    like = mean if weight is None else weight
    return (
        in_contiguous_format_of(x, dx) if wants_dx else None,
        dweight.to(like.dtype) if wants_dweight else None,
        dbias.to(like.dtype) if wants_dbias else None,
    )


@defines(aten.batch_norm_backward.default)
def batch_norm_backward_with_reserve(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    update: bool,
    eps: float,
    output_mask: list[bool],
    reserve: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same; nothing is kept in the reserve."""
    statistics = running_mean, running_var, mean, rstd
    return batch_norm_backward(grad, x, weight, *statistics, update, eps, output_mask)


# ---- public function -------------------------------------------------------------------------------------


class _BatchNorm(Function):
    """normalised_by_batch with batch_norm_backward.

    The statistics are outputs with gradients of their own, so that what the backward pass makes of them is
    differentiated in its turn.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return normalised_by_batch(x, weight, bias, eps)

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
