"""Linear and bilinear maps."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter, UninitializedParameter

from pynn.construction import init_module
from pynn.definitions import (
    can_read_values,
    computes_in_float32,
    defines,
    refuse_complex_gradient,
    refuse_complex_half,
    traced_as,
    type_name,
    widen,
)
from pynn.dtype_names import cpp_name
from pynn.modules import _grouped_products
from pynn.modules._grouped_products import *  # noqa: F403
from pynn.out import takes_out

__all__ = [
    *_grouped_products.__all__,
    "Bilinear",
    "Identity",
    "LazyLinear",
    "Linear",
    "bilinear",
    "linear",
]

aten = torch.ops.aten


def multiplies_bfloat16(input: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the CPU has a product of bfloat16 numbers that adds in float32: twice as fast as that of float32.

    Only where these tensors are what they seem: in a graph the plain product and sum are worth more.
    """
    tensors = (input, weight, bias)
    return (
        all(x.dtype == torch.bfloat16 and x.device.type == "cpu" and can_read_values(x) for x in tensors)
        and weight.dim() == 2
        and bias.shape == weight.shape[:1]
        and input.shape[-1] == weight.shape[1]
        and torch.cpu._is_avx512_bf16_supported()
    )


def check_one_dtype(input: Tensor, weight: Tensor, bias: Tensor) -> None:
    """The check of ATen's addmm, which calls the bias self; more dimensions, not laid out in order, are no addmm."""
    is_added_later = input.dim() > 2 and bias.dtype != weight.dtype and not input.is_contiguous()
    if is_added_later and not torch.can_cast(bias.dtype, weight.dtype):
        raise RuntimeError(
            f"result type {type_name(bias)} can't be cast to the desired output type {type_name(weight)}"
        )
    for name, x in (("mat1", input),) if is_added_later else (("self", bias), ("mat1", input)):
        if x.dtype != weight.dtype:
            got = f"{type_name(x)} and {type_name(weight)}"
            raise RuntimeError(f"{name} and mat2 must have the same dtype, but got {got}")


def bias_of_rows(bias: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """A bias of another shape than [out_features], which broadcasts against the product.

    ATen has two sums: addmm's of rows of the input, [rows, out_features], for matrices and a bias in one line, and
    one of the result as it is.

    Shape:   returns: [*, out_features], or bias itself
    Raises:  RuntimeError where ATen does
    """
    if input.dim() != 2 and bias.dim() != 1 and bias.squeeze().dim() != 1:
        return bias
    if weight.dim() == 1:
        raise RuntimeError("mat2 must be a matrix, got 1-D tensor")
    if input.size(-1) != weight.size(-1):
        return bias  # the product says so
    rows = 1
    for size in input.shape[:-1]:
        rows = rows * size
    return bias.expand(rows, weight.size(0)).reshape(*input.shape[:-1], weight.size(0))


def product_with_bias(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """input @ weight^T + bias as one product, rounded once: the bias is the weight of an input that is always 1."""
    one = input.new_ones(*input.shape[:-1], 1)
    # [*, in_features + 1] @ [in_features + 1, out_features]
    return torch.matmul(torch.cat([input, one], -1), torch.cat([weight, bias.unsqueeze(1)], 1).t())


@traced_as(F.linear)
@takes_out
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """out = input @ weight^T + bias.

    Shape:   input: [*, in_features]   weight: [out_features, in_features] or [in_features]
             bias: [out_features]   returns: [*, out_features]
    dtype:   any but bool and 16-bit complex numbers, the same for all, returned so; 16-bit with a bias: adds
             in float32, so that the sum is rounded once
    Raises:  RuntimeError when the inner sizes or the dtypes differ, or bias is of other features;
             NotImplementedError for bool and 16-bit complex numbers
    Source:  aten/native/Linear.cpp
    """
    if input.dim() == 0 or weight.dim() == 0:
        raise RuntimeError(
            f"both arguments to linear need to be at least 1D, but they are {input.dim()}D and {weight.dim()}D"
        )
    columns = weight.t()
    if bias is None:
        return torch.matmul(input, columns)
    check_one_dtype(input, weight, bias)
    if input.is_complex() and input.numel() > 0 and weight.numel() > 0:
        refuse_complex_half("addmm_impl_cpu_", input)
    if bias.shape != weight.shape[:1] or weight.dim() == 1:
        bias = bias_of_rows(bias, input, weight)
    if multiplies_bfloat16(input, weight, bias):
        return product_with_bias(input, weight, bias)
    product = torch.matmul(widen(input), widen(columns))
    out = product + widen(bias)
    if out.shape != product.shape:
        raise RuntimeError(
            f"output with shape {list(product.shape)} doesn't match the broadcast shape {list(out.shape)}"
        )
    return out.to(input.dtype)


defines(aten.linear.default)(linear.__wrapped__)


@defines(aten._trilinear.default)
@computes_in_float32
def trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: list[int],
    expand_b: list[int],
    expand_c: list[int],
    sum_dims: list[int],
    unroll_dim: int = 1,
) -> Tensor:
    """sum of a * b * c over sum_dims, each factor first given size 1 at its expand dimensions."""
    for dim in expand_a:
        a = a.unsqueeze(dim)
    for dim in expand_b:
        b = b.unsqueeze(dim)
    for dim in expand_c:
        c = c.unsqueeze(dim)
    return (a * b * c).sum(sum_dims)


@traced_as(F.bilinear)
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """out[*, o] = sum over i, j of input1[*, i] * weight[o, i, j] * input2[*, j], + bias[o].

    Shape:   input1: [*, in1_features]   input2: [*, in2_features]   bias: [out_features]
             weight: [out_features, in1_features, in2_features]   returns: [*, out_features]
    dtype:   any but bool and 16-bit complex numbers, the same for all, returned so; 16 bits: both sums
             accumulate in float32, and each is rounded
    Raises:  RuntimeError when batch dimensions, features or dtypes do not match; NotImplementedError for bool
             and 16-bit complex numbers
    Source:  aten/native/Linear.cpp
    """
    _check_bilinear(input1, input2, weight, bias)
    refuse_complex_gradient("_trilinear", input1, weight, input2)
    out_features, in1_features, in2_features = weight.shape
    x1 = input1.reshape(-1, in1_features)
    x2 = input2.reshape(-1, in2_features)
    # [out_features, rows, in2_features] = [rows, in1_features] @ [out_features, in1_features, in2_features]
    mapped = torch.matmul(x1, weight)
    out = (mapped * x2).sum(-1, dtype=mapped.dtype).t().contiguous()
    if bias is not None:
        out = out + bias
    return out.reshape(*input1.shape[:-1], out_features)


def _check_bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    named = {"input1": input1, "input2": input2, "weight": weight, "bias": bias}
    given = {name: x.dtype for name, x in named.items() if x is not None}
    if len(set(given.values())) > 1:
        got = ", ".join(f"{name}: {cpp_name(dtype)}" for name, dtype in given.items())
        raise RuntimeError(f"All tensors must have the same dtype, got {got}")
    if input1.dim() != input2.dim():
        raise RuntimeError(
            f"bilinear(): input dimensions do not match: got {input1.dim()} and {input2.dim()}"
        )
    for dim in range(input1.dim() - 1):
        if input1.size(dim) != input2.size(dim):
            raise RuntimeError(
                f"bilinear(): input batch dimensions do not match at dim {dim}: "
                f"got {input1.size(dim)} and {input2.size(dim)}"
            )
    for number, input in ((1, input1), (2, input2)):
        if input.size(-1) != weight.size(number):
            raise RuntimeError(
                f"bilinear(): input{number} size does not match weight size: "
                f"got {input.size(-1)} but expected {weight.size(number)}"
            )
    if bias is not None and bias.size(0) != weight.size(0):
        raise RuntimeError(
            f"bilinear(): bias size does not match weight size: got {bias.size(0)} but expected "
            f"{weight.size(0)}"
        )


class Identity(torch.nn.Identity):
    """out = x, whatever the arguments of the constructor.

    Shape:   x: [*]   returns: same as x
    Source:  torch/nn/modules/linear.py
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        init_module(Identity, self)

    def forward(self, input: Tensor) -> Tensor:
        return input


class Linear(torch.nn.Linear):
    """out = x @ weight^T + bias.

    Args:    in_features, out_features: of the weight; bias: learn one (default)
    Shape:   x: [*, in_features]   weight: [out_features, in_features]   bias: [out_features]
             returns: [*, out_features]
    Source:  see `linear`
    """

    __constants__ = ["in_features", "out_features"]

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        init_module(Linear, self)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(torch.empty((out_features, in_features), device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias ~ uniform(-1, 1) / sqrt(in_features)."""
        # Kaiming's bound sqrt(6 / ((1 + a^2) * fan_in)) with a = sqrt(5); written through init so that the
        # parameters equal torch's to the last bit
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = self.weight.size(1)
            bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class NonDynamicallyQuantizableLinear(Linear, torch.nn.modules.linear.NonDynamicallyQuantizableLinear):
    """A Linear that dynamic quantisation leaves alone: the output projection of MultiheadAttention.

    Args:    as `Linear`'s
    Shape:   as `Linear`'s
    Source:  see `linear`
    """


class Bilinear(torch.nn.Bilinear):
    """out[o] = x1^T weight[o] x2 + bias[o].

    Args:    in1_features, in2_features, out_features: of the weight; bias: learn one (default)
    Shape:   x1: [*, in1_features]   x2: [*, in2_features]   returns: [*, out_features]
    Raises:  ValueError when in1_features <= 0
    Source:  see `bilinear`
    """

    __constants__ = ["in1_features", "in2_features", "out_features"]

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        init_module(Bilinear, self)
        self.in1_features = in1_features
        self.in2_features = in2_features
        self.out_features = out_features
        shape = (out_features, in1_features, in2_features)
        self.weight = Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias ~ uniform(-1, 1) / sqrt(in1_features)."""
        if self.in1_features <= 0:
            raise ValueError(f"in1_features must be > 0, but got (in1_features={self.in1_features})")
        bound = 1 / math.sqrt(self.weight.size(1))
        torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return bilinear(input1, input2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )


class LazyLinear(torch.nn.LazyLinear, Linear):
    """A Linear that learns in_features from its first input, and becomes a Linear then.

    Args:    as `Linear`'s, without in_features
    Shape:   x: [*, in_features]   returns: [*, out_features]
    Raises:  AssertionError when the first input does not fit a loaded weight
    Source:  see `linear`
    """

    cls_to_become = Linear  # type: ignore[assignment]

    def __init__(self, out_features: int, bias: bool = True, device=None, dtype=None) -> None:
        torch.nn.modules.lazy.LazyModuleMixin.__init__(self, 0, 0, False)
        self.weight = UninitializedParameter(device=device, dtype=dtype)
        self.out_features = out_features
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """As Linear, once the sizes are known."""
        if not self.has_uninitialized_params() and self.in_features != 0:
            Linear.reset_parameters(self)

    def initialize_parameters(self, input: Tensor) -> None:  # type: ignore[override]
        """Take in_features from the last dimension of the first input and create the parameters."""
        if self.has_uninitialized_params():
            with torch.no_grad():
                self.in_features = input.shape[-1]
                self.weight.materialize((self.out_features, self.in_features))
                if self.bias is not None:
                    self.bias.materialize((self.out_features,))
                self.reset_parameters()
        if self.in_features == 0:
            if input.shape[-1] != self.weight.shape[-1]:
                raise AssertionError(
                    f"The in_features inferred from input: {input.shape[-1]} is not equal to "
                    "in_features from "
                    f"self.weight: {self.weight.shape[-1]}"
                )
            self.in_features = input.shape[-1]
