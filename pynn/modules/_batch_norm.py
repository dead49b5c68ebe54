"""Batch normalisation: the ATen operations' definitions. The function is in _batch_norm_functions.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynn.blocks import in_slices
from pynn.definitions import defines, widen
from pynn.memory_format import in_contiguous_format_of

aten = torch.ops.aten


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


def normalised_in_float64(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """normalised_by_batch where a sum, or the square of a rounding, overflows float32: C++ adds in float64."""
    wide = [None if value is None else value.to(torch.float64) for value in (x, weight, bias)]
    out, mean, variance = normalised_by_batch(*wide, eps)  # type: ignore[arg-type]
    dtype = widen(x).dtype
    return out.to(x.dtype), mean.to(dtype), variance.to(dtype)


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
    pairs = zip(running, observed, strict=True)
    moved = [torch.add((1 - momentum) * widen(old), new, alpha=momentum) for old, new in pairs]
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
