"""Batch normalisation layers. The mathematics is in _batch_norm, that over processes in _sync_batch_norm."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter, UninitializedBuffer, UninitializedParameter, init
from torch.nn.modules import batchnorm as _torch_batchnorm
from torch.nn.modules.lazy import LazyModuleMixin

from pynn.construction import init_module
from pynn.modules._batch_norm_functions import batch_norm
from pynn.modules._sync_batch_norm import sync_batch_norm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "SyncBatchNorm",
    "batch_norm",
]


class _NormBase(_torch_batchnorm._NormBase):
    """What batch and instance normalisation share: weight, bias and running statistics, [num_features] each.

    Args:    momentum: how far the running statistics move towards those of a batch; None keeps their average
             affine: learn weight and, with `bias`, bias
             track_running_stats: keep running statistics, which evaluation uses
    """

    _version = 2
    __constants__ = ["track_running_stats", "momentum", "eps", "num_features", "affine"]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ) -> None:
        init_module(_NormBase, self)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        for name, is_learned in (("weight", affine), ("bias", affine and bias)):
            parameter = None
            if is_learned:
                parameter = Parameter(torch.empty(num_features, device=device, dtype=dtype))
            self.register_parameter(name, parameter)
        mean = variance = batches = None
        if track_running_stats:
            mean = torch.zeros(num_features, device=device, dtype=dtype)
            variance = torch.ones(num_features, device=device, dtype=dtype)
            batches = torch.tensor(0, dtype=torch.long, device=device)
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", variance)
        self.register_buffer("num_batches_tracked", batches)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, after no batches."""
        if self.track_running_stats:
            self.running_mean.zero_()  # type: ignore[union-attr]
            self.running_var.fill_(1)  # type: ignore[union-attr]
            self.num_batches_tracked.zero_()  # type: ignore[union-attr,operator]

    def reset_parameters(self) -> None:
        """weight 1, bias 0, and new running statistics."""
        self.reset_running_stats()
        if self.affine:
            init.ones_(self.weight)
            if self.bias is not None:
                init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class _BatchNorm(_NormBase, _torch_batchnorm._BatchNorm):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        factor = self._count_batch()
        return batch_norm(
            input,
            *self._statistics(),
            self.weight,
            self.bias,
            self._uses_batch_statistics(),
            factor,
            self.eps,
        )

    def _count_batch(self) -> float:
        """Count a batch of training, and return how far it moves the running statistics."""
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)  # the average of all batches so far
        return 0.0 if self.momentum is None else self.momentum

    def _uses_batch_statistics(self) -> bool:
        return self.training or (self.running_mean is None and self.running_var is None)

    def _statistics(self) -> tuple[Tensor | None, Tensor | None]:
        """The running statistics, unless training must leave them alone."""
        if self.training and not self.track_running_stats:
            return None, None
        return self.running_mean, self.running_var


class _LazyNormBase(_torch_batchnorm._LazyNormBase):
    """A normalisation that learns num_features from its first input: size 1."""

    def __init__(
        self,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device=None,
        dtype=None,
        *,
        bias=True,
    ) -> None:
        # without parameters and buffers, which come uninitialised below
        LazyModuleMixin.__init__(self, 0, eps, momentum, False, False, device=device, dtype=dtype)
        self.affine = affine
        self.track_running_stats = track_running_stats
        if affine:
            self.weight = UninitializedParameter(device=device, dtype=dtype)
            if bias:
                self.bias = UninitializedParameter(device=device, dtype=dtype)
        if track_running_stats:
            self.running_mean = UninitializedBuffer(device=device, dtype=dtype)
            self.running_var = UninitializedBuffer(device=device, dtype=dtype)
            self.num_batches_tracked = torch.tensor(0, dtype=torch.long, device=device)

    def reset_parameters(self) -> None:
        """As the layer it becomes, once the sizes are known."""
        if not self.has_uninitialized_params() and self.num_features != 0:
            _NormBase.reset_parameters(self)  # type: ignore[arg-type]

    def initialize_parameters(self, input: Tensor) -> None:  # type: ignore[override]
        """Take num_features from the first input and create parameters and running statistics."""
        if not self.has_uninitialized_params():
            return
        self.num_features = input.shape[1]
        lazy = [self.weight, self.bias] if self.affine else []
        for parameter in lazy:
            if parameter is not None:
                if not isinstance(parameter, UninitializedParameter):
                    raise AssertionError("self.weight and self.bias must be UninitializedParameters")
                parameter.materialize((self.num_features,))
        if self.track_running_stats:
            self.running_mean.materialize((self.num_features,))  # type: ignore[union-attr]
            self.running_var.materialize((self.num_features,))  # type: ignore[union-attr]
        self.reset_parameters()


def require_dims(input: Tensor, *allowed: int) -> None:
    """Raise ValueError unless input has one of these numbers of dimensions."""
    if input.dim() not in allowed:
        expected = " or ".join(f"{dims}D" for dims in allowed)
        raise ValueError(f"expected {expected} input (got {input.dim()}D input)")


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel.

    Shape:   x: [batch, channels] or [batch, channels, length]   returns: same as x
    Raises:  ValueError for another number of dimensions, or one value per channel in training
    Source:  see `batch_norm`
    """

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 2, 3)


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel.

    Shape:   x: [batch, channels, height, width]   returns: same as x
    Raises:  ValueError for another number of dimensions, or one value per channel in training
    Source:  see `batch_norm`
    """

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 4)


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, channel by channel.

    Shape:   x: [batch, channels, depth, height, width]   returns: same as x
    Raises:  ValueError for another number of dimensions, or one value per channel in training
    Source:  see `batch_norm`
    """

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 5)


class LazyBatchNorm1d(_LazyNormBase, _BatchNorm, torch.nn.LazyBatchNorm1d):
    """A BatchNorm1d that learns num_features from its first input, and becomes a BatchNorm1d then.

    Shape:   x: [batch, channels] or [batch, channels, length]   returns: same as x
    Source:  see `batch_norm`
    """

    cls_to_become = BatchNorm1d  # type: ignore[assignment]

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 2, 3)


class LazyBatchNorm2d(_LazyNormBase, _BatchNorm, torch.nn.LazyBatchNorm2d):
    """A BatchNorm2d that learns num_features from its first input, and becomes a BatchNorm2d then.

    Shape:   x: [batch, channels, height, width]   returns: same as x
    Source:  see `batch_norm`
    """

    cls_to_become = BatchNorm2d  # type: ignore[assignment]

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 4)


class LazyBatchNorm3d(_LazyNormBase, _BatchNorm, torch.nn.LazyBatchNorm3d):
    """A BatchNorm3d that learns num_features from its first input, and becomes a BatchNorm3d then.

    Shape:   x: [batch, channels, depth, height, width]   returns: same as x
    Source:  see `batch_norm`
    """

    cls_to_become = BatchNorm3d  # type: ignore[assignment]

    def _check_input_dim(self, input: Tensor) -> None:
        require_dims(input, 5)


class SyncBatchNorm(_BatchNorm, torch.nn.SyncBatchNorm):
    """Batch normalisation whose batch is spread over the processes of a group.

    In training, mean and variance are those of all processes' inputs together. In evaluation, without a process
    group and in a group of one it is batch normalisation.

    Args:    process_group: which processes share statistics; None: all
    Shape:   x: [batch, channels, *]   returns: same as x
    Raises:  ValueError for fewer than 2 dimensions, no channels, or a CPU input in a process group
    Source:  see `batch_norm`
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ) -> None:
        _NormBase.__init__(
            self, num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def _check_non_zero_input_channels(self, input: Tensor) -> None:
        if input.size(1) == 0:
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        factor = self._count_batch()
        group = self._group_to_sync_with(input)
        if group is None:
            training = self._uses_batch_statistics()
            return batch_norm(input, *self._statistics(), self.weight, self.bias, training, factor, self.eps)
        return sync_batch_norm(input, self.weight, self.bias, *self._statistics(), self.eps, factor, group)

    def _group_to_sync_with(self, input: Tensor) -> Any | None:
        """The process group, in training with more than one process; else None."""
        distributed = torch.distributed
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return None
        private = torch._C._get_privateuse1_backend_name()
        if input.device.type not in ("cuda", "hpu", "xpu", private):
            raise ValueError(f"SyncBatchNorm expected input tensor to be on GPU or XPU or {private}")
        group = self.process_group or distributed.group.WORLD
        return group if distributed.get_world_size(group) > 1 else None

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: Any | None = None) -> Module:
        """Replace the batch normalisations in a model by synchronised ones with the same parameters.

        Returns: the model, or a new layer where the model is a batch normalisation itself
        """
        converted = module
        if isinstance(module, _torch_batchnorm._BatchNorm):
            converted = SyncBatchNorm(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
                bias=module.bias is not None,
            )
            if module.affine:
                converted.weight = module.weight
                converted.bias = module.bias
            converted.running_mean = module.running_mean
            converted.running_var = module.running_var
            converted.num_batches_tracked = module.num_batches_tracked
            converted.training = module.training
            if hasattr(module, "qconfig"):
                converted.qconfig = module.qconfig
        for name, child in module.named_children():
            converted.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return converted
