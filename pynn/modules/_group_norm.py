"""Group normalisation. Its class is in normalization.py."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.blocks import in_slices
from pynn.definitions import Function, defines, traced_as, widen
from pynn.memory_format import in_format_of
from pynn.modules._batch_norm import along_channels, moments
from pynn.modules._normalization_checks import check_parameter_dtypes, require_several_values

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


def spatial_dims(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def sum_of_places(x: Tensor) -> Tensor:
    """[batch, channels, *] -> [batch, channels]"""
    return x.sum(spatial_dims(x)) if x.dim() > 2 else x


def sum_of_group(per_channel: Tensor, groups: int) -> Tensor:
    """[batch, channels] -> [batch, groups]"""
    return per_channel.unflatten(1, (groups, per_channel.size(1) // groups)).sum(2)


def along_groups(statistic: Tensor, x: Tensor) -> Tensor:
    """[batch, groups] -> [batch, channels, 1, ...]: each channel its group's; as many dimensions as x.

    Shaped like this and not x [batch, groups, channels / groups, *]: that has no fast order in channels-last.
    """
    batch, groups = statistic.shape
    per_channel = widen(statistic).unsqueeze(2).expand(batch, groups, x.size(1) // groups)
    return per_channel.reshape([batch, x.size(1), *[1] * (x.dim() - 2)])


def values_per_group(x: Tensor, groups: int) -> Any:
    """How many numbers each group of each sample has."""
    count = x.size(1) // groups
    for size in x.shape[2:]:
        count = count * size
    return count


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x * weight + bias, channel by channel."""
    if weight is not None:
        x = x * along_channels(weight, x)
    return x if bias is None else x + along_channels(bias, x)


def normalised_by_group(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias, the mean, and 1 / sqrt(variance + eps).

    Shape:   x: [batch, channels, *]   returns: same as x, [batch, groups], [batch, groups]
    dtype:   computes in float32 for a 16-bit x, and leaves the statistics so
    """

    def of_samples(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def average(values: Tensor) -> Tensor:
            total = sum_of_group(sum_of_places(values), groups)
            return along_groups(total / values_per_group(x, groups), x)

        # [batch, channels, 1, ...] each but centred, equal within a group
        centred, rest, mean, variance = moments(widen(x), average)
        rstd = torch.rsqrt(variance + eps)
        out = centred * affine(rstd, weight, None) + affine(-rest * rstd, weight, bias)
        first = slice(None, None, x.size(1) // groups)  # the first channel of each group
        return out.to(x.dtype), mean.flatten(1)[:, first], rstd.flatten(1)[:, first]

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
        gradient, rstd = widen(grad), along_groups(rstd, x)
        centred = widen(x) - along_groups(mean, x)
        # [batch, channels] each
        products, totals = sum_of_places(gradient * centred), sum_of_places(gradient)
        dx = None
        if output_mask[0]:
            count = values_per_group(x, group)
            factor = 1 if weight is None else widen(weight)
            projection, mean_gradient = (
                along_groups(sum_of_group(per_channel * factor, group) / count, x)
                for per_channel in (products, totals)
            )
            slope, level = -projection * rstd * rstd * rstd, -mean_gradient * rstd
            dx = torch.addcmul(centred * slope + level, gradient, affine(rstd, weight, None)).to(x.dtype)
        return dx, products * rstd.flatten(1), totals

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
            count, centred = values_per_group(x, ctx.groups), widen(x) - along_groups(mean, x)
            slope, level = (grad_rstd * rstd * rstd * rstd) / count, grad_mean / count
            through = (along_groups(level, x) - centred * along_groups(slope, x)).to(x.dtype)
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
            out = affine(out, weight, None)
            count = values_per_group(x, ctx.groups)
            mean_tangent = sum_of_group(sum_of_places(widen(dx)), ctx.groups) / count
            rstd_tangent = -rstd * rstd * sum_of_group(sum_of_places(widen(dx) * n), ctx.groups) / count
        if dweight is not None:
            out = out + n * along_channels(dweight, x)
        return affine(out, None, dbias).to(x.dtype), mean_tangent, rstd_tangent


@traced_as(F.group_norm)
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """out = (x - mean) / sqrt(variance + eps) * weight + bias; statistics of each group of channels and sample.

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
    shape = list(input.shape)
    if num_groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if channels % num_groups != 0:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{shape} and num_groups={num_groups}"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and (parameter.dim() != 1 or parameter.numel() != channels):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got "
                f"{name} of shape {list(parameter.shape)} and input of shape {shape}"
            )
    check_parameter_dtypes("GroupNormKernelImpl", input, weight, bias)
    return _GroupNorm.apply(input, weight, bias, num_groups, eps)[0]
