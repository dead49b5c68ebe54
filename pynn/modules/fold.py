"""Windows as columns and back: unfold lays the elements of every window side by side, fold adds them up again."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import Function, defines, traced_as, type_name, widen
from pynn.windows import crop, output_size, overlap_add, pad_both_sides, sliding_windows

__all__ = [
    "Fold",
    "Unfold",
    "fold",
    "unfold",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


@defines(aten.im2col.default)
def im2col(
    self: Tensor, kernel_size: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> Tensor:
    """out[n, (c, k), o] = x[n, c, o * stride + k * dilation - padding].

    Shape:   self: [batch, channels, height, width] or without batch   returns: [batch, channels * K * K, O * O]
    """
    x = self if self.dim() == 4 else self.unsqueeze(0)
    windows = sliding_windows(pad_both_sides(x, padding), kernel_size, stride, dilation)
    # [batch, channels, K, K, O, O]
    columns = windows.permute(0, 1, 4, 5, 2, 3)
    batch, channels, *kernel, height, width = columns.shape
    columns = columns.reshape(batch, channels * kernel[0] * kernel[1], height * width)
    return columns if self.dim() == 4 else columns.squeeze(0)


@defines(aten.col2im.default)
def col2im(
    self: Tensor,
    output_size: list[int],
    kernel_size: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> Tensor:
    """The adjoint of im2col: x[n, c, o * stride + k * dilation - padding] += columns[n, (c, k), o].

    Shape:   self: [batch, channels * K * K, O * O] or without batch   returns: [batch, channels, *output_size]
    dtype:   adds in float32 for 16-bit inputs
    """
    columns = self if self.dim() == 3 else self.unsqueeze(0)
    counts = block_counts(output_size, kernel_size, dilation, padding, stride)
    channels = columns.size(1) // (kernel_size[0] * kernel_size[1])
    windows = widen(columns).reshape(columns.size(0), channels, *kernel_size, *counts)
    padded = [size + 2 * width for size, width in zip(output_size, padding)]
    total = overlap_add(lambda k: windows[:, :, k[0], k[1]], padded, kernel_size, stride, dilation)
    out = crop(total, padding).to(self.dtype).contiguous()
    return out if self.dim() == 3 else out.squeeze(0)


def block_counts(
    size: Sequence[Any], kernel_size: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> list[Any]:
    """How many positions the window has, in height and in width."""
    numbers = zip(size, kernel_size, stride, padding, dilation, strict=True)
    return [output_size(*each) for each in numbers]


class _Unfold(Function):
    """im2col with its adjoint."""

    @staticmethod
    def forward(x: Tensor, *geometry: Any) -> Tensor:
        return im2col(x, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, *ctx.geometry = inputs
        ctx.size = list(x.shape[-2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return col2im(grad, ctx.size, *ctx.geometry), *[None] * 4

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return im2col(dx, *ctx.geometry)


class _Fold(Function):
    """col2im with its adjoint."""

    @staticmethod
    def forward(columns: Tensor, size: Any, *geometry: Any) -> Tensor:
        return col2im(columns, size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.size, *ctx.geometry = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return im2col(grad, *ctx.geometry), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return col2im(dx, ctx.size, *ctx.geometry)


# ---- public functions ------------------------------------------------------------------------------------


@traced_as(F.unfold)
def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """out[n, (c, k), o] = input[n, c, o * stride + k * dilation - padding]: every window as a column.

    Args:    kernel_size, dilation, padding, stride: a number or two, for height and width; default 1, 0 and 1
    Shape:   input: [batch, channels, height, width] or without batch
             returns: [batch, channels * K * K, number of windows]
    dtype:   floating point, complex or bool, returned as input's
    Raises:  RuntimeError when the numbers make no window; IndexError for 2 dimensions; NotImplementedError
             for integers and 16-bit complex numbers
    Source:  aten/native/Im2Col.cpp
    """
    geometry = _pairs(kernel_size=kernel_size, dilation=dilation, padding=padding, stride=stride)
    _check_numbers(*geometry)
    if input.dim() < 3:
        last = input.dim() - 1
        raise IndexError(
            f"Dimension out of range (expected to be in range of [-{last + 1}, {last}], but got 2)"
        )
    if input.dim() > 4 or any(size == 0 for size in input.shape[-3:]):
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with possibly 0 batch size and other non-zero dimensions for input, "
            f"but got: {list(input.shape)}"
        )
    sizes = tuple(input.shape[-2:])
    counts = block_counts(sizes, *geometry)
    if any(count < 1 for count in counts):
        kernel, spread, pad = (tuple(each) for each in geometry[:3])
        raise RuntimeError(
            f"Given input with spatial size {sizes}, kernel_size={kernel}, dilation={spread}, padding={pad}, "
            f"calculated shape of the array of sliding blocks as {tuple(counts)}, but its components must be at least "
            "one."
        )
    _check_dtype("im2col_out_cpu", input)
    return _Unfold.apply(input, *geometry)


@traced_as(F.fold)
def fold(
    input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """The adjoint of unfold: out[n, c, o * stride + k * dilation - padding] += input[n, (c, k), o].

    Args:    output_size: height and width of the result; kernel_size, dilation, padding, stride: of the windows
    Shape:   input: [batch, channels * K * K, number of windows] or without batch
             returns: [batch, channels, *output_size]
    dtype:   floating point, complex or bool, returned as input's; adds in float32 for 16-bit inputs
    Raises:  RuntimeError when sizes do not fit; NotImplementedError for integers and 16-bit complex numbers
    Source:  aten/native/Col2Im.cpp
    """
    (size,) = _pairs(output_size=output_size)
    geometry = _pairs(kernel_size=kernel_size, dilation=dilation, padding=padding, stride=stride)
    _check_numbers(*geometry)
    if input.dim() not in (2, 3) or any(length == 0 for length in input.shape[-2:]):
        raise RuntimeError(
            "Expected 2D or 3D (batch mode) tensor for input with possibly 0 batch size and non-zero dimensions for "
            f"input, but got: {list(input.shape)}"
        )
    _check_columns(input, size, *geometry)
    _check_dtype("col2im_out_cpu", input)
    return _Fold.apply(input, size, *geometry)


def _pairs(**named: Any) -> tuple[list[Any], ...]:
    pairs = []
    for name, value in named.items():
        values = list(value) if isinstance(value, (tuple, list)) else [value, value]
        if len(values) != 2:
            raise RuntimeError(f"It is expected {name} equals to 2, but got size {len(values)}")
        pairs.append(values)
    return tuple(pairs)


def _check_numbers(kernel_size: list, dilation: list, padding: list, stride: list) -> None:
    for word, prefix, values in (("kernel size", "kernel", kernel_size), ("dilation", "dilation", dilation),
                                 ("stride", "stride", stride)):  # fmt: skip
        if any(value <= 0 for value in values):
            raise RuntimeError(
                f"{word} should be greater than zero, but got {prefix}_height: {values[0]} {prefix}_width: {values[1]}"
            )
    if any(value < 0 for value in padding):
        raise RuntimeError(
            f"padding should be non-negative, but got pad_height: {padding[0]} pad_width: {padding[1]}"
        )


def _check_columns(
    input: Tensor, size: list, kernel_size: list, dilation: list, padding: list, stride: list
) -> None:
    rows, window = input.size(-2), kernel_size[0] * kernel_size[1]
    if window >= 2**64:
        raise RuntimeError(
            f"Given kernel_width = {kernel_size[1]} and kernel_height = {kernel_size[0]} the product of kernel_width "
            "and kernel_height overflowed."
        )
    if rows % window != 0:  # dimensions count from a batch, be there one or not
        raise RuntimeError(
            "Expected size of input's dimension 1 to be divisible by the product of kernel_size, but got "
            f"input.size(1)={rows} and kernel_size={tuple(kernel_size)}."
        )
    counts = block_counts(size, kernel_size, dilation, padding, stride)
    if counts[0] * counts[1] != input.size(-1) or min(counts) < 1:
        given = ", ".join(
            f"{name}={tuple(values)}"
            for name, values in (("output_size", size), ("kernel_size", kernel_size), ("dilation", dilation),
                                 ("padding", padding), ("stride", stride))
        )  # fmt: skip
        if counts[0] * counts[1] == input.size(-1):
            raise RuntimeError(
                f"Given {given}, calculated shape of the array of sliding blocks as {tuple(counts)}, which is too "
                "small (non-positive)"
            )
        raise RuntimeError(
            f"Given {given}, expected size of input's dimension 2 to match the calculated number of sliding "
            f"blocks {counts[0]} * {counts[1]} = {counts[0] * counts[1]}, but got input.size(2)="
            f"{input.size(-1)}."
        )


def _check_dtype(kernel: str, input: Tensor) -> None:
    others = torch.bool, torch.complex64, torch.complex128
    if not (input.is_floating_point() or input.dtype in others):
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")


# ---- classes ---------------------------------------------------------------------------------------------


class Unfold(torch.nn.Unfold):
    """Every window as a column.

    Args:    kernel_size, dilation, padding, stride: as `unfold`'s
    Shape:   x: [batch, channels, height, width] or without batch
             returns: [batch, channels * K * K, number of windows]
    Source:  see `unfold`
    """

    def forward(self, input: Tensor) -> Tensor:
        return unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(torch.nn.Fold):
    """Add up columns where their windows lie.

    Args:    output_size, kernel_size, dilation, padding, stride: as `fold`'s
    Shape:   x: [batch, channels * K * K, number of windows] or without batch
             returns: [batch, channels, *output_size]
    Source:  see `fold`
    """

    def forward(self, input: Tensor) -> Tensor:
        return fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
