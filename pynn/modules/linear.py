"""Linear and bilinear maps."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter, UninitializedParameter

from pynn.definitions import NARROW_DTYPES, computes_in_float32, defines, traced_as, widen
from pynn.modules import _grouped_products
from pynn.modules._grouped_products import *  # noqa: F403

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


@traced_as(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """out = input @ weight^T + bias.

    Shape:   input: [*, in_features]   weight: [out_features, in_features] or [in_features]
             bias: [out_features]   returns: [*, out_features]
    dtype:   16-bit with a bias: computes in float32, so that the sum is rounded once
    Raises:  RuntimeError when the inner sizes differ
    """
    if input.dim() == 0 or weight.dim() == 0:
        which = "input" if input.dim() == 0 else "weight"
        raise RuntimeError(f"both arguments to linear need to be at least 1D, but {which} is 0D")
    if bias is not None and input.dtype in NARROW_DTYPES and input.dtype == weight.dtype == bias.dtype:
        return (torch.matmul(widen(input), widen(weight).t()) + widen(bias)).to(input.dtype)
    out = torch.matmul(input, weight.t())
    return out if bias is None else out + bias


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

    Shape:   input1: [*, in1_features]   input2: [*, in2_features]
             weight: [out_features, in1_features, in2_features]   returns: [*, out_features]
    Raises:  RuntimeError when batch dimensions or features do not match
    """
    _check_bilinear(input1, input2, weight, bias)
    out_features, in1_features, in2_features = weight.shape
    x1 = input1.reshape(-1, in1_features)
    x2 = input2.reshape(-1, in2_features)
    # [out_features, rows, in2_features] = [rows, in1_features] @ [out_features, in1_features, in2_features]
    mapped = torch.matmul(x1, weight)
    out = (mapped * x2).sum(-1).t()
    if bias is not None:
        out = out + bias
    return out.reshape(*input1.shape[:-1], out_features)


def _check_bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None) -> None:
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
    """out = x, whatever the arguments of the constructor.  Shape: x: [*]"""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Module.__init__(self)

    def forward(self, input: Tensor) -> Tensor:
        return input


class Linear(torch.nn.Linear):
    """out = x @ weight^T + bias.

    Shape:   x: [*, in_features]   weight: [out_features, in_features]   returns: [*, out_features]
    """

    __constants__ = ["in_features", "out_features"]

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        Module.__init__(self)
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
    """A Linear that dynamic quantisation leaves alone: the output projection of MultiheadAttention."""


class Bilinear(torch.nn.Bilinear):
    """out[o] = x1^T weight[o] x2 + bias[o].

    Shape:   x1: [*, in1_features]   x2: [*, in2_features]   returns: [*, out_features]
    Raises:  ValueError when in1_features <= 0
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
        Module.__init__(self)
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

    Args:    as Linear's, without in_features
    Shape:   x: [*, in_features]   returns: [*, out_features]
    Raises:  AssertionError when the first input does not fit a loaded weight
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
