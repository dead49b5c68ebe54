"""Instance normalisation: batch normalisation where every sample's every channel is a channel of its own."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import instancenorm as _torch_instancenorm

from pynn.definitions import traced_as
from pynn.modules._batch_norm_functions import normalise, write_statistics
from pynn.modules.batchnorm import _LazyNormBase, _NormBase, require_dims

__all__ = [
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "instance_norm",
]


@traced_as(F.instance_norm)
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel of every sample.

    With use_input_stats, mean and variance are those of the channel in the sample, and running statistics, if
    any, move towards their average over the samples; else they are the running statistics.

    Args:    running_mean, running_var: move in place; momentum: how far, default 0.1
             eps: added to the variance, default 1e-5
    Shape:   input: [batch, channels, *]   the others: [channels]   returns: same as input
    dtype:   as batch_norm; but a running mean, and with it a variance, of another dtype is cast
    Raises:  ValueError for one value per channel; RuntimeError when sizes or dtypes do not match, or running
             statistics are missing without use_input_stats
    Source:  Ulyanov et al., Instance normalization, 2016; aten/native/Normalization.cpp
    """
    if use_input_stats:
        _require_several_places(input.size())
    elif running_mean is None or running_var is None:
        raise RuntimeError(
            "Expected running_mean and running_var to be defined when use_input_stats is false"
        )
    batch, channels, *sizes = input.shape

    def for_every_sample(vector: Tensor | None) -> Tensor | None:
        return None if vector is None else vector.repeat(batch)

    mean, variance = for_every_sample(running_mean), for_every_sample(running_var)
    dtype = (input if weight is None else weight).dtype
    if mean is not None and variance is not None and mean.dtype != dtype and dtype.is_floating_point:
        mean, variance = mean.to(dtype), variance.to(dtype)
    # [batch, channels, *] -> [1, batch * channels, *]
    spread = input.contiguous().view(1, batch * channels, *sizes)
    weights = for_every_sample(weight), for_every_sample(bias)
    out = normalise(spread, mean, variance, *weights, use_input_stats, momentum, eps)
    if use_input_stats:
        pairs = [(running_mean, mean), (running_var, variance)]
        kept = [(running, moved) for running, moved in pairs if running is not None and moved is not None]
        averages = [moved.view(batch, channels).mean(0) for _, moved in kept]
        write_statistics([running for running, _ in kept], averages)
    return out.view(input.shape)


def _require_several_places(size: torch.Size) -> None:
    """One value per channel of a sample has no variance."""
    if size[2:].numel() == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {size}")


class _InstanceNorm(_NormBase, _torch_instancenorm._InstanceNorm):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel of every sample."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ) -> None:
        _NormBase.__init__(
            self, num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        unbatched_dims = self._get_no_batch_dim()
        channel_dim = input.dim() - unbatched_dims
        channels = input.size(channel_dim)
        if channels != self.num_features:
            if self.affine:
                raise ValueError(
                    f"expected input's size at dim={channel_dim} to match num_features ({self.num_features}), "
                    f"but got: {channels}."
                )
            warnings.warn(
                f"input's size at dim={channel_dim} does not match num_features. You can silence this warning by "
                "not passing in num_features, which is not used because affine=False",
                stacklevel=2,
            )
        if input.dim() == unbatched_dims:
            return self._handle_no_batch_input(input)
        return self._apply_instance_norm(input)

    def _handle_no_batch_input(self, input: Tensor) -> Tensor:
        return self._apply_instance_norm(input.unsqueeze(0)).squeeze(0)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel of every sample.

    Shape:   x: [batch, channels, length] or [channels, length]   returns: same as x
    Raises:  ValueError for another number of dimensions or channels, or one value per channel
    Source:  see `instance_norm`
    """

    def _get_no_batch_dim(self) -> int:
        return 2

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 2, 3)


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel of every sample.

    Shape:   x: [batch, channels, height, width] or [channels, height, width]   returns: same as x
    Raises:  ValueError for another number of dimensions or channels, or one value per channel
    Source:  see `instance_norm`
    """

    def _get_no_batch_dim(self) -> int:
        return 3

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 3, 4)


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel of every sample.

    Shape:   x: [batch, channels, depth, height, width] or [channels, depth, height, width]   returns: same as x
    Raises:  ValueError for another number of dimensions or channels, or one value per channel
    Source:  see `instance_norm`
    """

    def _get_no_batch_dim(self) -> int:
        return 4

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 4, 5)


class LazyInstanceNorm1d(_LazyNormBase, _InstanceNorm, torch.nn.LazyInstanceNorm1d):
    """An InstanceNorm1d that learns num_features from its first input, and becomes an InstanceNorm1d then.

    Shape:   x: [batch, channels, length] or [channels, length]   returns: same as x
    Source:  see `instance_norm`
    """

    cls_to_become = InstanceNorm1d  # type: ignore[assignment]

    def _get_no_batch_dim(self) -> int:
        return 2

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 2, 3)


class LazyInstanceNorm2d(_LazyNormBase, _InstanceNorm, torch.nn.LazyInstanceNorm2d):
    """An InstanceNorm2d that learns num_features from its first input, and becomes an InstanceNorm2d then.

    Shape:   x: [batch, channels, height, width] or [channels, height, width]   returns: same as x
    Source:  see `instance_norm`
    """

    cls_to_become = InstanceNorm2d  # type: ignore[assignment]

    def _get_no_batch_dim(self) -> int:
        return 3

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 3, 4)


class LazyInstanceNorm3d(_LazyNormBase, _InstanceNorm, torch.nn.LazyInstanceNorm3d):
    """An InstanceNorm3d that learns num_features from its first input, and becomes an InstanceNorm3d then.

    Shape:   x: [batch, channels, depth, height, width] or [channels, depth, height, width]   returns: same as x
    Source:  see `instance_norm`
    """

    cls_to_become = InstanceNorm3d  # type: ignore[assignment]

    def _get_no_batch_dim(self) -> int:
        return 4

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 4, 5)
