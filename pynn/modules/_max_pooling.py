"""The largest element of each window, and where it is: max, adaptive max and fractional max pooling, unpooling.

The windows of all three are boxes. They differ in where a box begins and how large it is: at o * stride - padding; from
floor(o * L / O) to ceil((o + 1) * L / O); or at random. Ties go to the first element in row-major order and NaN wins,
the last one of a window, as in aten/src/ATen/native/cpu/MaxPoolKernel.cpp.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pynn.definitions import Function, defines
from pynn.memory_format import image_in_format_of, in_format, volume_in_format_of
from pynn.modules._pooling_checks import check_adaptive_gradient, per_dim
from pynn.windows import along, output_size, sliding_windows

aten = torch.ops.aten


@dataclass(frozen=True)
class Boxes:
    """One box an output element.

    pieces:      the element at each offset inside the box, in row-major order, for all boxes: [*, O1 ... On] each
    kernel_size: of the largest box
    starts:      the first coordinate of each box along each dimension, to be broadcast to [*, O1 ... On]
    low, high:   what coordinates are held within: boxes hang over the edges, and small ones repeat their last element
    sizes:       of the input
    """

    pieces: list[Tensor]
    kernel_size: Sequence[Any]
    starts: list[Tensor]
    low: list[Tensor]
    high: list[Tensor]
    dilation: Sequence[Any]
    sizes: Sequence[Any]


def largest_of(pieces: list[Tensor]) -> Tensor:
    """The elementwise maximum; NaN wins. Never a view of the input."""
    out = pieces[0] if len(pieces) > 1 else pieces[0].clone()
    for piece in pieces[1:]:
        out = torch.maximum(out, piece)
    return out


def number_of_largest(pieces: list[Tensor], largest: Tensor) -> Tensor:
    """The number of the first piece that is the largest; where that is NaN, of the last piece that is NaN.

    Found without a choice per element: the first of the equal pieces has the largest of the scores count - k, the last
    NaN the largest of the scores k + 1, and no box has scores of both kinds.
    """
    count = len(pieces)
    best = None
    for k, piece in enumerate(pieces):
        score = (piece == largest).to(torch.int32) * (count - k)
        if piece.is_floating_point():
            score = score + (piece != piece).to(torch.int32) * (k + 1)
        best = score if best is None else torch.maximum(best, score)
    assert best is not None
    return torch.where(largest != largest, best - 1, count - best).to(torch.int64)


def largest_and_index(boxes: Boxes) -> tuple[Tensor, Tensor]:
    """The largest element of each box and its index in the flattened last dimensions of the input."""
    values = largest_of(boxes.pieces)
    number = number_of_largest(boxes.pieces, values)
    index = None
    for dim, size in enumerate(boxes.sizes):
        below = 1
        for width in boxes.kernel_size[dim + 1 :]:
            below = below * width
        offset = torch.div(number, below, rounding_mode="floor") % boxes.kernel_size[dim]
        coordinate = boxes.starts[dim] + offset * boxes.dilation[dim]
        coordinate = torch.minimum(torch.maximum(coordinate, boxes.low[dim]), boxes.high[dim])
        index = coordinate if index is None else index * size + coordinate
    assert index is not None
    return values, index


def lowest(x: Tensor) -> float | int:
    return -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min


# ---- where the boxes are ---------------------------------------------------------------------------------


def sliding_boxes(
    x: Tensor,
    kernel_size: Sequence[Any],
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    ceil_mode: bool,
) -> Boxes:
    """Boxes that begin at o * stride - padding; what hangs over is filled with the lowest number."""
    dims = len(kernel_size)
    sizes = x.shape[-dims:]
    numbers = list(zip(sizes, kernel_size, stride, padding, dilation, strict=True))
    counts = [output_size(*each, ceil_mode) for each in numbers]
    # what hangs over (ceil_mode) holds nothing, however long the box
    kernel_size = [min(width, (size + 2 * pad - 1) // spread + 1) for size, width, _, pad, spread in numbers]
    overhang = [
        max((count - 1) * step + spread * (width - 1) + 1 - size - pad, 0)
        for count, width, (size, _, step, pad, spread) in zip(counts, kernel_size, numbers)
    ]
    if any(padding) or any(overhang):
        widths = [width for pair in zip(reversed(padding), reversed(overhang)) for width in pair]
        x = torch.constant_pad_nd(x, widths, lowest(x))
    windows = sliding_windows(x, kernel_size, stride, dilation)
    for i, count in enumerate(counts):
        windows = windows.narrow(x.dim() - dims + i, 0, count)
    pieces = [windows[(..., *k)] for k in itertools.product(*map(range, kernel_size))]
    steps = [
        torch.arange(count, device=x.device) * step - pad
        for count, (_, _, step, pad, _) in zip(counts, numbers)
    ]
    # the first coordinate inside the input: a box that begins before it has only the lowest number there
    inside = [torch.where(s < 0, s % spread, s) for s, spread in zip(steps, dilation)]
    return Boxes(
        pieces, kernel_size,
        [along(s, i, dims) for i, s in enumerate(steps)], [along(s, i, dims) for i, s in enumerate(inside)],
        [torch.full_like(along(s, i, dims), size - 1) for i, (s, size) in enumerate(zip(steps, sizes))],
        dilation, sizes,
    )  # fmt: skip


def adaptive_bounds(size: Any, count: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Window o of count covers floor(o * size / count) up to, not including, ceil((o + 1) * size / count)."""
    o = torch.arange(count, device=device)
    starts = torch.div(o * size, count, rounding_mode="floor")
    return starts, torch.div((o + 1) * size + count - 1, count, rounding_mode="floor")


def longest_window(size: int, count: int) -> int:
    """The size of the largest adaptive window: without a look at the bounds, which may be traced."""
    return max((((o + 1) * size + count - 1) // count - o * size // count for o in range(count)), default=1)


def adaptive_boxes(x: Tensor, counts: Sequence[int]) -> Boxes:
    """Boxes of about equal size that cover the input; the smaller ones repeat their last element."""
    dims = len(counts)
    sizes = [int(size) for size in x.shape[-dims:]]
    starts, high, picks = [], [], []
    for i, (size, count) in enumerate(zip(sizes, counts)):
        begin, end = adaptive_bounds(size, count, x.device)
        starts.append(along(begin, i, dims))
        high.append(along(end - 1, i, dims))
        picks.append([torch.minimum(begin + k, end - 1) for k in range(longest_window(size, count))])
    pieces = []
    for chosen in itertools.product(*picks):
        piece = x
        for i, index in enumerate(chosen):
            piece = piece.index_select(x.dim() - dims + i, index)
        pieces.append(piece)
    return Boxes(pieces, [len(pick) for pick in picks], starts, starts, high, [1] * dims, sizes)


def random_starts(samples: Tensor, size: int, count: int, width: int) -> Tensor:
    """Where the boxes of fractional pooling begin: steps of alpha from a random phase, the last box at the end.

        start[o] = floor((o + u) * alpha) - floor(u * alpha),   alpha = (size - width) / (count - 1)

    Shape:   samples: [batch, channels] in [0, 1)   returns: [batch, channels, count]
    dtype:   computes in that of the samples, as C++ does
    """
    last = torch.full((*samples.shape, 1), size - width, device=samples.device)
    if count <= 1:
        return last[..., :count]
    alpha = torch.full_like(samples, size - width) / torch.full_like(samples, count - 1)
    o = torch.arange(count - 1, device=samples.device).to(samples.dtype)
    u, alpha = samples.unsqueeze(-1), alpha.unsqueeze(-1)
    starts = ((o + u) * alpha).to(torch.int64) - (u * alpha).to(torch.int64)
    return torch.cat([starts, last], -1)


def fractional_boxes(x: Tensor, kernel_size: Sequence[int], counts: Sequence[int], samples: Tensor) -> Boxes:
    """Boxes of one size at random places, in each channel its own.

    Shape:   x: [batch, channels, L...]   samples: [batch, channels, dims]
    """
    dims = len(kernel_size)
    sizes = x.shape[2:]
    order = [1, 0] if dims == 2 else [0, 1, 2]  # C++ takes the first sample for the width of an image
    starts = []
    for i in range(dims):
        begin = random_starts(samples[: x.size(0), :, order[i]], sizes[i], counts[i], kernel_size[i])
        starts.append(begin.view(*begin.shape[:2], *[counts[i] if j == i else 1 for j in range(dims)]))
    flat = x.flatten(2)
    pieces = []
    for offsets in itertools.product(*map(range, kernel_size)):
        index = starts[0] + offsets[0]
        for begin, offset, size in zip(starts[1:], offsets[1:], sizes[1:]):
            index = index * size + begin + offset
        # [batch, channels, O...]
        pieces.append(flat.gather(2, index.flatten(2)).view(index.shape))
    high = [begin + width - 1 for begin, width in zip(starts, kernel_size)]
    return Boxes(pieces, kernel_size, starts, starts, high, [1] * dims, sizes)


# ---- taking and returning --------------------------------------------------------------------------------


def take(x: Tensor, index: Tensor, dims: int) -> Tensor:
    """The elements of the last dims of x, flattened, at index: [*, L...], [*, O...] -> [*, O...]"""
    return x.flatten(x.dim() - dims).gather(-1, index.flatten(index.dim() - dims)).view(index.shape)


def put_back(grad: Tensor, index: Tensor, sizes: Sequence[Any]) -> Tensor:
    """The adjoint of take: each element is added where it came from. [*, O...] -> [*, *sizes]"""
    dims = len(sizes)
    lead = grad.shape[: grad.dim() - dims]
    flat = grad.new_zeros(*lead, product(sizes))
    flat = flat.scatter_add(-1, index.flatten(index.dim() - dims), grad.flatten(grad.dim() - dims))
    return flat.view(*lead, *sizes)


def product(numbers: Sequence[Any]) -> Any:
    out = 1
    for number in numbers:
        out = out * number
    return out


class Largest(Function):
    """(values, index) of the boxes that `boxes_of(x)` makes; the gradient goes back to where the values came from."""

    @staticmethod
    def forward(x: Tensor, dims: int, choose: Callable[..., tuple], *rest: Any) -> tuple[Tensor, Tensor]:
        return choose(x, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, ctx.dims, choose, *rest = inputs
        ctx.sizes, ctx.count = x.shape[x.dim() - ctx.dims :], len(rest)
        ctx.is_adaptive = choose in ADAPTIVE_MAX_POOL.values()
        contiguous = choose in (ADAPTIVE_MAX_POOL[3], *FRACTIONAL_MAX_POOL.values())
        ctx.layout = torch.contiguous_format if contiguous else suggest_memory_format(x)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], x)
        ctx.save_for_forward(output[1], x)  # as many: the generated vmap rule takes one list for both

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
        index, _ = ctx.saved_tensors
        if ctx.is_adaptive:
            check_adaptive_gradient("max", grad, ctx.dims)
        return in_format(ctx.layout, put_back(grad, index, ctx.sizes)), *[None] * (2 + ctx.count)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> tuple:
        index, *_ = ctx.saved_tensors
        return take(dx, index, ctx.dims), None


# ---- definitions -----------------------------------------------------------------------------------------


def _sliding(dims: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def max_pool_with_indices(
        self: Tensor,
        kernel_size: list[int],
        stride: list[int] = (),  # type: ignore[assignment]
        padding: list[int] = 0,  # type: ignore[assignment]
        dilation: list[int] = 1,  # type: ignore[assignment]
        ceil_mode: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """max over k of x[o * stride + k * dilation - padding], and the index of the largest."""
        width = per_dim(kernel_size, dims)
        step = per_dim(stride, dims) or width
        boxes = sliding_boxes(self, width, step, per_dim(padding, dims), per_dim(dilation, dims), ceil_mode)
        values, index = largest_and_index(boxes)
        return volume_in_format_of(self, values, dims), volume_in_format_of(self, index, dims)

    return max_pool_with_indices


def _sliding_backward(dims: int) -> Callable[..., Tensor]:
    def max_pool_with_indices_backward(
        grad_output: Tensor,
        self: Tensor,
        kernel_size: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        ceil_mode: bool,
        indices: Tensor,
    ) -> Tensor:
        """Each gradient goes to the element that was the largest."""
        grad = put_back(grad_output, indices, self.shape[self.dim() - dims :])
        return volume_in_format_of(self, grad, dims)

    return max_pool_with_indices_backward


def _adaptive(dims: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def adaptive_max_pool(self: Tensor, output_size: list[int]) -> tuple[Tensor, Tensor]:
        """max over the elements from floor(o * L / O) up to ceil((o + 1) * L / O), and the index of the largest."""
        sizes = self.shape[self.dim() - dims :]
        if all(count > 0 and size % count == 0 for size, count in zip(sizes, output_size)):
            width = [size // count for size, count in zip(sizes, output_size)]
            boxes = sliding_boxes(self, [int(w) for w in width], width, [0] * dims, [1] * dims, False)
        else:
            boxes = adaptive_boxes(self, output_size)
        values, index = largest_and_index(boxes)
        return image_in_format_of(self, values, dims), image_in_format_of(self, index, dims)

    return adaptive_max_pool


def _adaptive_backward(dims: int) -> Callable[..., Tensor]:
    def adaptive_max_pool_backward(grad_output: Tensor, self: Tensor, indices: Tensor) -> Tensor:
        """Each gradient goes to the element that was the largest."""
        grad = put_back(grad_output, indices, self.shape[self.dim() - dims :])
        return image_in_format_of(self, grad, dims)

    return adaptive_max_pool_backward


def _fractional(dims: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def fractional_max_pool(
        self: Tensor, kernel_size: list[int], output_size: list[int], random_samples: Tensor
    ) -> tuple[Tensor, Tensor]:
        """max over boxes of one size at random places, and the index of the largest."""
        x = self if self.dim() == dims + 2 else self.unsqueeze(0)
        boxes = fractional_boxes(x, per_dim(kernel_size, dims), per_dim(output_size, dims), random_samples)
        values, index = largest_and_index(boxes)
        index = index.expand(values.shape)
        return (values, index) if self.dim() == dims + 2 else (values.squeeze(0), index.squeeze(0))

    return fractional_max_pool


def _fractional_backward(dims: int) -> Callable[..., Tensor]:
    def fractional_max_pool_backward(
        grad_output: Tensor, self: Tensor, kernel_size: list[int], output_size: list[int], indices: Tensor
    ) -> Tensor:
        """Each gradient goes to the element that was the largest."""
        return put_back(grad_output, indices, self.shape[self.dim() - dims :])

    return fractional_max_pool_backward


def _unpool(dims: int) -> Callable[..., Tensor]:
    def max_unpool(self: Tensor, indices: Tensor, output_size: list[int], *_: Any) -> Tensor:
        """0, but out[indices[o]] = x[o]; the last of equal indices counts."""
        lead = self.shape[: self.dim() - dims]
        flat = self.new_zeros(*lead, product(output_size))
        if any(size == 0 for size in output_size):
            return flat.view(*lead, *output_size)
        flat = flat.scatter(-1, indices.flatten(indices.dim() - dims), self.flatten(self.dim() - dims))
        return image_in_format_of(self, flat.view(*lead, *output_size), dims)

    return max_unpool


MAX_POOL = {2: _sliding(2), 3: _sliding(3)}
ADAPTIVE_MAX_POOL = {2: _adaptive(2), 3: _adaptive(3)}
FRACTIONAL_MAX_POOL = {2: _fractional(2), 3: _fractional(3)}
MAX_UNPOOL = {2: _unpool(2), 3: _unpool(3)}

for _dims in (2, 3):
    for _name, _definition in {
        f"max_pool{_dims}d_with_indices": MAX_POOL[_dims],
        f"max_pool{_dims}d_with_indices_backward": _sliding_backward(_dims),
        f"adaptive_max_pool{_dims}d": ADAPTIVE_MAX_POOL[_dims],
        f"adaptive_max_pool{_dims}d_backward": _adaptive_backward(_dims),
        f"fractional_max_pool{_dims}d": FRACTIONAL_MAX_POOL[_dims],
        f"fractional_max_pool{_dims}d_backward": _fractional_backward(_dims),
        f"max_unpool{_dims}d": MAX_UNPOOL[_dims],
    }.items():
        defines(getattr(aten, _name).default)(_definition)
