"""Group normalisation. Its class is in normalization.py."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.argument_types import require_float, require_int, require_tensor
from pynn.blocks import in_slices
from pynn.definitions import Function, defines, traced_as, widen
from pynn.memory_format import in_format_of
from pynn.modules._batch_norm import along_channels, moments
from pynn.modules._normalization_checks import check_parameter_dtypes, require_several_values
from pynn.torch_version import SINCE_2_14

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


def summed_from(x: Tensor, dim: int) -> Tensor:
    """The sum over this dimension and all after it, kept as size 1."""
    return x.sum(list(range(dim, x.dim())), keepdim=True) if x.dim() > dim else x


def values_per_group(x: Tensor, groups: int) -> Any:
    """How many numbers each group of each sample has."""
    count = x.size(1) // groups
    for size in x.shape[2:]:
        count = count * size
    return count


class RunsOfGroups:
    """Tensors like x as [batch, groups, channels / groups, *]: a group of a contiguous x is one run of memory."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.shape = [x.size(0), groups, x.size(1) // groups, *x.shape[2:]]

    def of(self, x: Tensor) -> Tensor:
        return widen(x).reshape(self.shape)

    def of_channels(self, vector: Tensor) -> Tensor:
        """[channels] -> [groups, channels / groups, 1, ...]"""
        return widen(vector).reshape([*self.shape[1:3], *[1] * (len(self.shape) - 3)])

    def of_groups(self, statistic: Tensor) -> Tensor:
        """[batch, groups] -> [batch, groups, 1, 1, ...]"""
        return widen(statistic).reshape([*self.shape[:2], *[1] * (len(self.shape) - 2)])

    def total_of_channels(self, values: Tensor) -> Tensor:
        """-> [batch, groups, channels / groups, 1, ...]"""
        return summed_from(values, 3)

    def total(self, values: Tensor) -> Tensor:
        """Sums over each group, in the shape of of_groups; of values for each place or for each channel."""
        return summed_from(values, 2)

    def statistic(self, total: Tensor) -> Tensor:
        """of_groups' shape -> [batch, groups]"""
        return total.flatten(1)


class GroupsOfChannels:
    """Tensors like x as they are, [batch, channels, *]: channels-last, no order of groups would be fast."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.groups, self.channels, self.ones = groups, x.size(1) // groups, [1] * (x.dim() - 2)

    def of(self, x: Tensor) -> Tensor:
        return widen(x)

    def of_channels(self, vector: Tensor) -> Tensor:
        """[channels] -> [channels, 1, ...]"""
        return widen(vector).reshape([-1, *self.ones])

    def of_groups(self, statistic: Tensor) -> Tensor:
        """[batch, groups] -> [batch, channels, 1, ...]: each channel its group's"""
        each = widen(statistic).unsqueeze(2).expand(*statistic.shape, self.channels)
        return each.reshape([statistic.size(0), self.groups * self.channels, *self.ones])

    def total_of_channels(self, values: Tensor) -> Tensor:
        """-> [batch, channels, 1, ...]"""
        return summed_from(values, 2)

    def total(self, values: Tensor) -> Tensor:
        """Sums over each group, in the shape of of_groups: over each channel's places first, where there are any."""
        is_per_channel = list(values.shape[2:]) == self.ones
        per_channel = values if is_per_channel else self.total_of_channels(values)
        shape = [per_channel.size(0), self.groups, self.channels]
        return self.of_groups(per_channel.reshape(shape).sum(2))

    def statistic(self, total: Tensor) -> Tensor:
        """of_groups' shape -> [batch, groups]: the first channel of each group"""
        return total.flatten(1)[:, slice(None, None, self.channels)]


def grouping(x: Tensor, groups: int) -> RunsOfGroups | GroupsOfChannels:
    return RunsOfGroups(x, groups) if x.is_contiguous() else GroupsOfChannels(x, groups)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x * weight + bias, which broadcast against x."""
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def normalised_by_group(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias, the mean, and 1 / sqrt(variance + eps).

    Shape:   x: [batch, channels, *]   returns: same as x, [batch, groups], [batch, groups]
    dtype:   computes in float32 for a 16-bit x, and leaves the statistics so
    """

    def of_samples(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grouped, count = grouping(x, groups), values_per_group(x, groups)
        centred, rest, mean, variance = moments(grouped.of(x), lambda values: grouped.total(values) / count)
        rstd = torch.rsqrt(variance + eps)
        scale, shift = (None if v is None else grouped.of_channels(v) for v in (weight, bias))
        out = centred * affine(rstd, scale, None) + affine(-rest * rstd, scale, shift)
        return out.reshape(x.shape).to(x.dtype), grouped.statistic(mean), grouped.statistic(rstd)

    out, mean, rstd = in_slices(of_samples, (x,), (0,), (0, 0, 0))
    return in_format_of(x, out), mean.contiguous(), rstd.contiguous()


@defines(aten.native_group_norm.default)
def group_norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, N: Any, C: Any, HxW: Any, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, mean and rstd, [N, group] each; the sizes are those of x.

    dtype:   mean and rstd are float32 for a 16-bit x (ATen's CPU kernel may round them to 16 bits)
    """
    return normalised_by_group(x, weight, bias, group, eps)


@defines(aten.native_group_norm_backward.default)
def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    N: Any,
    C: Any,
    HxW: Any,
    group: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With n = (x - mean) * rstd, g = grad * weight, and means over a group of a sample:

    dx = rstd * (g - mean(g) - n * mean(g * n)),   dweight = sum(grad * n),   dbias = sum(grad)
    """

    def of_samples(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple:
        grouped, count = grouping(x, group), values_per_group(x, group)
        gradient, rstd = grouped.of(grad), grouped.of_groups(rstd)
        centred = grouped.of(x) - grouped.of_groups(mean)
        products, totals = (grouped.total_of_channels(v) for v in (gradient * centred, gradient))
        dx = None
        if output_mask[0]:
            factor = None if weight is None else grouped.of_channels(weight)
            projection, mean_gradient = (
                grouped.total(affine(per_channel, factor, None)) / count for per_channel in (products, totals)
            )
            slope, level = -projection * rstd * rstd * rstd, -mean_gradient * rstd
            dx = torch.addcmul(centred * slope + level, gradient, affine(rstd, factor, None))
            dx = dx.reshape(x.shape).to(x.dtype)
        return dx, (products * rstd).reshape(x.shape[:2]), totals.reshape(x.shape[:2])

    dx, products, totals = in_slices(of_samples, (grad, x, mean, rstd), (0, 0, 0, 0), (0, 0, 0))
    like = mean if weight is None else weight
    return (
        in_format_of(x, dx) if output_mask[0] else None,
        products.sum(0).to(like.dtype) if output_mask[1] else None,
        totals.sum(0).to(like.dtype) if output_mask[2] else None,
    )


# ---- public function -------------------------------------------------------------------------------------


class _GroupNorm(Function):
    """normalised_by_group with group_norm_backward.

    The statistics are outputs with gradients of their own, so that what the backward pass makes of them is
    differentiated in its turn.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return normalised_by_group(x, weight, bias, groups, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, ctx.groups, ctx.eps = inputs
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.save_for_forward(
            x, weight, *output[1:]
        )  # as many: the generated vmap rule takes one list for both
        # gradients that nobody asks for stay None, which the generated vmap rule does not take
        ctx.set_materialize_grads(torch._C._are_functorch_transforms_active())

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor | None, grad_rstd: Tensor | None) -> tuple:
        x, weight, mean, rstd = ctx.saved_tensors
        gradients: tuple = (None, None, None)
        if grad is not None:
            sizes = (x.size(0), x.size(1), None, ctx.groups)
            gradients = group_norm_backward(
                grad, x, mean, rstd, weight, *sizes, list(ctx.needs_input_grad[:3])
            )
        if ctx.needs_input_grad[0] and grad_mean is not None and grad_rstd is not None:
            # d mean / dx = 1 / count,   d rstd / dx = -rstd^3 * (x - mean) / count
            count, grouped = values_per_group(x, ctx.groups), grouping(x, ctx.groups)
            slope, level = (grad_rstd * rstd * rstd * rstd) / count, grad_mean / count
            slope, level, centre = (grouped.of_groups(statistic) for statistic in (slope, level, mean))
            through = (level - (grouped.of(x) - centre) * slope).reshape(x.shape).to(x.dtype)
            gradients = (through if grad is None else gradients[0] + through, *gradients[1:])
        return (*gradients, None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: Any) -> tuple:
        """The Jacobian of x -> n = (x - mean) * rstd is symmetric, so group_norm_backward applies it."""
        x, weight, *_ = ctx.saved_tensors
        n, mean, rstd = normalised_by_group(widen(x), None, None, ctx.groups, ctx.eps)
        out, mean_tangent, rstd_tangent = torch.zeros_like(n), torch.zeros_like(mean), torch.zeros_like(rstd)
        if dx is not None:
            sizes, mask = (x.size(0), x.size(1), None, ctx.groups), [True, False, False]
            out = group_norm_backward(widen(dx), widen(x), mean, rstd, None, *sizes, mask)[0]
            out = out if weight is None else out * along_channels(weight, x)
            grouped, count = grouping(x, ctx.groups), values_per_group(x, ctx.groups)
            average, average_product = (
                grouped.statistic(grouped.total(grouped.of(values))) / count
                for values in (widen(dx), widen(dx) * n)
            )
            mean_tangent, rstd_tangent = average, -rstd * rstd * average_product
        if dweight is not None:
            out = out + n * along_channels(dweight, x)
        if dbias is not None:
            out = out + along_channels(dbias, x)
        return out.to(x.dtype), mean_tangent, rstd_tangent


def _require_channels_and_places(shape: list[int]) -> None:
    """Raise RuntimeError where only the batch may be empty: as torch does since 2.14."""
    for what, count in (("number of channels", shape[1]), ("HxW", math.prod(shape[2:]))):
        if count == 0:
            raise RuntimeError(f"Expected {what} to be greater than 0, got {count}")


@traced_as(F.group_norm)
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """out = (x - mean) / sqrt(variance + eps) * weight + bias; statistics of each group of channels and sample.

    Args:    num_groups: 1 normalises a whole sample, `channels` every channel by itself; eps: default 1e-5
    Shape:   input: [batch, channels, *]   weight, bias: [channels]   returns: same as input
    dtype:   computes in float32 for 16-bit inputs; weight and bias may then be float32
    Raises:  RuntimeError when channels are not divisible by num_groups, or sizes or dtypes do not match;
             ValueError for one value per group
    Source:  Wu and He, Group normalization, 2018; aten/native/group_norm.cpp
    """
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    batch, channels = input.size(0), input.size(1)
    require_several_values([batch * channels // num_groups, num_groups, *input.shape[2:]])
    require_int("group_norm", 2, "num_groups", num_groups)
    require_float("group_norm", 5, "eps", eps)
    shape = list(input.shape)
    if num_groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if SINCE_2_14:
        _require_channels_and_places(shape)
    if channels % num_groups != 0:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{shape} and num_groups={num_groups}"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            require_tensor("group_norm", 3 if name == "weight" else 4, name, parameter)
        if parameter is not None and (parameter.dim() != 1 or parameter.numel() != channels):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got "
                f"{name} of shape {list(parameter.shape)} and input of shape {shape}"
            )
    takes_any_dtype = SINCE_2_14 and batch == 0
    check_parameter_dtypes("GroupNormKernelImpl", input, weight, bias, takes_any_dtype=takes_any_dtype)
    if not input.is_floating_point():
        return input.clone()
    return _GroupNorm.apply(input, weight, bias, num_groups, eps)[0]
