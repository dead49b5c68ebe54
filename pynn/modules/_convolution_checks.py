"""What a convolution refuses, in ATen's words (aten/src/ATen/native/Convolution.cpp)."""

from typing import Any

import torch
from torch import Tensor

from pynn.dtype_names import cpp_name, full_type_name, type_name


def expanded(name: str, value: Any, dims: int, same: bool = False) -> list[Any]:
    """One number a spatial dimension, from one number for all or one each.

    same: whether padding is "same", where ATen has other words
    """
    if not isinstance(value, (tuple, list)):
        return [value] * dims
    values = list(value)
    if len(values) == 1:
        return values * dims
    if len(values) != dims:
        if same:
            raise RuntimeError(f"{name} cannot broadcast to {dims} dimensions")
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {dims} values to match the convolution "
            f"dimensions, but got {name}={values}"
        )
    return values


def check_batched(function: str, input: Tensor, dims: int) -> None:
    if input.dim() not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"Expected {dims + 1}D (unbatched) or {dims + 2}D (batched) input to {function}, but got input of "
            f"size: {list(input.shape)}"
        )


def check_dtypes(
    input: Tensor, weight: Tensor, bias: Tensor | None, dims: int, dilation: list[Any], transposed: bool
) -> None:
    """One dtype for all, and one that ATen has a kernel for: no bool, transposed or dilated no integers but int64."""
    kernel = f"slow_conv_transpose{max(dims, 2)}d_out_cpu" if transposed else f"slow_conv{max(dims, 2)}d_cpu"
    is_dilated = not transposed and any(spread != 1 for spread in dilation)
    if is_dilated:
        kernel = "slow_conv_dilated<>"
    is_narrow = (transposed or is_dilated) and input.dtype in (
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
    )
    if input.dtype == torch.bool or is_narrow:
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")
    if weight.dtype != input.dtype:
        if input.dtype in (torch.float32, torch.bfloat16, torch.complex64, torch.complex128):
            names = [full_type_name(x) for x in (input, weight)]
            message = f"Input type ({names[0]}) and weight type ({names[1]}) should be the same"
            if not input.is_complex():
                message += " or input should be a MKLDNN tensor and weight is a dense tensor"
            raise RuntimeError(message)
        raise RuntimeError(f"expected scalar type {type_name(input)} but found {type_name(weight)}")
    if bias is not None and bias.dtype != input.dtype:
        check_other_bias(input, bias, dims, transposed)


def check_other_bias(input: Tensor, bias: Tensor, dims: int, transposed: bool) -> None:
    """Transposed convolutions of one and two dimensions alone add a bias of another dtype."""
    if not transposed or input.dtype == torch.bfloat16 or input.is_complex():
        names = [full_type_name(x) if transposed else cpp_name(x.dtype) for x in (input, bias)]
        is_onednn = transposed and input.dtype == torch.bfloat16
        other = " or input should be a MKLDNN tensor and bias is a dense tensor" if is_onednn else ""
        raise RuntimeError(f"Input type ({names[0]}) and bias type ({names[1]}) should be the same{other}")
    if dims == 3:
        raise RuntimeError(f"expected scalar type {type_name(input)} but found {type_name(bias)}")
    if not torch.can_cast(bias.dtype, input.dtype):
        result = type_name(input.new_empty(0, dtype=torch.promote_types(input.dtype, bias.dtype)))
        raise RuntimeError(
            f"result type {result} can't be cast to the desired output type {type_name(input)}"
        )


def check_shapes(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[Any],
    padding: list[Any],
    dilation: list[Any],
    transposed: bool,
    output_padding: list[Any],
    groups: int,
) -> None:
    """Raises: RuntimeError for numbers that make no window, and for sizes that do not fit each other."""
    check_numbers(stride, padding, dilation, output_padding, groups)
    sizes = list(weight.shape)
    if weight.dim() != input.dim():
        raise RuntimeError(
            f"Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight {sizes}, but got "
            f"{input.dim()}-dimensional input of size {list(input.shape)} instead"
        )
    if sizes[0] < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, but got weight of "
            f"size {sizes} instead"
        )
    if sizes[0] % groups != 0:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight "
            f"of size [{sizes}] instead"
        )
    if 0 in sizes[2:]:
        raise RuntimeError(f"expected a kernel of at least one element, but got weight of size {sizes}")
    check_channels(input, sizes, bias, transposed, groups)
    if not transposed:
        check_kernel_fits(input, sizes[2:], padding, dilation)
    if any(size == 0 for size in input.shape[2:]):
        raise RuntimeError(
            f"Only zero batch or zero channel inputs are supported, but got input shape: {list(input.shape)}"
        )
    if input.size(0) == 0:
        return  # C++ looks no further for an empty batch
    if transposed:
        check_transposed(list(input.shape[2:]), sizes[2:], stride, padding, output_padding, dilation)
    elif any(spread == 0 for spread in dilation):
        shown = two_dims("dilation", dilation)
        raise RuntimeError(f"dilation should be greater than zero, but got {shown}")


def check_numbers(
    stride: list[Any],
    padding: list[Any],
    dilation: list[Any],
    output_padding: list[Any],
    groups: int,
) -> None:
    if any(width < 0 for width in padding):
        raise RuntimeError("negative padding is not supported")
    if any(width < 0 for width in output_padding):
        raise RuntimeError("negative output_padding is not supported")
    if any(step <= 0 for step in stride):
        raise RuntimeError("non-positive stride is not supported")
    if any(spread < 0 for spread in dilation):
        raise RuntimeError("dilation should be greater than zero")
    if groups <= 0:
        raise RuntimeError("non-positive groups is not supported")


def check_transposed(
    sizes: list[Any], kernel_size: list[Any], stride: list[Any], padding: list[Any], output_padding: list[Any],
    dilation: list[Any],
) -> None:  # fmt: skip
    """The checks of slow_conv_transpose2d_shape_check, in its order; a sequence is an image of height 1."""
    named = {"output_padding": output_padding, "stride": stride, "dilation": dilation}
    axes = ("depth", "height", "width")[-max(2, len(stride)) :]
    texts = {
        name: [f"{name}_{axis}: {value}" for axis, value in zip(axes, two_dims(name, values))]
        for name, values in named.items()
    }
    if any(spread == 0 for spread in dilation):
        raise RuntimeError("dilation should be greater than zero, but got " + ", ".join(texts["dilation"]))
    if any(extra >= max(step, spread) for extra, step, spread in zip(output_padding, stride, dilation)):
        listed = " ".join(text for each in texts.values() for text in each)
        raise RuntimeError(f"output padding must be smaller than either stride or dilation, but got {listed}")
    numbers = zip(sizes, kernel_size, stride, padding, output_padding, dilation)
    counts = [(n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, k, s, p, extra, d in numbers]
    if any(count < 1 for count in counts):
        given, found = (" x ".join(map(str, two_dims("size", each))) for each in (sizes, counts))
        raise RuntimeError(
            f"Given input size per channel: ({given}). Calculated output size per channel: ({found}). Output size is "
            "too small"
        )


def two_dims(name: str, values: list[Any]) -> list[Any]:
    """ATen runs a 1-d convolution as a 2-d one of height 1, and says so in its message."""
    return values if len(values) > 1 else [0 if name == "output_padding" else 1, *values]


def check_channels(
    input: Tensor, sizes: list[Any], bias: Tensor | None, transposed: bool, groups: int
) -> None:
    given = "Given transposed=1" if transposed else f"Given groups={groups}"
    channels = sizes[0] if transposed else sizes[1] * groups
    features = sizes[1] * groups if transposed else sizes[0]
    if input.size(1) != channels:
        raise RuntimeError(
            f"{given}, weight of size {sizes}, expected input{list(input.shape)} to have {channels} channels, but "
            f"got {input.size(1)} channels instead"
        )
    if bias is not None and list(bias.shape) != [features]:
        given = f"{given}, weight of size" if transposed else "Given weight of size"
        raise RuntimeError(
            f"{given} {sizes}, expected bias to be 1-dimensional with {features} elements, but got bias of size "
            f"{list(bias.shape)} instead"
        )


def check_kernel_fits(input: Tensor, kernel_size: list[Any], padding: list[Any], dilation: list[Any]) -> None:
    padded = [size + 2 * width for size, width in zip(input.shape[2:], padding)]
    spans = [spread * (size - 1) + 1 for size, spread in zip(kernel_size, dilation)]
    if any(size < span for size, span in zip(padded, spans)):
        raise RuntimeError(
            f"Calculated padded input size per channel: ({' x '.join(map(str, padded))}). Kernel size: "
            f"({' x '.join(map(str, spans))}). Kernel size can't be greater than actual input size"
        )
