"""Sliding windows over the last dimensions: what convolution, pooling, fold and unfold have in common."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def sliding_windows(
    x: Tensor, kernel_size: Sequence[Any], stride: Sequence[Any], dilation: Sequence[Any]
) -> Tensor:
    """A view that holds, for each position o of the window, the elements it covers.

        windows[..., o, k] = x[..., o * stride + k * dilation]        o, k: one index a dimension

    Args:    kernel_size, stride, dilation: one number for each of the last n dimensions of x
    Shape:   x: [*, L1 ... Ln]   returns: [*, O1 ... On, K1 ... Kn] with O = (L - dilation * (K - 1) - 1) // stride + 1
    """
    first = x.dim() - len(kernel_size)
    for i, (size, step, spread) in enumerate(zip(kernel_size, stride, dilation, strict=True)):
        x = x.unfold(first + i, spread * (size - 1) + 1, step)[..., ::spread]
    return x


def output_size(
    size: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool = False
) -> Any:
    """How many positions a window has along one dimension that is padded on both sides.

    ceil_mode: also count a last window that hangs over the end, if it begins inside the input or its left padding
    """
    room = size + 2 * padding - dilation * (kernel_size - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    count = (room + stride - 1) // stride + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def overlap_add(
    term: Callable[[tuple[int, ...]], Tensor],
    size: Sequence[Any],
    kernel_size: Sequence[int],
    stride: Sequence[Any],
    dilation: Sequence[Any],
) -> Tensor:
    """The adjoint of sliding_windows: each window's elements are added up where they came from.

        out[..., o * stride + k * dilation] += term(k)[..., o]        over all positions o and offsets k

    Args:    term: the offsets k inside the window -> the elements there, of all windows
             size: of the last n dimensions of the result
    Shape:   term(k): [*, O1 ... On]   returns: [*, *size]
    """
    out = None
    for offsets in itertools.product(*map(range, kernel_size)):
        elements = term(offsets)
        if elements.numel() == 0:
            # nothing to add: no write into an empty view, which the older vmap refuses in a double backward; a vmap
            # of none refuses the sum of a scalar
            nothing = elements.sum().unsqueeze(0)
            return elements.new_zeros(*elements.shape[: elements.dim() - len(size)], *size) + nothing
        if out is None:
            out = elements.new_zeros(*elements.shape[: elements.dim() - len(size)], *size)
        place = place_of(offsets, elements.shape[-len(size) :], stride, dilation)
        out[(..., *place)].add_(elements)
    assert out is not None, "a window has at least one element"
    return out


def place_of(
    offsets: Sequence[int], counts: Sequence[Any], stride: Sequence[Any], dilation: Sequence[Any]
) -> tuple[slice, ...]:
    """Where the elements at `offsets` inside the windows lie, `counts` windows along each dimension."""
    return tuple(
        slice(k * spread, k * spread + (count - 1) * step + 1, step)
        for k, spread, step, count in zip(offsets, dilation, stride, counts)
    )


def crop(x: Tensor, padding: Sequence[Any]) -> Tensor:
    """Take `padding` elements off both ends of each of the last dimensions: undoes symmetric padding."""
    first = x.dim() - len(padding)
    for i, width in enumerate(padding):
        x = x.narrow(first + i, width, x.size(first + i) - 2 * width)
    return x


def pad_both_sides(x: Tensor, padding: Sequence[Any], value: float = 0) -> Tensor:
    """Put `padding` elements of a constant at both ends of each of the last dimensions."""
    if not any(padding):
        return x
    return torch.constant_pad_nd(x, [width for width in reversed(padding) for _ in range(2)], value)


def along(values: Tensor, dim: int, dims: int) -> Tensor:
    """[O] -> [1..., O, 1...], in place dim of dims."""
    return values.view(*[-1 if i == dim else 1 for i in range(dims)])
