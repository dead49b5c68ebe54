"""Dropout: elements or whole channels set to 0 (or to SELU's lower limit) at random.

Draws one Bernoulli number an element (or a channel) in the order ATen's CPU kernels do, so an equal seed
gives an equal mask.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.construction import init_module
from pynn.definitions import defines, traced_as

__all__ = [
    "AlphaDropout",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "alpha_dropout",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
]

aten = torch.ops.aten

ALPHA_PRIME = 1.7580993408473766
"""-lower limit of SELU = scale * alpha: what alpha dropout sets the dropped elements to."""


# ---- definitions -----------------------------------------------------------------------------------------


@defines(aten.native_dropout.default)
def native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """x * mask / (1 - p) and the mask, mask ~ Bernoulli(1 - p)."""
    if train is False:
        return x, torch.ones_like(x, dtype=torch.bool)
    mask = torch.bernoulli(x, 1 - p) > 0
    scale = 0 if p == 1 else 1 / (1 - p)
    return x * mask * scale, mask


@defines(aten.native_dropout_backward.default)
def native_dropout_backward(grad: Tensor, mask: Tensor, scale: float) -> Tensor:
    """grad * mask * scale."""
    return grad * mask * scale


def _drop(input: Tensor, p: float, training: bool, inplace: bool, per_channel: bool, alpha: bool) -> Tensor:
    """input * mask / (1 - p), or for alpha dropout a * (input * mask - alpha' * (1 - mask)) + b.

    a and b keep mean and variance: a = ((1 - p) * (1 + p * alpha'^2))^(-1/2), b = a * p * alpha'.
    """
    p = float(p)  # of numpy's or a tensor's number
    if p == 0 or not training or input.numel() == 0:
        return input
    if p == 1:
        zero = torch.zeros((), dtype=input.dtype, device=input.device)
        return input.mul_(zero) if inplace else input * zero
    if per_channel:
        if input.dim() < 2:
            raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
        sizes = [*input.shape[:2], *[1] * (input.dim() - 2)]
        mask = torch.empty(sizes, dtype=input.dtype, device=input.device)
    else:
        mask = torch.empty_like(input)
    if torch._C._are_functorch_transforms_active():
        # vmap fills in place what is batched only, and draws anew from what is not, in either randomness
        mask = torch.bernoulli(torch.empty(mask.shape, dtype=mask.dtype, device=mask.device), 1 - p)
    else:
        mask.bernoulli_(1 - p)
    if not alpha:
        factor = mask.div_(1 - p)
        return input.mul_(factor) if inplace else input * factor
    a = 1 / math.sqrt((ALPHA_PRIME * ALPHA_PRIME * p + 1) * (1 - p))
    shift = (mask - 1).mul_(ALPHA_PRIME * a).add_(ALPHA_PRIME * a * p)
    factor = mask.mul_(a)
    return input.mul_(factor).add_(shift) if inplace else input * factor + shift


# ---- public functions ------------------------------------------------------------------------------------


def _check_probability(p: float) -> None:
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if p != p:  # torch's Python lets NaN pass on to C++
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {p}")


@traced_as(F.dropout)
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """out = input * mask / (1 - p), mask ~ Bernoulli(1 - p) per element; input itself outside training.

    Args:    p: probability of a zero, default 0.5; training: else input itself (default True)
             inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; any where nothing is dropped
    Raises:  ValueError unless 0 <= p <= 1; RuntimeError for integers, NotImplementedError for complex
             numbers, in training
    Source:  Hinton et al., Improving neural networks by preventing co-adaptation, 2012;
             aten/native/Dropout.cpp
    """
    _check_probability(p)
    return _drop(input, p, training, inplace, per_channel=False, alpha=False)


@traced_as(F.alpha_dropout)
def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout to SELU's lower limit, then scaled and shifted to keep mean and variance.

        out = a * (input * mask - alpha' * (1 - mask)) + a * p * alpha',   mask ~ Bernoulli(1 - p),
        alpha' = 1.7581,   a = 1 / sqrt((1 - p) * (1 + p * alpha'^2))

    Args:    p: probability of a zero, default 0.5; training: else input itself (default False)
             inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; any where nothing is dropped; 16 bits round at every step
    Raises:  ValueError unless 0 <= p <= 1; RuntimeError for integers, NotImplementedError for complex
             numbers, in training
    Source:  Klambauer et al., Self-normalizing neural networks, 2017; aten/native/Dropout.cpp
    """
    _check_probability(p)
    return _drop(input, p, training, inplace, per_channel=False, alpha=True)


@traced_as(F.feature_alpha_dropout)
def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Alpha dropout of whole channels: the formula of `alpha_dropout`, mask ~ Bernoulli(1 - p) per channel.

    Args:    p: probability of a zero, default 0.5; training: else input itself (default False)
             inplace: overwrite input (default False)
    Shape:   input: [batch, channels, *]   returns: same
    dtype:   floating point, returned as input's; any where nothing is dropped; 16 bits round at every step
    Raises:  ValueError unless 0 <= p <= 1; in training RuntimeError for fewer than 2 dimensions and integers,
             NotImplementedError for complex numbers
    Source:  Klambauer et al., Self-normalizing neural networks, 2017; aten/native/Dropout.cpp
    """
    _check_probability(p)
    return _drop(input, p, training, inplace, per_channel=True, alpha=True)


def _drop_channels(input: Tensor, p: float, training: bool, inplace: bool, is_batched: bool) -> Tensor:
    if not is_batched:
        input = input.unsqueeze_(0) if inplace else input.unsqueeze(0)
    result = _drop(input, p, training, inplace, per_channel=True, alpha=False)
    if not is_batched:
        result = result.squeeze_(0) if inplace else result.squeeze(0)
    return result


@traced_as(F.dropout1d)
def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels: out = input * mask / (1 - p), mask ~ Bernoulli(1 - p) per channel.

    Args:    p: probability of a zero, default 0.5; training: else input itself (default True)
             inplace: overwrite input (default False)
    Shape:   input: [batch, channels, length] or [channels, length]   returns: same
    dtype:   floating point, returned as input's; any where nothing is dropped
    Raises:  RuntimeError for another number of dimensions; ValueError unless 0 <= p <= 1; RuntimeError for
             integers, NotImplementedError for complex numbers, in training
    Source:  Tompson et al., Efficient object localization using convolutional networks, 2015;
             aten/native/Dropout.cpp
    """
    _check_probability(p)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {input.dim()}D input. "
            "Note that dropout1d exists to provide channel-wise dropout on inputs with 1 spatial dimension, "
            "a channel dimension, and an optional batch dimension (i.e. 2D or 3D inputs)."
        )
    return _drop_channels(input, p, training, inplace, is_batched=input.dim() == 3)


@traced_as(F.dropout2d)
def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels: out = input * mask / (1 - p), mask ~ Bernoulli(1 - p) per channel.

    Args:    p: probability of a zero, default 0.5; training: else input itself (default True)
             inplace: overwrite input (default False)
    Shape:   input: [batch, channels, height, width], or (with a warning) [batch, channels, *]   returns: same
    dtype:   floating point, returned as input's; any where nothing is dropped
    Raises:  ValueError unless 0 <= p <= 1; in training RuntimeError for fewer than 2 dimensions and integers,
             NotImplementedError for complex numbers
    Source:  Tompson et al., Efficient object localization using convolutional networks, 2015;
             aten/native/Dropout.cpp
    """
    _check_probability(p)
    _warn_unusual_dims("dropout2d", input.dim(), (3, 4), "2 spatial dimensions")
    if input.dim() == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout "
            "behavior is "
            "desired - input is interpreted as shape (N, C, L), where C is the channel dim. This "
            "behavior will "
            "change in a future release to interpret the input as one without a batch dimension, i.e. shape "
            "(C, H, W). To maintain the 1D channel-wise dropout behavior, please switch to using dropout1d "
            "instead.",
            stacklevel=3,
        )
    return _drop_channels(input, p, training, inplace, is_batched=True)


@traced_as(F.dropout3d)
def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels: out = input * mask / (1 - p), mask ~ Bernoulli(1 - p) per channel.

    Args:    p: probability of a zero, default 0.5; training: else input itself (default True)
             inplace: overwrite input (default False)
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: same
    dtype:   floating point, returned as input's; any where nothing is dropped
    Raises:  ValueError unless 0 <= p <= 1; RuntimeError for integers, NotImplementedError for complex
             numbers, in training
    Source:  Tompson et al., Efficient object localization using convolutional networks, 2015;
             aten/native/Dropout.cpp
    """
    _check_probability(p)
    _warn_unusual_dims("dropout3d", input.dim(), (4, 5), "3 spatial dimensions")
    return _drop_channels(input, p, training, inplace, is_batched=input.dim() == 5)


def _warn_unusual_dims(name: str, dim: int, usual: tuple[int, int], spatial: str) -> None:
    if dim in usual:
        return
    warnings.warn(
        f"{name}: Received a {dim}-D input to {name}, which is deprecated and will result in an error "
        "in a future "
        "release. To retain the behavior and silence this warning, please use dropout instead. Note that "
        f"{name} exists to provide channel-wise dropout on inputs with {spatial}, a channel "
        "dimension, and an "
        f"optional batch dimension (i.e. {usual[0]}D or {usual[1]}D inputs).",
        stacklevel=4,
    )


# ---- classes ---------------------------------------------------------------------------------------------


class _DropoutNd:
    """What the dropout layers share. Raises ValueError unless 0 <= p <= 1."""

    __constants__ = ["p", "inplace"]
    p: float
    inplace: bool

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        init_module(_DropoutNd, self)
        _check_probability(p)
        self.p = p
        self.inplace = inplace

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_DropoutNd, torch.nn.Dropout):
    """In training, each element is 0 with probability p and scaled by 1 / (1 - p) otherwise.

    Args:    p: probability of a zero, default 0.5; inplace: overwrite the input (default False)
    Shape:   input: [*]   returns: same as input
    Raises:  ValueError unless 0 <= p <= 1
    Source:  see `dropout`
    """

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training, self.inplace)


class Dropout1d(_DropoutNd, torch.nn.Dropout1d):
    """In training, each channel of [batch, channels, length] is 0 with probability p.

    Args:    p: probability of a zero, default 0.5; inplace: overwrite the input (default False)
    Shape:   input: [batch, channels, length] or [channels, length]   returns: same as input
    Raises:  ValueError unless 0 <= p <= 1
    Source:  see `dropout1d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(_DropoutNd, torch.nn.Dropout2d):
    """In training, each channel of [batch, channels, height, width] is 0 with probability p.

    Args:    p: probability of a zero, default 0.5; inplace: overwrite the input (default False)
    Shape:   input: [batch, channels, height, width] or [channels, height, width]   returns: same
    Raises:  ValueError unless 0 <= p <= 1
    Source:  see `dropout2d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(_DropoutNd, torch.nn.Dropout3d):
    """In training, each channel of [batch, channels, depth, height, width] is 0 with probability p.

    Args:    p: probability of a zero, default 0.5; inplace: overwrite the input (default False)
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: same
    Raises:  ValueError unless 0 <= p <= 1
    Source:  see `dropout3d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return dropout3d(input, self.p, self.training, self.inplace)


class AlphaDropout(_DropoutNd, torch.nn.AlphaDropout):
    """Dropout that keeps the mean and variance of SELU's output.

    Args:    p: probability of a zero, default 0.5; inplace: overwrite the input (default False)
    Shape:   input: [*]   returns: same as input
    Raises:  ValueError unless 0 <= p <= 1
    Source:  see `alpha_dropout`
    """

    def forward(self, input: Tensor) -> Tensor:
        return alpha_dropout(input, self.p, self.training)


class FeatureAlphaDropout(_DropoutNd, torch.nn.FeatureAlphaDropout):
    """Alpha dropout of whole channels.

    Args:    p: probability of a zero, default 0.5; inplace: overwrite the input (default False)
    Shape:   input: [batch, channels, *]   returns: same as input
    Raises:  ValueError unless 0 <= p <= 1
    Source:  see `feature_alpha_dropout`
    """

    def forward(self, input: Tensor) -> Tensor:
        return feature_alpha_dropout(input, self.p, self.training)
