"""Batch normalisation over the processes of a group: each has a part of the batch."""

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from pynn.definitions import widen
from pynn.memory_format import in_format_of
from pynn.modules._batch_norm import (
    all_but_channels,
    along_channels,
    moved_statistics,
    normalised_by_running,
    values_per_channel,
)


def gathered(vector: Tensor, group: Any) -> Tensor:
    """Every process's vector: [n] -> [processes, n]."""
    parts = [torch.empty_like(vector) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, vector, group)
    return torch.stack(parts)


def statistics_of_group(x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel over all processes, and how many values a channel has there.

        mean = sum(count_i * mean_i) / sum(count_i)
        variance = sum(count_i * (variance_i + (mean_i - mean)^2)) / sum(count_i)

    A process without values takes part with a count of 0.

    Source:  Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for variances, 1979
    """
    values, channels = widen(x), x.size(1)
    own = values.new_zeros(2 * channels + 1)
    if x.numel() > 0:
        dims = all_but_channels(x)
        mean = values.mean(dims, keepdim=True)
        variance = (values - mean).square().mean(dims)
        own = torch.cat([mean.flatten(), variance, values.new_full((1,), values_per_channel(x))])
    # [processes, channels], [processes, channels], [processes, 1]
    means, variances, counts = gathered(own, group).split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean, variance, count


class _SyncBatchNorm(torch.autograd.Function):
    """Normalises by the group's statistics; the sums of the gradient are taken over the group as well.

    dweight and dbias are this process's own: what trains in parallel adds those up itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
        group: Any,
    ) -> Tensor:
        mean, variance, count = statistics_of_group(x, group)
        if running_mean is not None and running_var is not None:
            running = running_mean, running_var
            for old, new in zip(
                running, moved_statistics(running, mean, variance, count, momentum), strict=True
            ):
                old.copy_(new)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.group = group
        return normalised_by_running(x, weight, bias, mean, variance, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """batch_norm_backward with sum(grad) and sum(grad * (x - mean)) over the group."""
        x, weight, mean, rstd, count = ctx.saved_tensors
        values, gradient, dims = widen(x), widen(grad), all_but_channels(x)
        centred = values - along_channels(mean, x)
        total, products = gradient.sum(dims), (gradient * centred).sum(dims)
        dx = dweight = dbias = None
        if weight is not None and ctx.needs_input_grad[1]:
            dweight = (products * rstd).to(weight.dtype)
        if weight is not None and ctx.needs_input_grad[2]:
            dbias = total.to(weight.dtype)
        if ctx.needs_input_grad[0]:
            sums = torch.cat([total, products])
            distributed.all_reduce(sums, distributed.ReduceOp.SUM, ctx.group)
            total, products = (sums / count).split(x.size(1))
            scale = rstd if weight is None else rstd * widen(weight)
            projection = along_channels(products * rstd * rstd, x) * centred
            dx = (gradient - along_channels(total, x) - projection) * along_channels(scale, x)
            dx = in_format_of(x, dx.to(x.dtype))
        return dx, dweight, dbias, None, None, None, None, None


sync_batch_norm = _SyncBatchNorm.apply
