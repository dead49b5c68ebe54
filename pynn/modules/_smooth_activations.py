"""Activations made of exp, tanh and erf: the definitions with ATen's signatures, then the public functions.

Formulas are those of aten/src/ATen/native/cpu/Activation.cpp; where a term could overflow its argument is
clamped where that no longer changes the result, so that derivatives of any order stay finite.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import (
    Function,
    apply_in_place,
    computes_in_float32,
    defines,
    differentiable,
    refuse_complex_gradient,
    refuse_complex_half,
    refuse_negative_slope,
    require_floating_point,
    traced_as,
)
from pynn.out import takes_out

__all__ = [
    "celu",
    "celu_",
    "elu",
    "elu_",
    "gelu",
    "glu",
    "logsigmoid",
    "mish",
    "selu",
    "selu_",
    "sigmoid",
    "silu",
    "softplus",
    "softsign",
    "tanh",
    "tanhshrink",
]

aten = torch.ops.aten

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


# ---- definitions -----------------------------------------------------------------------------------------


@defines(aten.sigmoid_backward.default)
@computes_in_float32
def sigmoid_backward(grad: Tensor, output: Tensor) -> Tensor:
    """grad * output * (1 - output)."""
    return grad * output * (1 - output)


@defines(aten.tanh_backward.default)
@computes_in_float32
def tanh_backward(grad: Tensor, output: Tensor) -> Tensor:
    """grad * (1 - output^2)."""
    return grad * (1 - output * output)


@defines(aten.silu.default)
@computes_in_float32
def silu_forward(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * torch.sigmoid(x)


@defines(aten.silu_backward.default)
@computes_in_float32
def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad * s * (1 + x * (1 - s)), s = sigmoid(x)."""
    s = torch.sigmoid(x)
    return grad * (s * (1 + x * (1 - s)))


# With e = exp(x): tanh(log(1 + e)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1) = w / (w + 2), w = e (e + 2), so that one
# exponential and one division are enough. Above x = 20 the quotient is 1 in float64: exp need not go further.


@defines(aten.mish.default)
@computes_in_float32
def mish_forward(x: Tensor) -> Tensor:
    """x * tanh(softplus(x)) = x * w / (w + 2), w = e (e + 2), e = exp(x)."""
    e = torch.exp(torch.clamp(x, max=20))
    w = e * (e + 2)
    return x * (w / (w + 2))


@defines(aten.mish_backward.default)
@computes_in_float32
def mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad * (t + x * sigmoid(x) * (1 - t^2)), t = tanh(softplus(x)).

    In the terms of mish_forward sigmoid(x) * (1 - t^2) = 4 e (e + 1) / (w + 2)^2. The factor e / (w + 2)^2 is
    taken out of the sum, which cancels near x = -1.2: what is left to cancel has few roundings in it.
    """
    bounded = torch.clamp(x, max=20)
    e = torch.exp(bounded)
    w = e * (e + 2)
    factor = 2 / (w + 2)
    total = 0.25 * (e + 2) * (w + 2) + bounded * (e + 1)
    slope = factor * factor * (e * total)
    return grad * (slope + x * 0)  # + NaN where x is infinite: sigmoid(x) * (1 - t^2) is 0 there


@defines(aten.gelu.default)
@computes_in_float32
def gelu_forward(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x * P(N <= x) for a standard normal N, or its approximation by tanh."""
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(_gelu_tanh_argument(x)))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


@defines(aten.gelu_backward.default)
@computes_in_float32
def gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """grad * (P(N <= x) + x * density(x)), or the derivative of the approximation."""
    if approximate == "tanh":
        t = torch.tanh(_gelu_tanh_argument(x))
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        return grad * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)
    probability = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    density = torch.exp(-0.5 * x * x) * math.sqrt(0.5 / math.pi)
    return grad * (probability + x * density)


def _gelu_tanh_argument(x: Tensor) -> Tensor:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


@defines(aten.elu.default)
@computes_in_float32
def elu_forward(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    """scale * (max(x, 0) + alpha * (exp(input_scale * min(x, 0)) - 1)): one of the terms is 0."""
    factor = alpha * scale
    if not (math.isfinite(factor) and math.isfinite(input_scale)):  # times 0 it is NaN
        return torch.where(x < 0, torch.expm1(x * input_scale) * factor, x * scale)
    below = torch.expm1(torch.clamp(x, max=0) * input_scale) * factor
    return torch.clamp(x, min=0) * scale + below


@defines(aten.elu_backward.default)
@computes_in_float32
def elu_backward(
    grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    """The derivative from the input, or (is_result) from the output: there alpha * exp = output + alpha.

    Raises:  RuntimeError for a negative alpha with is_result, where the output no longer tells the sign
    """
    if is_result:
        if alpha < 0:
            raise RuntimeError(
                "In-place elu backward calculation is triggered with a negative slope which is not "
                "supported. "
                "This is caused by calling in-place forward function with a negative slope, "
                "please call out-of-place version instead."
            )
        below = (x + alpha * scale) * input_scale
    else:
        # clamped so that the branch not taken cannot be infinite
        below = torch.exp(torch.clamp(x, max=0) * input_scale) * (alpha * scale * input_scale)
    return torch.where(x > 0, grad * scale, grad * below)  # NaN stays NaN


@defines(aten.celu.default)
def celu_forward(x: Tensor, alpha: float = 1) -> Tensor:
    """ELU with exp(x / alpha), whose derivative is continuous for every alpha."""
    return elu_forward(x, alpha, 1, 1 / alpha)


@defines(aten.selu.default)
def selu_forward(x: Tensor) -> Tensor:
    """ELU with the constants that keep mean 0 and variance 1."""
    return elu_forward(x, SELU_ALPHA, SELU_SCALE)


@defines(aten.glu.default)
@computes_in_float32
def glu_forward(x: Tensor, dim: int = -1) -> Tensor:
    """value * sigmoid(gate), the two halves of x along dim."""
    value, gate = _halves(x, dim)
    return value * torch.sigmoid(gate)


@defines(aten.glu_backward.default)
@computes_in_float32
def glu_backward(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    """[grad * s, grad * value * s * (1 - s)], s = sigmoid(gate)."""
    value, gate = _halves(x, dim)
    s = torch.sigmoid(gate)
    return torch.cat([grad * s, grad * value * s * (1 - s)], dim)


def _halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    half = x.size(dim) // 2
    return x.narrow(dim, 0, half), x.narrow(dim, half, half)


@defines(aten.log_sigmoid_forward.default)
@computes_in_float32
def log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """min(x, 0) - log(1 + exp(-|x|)), and the exp(-|x|) that ATen's backward reuses."""
    decay = torch.exp(-x.abs())
    return torch.clamp(x, max=0) - torch.log1p(decay), decay


@defines(aten.log_sigmoid_backward.default)
@computes_in_float32
def log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor | None = None) -> Tensor:
    """grad * sigmoid(-x); the buffer of the forward isn't needed."""
    return grad * _sigmoid(-x, 80)


@defines(aten.softplus.default)
@computes_in_float32
def softplus_forward(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold."""
    scaled = x * beta
    return torch.where(scaled > threshold, x, torch.log1p(torch.exp(scaled)) / beta)


@defines(aten.softplus_backward.default)
@computes_in_float32
def softplus_backward(grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    """grad * sigmoid(beta * x); grad where beta * x > threshold."""
    scaled = x * beta
    return torch.where(scaled > threshold, grad, grad * _sigmoid(scaled, min(80, threshold)))


def _sigmoid(x: Tensor, largest: float) -> Tensor:
    """exp(x) / (exp(x) + 1); x is held below `largest`, where the quotient has long been 1, so that exp is finite.

    torch.sigmoid's 1 / (1 + exp(-x)) is 0 in float32 from x = -89 on, where exp(-x) overflows; this goes on through
    the subnormal numbers to -104. An infinite grad tells the difference: times 0 it is NaN.
    """
    e = torch.exp(torch.clamp(x, max=largest))
    return e / (e + 1)


# ---- public functions ------------------------------------------------------------------------------------


def _gelu_with(approximate: str):
    return differentiable(
        lambda x: gelu_forward(x, approximate=approximate),
        lambda grad, x: gelu_backward(grad, x, approximate=approximate),
    )


_silu = differentiable(silu_forward, silu_backward)
_mish = differentiable(mish_forward, mish_backward)
_gelu = {approximate: _gelu_with(approximate) for approximate in ("none", "tanh")}
_elu = differentiable(
    elu_forward,
    lambda grad, x, alpha, scale, input_scale: elu_backward(grad, alpha, scale, input_scale, False, x),
)
_elu_negative_in_place = differentiable(elu_forward, refuse_negative_slope("elu"))
_log_sigmoid = differentiable(lambda x: log_sigmoid_forward(x)[0], log_sigmoid_backward)
_softplus = differentiable(softplus_forward, softplus_backward)


@traced_as(F.sigmoid)
def sigmoid(input: Tensor) -> Tensor:
    """out = 1 / (1 + exp(-input)): an elementary operation of this project.

    Shape:   input: [*]   returns: same as input
    dtype:   floating point or complex, returned as input's; integers and bool give float32; computes in
             float32 for 16-bit inputs
    Raises:  NotImplementedError for 16-bit complex numbers
    Source:  aten/native/UnaryOps.cpp
    """
    return input.sigmoid()


@traced_as(F.tanh)
def tanh(input: Tensor) -> Tensor:
    """out = (exp(input) - exp(-input)) / (exp(input) + exp(-input)): an elementary operation.

    Shape:   input: [*]   returns: same as input
    dtype:   floating point or complex, returned as input's; integers and bool give float32; computes in
             float32 for 16-bit inputs
    Raises:  NotImplementedError for 16-bit complex numbers
    Source:  aten/native/UnaryOps.cpp
    """
    return input.tanh()


@traced_as(F.silu)
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """out = input * sigmoid(input), also called swish.

    Args:    inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point or complex, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and 16-bit complex numbers; RuntimeError for a complex input
             that asks for a gradient
    Source:  Elfwing et al., Sigmoid-weighted linear units, 2017; aten/native/Activation.cpp
    """
    refuse_complex_half("silu_cpu", input)
    if input.is_complex():
        if inplace:
            return input.mul_(torch.sigmoid(input))
        refuse_complex_gradient("silu", input)
        return input * torch.sigmoid(input)
    require_floating_point("silu_cpu", input)
    return apply_in_place(_silu, input) if inplace else _silu(input)


@traced_as(F.mish)
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """out = input * tanh(softplus(input)).

    Args:    inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and complex numbers
    Source:  Misra, Mish: A self regularized non-monotonic neural activation function, 2019;
             aten/native/Activation.cpp
    """
    require_floating_point("mish_cpu", input)
    return apply_in_place(_mish, input) if inplace else _mish(input)


@traced_as(F.gelu)
@takes_out
def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """out = input * P(N <= input) for a standard normal N.

        none:  0.5 * x * (1 + erf(x / sqrt(2)))
        tanh:  0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))

    Args:    approximate: "none" (default) or "tanh"
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  RuntimeError for another approximate; NotImplementedError for integers and complex numbers
    Source:  Hendrycks and Gimpel, Gaussian error linear units, 2016; aten/native/Activation.cpp
    """
    require_floating_point("GeluKernelImpl", input)
    if approximate not in _gelu:
        raise RuntimeError("approximate argument must be either none or tanh.")
    return _gelu[approximate](input)


@traced_as(F.elu)
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """out = input where input > 0, else alpha * (exp(input) - 1).

    Args:    alpha: the limit is -alpha, default 1; inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and complex numbers; RuntimeError in the backward pass of an
             in-place call with a negative alpha
    Source:  Clevert et al., Fast and accurate deep network learning by exponential linear units, 2015;
             aten/native/Activation.cpp
    """
    return _scaled_elu(input, inplace, alpha, 1, 1)


@traced_as(F.elu_)
def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """In-place version of `elu`."""
    return _scaled_elu(input, True, alpha, 1, 1)


@traced_as(F.celu)
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """out = max(input, 0) + min(0, alpha * (exp(input / alpha) - 1)).

    Args:    alpha: the limit is -alpha, default 1; inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  RuntimeError when alpha is 0, and in the backward pass of an in-place call with a negative one;
             NotImplementedError for integers and complex numbers
    Source:  Barron, Continuously differentiable exponential linear units, 2017; aten/native/Activation.cpp
    """
    if alpha == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return _scaled_elu(input, inplace, alpha, 1, 1 / alpha)


@traced_as(F.celu_)
def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """In-place version of `celu`."""
    return celu.__wrapped__(input, alpha, inplace=True)


@traced_as(F.selu)
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """out = scale * (max(input, 0) + min(0, alpha * (exp(input) - 1))), alpha = 1.6733, scale = 1.0507.

    Args:    inplace: overwrite input (default False)
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and complex numbers
    Source:  Klambauer et al., Self-normalizing neural networks, 2017; aten/native/Activation.cpp
    """
    return _scaled_elu(input, inplace, SELU_ALPHA, SELU_SCALE, 1)


@traced_as(F.selu_)
def selu_(input: Tensor) -> Tensor:
    """In-place version of `selu`."""
    return _scaled_elu(input, True, SELU_ALPHA, SELU_SCALE, 1)


def _scaled_elu(input: Tensor, inplace: bool, alpha: float, scale: float, input_scale: float) -> Tensor:
    require_floating_point("elu_cpu", input)
    if inplace:
        return apply_in_place(
            _elu if alpha * scale >= 0 else _elu_negative_in_place, input, alpha, scale, input_scale
        )
    return _elu(input, alpha, scale, input_scale)


@traced_as(F.glu)
def glu(input: Tensor, dim: int = -1) -> Tensor:
    """out = value * sigmoid(gate), where value and gate are the halves of input along dim.

    Args:    dim: the dimension to halve, default the last
    Shape:   input: [*, 2 * size, *]   returns: [*, size, *]
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  RuntimeError for a scalar, or a size along dim that is odd; IndexError when dim is out of range;
             NotImplementedError for integers and complex numbers
    Source:  Dauphin et al., Language modeling with gated convolutional networks, 2016;
             aten/native/GatedLinearUnit.cpp
    """
    if input.dim() == 0:
        raise RuntimeError("glu does not support scalars because halving size must be even")
    if input.size(dim) % 2 != 0:
        raise RuntimeError(
            f"Halving dimension must be even, but dimension {dim % input.dim()} is size {input.size(dim)}"
        )
    require_floating_point("glu_cpu", input)
    return _Glu.apply(input, dim)


class _Glu(Function):
    """glu_forward with glu_backward: keeps only the input."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return glu_forward(input, dim)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        input, ctx.dim = inputs
        ctx.save_for_backward(input)
        ctx.save_for_forward(input)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return glu_backward(grad, *ctx.saved_tensors, ctx.dim), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _) -> Tensor:
        """d(value * s) = dvalue * s + value * s * (1 - s) * dgate."""
        (input,) = ctx.saved_tensors
        value, gate = _halves(input, ctx.dim)
        value_tangent, gate_tangent = _halves(tangent, ctx.dim)
        s = torch.sigmoid(gate)
        return value_tangent * s + value * s * (1 - s) * gate_tangent


@traced_as(F.logsigmoid)
@takes_out
def logsigmoid(input: Tensor) -> Tensor:
    """out = log(1 / (1 + exp(-input))) = min(input, 0) - log(1 + exp(-|input|)).

    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and complex numbers
    Source:  aten/native/Activation.cpp
    """
    require_floating_point("log_sigmoid_cpu", input)
    return _log_sigmoid(input.contiguous())  # so the result is, as in C++


@traced_as(F.softplus)
@takes_out
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """out = log(1 + exp(beta * input)) / beta; input itself where beta * input > threshold.

    Args:    beta: steepness, default 1; threshold: above it the result is linear, default 20
    Shape:   input: [*]   returns: same as input
    dtype:   floating point, returned as input's; computes in float32 for 16-bit inputs
    Raises:  NotImplementedError for integers and complex numbers
    Source:  aten/native/Activation.cpp
    """
    require_floating_point("softplus_cpu", input)
    return _softplus(input, beta, threshold)


@traced_as(F.softsign)
def softsign(input: Tensor) -> Tensor:
    """out = input / (1 + |input|).

    Shape:   input: [*]   returns: same as input
    dtype:   floating point or complex, returned as input's; integers give float32; 16 bits round at every
             step
    Raises:  NotImplementedError for bool and 16-bit complex numbers
    Source:  torch.nn.functional
    """
    return input / (input.abs() + 1)


@traced_as(F.tanhshrink)
def tanhshrink(input: Tensor) -> Tensor:
    """out = input - tanh(input).

    Shape:   input: [*]   returns: same as input
    dtype:   floating point or complex, returned as input's; integers give float32; 16 bits round at every
             step
    Raises:  RuntimeError for bool; NotImplementedError for 16-bit complex numbers
    Source:  torch.nn.functional
    """
    return input - input.tanh()
