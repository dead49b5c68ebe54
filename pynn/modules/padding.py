"""Padding: with a constant, or with the input's own elements mirrored, repeated or wrapped around."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _ntuple

from pynn.construction import init_module
from pynn.definitions import defines, linear_in, traced_as, type_name, widen
from pynn.memory_format import in_format_of, with_gradient_in_its_format

__all__ = [
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
    "pad",
]

aten = torch.ops.aten

# What C++ mirrors and repeats; the unsigned integers beyond 8 bits, bool and float8 have no kernel.
COPIED_DTYPES = {
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
}


# ---- definitions -----------------------------------------------------------------------------------------


def mirrored(positions: Tensor, size: int) -> Tensor:
    """... 2 1 | 0 1 2 3 | 2 1 ...: the edge itself is not repeated."""
    return (size - 1) - ((size - 1) - positions.abs()).abs()


def nearest(positions: Tensor, size: int) -> Tensor:
    """... 0 0 | 0 1 2 3 | 3 3 ..."""
    return positions.clamp(0, size - 1)


def _per_dim(padding: Sequence[int]) -> list[tuple[int, int, int]]:
    """(dim, left, right) for a flat list that starts with the last dimension."""
    return [(-1 - i, padding[2 * i], padding[2 * i + 1]) for i in range(len(padding) // 2)]


def pad_by_index(x: Tensor, padding: Sequence[int], source: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Along each padded dimension, out[i] = x[source(i - left)]; negative padding crops."""
    for dim, left, right in _per_dim(padding):
        size = x.size(dim)
        positions = torch.arange(-left, size + right, device=x.device)
        x = x.index_select(dim, source(positions, size))
    return x


def pad_by_edges(x: Tensor, padding: Sequence[int], source: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The same as `pad_by_index`: what lies inside is copied whole, only the borders are gathered."""
    for dim, left, right in _per_dim(padding):
        size = x.size(dim)
        kept = size + min(left, 0) + min(right, 0)
        if kept < 1:
            x = pad_by_index(x.movedim(dim, -1), (left, right), source).movedim(-1, dim)
            continue
        blocks = [x.narrow(dim, max(-left, 0), kept)]
        if left > 0:
            before = torch.arange(-left, 0, device=x.device)
            blocks.insert(0, x.index_select(dim, source(before, size)))
        if right > 0:
            after = torch.arange(size, size + right, device=x.device)
            blocks.append(x.index_select(dim, source(after, size)))
        x = torch.cat(blocks, dim)
    return x


def pad_by_index_backward(
    grad: Tensor, x: Tensor, padding: Sequence[int], source: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Each element of x receives the sum of grad over the places it was copied to."""
    total = widen(grad)
    for dim, left, right in _per_dim(padding):
        size = x.size(dim)
        positions = torch.arange(-left, size + right, device=x.device)
        shape = list(total.shape)
        shape[dim] = size
        zeros = torch.zeros(shape, dtype=total.dtype, device=total.device)
        total = zeros.index_add(dim, source(positions, size), total)
    return total.to(grad.dtype)


def _define_pad(forward: Any, backward: Any, source: Callable[[Tensor, int], Tensor]) -> None:
    @defines(forward)
    def pad_forward(x: Tensor, padding: list[int]) -> Tensor:
        return pad_by_edges(x, padding, source)

    @defines(backward)
    def pad_backward(grad: Tensor, x: Tensor, padding: list[int]) -> Tensor:
        return pad_by_index_backward(grad, x, padding, source)


for _forward, _backward, _source in (
    (aten.reflection_pad1d, aten.reflection_pad1d_backward, mirrored),
    (aten.reflection_pad2d, aten.reflection_pad2d_backward, mirrored),
    (aten.reflection_pad3d, aten.reflection_pad3d_backward, mirrored),
    (aten.replication_pad1d, aten.replication_pad1d_backward, nearest),
    (aten.replication_pad2d, aten.replication_pad2d_backward, nearest),
    (aten.replication_pad3d, aten.replication_pad3d_backward, nearest),
):
    _define_pad(_forward.default, _backward.default, _source)


def pad_with_constant(x: Tensor, padding: Sequence[int], value: float) -> Tensor:
    """Crop where padding is negative, then put blocks of the constant on both sides, dim by dim."""
    padded = x
    for dim, left, right in _per_dim(padding):
        size = padded.size(dim)
        if size + left + right < 0 or size + min(left, 0) + min(right, 0) < 0:
            raise RuntimeError("narrow(): length must be non-negative.")
        padded = padded.narrow(dim, max(-left, 0), size + min(left, 0) + min(right, 0))
        blocks = [padded]
        if left > 0:
            blocks.insert(0, _constant_block(padded, dim, left, value))
        if right > 0:
            blocks.append(_constant_block(padded, dim, right, value))
        if len(blocks) > 1:
            padded = torch.cat(blocks, dim)
    return padded if padded.numel() > x.numel() else padded.clone()


def _constant_block(x: Tensor, dim: int, width: int, value: float) -> Tensor:
    """The shape of x but width along dim, filled with value."""
    shape = list(x.shape)
    shape[dim] = width
    return torch.full(shape, value, dtype=x.dtype, device=x.device)


def pad_circular(x: Tensor, padding: Sequence[int]) -> Tensor:
    """... 2 3 | 0 1 2 3 | 0 1 ...: crop where padding is negative, then wrap around what is left."""
    for dim, left, right in reversed(_per_dim(padding)):
        if left > x.size(dim) or right > x.size(dim):
            raise RuntimeError("Padding value causes wrapping around more than once.")
        if x.size(dim) + left + right < 0:
            raise RuntimeError("Negative padding value is resulting in an empty dimension")
    for dim, left, right in _per_dim(padding):
        x = x.narrow(dim, max(-left, 0), x.size(dim) + min(left, 0) + min(right, 0))
    for dim, left, right in _per_dim([max(width, 0) for width in padding]):
        x = _wrapped(x, dim, left, right)
    return x.contiguous()


def _wrapped(x: Tensor, dim: int, left: int, right: int) -> Tensor:
    """x, with the end of it before it and its beginning behind it."""
    size = x.size(dim)
    if left <= size and right <= size:
        parts = [(size - left, left), (0, size), (0, right)]
        return torch.cat(
            [x.narrow(dim, start, width) for start, width in parts if width > 0 or width == size], dim
        )
    if size == 0:
        raise RuntimeError("Negative padding value is resulting in an empty dimension")
    # so much was cropped that it goes around again; on the left C++ reads what it has not written
    return x.index_select(dim, torch.arange(-left, size + right, device=x.device) % size)


# ---- public function -------------------------------------------------------------------------------------


@traced_as(F.pad)
def pad(input: Tensor, pad: list[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Pad the last dimensions; pad = (left, right) of the last one, then of the one before it, ...

        constant   v v | 0 1 2 3 | v v
        reflect    2 1 | 0 1 2 3 | 2 1
        replicate  0 0 | 0 1 2 3 | 3 3
        circular   2 3 | 0 1 2 3 | 0 1

    Args:    pad: negative numbers cut; the modes other than constant pad the last 1 to 3 dimensions of images
             value: of mode constant, default 0
    Shape:   input: [*]   returns: the last len(pad) / 2 dimensions grown by left + right
    dtype:   any, returned as input's; reflect and replicate take neither bool nor 16-bit complex numbers
    Raises:  RuntimeError for widths that do not fit the sizes, or a value in another mode;
             NotImplementedError for unknown modes, dimensions and dtypes
    Source:  aten/native/PadNd.cpp, ReflectionPad.cpp, ReplicationPadding.cpp
    """
    if len(pad) % 2 != 0:
        raise RuntimeError("Padding length must be divisible by 2")
    if len(pad) > 2 * input.dim():
        raise RuntimeError(
            "Padding length should be less than or equal to two times the input dimension but got "
            "padding length "
            f"{len(pad)} and input of dimension {input.dim()}"
        )
    x = with_gradient_in_its_format(input)
    if mode == "constant":
        return in_format_of(input, pad_with_constant(x, pad, 0.0 if value is None else float(value)))
    if value is not None and value != 0:
        raise RuntimeError(f'Padding mode "{mode}" doesn\'t take in value argument')
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    count = len(pad) // 2
    if count not in (1, 2, 3) or input.dim() not in (count + 1, count + 2):
        raise NotImplementedError(
            f"Padding size {len(pad)} is not supported for {input.dim()}D input tensor.\n"
            "Supported combinations for non-constant padding:\n"
            "  - 2D or 3D input: padding size = 2 (pads last dimension)\n"
            "  - 3D or 4D input: padding size = 4 (pads last 2 dimensions)\n"
            "  - 4D or 5D input: padding size = 6 (pads last 3 dimensions)"
        )
    if mode == "circular":
        return pad_circular(input, pad)
    _check_sizes(input, pad, mode)
    if input.dtype not in COPIED_DTYPES and not input.is_meta:
        kernel = "reflection_pad" if mode == "reflect" else "replication_pad"
        raise NotImplementedError(f"\"{kernel}{count}d\" not implemented for '{type_name(input)}'")
    return in_format_of(input, pad_by_edges(linear_in(x), pad, mirrored if mode == "reflect" else nearest))


def _check_sizes(input: Tensor, padding: Sequence[int], mode: str) -> None:
    count = len(padding) // 2
    if any(size == 0 for size in input.shape[-count - 1 :]):
        raise RuntimeError(
            f"Expected {count + 1}D or {count + 2}D (batch mode) tensor with possibly 0 batch size and other "
            f"non-zero dimensions for input, but got: {list(input.shape)}"
        )
    for dim, left, right in _per_dim(padding):
        size = input.size(dim)
        if mode == "reflect" and (left >= size or right >= size):
            raise RuntimeError(
                f"Argument #{2 - 2 * dim}: Padding size should be less than the corresponding input "
                "dimension, "
                f"but got: padding ({left}, {right}) at dimension {input.dim() + dim} of input "
                f"{list(input.shape)}"
            )
        if size + left + right < 1:
            name = "WHD"[-1 - dim]
            raise RuntimeError(
                f"input ({name}: {size}) is too small. Calculated output {name}: {size + left + right}"
            )


# ---- classes ---------------------------------------------------------------------------------------------


class _Pad:
    """What the layers share: `padding`, one int or (left, right) a dimension from the last one on."""

    __constants__ = ["padding"]
    dims: int
    mode: str

    def __init__(self, padding: int | tuple[int, ...]) -> None:
        init_module(_Pad, self)  # type: ignore[arg-type]
        self.padding = _ntuple(2 * self.dims)(padding)

    def forward(self, input: Tensor) -> Tensor:
        return pad(input, self.padding, self.mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class _CircularPad(_Pad):
    mode = "circular"

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        return pad(input, self.padding, self.mode)

    def _check_input_dim(self, input: Tensor) -> None:
        low, high = self.dims + 1, self.dims + 2
        if input.dim() not in (low, high):
            raise ValueError(f"expected {low}D or {high}D input (got {input.dim()}D input)")


class CircularPad1d(_CircularPad, torch.nn.CircularPad1d):
    """Wrap the last dimension around.

    Args:    padding: of every side, or (left, right)
    Shape:   input: [batch, channels, length] or without batch   returns: the same, padded
    Raises:  ValueError for another number of dimensions, RuntimeError when it wraps more than once
    Source:  see `pad`
    """

    dims = 1


class CircularPad2d(_CircularPad, torch.nn.CircularPad2d):
    """Wrap the last 2 dimensions around.

    Args:    padding: of every side, or (left, right, top, bottom)
    Shape:   input: [batch, channels, height, width] or without batch   returns: the same, padded
    Raises:  ValueError for another number of dimensions, RuntimeError when it wraps more than once
    Source:  see `pad`
    """

    dims = 2


class CircularPad3d(_CircularPad, torch.nn.CircularPad3d):
    """Wrap the last 3 dimensions around.

    Args:    padding: of every side, or (left, right, top, bottom, front, back)
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: the same, padded
    Raises:  ValueError for another number of dimensions, RuntimeError when it wraps more than once
    Source:  see `pad`
    """

    dims = 3


class _ConstantPad(_Pad):
    __constants__ = ["padding", "value"]

    def __init__(self, padding: int | tuple[int, ...], value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad, torch.nn.ConstantPad1d):
    """Pad the last dimension with a value.

    Args:    padding: of every side, or (left, right); negative cuts
             value: the constant
    Shape:   input: [*, length]   returns: the same, padded
    Source:  see `pad`
    """

    dims = 1


class ConstantPad2d(_ConstantPad, torch.nn.ConstantPad2d):
    """Pad the last 2 dimensions with a value.

    Args:    padding: of every side, or (left, right, top, bottom); negative cuts
             value: the constant
    Shape:   input: [*, height, width]   returns: the same, padded
    Source:  see `pad`
    """

    dims = 2


class ConstantPad3d(_ConstantPad, torch.nn.ConstantPad3d):
    """Pad the last 3 dimensions with a value.

    Args:    padding: of every side, or (left, right, top, bottom, front, back); negative cuts
             value: the constant
    Shape:   input: [*, depth, height, width]   returns: the same, padded
    Source:  see `pad`
    """

    dims = 3


class _ReflectionPad(_Pad):
    mode = "reflect"


class ReflectionPad1d(_ReflectionPad, torch.nn.ReflectionPad1d):
    """Mirror the last dimension at its edges.

    Args:    padding: of every side, or (left, right)
    Shape:   input: [batch, channels, length] or without batch   returns: the same, padded
    Raises:  NotImplementedError for another number of dimensions, RuntimeError for padding >= the size
    Source:  see `pad`
    """

    dims = 1


class ReflectionPad2d(_ReflectionPad, torch.nn.ReflectionPad2d):
    """Mirror the last 2 dimensions at their edges.

    Args:    padding: of every side, or (left, right, top, bottom)
    Shape:   input: [batch, channels, height, width] or without batch   returns: the same, padded
    Raises:  NotImplementedError for another number of dimensions, RuntimeError for padding >= the size
    Source:  see `pad`
    """

    dims = 2


class ReflectionPad3d(_ReflectionPad, torch.nn.ReflectionPad3d):
    """Mirror the last 3 dimensions at their edges.

    Args:    padding: of every side, or (left, right, top, bottom, front, back)
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: the same, padded
    Raises:  NotImplementedError for another number of dimensions, RuntimeError for padding >= the size
    Source:  see `pad`
    """

    dims = 3


class _ReplicationPad(_Pad):
    mode = "replicate"


class ReplicationPad1d(_ReplicationPad, torch.nn.ReplicationPad1d):
    """Repeat the edges of the last dimension.

    Args:    padding: of every side, or (left, right)
    Shape:   input: [batch, channels, length] or without batch   returns: the same, padded
    Raises:  NotImplementedError for another number of dimensions
    Source:  see `pad`
    """

    dims = 1


class ReplicationPad2d(_ReplicationPad, torch.nn.ReplicationPad2d):
    """Repeat the edges of the last 2 dimensions.

    Args:    padding: of every side, or (left, right, top, bottom)
    Shape:   input: [batch, channels, height, width] or without batch   returns: the same, padded
    Raises:  NotImplementedError for another number of dimensions
    Source:  see `pad`
    """

    dims = 2


class ReplicationPad3d(_ReplicationPad, torch.nn.ReplicationPad3d):
    """Repeat the edges of the last 3 dimensions.

    Args:    padding: of every side, or (left, right, top, bottom, front, back)
    Shape:   input: [batch, channels, depth, height, width] or without batch   returns: the same, padded
    Raises:  NotImplementedError for another number of dimensions
    Source:  see `pad`
    """

    dims = 3


class _ZeroPad:
    def __init__(self, padding: int | tuple[int, ...]) -> None:
        super().__init__(padding, 0.0)  # type: ignore[call-arg]

    def extra_repr(self) -> str:
        return f"{self.padding}"  # type: ignore[attr-defined]


class ZeroPad1d(_ZeroPad, ConstantPad1d, torch.nn.ZeroPad1d):
    """Pad the last dimension with 0.

    Args:    padding: of every side, or (left, right); negative cuts
    Shape:   input: [*, length]   returns: the same, padded
    Source:  see `pad`
    """


class ZeroPad2d(_ZeroPad, ConstantPad2d, torch.nn.ZeroPad2d):
    """Pad the last 2 dimensions with 0.

    Args:    padding: of every side, or (left, right, top, bottom); negative cuts
    Shape:   input: [*, height, width]   returns: the same, padded
    Source:  see `pad`
    """


class ZeroPad3d(_ZeroPad, ConstantPad3d, torch.nn.ZeroPad3d):
    """Pad the last 3 dimensions with 0.

    Args:    padding: of every side, or (left, right, top, bottom, front, back); negative cuts
    Shape:   input: [*, depth, height, width]   returns: the same, padded
    Source:  see `pad`
    """
