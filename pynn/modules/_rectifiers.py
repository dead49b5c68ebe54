"""Piecewise linear activations: the definitions with ATen's signatures, then the public functions.

Every one is a comparison and a choice, or a clamp where that says the same. Values at the kinks, and what
NaN gives, are those of aten/src/ATen/native/cpu/Activation.cpp.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.batched_gradients import outside_older_vmap
from pynn.definitions import (
    apply_in_place,
    can_read_through_gradients,
    computes_in_float32,
    defines,
    differentiable,
    linear_in,
    refuse_negative_slope,
    require_floating_point,
    traced_as,
    type_name,
)
from pynn.modules._sparse_values import of_values
from pynn.out import takes_out

__all__ = [
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rrelu",
    "rrelu_",
    "softshrink",
    "threshold",
    "threshold_",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


@defines(aten.relu.default)
def relu_forward(x: Tensor) -> Tensor:
    """max(x, 0); NaN stays NaN."""
    return torch.clamp(x, min=0)


@defines(aten.threshold.default)
@computes_in_float32
def threshold_forward(x: Tensor, threshold: float, value: float) -> Tensor:
    """x above the threshold, else value, both in the dtype of integers x; NaN stays NaN."""
    if not x.is_floating_point():
        threshold, value = int(threshold), int(value)
    return torch.where(x <= threshold, value, x)


@defines(aten.threshold_backward.default)
@computes_in_float32
def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """0 where x <= threshold, else grad."""
    return torch.where(x <= threshold, 0, grad)


@defines(aten.leaky_relu.default)
@computes_in_float32
def leaky_relu_forward(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x: the larger of the two for a slope in (0, 1]."""
    if 0 < negative_slope <= 1:
        return torch.maximum(x, x * negative_slope)
    return torch.where(x > 0, x, x * negative_slope)


@defines(aten.leaky_relu_backward.default)
@computes_in_float32
def leaky_relu_backward(
    grad: Tensor, x: Tensor, negative_slope: float, self_is_result: bool = False
) -> Tensor:
    """grad where x > 0, else negative_slope * grad (x may be the result: a positive slope keeps the sign)."""
    return torch.where(x > 0, grad, grad * negative_slope)


@defines(aten.hardtanh.default)
def hardtanh_forward(x: Tensor, min_val: float = -1, max_val: float = 1) -> Tensor:
    """min(max(x, min_val), max_val); NaN stays NaN."""
    return torch.clamp(x, min_val, max_val)


@defines(aten.hardtanh_backward.default)
def hardtanh_backward(grad: Tensor, x: Tensor, min_val: float, max_val: float) -> Tensor:
    """grad strictly between the bounds, else 0 (NaN too, as in C++'s vectors)."""
    return torch.where((x > min_val) & (x < max_val), grad, 0)


@defines(aten.hardsigmoid.default)
@computes_in_float32
def hardsigmoid_forward(x: Tensor) -> Tensor:
    """min(max(x + 3, 0), 6) / 6."""
    return hardtanh_forward(x + 3, 0, 6) / 6


@defines(aten.hardsigmoid_backward.default)
@computes_in_float32
def hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad / 6 strictly between -3 and 3, else 0 (NaN too)."""
    return torch.where((x > -3) & (x < 3), grad / 6, 0)


@defines(aten.hardswish.default)
@computes_in_float32
def hardswish_forward(x: Tensor) -> Tensor:
    """x * min(max(x + 3, 0), 6) / 6."""
    return x * hardtanh_forward(x + 3, 0, 6) / 6


@defines(aten.hardswish_backward.default)
@computes_in_float32
def hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """0 up to -3, grad * (x / 3 + 1/2) below 3, grad from there on; NaN stays NaN."""
    return torch.where(x <= -3, 0, torch.where(x >= 3, grad, grad * (x / 3 + 0.5)))


@defines(aten.hardshrink.default)
def hardshrink_forward(x: Tensor, lambd: float = 0.5) -> Tensor:
    """0 where |x| <= lambd, else x."""
    return torch.where((x >= -lambd) & (x <= lambd), 0, x)


@defines(aten.softshrink.default)
@computes_in_float32
def softshrink_forward(x: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved towards 0 by lambd, and 0 where |x| <= lambd; NaN stays NaN."""
    return x - torch.clamp(x, -lambd, lambd)


@defines(aten.hardshrink_backward.default, aten.softshrink_backward.default)
def shrink_backward(grad: Tensor, x: Tensor, lambd: float) -> Tensor:
    """grad where |x| > lambd, else 0 (NaN too, as in C++'s vectors)."""
    return torch.where((x < -lambd) | (x > lambd), grad, 0)


@defines(aten._prelu_kernel.default)
@computes_in_float32
def prelu_forward(x: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight * x."""
    return torch.where(x > 0, x, weight * x)


def prelu_backward_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """grad where x > 0, else weight * grad."""
    return torch.where(x > 0, grad, weight * grad)


def prelu_backward_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """0 where x > 0, else x * grad: not yet summed over the elements that share a weight."""
    return torch.where(x > 0, 0, x * grad)


@defines(aten._prelu_kernel_backward.default)
@computes_in_float32
def prelu_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return prelu_backward_input(grad, x, weight), prelu_backward_weight(grad, x, weight)


@defines(aten.rrelu_with_noise_functional.default)
def rrelu_with_noise_functional(
    x: Tensor,
    noise: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Leaky ReLU whose slope is drawn from [lower, upper), and the slopes (1 where x > 0).

    Differs from ATen's CPU kernel in the random numbers: that draws for the elements <= 0 only, which no
    traced program can (eager `rrelu` does; compiled with eager_random=True, ATen's own call stays).
    """
    if not training:
        return leaky_relu_forward(x, (lower + upper) / 2), noise
    draws = torch.rand_like(x) * (upper - lower) + lower
    slopes = torch.where(x <= 0, draws, 1)
    return x * slopes, slopes


@defines(aten.rrelu_with_noise_backward.default)
@computes_in_float32
def rrelu_with_noise_backward(
    grad: Tensor, x: Tensor, noise: Tensor, lower: float, upper: float, training: bool, self_is_result: bool
) -> Tensor:
    """grad * noise when training (with an interval wide enough to matter), else that of leaky ReLU."""
    if training and upper - lower > 1e-6:
        return grad * noise
    return leaky_relu_backward(grad, x, (lower + upper) / 2, self_is_result)


# ---- public functions ------------------------------------------------------------------------------------

_relu = differentiable(
    relu_forward, lambda grad, y: threshold_backward(grad, y, 0), is_short=True, keeps_result=True
)
_threshold = differentiable(
    threshold_forward, lambda grad, x, threshold, value: threshold_backward(grad, x, threshold), is_short=True
)
_leaky_relu = differentiable(leaky_relu_forward, leaky_relu_backward, is_short=True)
_leaky_relu_negative_in_place = differentiable(
    leaky_relu_forward, refuse_negative_slope("leakyReLu"), is_short=True
)
_hardtanh = differentiable(hardtanh_forward, hardtanh_backward, is_short=True)
_hardsigmoid = differentiable(hardsigmoid_forward, hardsigmoid_backward)
_hardswish = differentiable(hardswish_forward, hardswish_backward, is_short=True)
_hardshrink = differentiable(hardshrink_forward, shrink_backward)
_softshrink = differentiable(softshrink_forward, shrink_backward)
_prelu = differentiable(
    prelu_forward, computes_in_float32(prelu_backward_input), computes_in_float32(prelu_backward_weight)
)


@traced_as(F.relu)
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """out = max(input, 0); the gradient at 0 is 0, NaN stays NaN.

    Args:    inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   every real number but bool, returned as input's
    Raises:  RuntimeError for bool; NotImplementedError for complex numbers
    Source:  Nair and Hinton, Rectified linear units improve restricted Boltzmann machines, 2010;
             aten/native/Activation.cpp
    """
    if input.dtype == torch.bool:
        raise RuntimeError("Boolean inputs not supported for relu")
    if input.layout != torch.strided:
        return of_values(_relu, input, inplace)
    return apply_in_place(_relu, input) if inplace else _relu(input)


@traced_as(F.relu_)
def relu_(input: Tensor) -> Tensor:
    """In-place version of `relu`."""
    return relu.__wrapped__(input, inplace=True)


@traced_as(F.threshold)
def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """out = input where input > threshold, else value.

    Args:    threshold: what an element must exceed to stay; value: what the others become
             inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   every real number but bool, returned as input's
    Raises:  NotImplementedError for bool and complex numbers
    Source:  aten/native/Activation.cpp
    """
    if inplace:
        return threshold_.__wrapped__(input, threshold, value)
    _require_order(input)
    return _threshold(input, threshold, value)


def _require_order(input: Tensor) -> None:
    if input.is_complex() or input.dtype == torch.bool:
        raise NotImplementedError(f"\"threshold_cpu\" not implemented for '{type_name(input)}'")


@traced_as(F.threshold_)
def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    """In-place version of `threshold`; of an expanded input each element is written once."""
    _require_order(input)
    apply_in_place(_threshold, input[tuple(_first_if_same(input))], threshold, value)
    return input


def _first_if_same(x: Tensor) -> list[slice]:
    """Along dimensions whose elements are all the same one (stride 0) the first, along others all."""
    return [slice(0, 1) if step == 0 else slice(None) for step in x.stride()]


@traced_as(F.leaky_relu)
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """out = input where input > 0, else negative_slope * input.

    Args:    negative_slope: default 0.01; inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and complex numbers; RuntimeError in the backward pass of an
             in-place call with a negative slope
    Source:  Maas et al., Rectifier nonlinearities improve neural network acoustic models, 2013;
             aten/native/Activation.cpp
    """
    require_floating_point("leaky_relu_cpu", input)
    if inplace:
        function = _leaky_relu if negative_slope >= 0 else _leaky_relu_negative_in_place
        return apply_in_place(function, input, negative_slope)
    return _leaky_relu(input, negative_slope)


@traced_as(F.leaky_relu_)
def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """In-place version of `leaky_relu`."""
    return leaky_relu.__wrapped__(input, negative_slope, inplace=True)


@traced_as(F.hardtanh)
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """out = min(max(input, min_val), max_val); the gradient at the bounds is 0.

    Args:    min_val, max_val: the bounds, default -1 and 1; inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   every real number but bool, returned as input's; of the bounds integers take the whole part
    Raises:  ValueError when min_val > max_val; RuntimeError for bool, and for unsigned with a negative limit;
             NotImplementedError for complex numbers
    Source:  aten/native/Activation.cpp
    """
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return _hardtanh_unordered(input, min_val, max_val, inplace)


def _hardtanh_unordered(input: Tensor, min_val: float, max_val: float, inplace: bool) -> Tensor:
    if input.dtype == torch.bool:
        raise RuntimeError("Bool inputs not supported for hardtanh")
    if not input.is_floating_point():
        min_val, max_val = int(min_val), int(max_val)
        if not input.is_signed() and min_val < 0:
            raise RuntimeError("cannot do hardtanh on an unsigned type with negative limits")
    if inplace:
        return apply_in_place(_hardtanh, input, min_val, max_val)
    return _hardtanh(input, min_val, max_val)


@traced_as(F.hardtanh_)
def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """In-place version of `hardtanh`; a min_val above max_val gives max_val."""
    return _hardtanh_unordered(input, min_val, max_val, inplace=True)


@traced_as(F.relu6)
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """out = min(max(input, 0), 6).

    Args:    inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   every real number but bool, returned as input's
    Raises:  RuntimeError for bool; NotImplementedError for complex numbers
    Source:  Krizhevsky, Convolutional deep belief networks on CIFAR-10, 2010; aten/native/Activation.cpp
    """
    return hardtanh.__wrapped__(input, 0.0, 6.0, inplace)


@traced_as(F.hardsigmoid)
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """out = min(max(input + 3, 0), 6) / 6.

    Args:    inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and complex numbers
    Source:  aten/native/Activation.cpp
    """
    require_floating_point("hardsigmoid_cpu", input)
    return apply_in_place(_hardsigmoid, input) if inplace else _hardsigmoid(input)


@traced_as(F.hardswish)
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """out = input * min(max(input + 3, 0), 6) / 6.

    Args:    inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and complex numbers
    Source:  Howard et al., Searching for MobileNetV3, 2019; aten/native/Activation.cpp
    """
    require_floating_point("hardswish_cpu", input)
    return apply_in_place(_hardswish, input) if inplace else _hardswish(input)


@traced_as(F.hardshrink)
@takes_out
def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """out = 0 where |input| <= lambd, else input.

    Args:    lambd: the largest magnitude that becomes 0, default 0.5
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's
    Raises:  NotImplementedError for integers and complex numbers
    Source:  aten/native/Activation.cpp
    """
    require_floating_point("hardshrink_cpu", input)
    return _hardshrink(input, lambd)


@traced_as(F.softshrink)
@takes_out
def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """out = input - lambd above lambd, input + lambd below -lambd, 0 between.

    Args:    lambd: how far elements move towards 0, not negative, default 0.5
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  RuntimeError when lambd is negative or beyond the dtype's numbers; NotImplementedError for
             integers and complex numbers
    Source:  aten/native/Activation.cpp
    """
    require_floating_point("softshrink_check", input)
    largest = torch.finfo(input.dtype).max
    if not 0 <= lambd <= largest:
        raise RuntimeError(
            f"lambda must be in range [0, {largest:g}] for input dtype "
            f"{type_name(input)}, but found {lambd:g}"
        )
    return _softshrink(input, lambd)


@traced_as(F.prelu)
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """out = input where input > 0, else weight * input.

    Shape:   input: [batch, channels, *] or any   weight: [channels], or one element   returns: same as input
    dtype:   floating point, weight's the same, returned so; computes in float32 for 16-bit inputs
    Raises:  RuntimeError when the weights are neither one nor as many as the channels, of another dtype or of
             more than 1 dimension; NotImplementedError for integers and complex numbers
    Source:  He et al., Delving deep into rectifiers, 2015; aten/native/Activation.cpp
    """
    if input.dtype != weight.dtype:
        raise RuntimeError(
            f"prelu: Type promoting not supported. Got {type_name(input)} and {type_name(weight)}"
        )
    if weight.dim() > 1:
        raise RuntimeError(
            f"prelu: Expected `weight` to be a scalar or 1D tensor, but got: ndim = {weight.dim()}"
        )
    if weight.numel() != 1:
        if input.dim() == 0:
            raise RuntimeError("Not allow zero-dim input tensor.")
        channels = input.size(1) if input.dim() > 1 else 1
        if channels != weight.numel():
            raise RuntimeError(
                "Mismatch of parameter numbers and input channel size. Found parameter numbers = "
                f"{weight.numel()} and channel size = {channels}."
            )
    require_floating_point("prelu_cpu", input)
    sizes = [1] * input.dim()
    if input.dim() > 1:
        sizes[1] = -1
    return _prelu(input, weight.reshape(sizes).expand(input.shape))


@traced_as(F.rrelu)
def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """out = input where input > 0, else slope * input, with slope ~ uniform [lower, upper) per element.

    Outside training the slope is the middle of the interval. Draws in the order of ATen's CPU kernel: one
    float64 for each element <= 0, so equal seeds give equal results.

    Args:    lower, upper: bounds of the slope, lower <= upper, default 1/8 and 1/3
             training: draw the slopes (default False); inplace: overwrite input
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; 16-bit slopes are rounded before they multiply
    Raises:  RuntimeError when lower > upper, or one is not finite; NotImplementedError for integers and
             complex numbers, and for float16 in training on the CPU
    Source:  Xu et al., Empirical evaluation of rectified activations in convolutional network, 2015;
             aten/native/Activation.cpp
    """
    for name, bound in (("lower", lower), ("upper", upper)):
        if not inplace and not math.isfinite(bound):
            raise RuntimeError(f"rrelu: {name} bound must be finite, got {bound}")
    if not lower <= upper:  # NaN too
        raise RuntimeError("Lower bound should be less than or equal to the upper bound")
    require_floating_point("leaky_relu_cpu" if not training else "rrelu_with_noise_out_cpu", input)
    if training and input.dtype == torch.float16 and input.is_cpu:
        raise NotImplementedError("\"rrelu_with_noise_out_cpu\" not implemented for 'Half'")
    if not training:
        return leaky_relu.__wrapped__(input if inplace else input.contiguous(), (lower + upper) / 2, inplace)
    slopes = _random_slopes(input.detach(), lower, upper)
    return input.mul_(slopes) if inplace else linear_in(input).contiguous() * slopes


def _random_slopes(x: Tensor, lower: float, upper: float) -> Tensor:
    """1 where x > 0, else uniform [lower, upper)."""
    is_negative = x <= 0
    if can_read_through_gradients(x):
        with outside_older_vmap():
            draws = torch.empty(int(is_negative.sum()), dtype=torch.float64, device=x.device).uniform_(
                lower, upper
            )
        slopes = torch.ones_like(x, memory_format=torch.contiguous_format)
        return slopes.masked_scatter_(is_negative, draws.to(x.dtype))
    # how many to draw can't be known: as many as there could be, of which the first ones are used
    draws = torch.rand(x.numel(), dtype=torch.float64, device=x.device) * (upper - lower) + lower
    order = (is_negative.flatten().cumsum(0) - 1).clamp_min(0)
    return torch.where(is_negative, draws.to(x.dtype).index_select(0, order).view(x.shape), 1)


@traced_as(F.rrelu_)
def rrelu_(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    """In-place version of `rrelu`."""
    return rrelu.__wrapped__(input, lower, upper, training, inplace=True)
