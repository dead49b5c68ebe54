"""What rows are built from: tensors, samples, and rows by name."""

from collections.abc import Callable

import torch
from torch import Tensor

from parity_tests.cases import Row, Sample


def tensor(*shape: int, low=-3.0, high=3.0, grad=True) -> Tensor:
    """Uniform float32 values; drawn under the seed that `Row.draw` sets."""
    return (torch.rand(shape) * (high - low) + low).requires_grad_(grad)


def strided(*shape: int) -> Tensor:
    """Values laid out with the first axis fastest and gaps in between."""
    wide = torch.randn(*shape[::-1], 2)[..., 0]
    return wide.permute(*reversed(range(len(shape)))).requires_grad_()


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()


def function(name: str, *samples: Callable[[], Sample], **options) -> Row:
    return Row(f"functional.{name}", lambda: [draw() for draw in samples], **options)


def module(name: str, *samples: Callable[[], Sample], **options) -> Row:
    return Row(f"nn.{name}", lambda: [draw() for draw in samples], **options)


def built(*args, inputs: Callable[[], tuple], training=True, **kwargs) -> Callable[[], Sample]:
    """A module sample: constructor arguments, and a function that draws the inputs."""
    return lambda: Sample(inputs(), {}, (args, kwargs), training)


def in_place(function: Callable, x: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    """Call an in-place function on a copy (a leaf may not be written) and return result and copy."""
    copied = x.clone()
    return function(copied, *args, **kwargs), copied
