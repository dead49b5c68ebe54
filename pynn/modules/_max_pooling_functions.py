"""The public functions of max pooling: torch's checks around the definitions of _max_pooling.py."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad

from pynn.argument_types import require_ints
from pynn.definitions import Function, can_read_values, traced_as, type_name
from pynn.memory_format import volume_in_format_of
from pynn.modules import _max_pooling as largest
from pynn.modules import _pooling_checks as checks
from pynn.modules._pooling_checks import adaptive_counts, per_dim

Numbers = int | Sequence[int]


def values_or_both(with_indices: Callable, position: int, torch_function: Callable) -> Callable:
    """The function that gives values only, or with return_indices=True both, as torch's boolean_dispatch does.

    It has torch's signature, (*args, **kwargs); `__wrapped__` leads to the one that spells its arguments out.
    """

    def function(*args: Any, **kwargs: Any) -> Any:
        given = args[position] if len(args) > position else False
        return_indices = kwargs.get("return_indices", given)
        result = with_indices(*args, **kwargs, _only_values=not return_indices)
        return result if return_indices else result[0]

    function.__name__ = function.__qualname__ = torch_function.__name__
    function.__doc__ = with_indices.__doc__
    function.__module__ = __name__
    function.__wrapped__ = with_indices  # type: ignore[attr-defined]
    public = traced_as(torch_function)(function)
    kinds = inspect.Parameter
    public.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [kinds("args", kinds.VAR_POSITIONAL), kinds("kwargs", kinds.VAR_KEYWORD)]
    )
    return public


def both(torch_function: Callable, core: Callable) -> Callable:
    """The public function that always gives values and indices: the core without its private argument."""
    parameters = [p for p in inspect.signature(core).parameters.values() if p.name != "_only_values"]

    def function(*args: Any, **kwargs: Any) -> Any:
        return core(*args, **kwargs)

    function.__name__ = function.__qualname__ = torch_function.__name__
    function.__doc__ = core.__doc__
    function.__module__ = __name__
    function.__wrapped__ = core  # type: ignore[attr-defined]
    public = traced_as(torch_function)(function)
    public.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return public


def needs_no_index(x: Tensor) -> bool:
    """Whether nobody will ask where the largest elements were: no gradient, no transform, no forward-mode AD."""
    if (x.requires_grad and torch.is_grad_enabled()) or torch._C._are_functorch_transforms_active():
        return False
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(x).tangent is None


def _max_pool(
    dims: int, input: Tensor, kernel_size: Numbers, stride: Any, padding: Numbers, dilation: Numbers,
    ceil_mode: bool, only_values: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    name = f"max_pool{dims}d"
    stride = [] if stride is None else stride
    named = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    require_ints(name if only_values else f"{name}_with_indices", **named)
    if dims == 1 and only_values:
        checks.check_max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode)
    checks.check_1d(name, input, **named) if dims == 1 else checks.require_numbers(name, dims, **named)
    width = per_dim(kernel_size, dims)
    numbers = (width, per_dim(stride, dims) or width, per_dim(padding, dims), per_dim(dilation, dims))
    if (
        dims == 3
        and input.dim() == 4
        and input.is_cpu
        and suggest_memory_format(input) == torch.channels_last
    ):
        raise RuntimeError("Unsupported memory format. Supports only ChannelsLast3d, Contiguous")
    checks.check_window(name, input, list(zip(*numbers)), ceil_mode)
    fast_1d = dims == 1 and only_values and not (input.requires_grad and torch.is_grad_enabled())
    if input.dtype == torch.bool or input.is_complex() or (fast_1d and not input.is_floating_point()):
        kernel = "max_pool1d_impl" if fast_1d else f"max_pool{max(dims, 2)}d"
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")
    if only_values and needs_no_index(input):
        boxes = largest.sliding_boxes(input, *numbers, ceil_mode)
        return volume_in_format_of(input, largest.largest_of(boxes.pieces), dims), None
    return largest.Largest.apply(input, dims, _largest_in_windows, *numbers, ceil_mode)


def _largest_in_windows(x: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
    values, index = largest.largest_and_index(largest.sliding_boxes(x, *geometry))
    dims = len(geometry[0])
    return volume_in_format_of(x, values, dims), volume_in_format_of(x, index.expand(values.shape), dims)


def _max_pool1d(
    input: Tensor, kernel_size: Numbers, stride: Numbers | None = None, padding: Numbers = 0, dilation: Numbers = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, _only_values: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out[..., o] = max over k of input[..., o * stride + k * dilation - padding]; NaN wins.

    Args:    kernel_size: of a window; stride: default kernel_size; padding: with -inf, at most half a window
             dilation: between the elements of a window, default 1
             ceil_mode: keep a last window that hangs over the end
             return_indices: also return the position of each maximum, the first of equals
    Shape:   input: [batch, channels, L] or without batch
             returns: [batch, channels, (L + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1]
    dtype:   floating point, with return_indices every real number but bool, returned as input's; indices
             int64
    Raises:  RuntimeError when the numbers make no window; NotImplementedError for integers without
             return_indices, bool and complex numbers
    Source:  aten/native/MaxPooling.cpp
    """
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, _only_values)  # type: ignore


def _max_pool2d(
    input: Tensor, kernel_size: Numbers, stride: Numbers | None = None, padding: Numbers = 0, dilation: Numbers = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, _only_values: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out[..., o] = max over k of input[..., o * stride + k * dilation - padding], o and k over height and width.

    Args:    kernel_size, stride, padding, dilation: a number or 2; stride: default kernel_size
             padding: with -inf, at most half a window; ceil_mode: keep a last window that hangs over the end
             return_indices: also return the flat position of each maximum, the first of equals
    Shape:   input: [batch, channels, height, width] or without batch
             returns: the last two (L + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1
    dtype:   every real number but bool, returned as input's; indices int64
    Raises:  RuntimeError when the numbers make no window; NotImplementedError for bool and complex numbers
    Source:  aten/native/DilatedMaxPool2d.cpp
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, _only_values)  # type: ignore


def _max_pool3d(
    input: Tensor, kernel_size: Numbers, stride: Numbers | None = None, padding: Numbers = 0, dilation: Numbers = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, _only_values: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out[..., o] = max over k of input[..., o * stride + k * dilation - padding], over depth, height and width.

    Args:    kernel_size, stride, padding, dilation: a number or 3; stride: default kernel_size
             padding: with -inf, at most half a window; ceil_mode: keep a last window that hangs over the end
             return_indices: also return the flat position of each maximum, the first of equals
    Shape:   input: [batch, channels, depth, height, width] or without batch
             returns: the last three (L + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1
    dtype:   every real number but bool, returned as input's; indices int64
    Raises:  RuntimeError when the numbers make no window; NotImplementedError for bool and complex numbers
    Source:  aten/native/DilatedMaxPool3d.cpp
    """
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, _only_values)  # type: ignore


max_pool1d_with_indices = both(F.max_pool1d_with_indices, _max_pool1d)


max_pool2d_with_indices = both(F.max_pool2d_with_indices, _max_pool2d)


max_pool3d_with_indices = both(F.max_pool3d_with_indices, _max_pool3d)


max_pool1d = values_or_both(_max_pool1d, 6, F.max_pool1d)


max_pool2d = values_or_both(_max_pool2d, 6, F.max_pool2d)


max_pool3d = values_or_both(_max_pool3d, 6, F.max_pool3d)


def _adaptive_max_pool(dims: int, input: Tensor, output_size: Any) -> tuple[Tensor, Tensor]:
    counts = adaptive_counts(f"adaptive_max_pool{dims}d", output_size, input, dims)
    if dims == 1:
        checks.check_1d("adaptive_max_pool1d", input, output_size=output_size)
        checks.check_not_empty("adaptive_max_pool1d", input, 1)
    x = input.unsqueeze(-2) if dims == 1 else input.contiguous() if dims == 3 else input
    counts = [1, *counts] if dims == 1 else counts
    checks.check_adaptive(f"adaptive_max_pool{max(dims, 2)}d", x, counts, max(dims, 2))
    if not input.is_floating_point():
        kernel = "adaptive_max_pool3d_cpu" if dims == 3 else "adaptive_max_pool2d"
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")
    values, index = largest.Largest.apply(x, max(dims, 2), largest.ADAPTIVE_MAX_POOL[max(dims, 2)], counts)
    return (values.squeeze(-2), index.squeeze(-2)) if dims == 1 else (values, index)


def _adaptive_max_pool1d(
    input: Tensor, output_size: Any, return_indices: bool = False, *, _only_values: bool = False
) -> tuple[Tensor, Tensor]:
    """out[..., o] = max of input[..., floor(o * L / O) : ceil((o + 1) * L / O)], O = output_size.

    Args:    return_indices: also return the position of each maximum, the first of equals
    Shape:   input: [batch, channels, L] or without batch   returns: [batch, channels, O]
    dtype:   floating point, returned as input's; indices int64
    Raises:  RuntimeError for an empty input or a negative size; NotImplementedError for integers and complex
             numbers
    Source:  aten/native/AdaptiveMaxPooling2d.cpp
    """
    return _adaptive_max_pool(1, input, output_size)


def _adaptive_max_pool2d(
    input: Tensor, output_size: Any, return_indices: bool = False, *, _only_values: bool = False
) -> tuple[Tensor, Tensor]:
    """The max over boxes from floor(o * L / O) up to ceil((o + 1) * L / O), in height and width.

    Args:    output_size: one number or two; None keeps the size
             return_indices: also return the flat position of each maximum, the first of equals
    Shape:   input: [batch, channels, height, width] or without batch   returns: the last two output_size
    dtype:   floating point, returned as input's; indices int64
    Raises:  RuntimeError for an empty input or a negative size; NotImplementedError for integers and complex
             numbers
    Source:  aten/native/AdaptiveMaxPooling2d.cpp
    """
    return _adaptive_max_pool(2, input, output_size)


def _adaptive_max_pool3d(
    input: Tensor, output_size: Any, return_indices: bool = False, *, _only_values: bool = False
) -> tuple[Tensor, Tensor]:
    """The max over boxes from floor(o * L / O) up to ceil((o + 1) * L / O), in depth, height and width.

    Args:    output_size: one number or three; None keeps the size
             return_indices: also return the flat position of each maximum, the first of equals
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: the last three output_size
    dtype:   floating point, returned as input's; indices int64
    Raises:  RuntimeError for an empty input or a negative size; NotImplementedError for integers and complex
             numbers
    Source:  aten/native/AdaptiveMaxPooling3d.cpp
    """
    return _adaptive_max_pool(3, input, output_size)


adaptive_max_pool1d_with_indices = both(F.adaptive_max_pool1d_with_indices, _adaptive_max_pool1d)


adaptive_max_pool2d_with_indices = both(F.adaptive_max_pool2d_with_indices, _adaptive_max_pool2d)


adaptive_max_pool3d_with_indices = both(F.adaptive_max_pool3d_with_indices, _adaptive_max_pool3d)


adaptive_max_pool1d = values_or_both(_adaptive_max_pool1d, 2, F.adaptive_max_pool1d)


adaptive_max_pool2d = values_or_both(_adaptive_max_pool2d, 2, F.adaptive_max_pool2d)


adaptive_max_pool3d = values_or_both(_adaptive_max_pool3d, 2, F.adaptive_max_pool3d)


def _fractional_max_pool(
    dims: int,
    input: Tensor,
    kernel_size: Numbers,
    output_size: Any,
    output_ratio: Any,
    samples: Tensor | None,
) -> tuple[Tensor, Tensor]:
    name = f"fractional_max_pool{dims}d"
    if output_size is None and output_ratio is None:
        raise ValueError(f"{name} requires specifying either an output_size or an output_ratio")
    if output_size is None:
        if dims == 2 and len(output_ratio) > dims:
            raise ValueError(f"{name} requires output_ratio to either be a single Int or tuple of Ints.")
        ratios = per_dim(output_ratio, dims)
        output_size = [int(input.size(i - dims) * ratio) for i, ratio in enumerate(ratios)]
    batch, channels = 1 if input.dim() == dims + 1 else input.size(0), input.size(-dims - 1)
    if samples is None:
        samples = torch.rand(batch, channels, dims, dtype=input.dtype, device=input.device)
    for word, value in (("kernel_size", kernel_size), ("output_size", output_size)):
        if isinstance(value, (tuple, list)) and len(value) != dims:
            ints = "three Ints" if dims == 3 else "Ints"
            raise RuntimeError(f"{name}: {word} must either be a single Int or tuple of {ints}")
    width, counts = per_dim(kernel_size, dims), per_dim(output_size, dims)
    checks.check_fractional(input, width, counts, samples, dims)
    return largest.Largest.apply(input, dims, largest.FRACTIONAL_MAX_POOL[dims], width, counts, samples)


def _fractional_max_pool2d(
    input: Tensor, kernel_size: Numbers, output_size: Any = None, output_ratio: Any = None,
    return_indices: bool = False, _random_samples: Tensor | None = None, *, _only_values: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The max over boxes of one size whose places are drawn at random, in height and width.

        start[o] = floor((o + u) * alpha) - floor(u * alpha),   alpha = (L - kernel_size) / (O - 1),   u from [0, 1)

    Args:    kernel_size: of a box; output_size: O, or output_ratio: O / L, each one number or two
             return_indices: also return the flat position of each maximum
             _random_samples: u, [batch, channels, 2]; default: drawn
    Shape:   input: [batch, channels, height, width] or without batch   returns: the last two O
    dtype:   floating point, returned as input's, u the same; indices int64
    Raises:  ValueError for neither size nor ratio, RuntimeError for boxes that do not fit;
             NotImplementedError for integers and complex numbers
    Source:  Graham, Fractional max-pooling, 2014; aten/native/FractionalMaxPool2d.cpp
    """
    return _fractional_max_pool(2, input, kernel_size, output_size, output_ratio, _random_samples)


def _fractional_max_pool3d(
    input: Tensor, kernel_size: Numbers, output_size: Any = None, output_ratio: Any = None,
    return_indices: bool = False, _random_samples: Tensor | None = None, *, _only_values: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The max over boxes of one size whose places are drawn at random, in depth, height and width.

    Args:    as `fractional_max_pool2d`, three numbers
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: the last three O
    dtype:   floating point, returned as input's, u the same; indices int64
    Raises:  ValueError for neither size nor ratio, RuntimeError for boxes that do not fit;
             NotImplementedError for integers and complex numbers
    Source:  Graham, Fractional max-pooling, 2014; aten/native/FractionalMaxPool3d.cpp
    """
    return _fractional_max_pool(3, input, kernel_size, output_size, output_ratio, _random_samples)


fractional_max_pool2d_with_indices = both(F.fractional_max_pool2d_with_indices, _fractional_max_pool2d)


fractional_max_pool3d_with_indices = both(F.fractional_max_pool3d_with_indices, _fractional_max_pool3d)


fractional_max_pool2d = values_or_both(_fractional_max_pool2d, 4, F.fractional_max_pool2d)


fractional_max_pool3d = values_or_both(_fractional_max_pool3d, 4, F.fractional_max_pool3d)


def _max_unpool(
    dims: int, input: Tensor, indices: Tensor, kernel_size: Numbers, stride: Any, padding: Any, size: Any
):
    width = per_dim(kernel_size, dims)
    step = width if stride is None else per_dim(stride, dims)
    counts = _unpooled_size(input, width, step, per_dim(padding, dims), size)
    x, index, flat = input, indices, max(dims, 2)
    checks.alert_not_deterministic(f"max_unpooling{flat}d_forward_out")
    if dims == 1:
        x, index, counts = input.unsqueeze(-1), indices.unsqueeze(-1), [*counts, 1]
    checks.check_unpool(x, index, counts, flat, can_read_values(index))
    out = _MaxUnpool.apply(x.contiguous() if dims == 3 else x, index, flat, counts)
    return out.squeeze(-1) if dims == 1 else out


def _unpooled_size(input: Tensor, width: list, step: list, padding: list, output_size: Any) -> list[Any]:
    dims = len(width)
    default = [(input.shape[i - dims] - 1) * step[i] + width[i] - 2 * padding[i] for i in range(dims)]
    if output_size is None:
        sizes = default
    else:
        sizes = list(output_size[2:] if len(output_size) == dims + 2 else output_size)
        if len(sizes) != dims:
            raise ValueError(
                f"output_size should be a sequence containing {dims} or {dims + 2} elements, but it has a length of "
                f"'{len(sizes)}'"
            )
        for i, (size, middle) in enumerate(zip(sizes, default)):
            if not middle - step[i] < size < middle + step[i]:
                shown = output_size[2:] if len(output_size) == dims + 2 else output_size
                raise ValueError(
                    f'invalid output_size "{shown}" (dim {i} must be between {middle - step[i]} and '
                    f"{middle + step[i]})"
                )
    for i, size in enumerate(sizes):
        if size < 0:
            raise ValueError(
                "max_unpooling: output_size must contain non-negative spatial dimensions, but got "
                f"output_size[{i}]={size}"
            )
    return list(sizes)


class _MaxUnpool(Function):
    """Elements put at indices, 0 elsewhere; the gradient is read there."""

    @staticmethod
    def forward(x: Tensor, index: Tensor, dims: int, sizes: list[Any]) -> Tensor:
        return largest.MAX_UNPOOL[dims](x, index, sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, index, ctx.dims, ctx.sizes = inputs
        ctx.save_for_backward(index)
        ctx.save_for_forward(index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return largest.take(grad, ctx.saved_tensors[0], ctx.dims), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return largest.MAX_UNPOOL[ctx.dims](dx, ctx.saved_tensors[0], ctx.sizes)


@traced_as(F.max_unpool1d)
def max_unpool1d(
    input: Tensor, indices: Tensor, kernel_size: Numbers, stride: Any = None, padding: Numbers = 0,
    output_size: Any = None,
) -> Tensor:  # fmt: skip
    """out[..., indices[o]] = input[..., o], 0 elsewhere: a partial inverse of max_pool1d.

    Args:    kernel_size, stride, padding: those of the pooling; output_size: where several sizes pool to one
    Shape:   input, indices: [batch, channels, O] or without batch
             returns: [batch, channels, (O - 1) * stride - 2 * padding + kernel_size]
    dtype:   floating point, returned as input's; indices int64
    Raises:  RuntimeError for an index outside of the result or of another dtype, ValueError for an
             output_size out of reach; NotImplementedError for integers and complex numbers
    Source:  aten/native/MaxUnpooling.cpp
    """
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


@traced_as(F.max_unpool2d)
def max_unpool2d(
    input: Tensor, indices: Tensor, kernel_size: Numbers, stride: Any = None, padding: Numbers = 0,
    output_size: Any = None,
) -> Tensor:  # fmt: skip
    """out[..., indices[o]] = input[..., o], 0 elsewhere: a partial inverse of max_pool2d.

    Args:    kernel_size, stride, padding: those of the pooling; output_size: where several sizes pool to one
    Shape:   input, indices: [batch, channels, height, width] or without batch
             returns: the last two (O - 1) * stride - 2 * padding + kernel_size
    dtype:   floating point, returned as input's; indices int64
    Raises:  RuntimeError for an index outside of the result or of another dtype, ValueError for an
             output_size out of reach; NotImplementedError for integers and complex numbers
    Source:  Zeiler et al., Adaptive deconvolutional networks, 2011; aten/native/MaxUnpooling.cpp
    """
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


@traced_as(F.max_unpool3d)
def max_unpool3d(
    input: Tensor, indices: Tensor, kernel_size: Numbers, stride: Any = None, padding: Numbers = 0,
    output_size: Any = None,
) -> Tensor:  # fmt: skip
    """out[..., indices[o]] = input[..., o], 0 elsewhere: a partial inverse of max_pool3d.

    Args:    kernel_size, stride, padding: those of the pooling; output_size: where several sizes pool to one
    Shape:   input, indices: [batch, channels, depth, height, width] or without batch
             returns: the last three (O - 1) * stride - 2 * padding + kernel_size
    dtype:   floating point, returned as input's; indices int64
    Raises:  RuntimeError for an index outside of the result or of another dtype, ValueError for an
             output_size out of reach; NotImplementedError for integers and complex numbers
    Source:  aten/native/MaxUnpooling.cpp
    """
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)
