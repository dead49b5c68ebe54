"""torch.nn.grad: the gradients of convolutions as functions of their own."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.grad as _torch_grad
from torch import Tensor

from pynn.modules._convolution import convolution_backward
from pynn.modules._convolution_checks import check_shapes, expanded
from pynn.sharing import share_helpers
from pynn.windows import output_size

share_helpers(__name__, _torch_grad)


def _gradient(
    which: int,
    dims: int,
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    """What all six are: convolution_backward of _convolution.py for one of its two arguments.

    Raises:  RuntimeError when the sizes are of no convolution, or its output has another size than grad
    """
    numbers = {"stride": stride, "padding": padding, "dilation": dilation}
    geometry = [expanded(name, value, dims) for name, value in numbers.items()]
    no_extra, mask = [0] * dims, [which == 0, which == 1, False]
    if torch.compiler.is_compiling():
        operation = torch.ops.aten.convolution_backward.default
        return operation(grad, input, weight, None, *geometry, False, no_extra, groups, mask)[which]
    check_shapes(input, weight, None, *geometry, False, no_extra, groups)
    sizes = zip(input.shape[2:], weight.shape[2:], *geometry)
    wanted = [input.size(0), weight.size(0), *(output_size(*each) for each in sizes)]
    if list(grad.shape) != wanted:
        raise RuntimeError(f"Expected grad_output of size {wanted}, but got {list(grad.shape)}")
    found = convolution_backward(grad, input, weight, None, *geometry, False, no_extra, groups, mask)[which]
    assert found is not None
    return found


def conv1d_input(
    input_size: Sequence[int],
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of conv1d in its input: the adjoint, of the given size.

        out[b, c, i] = sum of grad_output[b, f, o] * weight[f, c, k] over all i = o * stride + k * dilation - padding

    Args:    stride, padding, dilation, groups: those of `conv1d`
    Shape:   weight: [features, channels / groups, K...]   grad_output: [batch, features, O...]
             returns: input_size, [batch, channels, L]
    dtype:   any but bool, the same for all, returned so; accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit, NotImplementedError for bool
    Source:  torch/nn/grad.py; aten/native/Convolution.cpp. differs from torch in: integers and complex
             numbers have a gradient
    """
    input = grad_output.new_empty(1).expand(input_size)
    return _gradient(0, 1, grad_output, input, weight, stride, padding, dilation, groups)


def conv1d_weight(
    input: Tensor,
    weight_size: Sequence[int],
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of conv1d in its weight: the correlation of input and gradient.

        out[f, c, k] = sum of grad_output[b, f, o] * input[b, c, o * stride + k * dilation - padding] over b and o

    Args:    stride, padding, dilation, groups: those of `conv1d`
    Shape:   input: [batch, channels, L]   grad_output: [batch, features, O...]
             returns: weight_size, [features, channels / groups, K...]
    dtype:   any but bool, the same for all, returned so; accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit, NotImplementedError for bool
    Source:  torch/nn/grad.py; aten/native/Convolution.cpp. differs from torch in: integers and complex
             numbers have a gradient
    """
    weight = grad_output.new_empty(1).expand(weight_size)
    return _gradient(1, 1, grad_output, input, weight, stride, padding, dilation, groups)


def conv2d_input(
    input_size: Sequence[int],
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of conv2d in its input: the adjoint, of the given size.

        out[b, c, i] = sum of grad_output[b, f, o] * weight[f, c, k] over all i = o * stride + k * dilation - padding

    Args:    stride, padding, dilation, groups: those of `conv2d`
    Shape:   weight: [features, channels / groups, K...]   grad_output: [batch, features, O...]
             returns: input_size, [batch, channels, height, width]
    dtype:   any but bool, the same for all, returned so; accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit, NotImplementedError for bool
    Source:  torch/nn/grad.py; aten/native/Convolution.cpp. differs from torch in: integers and complex
             numbers have a gradient
    """
    input = grad_output.new_empty(1).expand(input_size)
    return _gradient(0, 2, grad_output, input, weight, stride, padding, dilation, groups)


def conv2d_weight(
    input: Tensor,
    weight_size: Sequence[int],
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of conv2d in its weight: the correlation of input and gradient.

        out[f, c, k] = sum of grad_output[b, f, o] * input[b, c, o * stride + k * dilation - padding] over b and o

    Args:    stride, padding, dilation, groups: those of `conv2d`
    Shape:   input: [batch, channels, height, width]   grad_output: [batch, features, O...]
             returns: weight_size, [features, channels / groups, K...]
    dtype:   any but bool, the same for all, returned so; accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit, NotImplementedError for bool
    Source:  torch/nn/grad.py; aten/native/Convolution.cpp. differs from torch in: integers and complex
             numbers have a gradient
    """
    weight = grad_output.new_empty(1).expand(weight_size)
    return _gradient(1, 2, grad_output, input, weight, stride, padding, dilation, groups)


def conv3d_input(
    input_size: Sequence[int],
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of conv3d in its input: the adjoint, of the given size.

        out[b, c, i] = sum of grad_output[b, f, o] * weight[f, c, k] over all i = o * stride + k * dilation - padding

    Args:    stride, padding, dilation, groups: those of `conv3d`
    Shape:   weight: [features, channels / groups, K...]   grad_output: [batch, features, O...]
             returns: input_size, [batch, channels, depth, height, width]
    dtype:   any but bool, the same for all, returned so; accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit, NotImplementedError for bool
    Source:  torch/nn/grad.py; aten/native/Convolution.cpp. differs from torch in: integers and complex
             numbers have a gradient
    """
    input = grad_output.new_empty(1).expand(input_size)
    return _gradient(0, 3, grad_output, input, weight, stride, padding, dilation, groups)


def conv3d_weight(
    input: Tensor,
    weight_size: Sequence[int],
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of conv3d in its weight: the correlation of input and gradient.

        out[f, c, k] = sum of grad_output[b, f, o] * input[b, c, o * stride + k * dilation - padding] over b and o

    Args:    stride, padding, dilation, groups: those of `conv3d`
    Shape:   input: [batch, channels, depth, height, width]   grad_output: [batch, features, O...]
             returns: weight_size, [features, channels / groups, K...]
    dtype:   any but bool, the same for all, returned so; accumulates in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes or dtypes do not fit, NotImplementedError for bool
    Source:  torch/nn/grad.py; aten/native/Convolution.cpp. differs from torch in: integers and complex
             numbers have a gradient
    """
    weight = grad_output.new_empty(1).expand(weight_size)
    return _gradient(1, 3, grad_output, input, weight, stride, padding, dilation, groups)
