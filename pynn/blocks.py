"""Running a pointwise definition block by block, so that its temporaries stay in the cache.

A definition of ten operations on a tensor of 6 MB writes and reads ten such tensors. Cut into pieces of 256 KB it
does the same arithmetic on the same elements, but its temporaries never leave the second-level cache. Only eager
runs on plain CPU tensors are cut: autograd, tracers, vmap and dispatch modes see the definition as a whole.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**16
"""Elements in a piece: 256 KB of float32; a 1 MB cache holds what one operation reads and writes."""

SLICE = 4 * BLOCK
"""Elements in a slice: larger, since each also costs the dozen small operations on its statistics."""


def in_blocks(definition: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of tensors of one shape, evaluated piece by piece where the tensors are large.

    definition(x1, ..., xn, *constants) -> y        pointwise; all tensors of one shape
    """

    @functools.wraps(definition)
    def evaluated(*args: Any) -> Tensor:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if not tensors or tensors[0].numel() < 4 * BLOCK or not all(map(is_plain, tensors)) or is_watched():
            return definition(*args)
        lines = in_memory_order(tensors)
        if lines is None:
            return definition(*args)
        # [elements] each, in one common order
        pieces = zip(*(line.split(BLOCK) for line in lines), strict=True)
        result = out = None
        begin = 0
        for piece in pieces:
            parts = iter(piece)
            value = definition(*(next(parts) if isinstance(x, Tensor) else x for x in args))
            if out is None:
                result = torch.empty_like(tensors[0], dtype=value.dtype)
                (out,) = in_memory_order([result]) or ()
            out[begin : begin + value.numel()] = value
            begin += value.numel()
        assert result is not None
        return result

    return evaluated


def in_slices(
    function: Callable[..., tuple],
    arguments: Sequence[Tensor | None],
    dims: Sequence[int | None],
    results: Sequence[int],
) -> tuple:
    """function(*arguments), evaluated for slices of one axis where the first argument is large.

    The function must treat the indices of that axis independently: the channels of a batch normalisation, say.

    Args:    dims: the axis in each argument; None: the argument goes to every slice whole
             results: the axis in each result; where its mask leaves a result out it is None
    """
    first, dim = arguments[0], dims[0]
    assert first is not None and dim is not None
    tensors = [x for x in arguments if x is not None]
    if first.numel() < 2 * SLICE or not all(map(is_plain, tensors)) or is_watched():
        return function(*arguments)
    size = first.size(dim)
    step = max(1, size * SLICE // first.numel())
    if step * first.stride(dim) < 64:  # a slice is made of short runs of memory
        return function(*arguments)
    whole: list[Tensor | None] = []
    for begin in range(0, size, step):
        count = min(step, size - begin)
        pieces = [
            x if x is None or axis is None else x.narrow(axis, begin, count)
            for x, axis in zip(arguments, dims, strict=True)
        ]
        values = function(*pieces)
        if begin == 0:
            whole = [_room_for(value, axis, size, first) for value, axis in zip(values, results, strict=True)]
        for target, value, axis in zip(whole, values, results, strict=True):
            if target is not None:
                target.narrow(axis, begin, count).copy_(value)
    return tuple(whole)


def _room_for(value: Tensor | None, axis: int, size: int, like: Tensor) -> Tensor | None:
    """An empty tensor of value's shape but for the axis; laid out as `like` where the shapes are the same."""
    if value is None:
        return None
    shape = [*value.shape[:axis], size, *value.shape[axis + 1 :]]
    if shape == list(like.shape):
        return torch.empty_like(like, dtype=value.dtype)
    return value.new_empty(shape)


def is_plain(x: Tensor) -> bool:
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.layout is torch.strided


def is_watched() -> bool:
    """Whether autograd, a torch.func transform or a dispatch mode wants to see the operations."""
    return (
        torch.is_grad_enabled()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def in_memory_order(tensors: list[Tensor]) -> list[Tensor] | None:
    """Each tensor as one line of its elements in the order of their addresses; None where those orders differ.

    Shape:   tensors: all [*], without gaps or overlap   returns: [numel] each, views
    """
    first = tensors[0]
    order = sorted(range(first.dim()), key=lambda dim: -first.stride(dim))
    if any(x.shape != first.shape or not x.permute(order).is_contiguous() for x in tensors):
        return None
    return [x.permute(order).view(-1) for x in tensors]
