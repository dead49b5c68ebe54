"""Softmax and its relatives: the definitions with ATen's signatures, then the public functions.

A row's maximum is subtracted before exp, so nothing overflows; sums are taken in float32 for 16-bit inputs.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import (
    Function,
    defines,
    refuse_complex_gradient,
    require_floating_point,
    traced_as,
    widen,
)

__all__ = [
    "gumbel_softmax",
    "log_softmax",
    "softmax",
    "softmin",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


def softmax_of(x: Tensor, dim: int) -> Tensor:
    """exp(x - max) / sum(exp(x - max)) along dim."""
    if x.numel() == 0:
        return x.clone()
    exponentials = torch.exp(x - x.amax(dim, keepdim=True))
    return exponentials / exponentials.sum(dim, keepdim=True)


def log_softmax_of(x: Tensor, dim: int) -> Tensor:
    """(x - max) - log(sum(exp(x - max))) along dim."""
    if x.numel() == 0:
        return x.clone()
    shifted = x - x.amax(dim, keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


@defines(aten._softmax.default)
def softmax_forward(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    """Softmax along dim; half_to_float leaves the result of a 16-bit input in float32."""
    return _rounded(softmax_of(widen(x), dim), x, half_to_float)


@defines(aten._log_softmax.default)
def log_softmax_forward(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    """Logarithm of softmax along dim; half_to_float leaves the result of a 16-bit input in float32."""
    return _rounded(log_softmax_of(widen(x), dim), x, half_to_float)


def _rounded(result: Tensor, input: Tensor, half_to_float: bool) -> Tensor:
    return result if half_to_float else result.to(input.dtype)


@defines(aten._softmax_backward_data.default)
def softmax_backward(grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    """output * (grad - sum(output * grad)) along dim."""
    grad, output = widen(grad), widen(output)
    return (output * (grad - (grad * output).sum(dim, keepdim=True))).to(input_dtype)


@defines(aten._log_softmax_backward_data.default)
def log_softmax_backward(grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    """grad - softmax * sum(grad) along dim, softmax = exp(output)."""
    grad = widen(grad)
    return (grad - torch.exp(widen(output)) * grad.sum(dim, keepdim=True)).to(input_dtype)


@defines(aten._safe_softmax.default)
def safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax along dim, and 0 for a row that is -inf throughout (where softmax is NaN)."""
    x = x if dtype is None else x.to(dtype)
    is_masked_row = (x == -torch.inf).all(dim, keepdim=True)
    return torch.where(is_masked_row, 0, softmax_forward(x, dim))


# ---- public functions ------------------------------------------------------------------------------------


class SoftmaxFunction(Function):
    """softmax_forward with softmax_backward: keeps only the output. Its Jacobian is symmetric."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return softmax_forward(input, dim)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return softmax_backward(grad, *ctx.saved_tensors, ctx.dim, grad.dtype), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _) -> Tensor:
        return softmax_backward(tangent, *ctx.saved_tensors, ctx.dim, tangent.dtype)


class _LogSoftmax(Function):
    """log_softmax_forward with log_softmax_backward: keeps only the output."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        return log_softmax_forward(input, dim)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return log_softmax_backward(grad, *ctx.saved_tensors, ctx.dim, grad.dtype), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _) -> Tensor:
        """tangent - sum(softmax * tangent)."""
        (output,) = ctx.saved_tensors
        expectation = (torch.exp(widen(output)) * widen(tangent)).sum(ctx.dim, keepdim=True)
        return (widen(tangent) - expectation).to(tangent.dtype)


@traced_as(F.softmax)
def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """out = exp(input) / sum(exp(input)) along dim, after a cast to dtype if given.

    Args:    dim: default 0 for 0, 1 or 3 dimensions, else 1, with a warning
             dtype: computed and returned in; prevents overflow of a 16-bit input
    Shape:   input: [*]   returns: same as input
    dtype:   computes in float32 for 16-bit inputs
    Raises:  IndexError when dim is out of range; NotImplementedError for integers
    Source:  aten/native/SoftMax.cpp
    """
    if dim is None:
        dim = implicit_softmax_dim("softmax", input.dim(), _stacklevel + 1)
    input = input if dtype is None else input.to(dtype)
    _require_floating_point("softmax", input, dim)
    return SoftmaxFunction.apply(input.contiguous(), dim)  # so the result is, as in C++


@traced_as(F.softmin)
def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """out = softmax(-input) along dim.

    Args:    dim, dtype: as `softmax`'s
    Shape:   input: [*]   returns: same as input
    dtype:   computes in float32 for 16-bit inputs
    Raises:  IndexError when dim is out of range; NotImplementedError for integers; RuntimeError for bool
    Source:  torch.nn.functional
    """
    if dim is None:
        dim = implicit_softmax_dim("softmin", input.dim(), _stacklevel + 1)
    return softmax.__wrapped__(-input, dim, dtype=dtype)


@traced_as(F.log_softmax)
def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """out = log(softmax(input)) along dim, without the logarithm of a small quotient.

    Args:    dim: default 0 for 0, 1 or 3 dimensions, else 1, with a warning
             dtype: computed and returned in; prevents overflow of a 16-bit input
    Shape:   input: [*]   returns: same as input
    dtype:   computes in float32 for 16-bit inputs
    Raises:  IndexError when dim is out of range; NotImplementedError for integers
    Source:  aten/native/SoftMax.cpp
    """
    if dim is None:
        dim = implicit_softmax_dim("log_softmax", input.dim(), _stacklevel + 1)
    input = input if dtype is None else input.to(dtype)
    _require_floating_point("log_softmax", input, dim)
    return _LogSoftmax.apply(input.contiguous(), dim)  # so the result is, as in C++


def _require_floating_point(name: str, input: Tensor, dim: int) -> None:
    """Raises: NotImplementedError in the name of the kernel, of which the last dimension has its own"""
    if input.numel() == 0:
        refuse_complex_gradient(f"_{name}", input)
    else:
        is_last = dim in (-1, input.dim() - 1) or input.dim() == 0
        require_floating_point(f"{name}_{'lastdim_' * is_last}kernel_impl", input)


def implicit_softmax_dim(name: str, ndim: int, stacklevel: int) -> int:
    """The dimension torch takes when none is given, with torch's warning."""
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. "
        "Change the call to include dim=X as an argument.",
        stacklevel=stacklevel,
    )
    return 0 if ndim in (0, 1, 3) else 1


@traced_as(F.gumbel_softmax)
def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """A sample of the Gumbel-softmax distribution: softmax((logits + gumbel) / tau), gumbel = -log(Exp(1)).

    Args:    tau: temperature, default 1; eps: has no effect any more; dim: along which a sample sums to 1
             hard: the forward value is one-hot, the gradient that of the soft sample
    Shape:   logits: [*]   returns: same as logits
    dtype:   floating point, returned as logits'; 16 bits round at every step
    Raises:  RuntimeError for integers and complex numbers; IndexError when dim is out of range
    Source:  Jang et al., Categorical reparameterization with Gumbel-softmax, 2016; torch.nn.functional
    """
    if eps != 1e-10:
        warnings.warn("`eps` parameter is deprecated and has no effect.", stacklevel=3)
    gumbels = -torch.empty_like(logits, memory_format=torch.legacy_contiguous_format).exponential_().log()
    soft = softmax.__wrapped__((logits + gumbels) / tau, dim)
    if not hard:
        return soft
    index = soft.max(dim, keepdim=True)[1]
    one_hot = torch.zeros_like(logits, memory_format=torch.legacy_contiguous_format).scatter_(dim, index, 1.0)
    return one_hot - soft.detach() + soft
