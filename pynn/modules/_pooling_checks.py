"""What a pooling refuses, in ATen's words (aten/src/ATen/native/Pool.h, Pooling.cpp, AdaptiveAveragePooling.cpp)."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynn.argument_types import require_ints
from pynn.definitions import type_name
from pynn.windows import output_size

WORDS = {1: "one", 2: "two", 3: "three"}
AXES = {1: "W", 2: "HW", 3: "THW"}


def per_dim(value: Any, dims: int) -> list[Any]:
    """One number a dimension, from one number for all, a list of one or of dims; an empty list stays empty."""
    if not isinstance(value, (tuple, list)):
        return [value] * dims
    return list(value) * dims if len(value) == 1 else list(value)


def require_numbers(function: str, dims: int, **named: Any) -> None:
    """Raises: RuntimeError for a list of another length than 1 or dims."""
    either = "" if function == "avg_pool3d" else "either "
    for name, value in named.items():
        allowed = (0, 1, dims) if name == "stride" else (1, dims)
        if isinstance(value, (tuple, list)) and len(value) not in allowed:
            rule = "be omitted, a single int," if name == "stride" else "be a single int,"
            rule = "be either a single int," if name == "dilation" else either + rule
            raise RuntimeError(f"{function}: {name} must {rule} or a tuple of {WORDS[dims]} ints")


def check_window(function: str, x: Tensor, numbers: Sequence[tuple], ceil_mode: bool) -> None:
    """numbers: (kernel_size, stride, padding, dilation) of each dimension.

    The checks of pool2d_shape_check and pool3d_shape_check, in their order; a sequence is an image of height 1.
    """
    spatial = len(numbers)
    if function != "avg_pool2d" and x.dim() not in (spatial + 1, spatial + 2):
        raise RuntimeError(
            f"non-empty {spatial + 1}D or {spatial + 2}D (batch mode) tensor expected for input"
        )
    sizes = list(x.shape[-spatial:])
    if spatial == 1:
        numbers, sizes = [(1, 1, 0, 1), *numbers], [1, *sizes]
    check_padding(numbers)
    dims = len(numbers)
    require_positive("kernel size", "k", [width for width, _, _, _ in numbers])
    require_positive("stride", "d", [step for _, step, _, _ in numbers])
    require_positive("dilation", "dilation", [spread for _, _, _, spread in numbers])
    check_sizes(function, x, spatial)
    axes = AXES[dims]
    if function == "avg_pool3d" and any(size < width for size, (width, _, _, _) in zip(sizes, numbers)):
        image = " ".join(f"{axis}: {size}" for axis, size in zip(axes, sizes))
        kernel = " ".join(f"k{axis}: {width}" for axis, (width, _, _, _) in zip(axes, numbers))
        raise RuntimeError(f"input image ({image}) smaller than kernel size ({kernel})")
    if any(pad > width // 2 for width, _, pad, _ in numbers):
        of = {axis: (width, pad) for axis, (width, _, pad, _) in zip(axes, numbers)}
        order, sign = (("W", "H"), " = ") if dims == 2 else (("T", "W", "H"), ": ")
        texts = [
            [f"{name}{axis}{sign}{of[axis][i]}" for axis in order] for i, name in enumerate(("k", "pad"))
        ]
        text = ", ".join(texts[1] + texts[0]) if dims == 2 else " ".join(texts[0] + texts[1])
        raise RuntimeError(f"pad should be smaller than or equal to half of kernel size, but got {text}")
    counts = [output_size(size, *each, ceil_mode) for size, each in zip(sizes, numbers)]
    if any(count < 1 for count in counts):
        given, found = ("x".join(map(str, [x.size(-spatial - 1), *each])) for each in (sizes, counts))
        raise RuntimeError(
            f"Given input size: ({given}). Calculated output size: ({found}). Output size is too small"
        )


def check_padding(numbers: Sequence[tuple]) -> None:
    """The checks of pooling_output_shape."""
    for width, step, pad, spread in numbers:
        if step == 0:
            raise RuntimeError("stride should not be zero")
        if pad < 0:
            raise RuntimeError(f"pad must be non-negative, but got pad: {pad}")
        reach = (width - 1) * spread + 1
        if pad > (reach // 2 if reach >= 0 else -(-reach // 2)):  # C++ divides towards 0
            raise RuntimeError(
                f"pad should be at most half of effective kernel size, but got pad={pad}, kernel_size={width} and "
                f"dilation={spread}"
            )


def require_positive(what: str, prefix: str, values: Sequence[Any]) -> None:
    if any(value <= 0 for value in values):
        text = " ".join(f"{prefix}{axis}: {value}" for axis, value in zip(AXES[len(values)], values))
        raise RuntimeError(f"{what} should be greater than zero, but got {text}")


def check_sizes(function: str, x: Tensor, dims: int) -> None:
    """A batch of size 0 is allowed, nothing else that is empty."""
    rest = list(x.shape[x.dim() - dims - 1 :])
    if x.dim() in (dims + 1, dims + 2) and all(size > 0 for size in rest):
        return
    if dims < 3:
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:"
            f"{[*x.shape[:-1], 1, x.size(-1)] if dims == 1 else list(x.shape)}"
        )
    template = {"max_pool3d": "max_pool3d_with_indices_out_cpu_template()"}.get(function, f"{function}()")
    raise RuntimeError(
        f"{template}: Expected input's non-batch dimensions to have positive length, but input has a shape of "
        f"{list(x.shape)} and non-batch dimension 0 has length zero!"  # ATen prints the length, not which one
    )


def check_max_pool1d(x: Tensor, width: Any, step: Any, pad: Any, spread: Any, ceil_mode: bool) -> None:
    if x.dim() not in (2, 3) or any(size == 0 for size in x.shape[-2:]):
        raise RuntimeError(
            "max_pool1d: Expected 2D or 3D (batch mode) tensor with optional 0 dim batch size for input, but got:"
            f"{list(x.shape)}"
        )
    for name, value in (("kernel_size", width), ("stride", step), ("padding", pad), ("dilation", spread)):
        if isinstance(value, (tuple, list)) and len(value) != 1 and not (name == "stride" and not value):
            none = "None, " if name == "stride" else ""
            comma = "," if name in ("stride", "padding") else ""
            raise RuntimeError(
                f"max_pool1d() {name} must be {none}an int, list of ints{comma} or tuple of ints of size 1 but got "
                f"size {len(value)}"
            )
    (width,), (pad,), (spread,) = per_dim(width, 1), per_dim(pad, 1), per_dim(spread, 1)
    (step,) = per_dim(step, 1) or [width]
    for name, value in (("kernel_size", width), ("stride", step)):
        if value <= 0:
            raise RuntimeError(f"max_pool1d() {name} must be greater than zero, but got {value}")
    if pad < 0:
        raise RuntimeError(f"max_pool1d() padding must be non-negative, but got {pad}")
    if pad > width // 2:
        raise RuntimeError(
            f"max_pool1d() padding should be at most half of kernel size, but got padding={pad} and "
            f"kernel_size={width}"
        )
    if spread <= 0:
        raise RuntimeError(f"max_pool1d() dilation must be greater than zero, but got {spread}")
    count = output_size(x.size(-1), width, step, pad, spread, ceil_mode)
    if count <= 0:
        raise RuntimeError(f"max_pool1d() Invalid computed output size: {count}")


def check_1d(function: str, x: Tensor, **named: Any) -> None:
    """What the argument parser and checkDimRange say of the one-dimensional forms."""
    for name, value in named.items():
        if isinstance(value, (tuple, list)) and len(value) != 1 and not (name == "stride" and not value):
            raise RuntimeError(f"{function}() argument '{name}' should contain one int (got {len(value)})")
    if x.dim() not in (2, 3):
        raise RuntimeError(
            f"Expected 2 to 3 dimensions, but got {x.dim()}-dimensional tensor for argument #1 'self' (while checking "
            f"arguments for {function})"
        )


def check_adaptive(function: str, x: Tensor, counts: Sequence[Any], dims: int) -> None:
    colon = ":" if "max" in function else ""
    if x.dim() not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"{function}(): Expected {dims + 1}D or {dims + 2}D tensor, but got{colon} {list(x.shape)}"
        )
    if len(counts) != dims:
        if "max" in function:
            raise RuntimeError(f"{function}(): internal error: output_size.size() must be {dims}")
        raise RuntimeError(f"{function}: output_size must be {dims}")
    if "avg" in function and any(count < 0 for count in counts):
        text = ", ".join(map(str, counts[:2])) + "".join(f",{count}" for count in counts[2:])
        raise RuntimeError(
            f"{function}: elements of output_size must be greater than or equal to 0 but received {{{text}}}"
        )
    if "avg" in function and all(count == 1 for count in counts):
        return  # C++ takes the mean, NaN of nothing
    check_not_empty(function, x, x.dim() - dims if function == "adaptive_avg_pool2d" else 1)
    if any(count < 0 for count in counts):
        bad = next(count for count in counts if count < 0)
        raise RuntimeError(
            f"Trying to create tensor with negative dimension {bad}: {[*x.shape[:-dims], *counts]}"
        )


def check_not_empty(function: str, x: Tensor, start: int) -> None:
    """From dimension start on: mostly 1, so that 0 channels are refused in a batch and taken without one."""
    for dim in range(start, x.dim()):
        if x.size(dim) == 0:
            raise RuntimeError(
                f"{function}(): Expected input to have non-zero size for non-batch dimensions, but input has sizes "
                f"{list(x.shape)} with dimension {dim} being empty"
            )


def check_adaptive_gradient(kind: str, grad: Tensor, dims: int) -> None:
    """kind: "avg" or "max". Windows that are none have no gradient: C++ refuses it, but not their forward pass."""
    for dim in range(1, grad.dim()):
        if grad.size(dim) == 0:
            raise RuntimeError(
                f"adaptive_{kind}_pool{dims}d_backward(): Expected grad_output to have non-zero size for non-batch "
                f"dimensions, but grad_output has sizes {list(grad.shape)} with dimension {dim} being empty"
            )


def check_fractional(
    x: Tensor, width: Sequence[Any], counts: Sequence[Any], samples: Tensor, dims: int
) -> None:
    function = f"fractional_max_pool{dims}d{'_out' * (dims == 3)}()"
    for dim in range(1, x.dim()):
        if x.size(dim) == 0:
            raise RuntimeError(
                f"{function}: Expected input to have non-zero size for non-batch dimensions, but got{list(x.shape)} "
                f"with dimension {dim} being empty."
            )
    if x.dim() not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"{function}: Expected {dims + 1}D or {dims + 2}D tensor, but got: {list(x.shape)}"
        )
    numbers = list(zip(("time", "height", "width")[-dims:], x.shape[-dims:], width, counts))
    for name, size, kernel, count in numbers if dims == 2 else [numbers[0], numbers[2], numbers[1]]:
        if (
            count + kernel - 1 + (dims == 3) > size
        ):  # in volumes C++ wants one element more than the boxes need
            raise RuntimeError(f"{function}: pool {name} {kernel} too large relative to input {name} {size}")
    if any(count < 0 for count in counts):
        bad = next(count for count in counts if count < 0)
        sizes = [*x.shape[:-dims], *counts]
        raise RuntimeError(f"Trying to create tensor with negative dimension {bad}: {sizes}")
    batch = x.size(0) if x.dim() == dims + 2 else 1
    if samples.dtype != x.dtype and not x.is_meta:
        raise RuntimeError("Expect _random_samples to have the same dtype as input")
    if samples.dim() != 3:
        raise RuntimeError(f"Expect _random_samples to have 3 dimensions, got {samples.dim()}")
    if samples.size(0) < batch:
        raise RuntimeError("Expect _random_samples.size(0) no less then input batch size.")
    if samples.size(1) != x.size(-dims - 1):
        raise RuntimeError("Expect _random_samples.size(1) equals to input channel size.")
    if samples.size(2) != dims:
        raise RuntimeError(f"Expect _random_samples.size(2) equals to {dims}; got {samples.size(2)}.")
    if x.is_complex() or (x.numel() > 0 and not x.is_floating_point()):
        raise NotImplementedError(
            f"\"fractional_max_pool{dims}d_out_frame\" not implemented for '{type_name(x)}'"
        )


def alert_not_deterministic(operation: str) -> None:
    """What torch.use_deterministic_algorithms demands of an operation it knows as one that is not.

    The definition would be, but code that has to run with torch's own operation is told.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    doubt = f"{operation} does not have a deterministic implementation, but you set "
    ask = "file an issue at https://github.com/pytorch/pytorch/issues to help us prioritize adding deterministic "
    ask += "support for this operation."
    if torch.is_deterministic_algorithms_warn_only_enabled():
        setting = "'torch.use_deterministic_algorithms(True, warn_only=True)'"
        warnings.warn(f"{doubt}{setting}. You can {ask}", stacklevel=4)
        return
    raise RuntimeError(
        f"{doubt}'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, or "
        "you can use the 'warn_only=True' option, if that's acceptable for your application. You can also "
        + ask
    )


def check_unpool(x: Tensor, indices: Tensor, counts: Sequence[Any], dims: int, readable: bool) -> None:
    function = f"max_unpooling{dims}d"
    if indices.dtype != torch.int64:
        got = f" but got: {type_name(indices)}" if dims == 2 else ""
        raise RuntimeError(f"elements in indices should be type int64{got}")
    if len(counts) != dims:
        names = "two elements (height, width)" if dims == 2 else "three elements (depth, height, width)"
        raise RuntimeError(f"There should be exactly {names} in output_size, but got {len(counts)} elements.")
    if x.dim() not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"Input to {function} should be a {dims + 1}d or {dims + 2}d Tensor, but got a tensor with {x.dim()} "
            "dimensions."
        )
    if indices.shape != x.shape:
        raise RuntimeError(
            f"Expected shape of indices to be same as that of the input tensor ({list(x.shape)}) but got indices "
            f"tensor with shape: {list(indices.shape)}"
        )
    for dim in range(1 if x.dim() == dims + 2 else 0, x.dim()):
        if x.size(dim) == 0:
            raise RuntimeError(
                f"{function}_forward_out_cpu(): Expected input to have non-zero size for non-batch dimensions, but "
                f"got {list(x.shape)} with dimension {dim} being empty."
            )
    if not x.is_floating_point():
        raise NotImplementedError(f"\"max_unpool{dims}d\" not implemented for '{type_name(x)}'")
    volume = torch.Size(counts).numel()
    if not readable or x.numel() == 0 or volume == 0:
        return
    in_memory = indices.movedim(1, -1) if dims == 2 and not x.is_contiguous() and x.dim() == 4 else indices
    wrong = in_memory[(in_memory < 0) | (in_memory >= volume)]
    if wrong.numel():
        sizes = "x".join(map(str, counts))
        raise RuntimeError(
            f"Found an invalid max index: {int(wrong[-1])} (output volumes are of size {sizes})"
        )


def adaptive_counts(function: str, output_size: Any, input: Tensor, dims: int) -> list[Any]:
    """One number a dimension; None keeps the size of the input, of which sequences have no such say.

    Raises:  TypeError for what is no number
    """
    if dims > 1 and not isinstance(output_size, (int, torch.SymInt)):
        if input.dim() <= len(output_size):
            raise ValueError(f"Input dimension should be at least {len(output_size) + 1}")
        defaults = input.shape[input.dim() - len(output_size) :]
        output_size = [size if count is None else count for count, size in zip(output_size, defaults)]
    require_ints(function, output_size=output_size)
    return list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * dims
