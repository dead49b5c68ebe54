"""Normalisation over batches, instances and groups of channels: what torch's tables lack."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity_tests.cases import Row, Sample
from parity_tests.cases_own.builders import built, function, module, strided, tensor

# torch refuses to move running statistics under vmap unless those are batched as well.
NO_VMAP = {"vmap": "torch refuses running statistics that are not batched"}


def channels_last(*shape: int) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return tensor(*shape, grad=False).contiguous(memory_format=layout).requires_grad_()


def fixed(*shape: int, low: float = 0.5, high: float = 2.0) -> Tensor:
    """What gets no gradient: running statistics."""
    return tensor(*shape, low=low, high=high, grad=False)


def with_running(
    function: Callable, x: Tensor, mean: Tensor, variance: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """The result and what is in the running statistics after the call, which works on copies of them."""
    mean, variance = mean.clone(), variance.clone()
    return function(x, mean, variance, *args, **kwargs), mean, variance


def running_sample(*shape: int, layout: Callable = tensor, **kwargs: Any) -> Callable[[], Sample]:
    channels = shape[1]

    def draw() -> Sample:
        statistics = fixed(channels, low=-1), fixed(channels)
        return Sample((layout(*shape), *statistics, tensor(channels), tensor(channels)), kwargs)

    return draw


def plain_sample(
    *shape: int, shift: float = 0.0, layout: Callable = tensor, **kwargs: Any
) -> Callable[[], Sample]:
    def draw() -> Sample:
        x = (layout(*shape) + shift).detach().requires_grad_()
        return Sample((x, None, None, tensor(shape[1]), tensor(shape[1])), kwargs)

    return draw


def batch_norm_rows() -> list[Row]:
    return [
        function("batch_norm.running", running_sample(4, 3, 5, 6, training=True),
                 running_sample(4, 3, 5, training=True, momentum=0.7), running_sample(6, 3, training=True),
                 running_sample(2, 3, 2, 3, 4, training=True, eps=1e-2), running_sample(3, 4, 5, 6),
                 running_sample(0, 3, 4, training=True), running_sample(3, 4, 5, 6, layout=channels_last),
                 running_sample(3, 4, 5, 6, layout=channels_last, training=True),
                 running_sample(3, 4, 5, 6, layout=strided, training=True), call=with_running,
                 skip=NO_VMAP | {"forward_ad": "running statistics carry no derivative"}),
        function("batch_norm.plain", plain_sample(4, 3, 5, 6, training=True), plain_sample(6, 3, training=True),
                 plain_sample(4, 3, 5, 6, training=True, layout=channels_last),
                 plain_sample(2, 3, 2, 3, 4, training=True, layout=strided),
                 plain_sample(4, 3, 50, training=True, shift=100.0),
                 plain_sample(4, 3, 50, training=True, shift=-3000.0)),
        function("batch_norm.evaluated", running_sample(4, 3, 5, 6), running_sample(5, 3)),
    ]  # fmt: skip


def images() -> tuple:
    return (tensor(3, 4, 5, 6),)


def layer_rows() -> list[Row]:
    rows = [
        module("SyncBatchNorm", built(4, inputs=images), built(4, 1e-3, 0.3, False, inputs=images),
               built(4, inputs=images, training=False), built(4, bias=False, inputs=lambda: (tensor(5, 4),)),
               skip=NO_VMAP),
    ]  # fmt: skip
    for dims in (1, 2, 3):

        def volume(dims: int = dims) -> tuple:
            return (tensor(3, 4, *[5, 4, 3][:dims]),)

        def one(dims: int = dims) -> tuple:
            return (tensor(4, *[5, 4, 3][:dims]),)

        rows += [
            module(f"BatchNorm{dims}d.options", built(4, affine=False, inputs=volume),
                   built(4, bias=False, inputs=volume), built(4, 1e-2, 0.9, inputs=volume), skip=NO_VMAP),
            module(f"BatchNorm{dims}d.averaged", built(4, momentum=None, inputs=volume),
                   skip=NO_VMAP | {"meta": "momentum=None reads how many batches there were"}),
            module(f"InstanceNorm{dims}d.options", built(4, affine=True, track_running_stats=True, inputs=volume),
                   built(4, affine=True, bias=False, inputs=volume), skip=NO_VMAP),
            module(f"InstanceNorm{dims}d.untracked", built(4, affine=True, inputs=one),
                   built(4, inputs=volume), built(4, inputs=volume, training=False)),
            module(f"BatchNorm{dims}d.untracked", built(4, track_running_stats=False, inputs=volume),
                   built(4, track_running_stats=False, inputs=volume, training=False)),
        ]  # fmt: skip
    return rows


def group_sample(
    groups: int, *shape: int, shift: float = 0.0, layout: Callable = tensor, **kwargs: Any
) -> Callable[[], Sample]:
    def draw() -> Sample:
        x = (layout(*shape) + shift).detach().requires_grad_()
        return Sample((x, groups, tensor(shape[1]), tensor(shape[1])), kwargs)

    return draw


def other_rows() -> list[Row]:
    return [
        function("group_norm.groups", group_sample(2, 3, 6, 4, 5), group_sample(3, 3, 6, 7, eps=0.1),
                 group_sample(1, 3, 4), group_sample(4, 2, 4, 3, 2, 2), group_sample(2, 0, 4, 3),
                 group_sample(2, 3, 6, 4, 5, layout=channels_last), group_sample(2, 2, 4, 3, 4, layout=strided),
                 group_sample(2, 2, 4, 60, shift=100.0), group_sample(2, 2, 4, 60, shift=-3000.0),
                 lambda: Sample((tensor(2, 4, 5), 2))),
        function("local_response_norm.windows", *(
            lambda size=size, shape=shape: Sample((tensor(*shape), size, 0.7, 0.6, 1.5))
            for size, shape in [(1, (2, 5, 4)), (2, (2, 5, 3, 4)), (3, (2, 5, 3, 4)), (4, (2, 5, 2, 3, 2)),
                                (5, (1, 3, 6)), (3, (0, 3, 6))]
        )),
        function("instance_norm.running", running_sample(4, 3, 5, 6), running_sample(4, 3, 5, momentum=0.7),
                 running_sample(2, 3, 2, 3, 4, use_input_stats=False), running_sample(3, 4, 5, 6, layout=channels_last),
                 running_sample(3, 4, 5, 6, layout=strided), call=with_running,
                 skip=NO_VMAP | {"forward_ad": "running statistics carry no derivative"}),
        function("instance_norm.plain", plain_sample(4, 3, 5, 6), plain_sample(2, 3, 7, layout=strided),
                 plain_sample(4, 3, 5, 6, layout=channels_last), plain_sample(2, 3, 2, 3, 2),
                 plain_sample(2, 3, 60, shift=100.0),
                 lambda: Sample((tensor(0, 3, 4),))),
        # without gradients: those of torch's are wrong (test_normalisation)
        module("CrossMapLRN2d", *(
            built(size, 0.5, 0.6, 1.5, inputs=lambda channels=channels: (tensor(2, channels, 3, 4, grad=False),))
            for size, channels in [(1, 4), (2, 5), (3, 7), (4, 3), (5, 9), (7, 2)]
        )),
    ]  # fmt: skip


ROWS = [*batch_norm_rows(), *layer_rows(), *other_rows()]
