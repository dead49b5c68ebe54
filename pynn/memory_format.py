"""Strides of results: layers over images keep channels-last inputs channels-last, as ATen's kernels do."""

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pynn.definitions import Function, is_traced


def in_format_of(x: Tensor, out: Tensor) -> Tensor:
    """Lay `out` out channels-last where x is, else contiguously; the same values.

    Under vmap nothing is moved: there the strides are those of the batch.
    """
    return in_format(suggest_memory_format(x), out)


def in_format(layout: torch.memory_format, out: Tensor) -> Tensor:
    """Lay `out` out as `layout` says, except under vmap."""
    if torch._C._are_functorch_transforms_active():
        return out
    return out.contiguous(memory_format=layout)


def with_gradient_in_its_format(x: Tensor) -> Tensor:
    """x itself, whose gradient is channels-last where x is, whatever autograd's own formulas lay out."""
    layout = suggest_memory_format(x)
    is_plain = layout == torch.contiguous_format or not (torch.is_grad_enabled() and x.requires_grad)
    if is_plain or is_traced() or torch._C._are_functorch_transforms_active():
        return x
    return GradientInFormat.apply(x, layout)


class GradientInFormat(Function):
    """The identity."""

    @staticmethod
    def forward(x: Tensor, layout: torch.memory_format) -> Tensor:
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.layout = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return in_format(ctx.layout, grad), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        return dx.view_as(dx)


def in_contiguous_format_of(x: Tensor, out: Tensor) -> Tensor:
    """Lay `out` out channels-last where x is contiguous so and not plainly; else plainly.

    Unlike in_format_of it looks past the strides of dimensions of size 1, which do not matter. Under vmap nothing is
    moved, and no channels-last can be asked for.
    """
    if torch._C._are_functorch_transforms_active():
        return out
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    is_so = (
        channels_last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=channels_last)
    )
    return in_format(channels_last if is_so else torch.contiguous_format, out)


def with_channels_last_strides(out: Tensor) -> Tensor:
    """Images of one pixel with the strides of channels-last ones also where a size of 1 leaves them open."""
    if torch._C._are_functorch_transforms_active():
        return out
    channels = out.size(1)
    return out.new_empty_strided(out.shape, (channels, 1, channels, channels)).copy_(out)


def image_in_format_of(x: Tensor, out: Tensor, dims: int) -> Tensor:
    """in_format_of for images; contiguous for volumes, where not every kernel of ATen's knows channels-last."""
    return in_format_of(x, out) if dims < 3 else in_format(torch.contiguous_format, out)


def volume_in_format_of(x: Tensor, out: Tensor, dims: int) -> Tensor:
    """in_format_of that knows a channels-last volume without its batch dimension, which ATen keeps so."""
    if dims < 3 or x.dim() > dims + 1:
        return in_format_of(x, out)
    return in_contiguous_format_of(x.unsqueeze(0), out.unsqueeze(0)).squeeze(0)


def laid_out_like(out: Tensor, query: Tensor) -> Tensor:
    """out with its axes in memory in the order of query's, the last one innermost: [batch, seq, heads, head_dim] for
    projections that were only transposed, so that transposing back and .view need no copy.
    """
    order = [*sorted(range(3), key=lambda dim: -query.stride(dim)), 3]
    if order == [0, 1, 2, 3] or torch._C._are_functorch_transforms_active():
        return out  # under vmap the strides are those of the batch
    inverse = [order.index(dim) for dim in range(4)]
    return out.permute(order).contiguous().permute(inverse)
