"""Layer and RMS normalisation, and the layers of group and response normalisation.

The mathematics of those is in _group_norm and _response_norm.
"""

import numbers
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.nn import Parameter

from pynn.construction import init_module
from pynn.definitions import Function, defines, refuse_complex_half, require_floating_point, traced_as, widen
from pynn.memory_format import suggest_memory_format
from pynn.modules._group_norm import group_norm
from pynn.modules._normalization_checks import check_parameter_dtypes
from pynn.modules._response_norm import cross_map_lrn2d, local_response_norm

__all__ = [
    "CrossMapLRN2d",
    "GroupNorm",
    "LayerNorm",
    "LocalResponseNorm",
    "RMSNorm",
    "group_norm",
    "layer_norm",
    "local_response_norm",
    "rms_norm",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


def _trailing_dims(normalized_shape: Any) -> list[int]:
    return list(range(-len(normalized_shape), 0))


def _sum_of_leading_dims(x: Tensor, normalized_shape: Any) -> Tensor:
    leading = list(range(x.dim() - len(normalized_shape)))
    return x.sum(leading) if leading else x


def row_statistics(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor]:
    """mean(x) and 1 / sqrt(mean((x - mean)^2) + eps) over dims, kept as size 1."""
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    return mean, torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)


@defines(aten.native_layer_norm.default)
def layer_norm_forward(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) * rstd * weight + bias, mean and rstd.

    dtype:   mean and rstd are float32 for a 16-bit x (ATen's CPU kernel may round them to 16 bits)
    """
    values = widen(x)
    mean, rstd = row_statistics(values, _trailing_dims(normalized_shape), eps)
    out = (values - mean) * rstd
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    return out.to(x.dtype), mean, rstd


@defines(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: list[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With n = (x - mean) * rstd and g = grad * weight:

    dx = rstd * (g - mean(g) - n * mean(g * n)),   dweight = sum(grad * n),   dbias = sum(grad)
    """
    dims = _trailing_dims(normalized_shape)
    values, gradient = widen(x), widen(grad)
    normalised = (values - mean) * rstd
    dx = dweight = dbias = None
    if output_mask[0]:
        scaled = gradient if weight is None else gradient * weight
        projection = normalised * (scaled * normalised).mean(dims, keepdim=True)
        dx = (rstd * (scaled - scaled.mean(dims, keepdim=True) - projection)).to(x.dtype)
    if output_mask[1] and weight is not None:
        dweight = _sum_of_leading_dims(gradient * normalised, normalized_shape).to(weight.dtype)
    if output_mask[2] and bias is not None:
        dbias = _sum_of_leading_dims(gradient, normalized_shape).to(bias.dtype)
    return dx, dweight, dbias


def reciprocal_rms(x: Tensor, dims: list[int], eps: float | None) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over dims, kept as size 1; eps None: the machine epsilon of x's dtype."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return torch.rsqrt((x * x).mean(dims, keepdim=True) + eps)


@defines(aten._fused_rms_norm.default)
def rms_norm_forward(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    """x * rrms * weight and rrms = 1 / sqrt(mean(x^2) + eps), which is float32 for a 16-bit x."""
    values = widen(x)
    rrms = reciprocal_rms(values, _trailing_dims(normalized_shape), eps)
    out = values * rrms
    if weight is not None:
        out = out * weight
    return out.to(x.dtype), rrms


@defines(aten._fused_rms_norm_backward.default)
def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: list[int],
    rrms: Tensor,
    weight: Tensor | None,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """With n = x * rrms and g = grad * weight:

    dx = rrms * (g - n * mean(g * n)),   dweight = sum(grad * n)
    """
    dims = _trailing_dims(normalized_shape)
    values, gradient = widen(x), widen(grad)
    normalised = values * rrms
    dx = dweight = None
    if output_mask[0]:
        scaled = gradient if weight is None else gradient * weight
        dx = (rrms * (scaled - normalised * (scaled * normalised).mean(dims, keepdim=True))).to(x.dtype)
    if output_mask[1] and weight is not None:
        dweight = _sum_of_leading_dims(gradient * normalised, normalized_shape).to(weight.dtype)
    return dx, dweight


# ---- public functions ------------------------------------------------------------------------------------


class _LayerNorm(Function):
    """layer_norm_forward with layer_norm_backward: keeps the inputs, takes the two statistics again.

    rank: len(normalized_shape); torch.func counts each number of a tuple as an input of its own.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, rank: int, eps: float) -> Tensor:
        return layer_norm_forward(x, x.shape[-rank:], weight, bias, eps)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, rank, ctx.eps = inputs
        ctx.shape = x.shape[-rank:]
        ctx.save_for_backward(x, weight, bias)
        ctx.save_for_forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, bias = ctx.saved_tensors
        mean, rstd = row_statistics(widen(x), _trailing_dims(ctx.shape), ctx.eps)
        mask = list(ctx.needs_input_grad[:3])
        return (*layer_norm_backward(grad, x, ctx.shape, mean, rstd, weight, bias, mask), None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: Any) -> Tensor:
        """dx's normalised part (the Jacobian of x -> n is symmetric) * weight + n * dweight + dbias."""
        x, weight, _ = ctx.saved_tensors
        values = widen(x)
        mean, rstd = row_statistics(values, _trailing_dims(ctx.shape), ctx.eps)
        out = torch.zeros_like(values)
        if dx is not None:
            mask = [True, False, False]
            out = layer_norm_backward(widen(dx), values, ctx.shape, mean, rstd, None, None, mask)[0]
            out = out if weight is None else out * weight
        if dweight is not None:
            out = out + (values - mean) * rstd * dweight
        if dbias is not None:
            out = out + dbias
        return out.to(x.dtype)


class _RmsNorm(Function):
    """rms_norm_forward with rms_norm_backward: keeps the inputs, takes the statistic again."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, rank: int, eps: float | None) -> Tensor:
        return rms_norm_forward(x, x.shape[-rank:], weight, eps)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, rank, ctx.eps = inputs
        ctx.shape = x.shape[-rank:]
        # only dx needs the weight; one that isn't kept may be overwritten
        ctx.save_for_backward(x, weight if ctx.needs_input_grad[0] else None)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        rrms = reciprocal_rms(widen(x), _trailing_dims(ctx.shape), ctx.eps)
        mask = list(ctx.needs_input_grad[:2])
        return (*rms_norm_backward(grad, x, ctx.shape, rrms, weight, mask), None, None)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, *_: Any) -> Tensor:
        """dx's normalised part (the Jacobian of x -> n is symmetric) * weight + n * dweight."""
        x, weight = ctx.saved_tensors
        values = widen(x)
        rrms = reciprocal_rms(values, _trailing_dims(ctx.shape), ctx.eps)
        out = torch.zeros_like(values)
        if dx is not None:
            out = rms_norm_backward(widen(dx), values, ctx.shape, rrms, None, [True, False])[0]
            out = out if weight is None else out * weight
        if dweight is not None:
            out = out + values * rrms * dweight
        return out.to(x.dtype)


@traced_as(F.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias.

    Args:    eps: added to the variance, default 1e-5
    Shape:   input: [*, *normalized_shape]   weight, bias: normalized_shape   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs; weight and bias may
             then be float32
    Raises:  RuntimeError when shapes or dtypes do not match; NotImplementedError for integers and complex
             numbers
    Source:  Ba et al., Layer normalization, 2016; aten/native/layer_norm.cpp
    """
    check_parameter_dtypes("LayerNormKernelImpl", input, weight, bias)
    _check_normalized_shape(input, normalized_shape, weight)
    if bias is not None and list(bias.shape) != list(normalized_shape):
        raise RuntimeError(
            "Expected bias to be of same shape as normalized_shape, but got bias of shape "
            f"{list(bias.shape)} and normalized_shape = {list(normalized_shape)}"
        )
    # contiguous, so that the result is, as in C++
    return _LayerNorm.apply(input.contiguous(), weight, bias, len(normalized_shape), eps)


@traced_as(F.rms_norm)
def rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """out = x / sqrt(mean(x^2) + eps) * weight.

    Args:    eps: None takes the machine epsilon of the dtype computed in
    Shape:   input: [*, *normalized_shape]   weight: normalized_shape   returns: same as input
    dtype:   floating point or complex, returned as input's; computes in float32 for 16-bit inputs
    Raises:  RuntimeError when shapes do not match, ValueError for too few dimensions; NotImplementedError for
             integers
    Source:  Zhang and Sennrich, Root mean square layer normalization, 2019; aten/native/layer_norm.cpp
    """
    _check_normalized_shape(input, normalized_shape, weight, is_rms=True)
    # contiguous, or channels-last, so that the result is, as in C++
    input = input.contiguous(memory_format=suggest_memory_format(input))
    if input.is_complex():  # plain autograd: the formulas of the gradient are those of real numbers
        refuse_complex_half("rms_norm", input)
        return rms_norm_forward(input, normalized_shape, weight, eps)[0]
    require_floating_point("rms_norm", input)
    return _RmsNorm.apply(input, weight, len(normalized_shape), eps)


def _check_normalized_shape(input: Tensor, shape: Any, weight: Tensor | None, is_rms: bool = False) -> None:
    shape = list(shape)
    if len(shape) == 0:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, "
            "but got normalized_shape = []"
        )
    if weight is not None and list(weight.shape) != shape:
        raise RuntimeError(
            "Expected weight to be of same shape as normalized_shape, but got weight of shape "
            f"{list(weight.shape)} and normalized_shape = {shape}"
        )
    if is_rms and input.dim() < len(shape):
        raise ValueError(f"Input tensor must have at least {len(shape)} dimensions, but got {input.dim()}")
    if list(input.shape[-len(shape) :]) != shape:
        sizes = ", ".join(map(str, shape))
        raise RuntimeError(
            f"Given normalized_shape={shape}, expected input with shape [*{'' if is_rms else ', '}{sizes}], "
            f"but got input of size{list(input.shape)}"
        )


_shape_t = int | list[int] | Size


class LayerNorm(torch.nn.LayerNorm):
    """out = (x - mean) / sqrt(var + eps) * weight + bias over the last dimensions.

    Args:    normalized_shape: sizes of the last dimensions, or the last size
             eps: added to the variance, default 1e-5
             elementwise_affine: learn weight and, with bias, bias (default)
    Shape:   x: [*, *normalized_shape]   weight, bias: normalized_shape   returns: same as x
    Source:  see `layer_norm`
    """

    __constants__ = ["normalized_shape", "eps", "elementwise_affine"]

    def __init__(
        self,
        normalized_shape: _shape_t,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        init_module(LayerNorm, self)
        if isinstance(normalized_shape, numbers.Integral):
            normalized_shape = (normalized_shape,)  # type: ignore[assignment]
        self.normalized_shape = tuple(normalized_shape)  # type: ignore[arg-type]
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        for name, is_learned in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            parameter = None
            if is_learned:
                parameter = Parameter(torch.empty(self.normalized_shape, device=device, dtype=dtype))
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight 1, bias 0."""
        if self.elementwise_affine:
            torch.nn.init.ones_(self.weight)
            if self.bias is not None:
                torch.nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(torch.nn.RMSNorm):
    """out = x / sqrt(mean(x^2) + eps) * weight over the last dimensions.

    Args:    normalized_shape: sizes of the last dimensions, or the last size
             eps: added to the mean square; None takes the machine epsilon of the dtype computed in
             elementwise_affine: learn weight (default)
    Shape:   x: [*, *normalized_shape]   weight: normalized_shape   returns: same as x
    Source:  see `rms_norm`
    """

    __constants__ = ["normalized_shape", "eps", "elementwise_affine"]

    def __init__(
        self,
        normalized_shape: _shape_t,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        init_module(RMSNorm, self)
        if isinstance(normalized_shape, numbers.Integral):
            normalized_shape = (normalized_shape,)  # type: ignore[assignment]
        self.normalized_shape = tuple(normalized_shape)  # type: ignore[arg-type]
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        weight = None
        if elementwise_affine:
            weight = Parameter(torch.empty(self.normalized_shape, device=device, dtype=dtype))
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight 1."""
        if self.elementwise_affine:
            torch.nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(torch.nn.GroupNorm):
    """out = (x - mean) / sqrt(var + eps) * weight + bias; statistics of each group of channels and sample.

    Args:    num_groups: 1 normalises over a whole sample, num_channels each channel for itself
             eps: added to the variance, default 1e-5; affine: learn weight and, with bias, bias (default)
    Shape:   x: [batch, num_channels, *]   weight, bias: [num_channels]   returns: same as x
    Raises:  ValueError when num_channels is not divisible by num_groups
    Source:  see `group_norm`
    """

    __constants__ = ["num_groups", "num_channels", "eps", "affine"]

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ) -> None:
        init_module(GroupNorm, self)
        if num_channels % num_groups != 0:
            raise ValueError(f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})")
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        for name, is_learned in (("weight", affine), ("bias", affine and bias)):
            parameter = None
            if is_learned:
                parameter = Parameter(torch.empty(num_channels, device=device, dtype=dtype))
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """weight 1, bias 0."""
        if self.affine:
            torch.nn.init.ones_(self.weight)
            if self.bias is not None:
                torch.nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class _ResponseNorm:
    """What the two response normalisations share: their four numbers."""

    size: int
    alpha: float
    beta: float
    k: float

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        init_module(_ResponseNorm, self)  # type: ignore[arg-type]
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class LocalResponseNorm(_ResponseNorm, torch.nn.LocalResponseNorm):
    """out = x / (k + alpha * mean(x^2 over size neighbouring channels))^beta.

    Args:    size, alpha, beta, k: as `local_response_norm`'s
    Shape:   x: [batch, channels, *] with at least 3 dimensions   returns: same as x
    Source:  see `local_response_norm`
    """

    __constants__ = ["size", "alpha", "beta", "k"]

    def forward(self, input: Tensor) -> Tensor:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k)


class CrossMapLRN2d(_ResponseNorm, torch.nn.CrossMapLRN2d):
    """out = x * (k + alpha / size * sum(x^2 over size neighbouring channels))^-beta.

    Args:    size: how many channels; alpha: default 1e-4; beta: default 0.75; k: default 1
    Shape:   x: [batch, channels, height, width]   returns: same as x
    Source:  torch/nn/modules/_functions.py. Differs from torch in: see `pynn.modules._response_norm`
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1) -> None:
        _ResponseNorm.__init__(self, size, alpha, beta, k)

    def forward(self, input: Tensor) -> Tensor:
        return cross_map_lrn2d(input, self.size, self.alpha, self.beta, self.k)
