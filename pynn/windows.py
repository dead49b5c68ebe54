"""Sliding windows over the last dimensions: what convolution, pooling, fold and unfold have in common."""

from collections.abc import Sequence
from typing import Any

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
