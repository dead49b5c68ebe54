"""Bags of embeddings: the rows that the indices of one bag name, summed, averaged, or their largest elements."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import Function, can_read_values, defines, traced_as, widen
from pynn.dtype_names import full_type_name
from pynn.modules._embedding import (
    beside,
    embedding_dense_backward,
    embedding_sparse_backward,
    limit_row_norms,
)

__all__ = ["embedding_bag"]

aten = torch.ops.aten

SUM, MEAN, MAX = 0, 1, 2
MODES = {"sum": SUM, "mean": MEAN, "max": MAX}
"""ATen's numbers for the modes."""


# ---- definitions -----------------------------------------------------------------------------------------


def bags_of(indices: Tensor, offsets: Tensor, bags: int, padding_idx: int) -> Tensor:
    """The bag of each index: how many of offsets[1:bags] are not past it. The last bag goes on to the end.

    Padding belongs to no bag: it goes to number `bags`, which is thrown away.

    Shape:   indices: [count]   offsets: [bags] or [bags + 1]   returns: [count]
    """
    offsets = offsets[1 : max(bags, 1)]
    begins = torch.zeros(indices.size(0) + 1, dtype=indices.dtype, device=indices.device)
    begins = begins.index_add(0, offsets, torch.ones_like(offsets).to(indices.dtype))
    bag = begins[:-1].cumsum(0, dtype=indices.dtype)
    return torch.where(indices == padding_idx, bags, bag) if padding_idx >= 0 else bag


def sizes_of(bag: Tensor, bags: int) -> Tensor:
    """How many indices each bag has: [bags]."""
    sizes = torch.zeros(bags + 1, dtype=bag.dtype, device=bag.device)
    return sizes.index_add(0, bag, torch.ones_like(bag))[:bags]


def bag_sum(
    weight: Tensor,
    per_sample_weights: Tensor | None,
    indices: Tensor,
    bag: Tensor,
    sizes: Tensor | None,
    bags: int,
) -> Tensor:
    """out[b] = sum of weight[indices[i]] * per_sample_weights[i] over the i in bag b, divided by sizes[b].

    Shape:   weight: [num_embeddings, cols]   indices, bag, per_sample_weights: [count]   returns: [bags, cols]
    dtype:   accumulates in float32 for 16-bit inputs
    """
    rows = widen(weight.index_select(0, indices))
    if per_sample_weights is not None:
        rows = rows * widen(per_sample_weights).unsqueeze(1)
    total = torch.zeros((bags + 1, weight.size(1)), dtype=rows.dtype, device=rows.device)
    total = total.index_add(0, bag, rows)[:bags]
    # a copy: forward-mode AD takes no view for a result
    total = total.clone() if sizes is None else total / sizes.clamp_min(1).unsqueeze(1)
    return total.to(weight.dtype)


def rows_of_bags(grad: Tensor, bag: Tensor, sizes: Tensor | None) -> Tensor:
    """What each index receives of its bag's gradient, nothing in the bag that is thrown away: [count, cols]."""
    grad = widen(grad)
    if sizes is not None:
        grad = grad / sizes.clamp_min(1).unsqueeze(1)
    return torch.cat([grad, grad.new_zeros(1, grad.size(1))]).index_select(0, bag)


def largest_in_bags(weight: Tensor, indices: Tensor, bag: Tensor, bags: int) -> tuple[Tensor, Tensor]:
    """Which row of weight has the largest element of each column in each bag, and which bags are empty.

    The first of equals; NaN counts where it comes first in its bag, as in ATen's kernel, whose test is
    new > largest so far.

    Shape:   returns: [bags, cols] and [bags, 1]
    """
    count = indices.size(0)
    rows = weight.index_select(0, indices)
    place = torch.arange(count, device=indices.device)
    bag = bag.to(torch.int64)
    nowhere = torch.full((bags + 1,), count, device=indices.device)
    first = nowhere.scatter_reduce(0, bag, place, "amin")
    is_later = (place != first.index_select(0, bag)).unsqueeze(1)
    rows = torch.where(rows.isnan() & is_later, -torch.inf, rows)
    # [count, cols]
    bag_of_element = bag.unsqueeze(1).expand_as(rows)
    largest = torch.full((bags + 1, weight.size(1)), -torch.inf, dtype=rows.dtype, device=rows.device)
    largest = largest.scatter_reduce(0, bag_of_element, rows, "amax")
    attains = (rows == largest.index_select(0, bag)) | rows.isnan()
    candidates = torch.where(attains, place.unsqueeze(1), count)
    winners = (
        nowhere.unsqueeze(1).expand(-1, weight.size(1)).scatter_reduce(0, bag_of_element, candidates, "amin")
    )
    # the place past the end stands for row 0
    rows_of_places = torch.cat([indices.to(torch.int64), place.new_zeros(1)])
    names = rows_of_places.index_select(0, winners[:bags].reshape(-1)).view(bags, weight.size(1))
    return names, (first[:bags] == count).unsqueeze(1)


def bag_max(weight: Tensor, names: Tensor, is_empty: Tensor) -> Tensor:
    """out[b, c] = weight[names[b, c], c], 0 in an empty bag: [bags, cols].

    Indexed and not gathered, whose backward would keep the weights: max_norm may scale them before it is run.
    """
    return weight[names, torch.arange(weight.size(1), device=weight.device)].masked_fill(is_empty, 0)


@defines(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag_forward(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The bags, and for the gradient the bag of each index, the bags' sizes and the largest elements' rows."""
    dtype = torch.promote_types(indices.dtype, offsets.dtype)
    indices, offsets = indices.to(dtype), offsets.to(dtype)
    bags = offsets.size(0) - int(include_last_offset)
    bag = bags_of(indices, offsets, bags, padding_idx)
    sizes = sizes_of(bag, bags)
    if mode == MAX:
        names, is_empty = largest_in_bags(weight, indices, bag, bags)
        return bag_max(weight, names, is_empty), bag, sizes, names.to(dtype)
    divisor = sizes if mode == MEAN else None
    return bag_sum(weight, per_sample_weights, indices, bag, divisor, bags), bag, sizes, sizes


@defines(aten._embedding_bag_dense_backward.default)
def embedding_bag_dense_backward(
    grad: Tensor,
    indices: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor:
    """Row r is the sum of the gradients that the indices equal to r receive."""
    if mode == MAX:
        table = torch.zeros((num_weights, grad.size(1)), dtype=grad.dtype, device=grad.device)
        grad = grad.masked_fill((bag_size == 0).unsqueeze(1), 0)
        return table.scatter_add(0, maximum_indices.to(torch.int64), grad)
    bag = torch.where(indices == padding_idx, grad.size(0), offset2bag) if padding_idx >= 0 else offset2bag
    rows = rows_of_bags(grad, bag, bag_size if mode == MEAN else None)
    if per_sample_weights is not None:
        rows = rows * widen(per_sample_weights).unsqueeze(1)
    table = embedding_dense_backward(rows, indices, num_weights, -1, scale_grad_by_freq)
    return table.to(grad.dtype)


@defines(aten._embedding_bag_backward.default)
def embedding_bag_backward(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
    *,
    sparse_of: Callable[..., Tensor] = embedding_sparse_backward,
) -> Tensor:
    """embedding_bag_dense_backward, or the same as a sparse tensor, which lists one row per index.

    sparse_of: makes it of the rows; the compiler has an operation for that
    """
    # ATen's forward leaves it out where it needs none
    if mode != MAX and offset2bag.size(0) != indices.size(0):
        offset2bag = bags_of(indices, offsets.to(indices.dtype), grad.size(0), padding_idx)
    if not sparse:
        return embedding_bag_dense_backward(
            grad, indices, offset2bag, bag_size, maximum_indices, num_weights, scale_grad_by_freq, mode,
            per_sample_weights, padding_idx,
        )  # fmt: skip
    if scale_grad_by_freq:
        raise RuntimeError("embedding_backward: scale_grad_by_freq not supported with sparse gradients")
    rows = rows_of_bags(grad, offset2bag, bag_size if mode == MEAN else None)
    if per_sample_weights is not None:
        rows = rows * widen(per_sample_weights).unsqueeze(1)
    return sparse_of(rows, indices, num_weights, padding_idx, grad.dtype)


@defines(aten._embedding_bag_per_sample_weights_backward.default)
def embedding_bag_per_sample_weights_backward(
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    mode: int,
    padding_idx: int = -1,
) -> Tensor:
    """grad[bag of i] . weight[indices[i]], 0 for padding: [count]."""
    if offset2bag.size(0) != indices.size(0):  # ATen's forward leaves it out where it needs none
        offset2bag = bags_of(indices, offsets, grad.size(0), padding_idx)
    bag = torch.where(indices == padding_idx, grad.size(0), offset2bag) if padding_idx >= 0 else offset2bag
    rows = rows_of_bags(grad, bag, None)
    return (rows * widen(weight.index_select(0, indices))).sum(1).to(grad.dtype)


# ---- public functions ------------------------------------------------------------------------------------


class _BagSum(Function):
    """bag_sum: linear in weight and in per_sample_weights.

    Keeps the bags and, where there are per_sample_weights, both: else max_norm may scale the weights once more before
    the backward, as where a layer is used twice.
    """

    @staticmethod
    def forward(
        weight: Tensor,
        per_sample_weights: Tensor | None,
        indices: Tensor,
        bag: Tensor,
        sizes: Tensor | None,
        bags: int,
        *options: Any,
    ) -> Tensor:
        return bag_sum(weight, per_sample_weights, indices, bag, sizes, bags)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        weight, samples, *places, ctx.bags, ctx.scale_grad_by_freq, ctx.sparse, ctx.padding_idx = inputs
        ctx.num_weights, ctx.dtype = weight.size(0), weight.dtype
        tensors = (None if samples is None else weight, samples, *places)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        weight, per_sample_weights, indices, bag, sizes = ctx.saved_tensors
        rows = rows_of_bags(grad, bag, sizes)
        grad_weight = grad_samples = None
        if ctx.needs_input_grad[1]:
            grad_samples = (rows * widen(weight.index_select(0, indices))).sum(1).to(per_sample_weights.dtype)
        if ctx.needs_input_grad[0]:
            if per_sample_weights is not None:
                rows = rows * widen(per_sample_weights).unsqueeze(1)
            grad_weight = weight_gradient(rows, indices, ctx)
        return grad_weight, grad_samples, *[None] * 7

    @staticmethod
    def jvp(ctx: Any, weight_tangent: Tensor | None, samples_tangent: Tensor | None, *_: Any) -> Tensor:
        weight, per_sample_weights, *places = ctx.saved_tensors
        terms = []
        if weight_tangent is not None:
            terms.append(bag_sum(weight_tangent, per_sample_weights, *places, ctx.bags))
        if samples_tangent is not None:
            terms.append(bag_sum(weight, samples_tangent, *places, ctx.bags))
        return sum(terms[1:], terms[0])


def weight_gradient(rows: Tensor, indices: Tensor, options: Any) -> Tensor:
    """The gradients of single indices gathered into a table like the weights, dense or sparse."""
    if not options.sparse:
        table = embedding_dense_backward(rows, indices, options.num_weights, -1, options.scale_grad_by_freq)
        return table.to(options.dtype)
    if options.scale_grad_by_freq:
        raise RuntimeError("embedding_backward: scale_grad_by_freq not supported with sparse gradients")
    return embedding_sparse_backward(rows, indices, options.num_weights, options.padding_idx, options.dtype)


@traced_as(F.embedding_bag)
def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """out[b] = the sum, mean or columnwise largest of weight[i] over the indices i of bag b; 0 when it is empty.

    Args:    offsets: where each bag begins in a line of indices
             max_norm: first scale the rows in use, in place, so that no norm_type-norm exceeds it
             scale_grad_by_freq: divide a row's gradient by how often it occurs in input
             mode: sum, mean or max
             sparse: the gradient is a sparse tensor
             per_sample_weights: a factor for each index; sum only
             include_last_offset: offsets ends with the number of indices; the last bag goes on to the end anyway
             padding_idx: indices that count for nothing
    Shape:   input: [count] with offsets: [bags], or [bags, bag size]   weight: [num_embeddings, embedding_dim]
             per_sample_weights: as input   returns: [bags, embedding_dim]
    dtype:   weight floating point, returned so, per_sample_weights the same; input and offsets int64 or
             int32; adds in float32 for 16-bit weights
    Raises:  ValueError for another shape or mode; RuntimeError for indices or offsets out of range and dtypes
             that do not fit; NotImplementedError for per_sample_weights in another mode than sum
    Source:  aten/native/EmbeddingBag.cpp. differs from torch in: scale_grad_by_freq counts an index's own
             occurrences (ATen's CPU kernel takes another index's count where some repeat); a last offset below the
             number of indices (ATen's kernels disagree); the gradient can be differentiated
    """
    if weight.dtype == torch.long and input.is_floating_point():
        warnings.warn(
            "Argument order of nn.functional.embedding_bag was changed. "
            "Usage `embedding_bag(weight, input, ...)` is deprecated, "
            "and should now be `embedding_bag(input, weight, ...)`.",
            stacklevel=3,
        )
        weight, input = input, weight
    input, offsets, per_sample_weights, include_last_offset = _in_one_line(
        input, weight, offsets, per_sample_weights, include_last_offset
    )
    input, offsets = beside(weight, input), beside(weight, offsets)
    _check_mode(mode, scale_grad_by_freq, sparse)
    if max_norm is not None:
        limit_row_norms(weight, input, max_norm, norm_type)
    if per_sample_weights is not None and mode != "sum":
        raise NotImplementedError(
            "embedding_bag: per_sample_weights was not None. per_sample_weights is only supported for "
            f"mode='sum' (got mode='{mode}'). Please open a feature request on GitHub."
        )
    input, offsets = _checked_places(input, offsets, weight, include_last_offset)
    _check_weights(weight, per_sample_weights)
    padding_idx = _checked_padding_idx(padding_idx, weight.size(0))
    bags = offsets.size(0) - int(include_last_offset)
    bag = bags_of(input, offsets, bags, padding_idx)
    if per_sample_weights is not None:
        per_sample_weights = beside(weight, per_sample_weights)
    if mode == "max":
        return bag_max(weight, *largest_in_bags(weight.detach(), input, bag, bags))
    sizes = sizes_of(bag, bags) if mode == "mean" else None
    return _BagSum.apply(
        weight, per_sample_weights, input, bag, sizes, bags, scale_grad_by_freq, sparse, padding_idx
    )


def _in_one_line(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """Indices, offsets and factors of any of the three forms (rectangle, nested, line) as a line."""
    if per_sample_weights is not None and input.size() != per_sample_weights.size():
        raise ValueError(
            f"embedding_bag: If per_sample_weights ({per_sample_weights.shape}) is not None, "
            f"then it must have the same shape as the input ({input.shape})"
        )
    if weight.dim() != 2:
        raise ValueError(f"weight has to be a 2D Tensor, but got Tensor of dimension {weight.dim()}")
    if input.dim() == 2 and input.is_nested:
        if per_sample_weights is not None:
            if not per_sample_weights.is_nested:
                raise ValueError("If input is nested, then per_sample_weights must be nested if specified")
            per_sample_weights = per_sample_weights.values().reshape(-1)
        return input.values().reshape(-1), input.offsets(), per_sample_weights, True
    if input.dim() == 2:
        if offsets is not None:
            raise ValueError(
                "if input is 2D, then offsets has to be None, as input is treated is a mini-batch of fixed "
                f"length sequences. However, found offsets of type {type(offsets)}"
            )
        step = input.size(1)
        offsets = torch.arange(0, input.numel(), step, dtype=input.dtype, device=input.device)
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.reshape(-1)
        return input.reshape(-1), offsets, per_sample_weights, False
    if input.dim() != 1:
        raise ValueError(f"input has to be 1D or 2D Tensor, but got Tensor of dimension {input.dim()}")
    if offsets is None:
        raise ValueError("offsets has to be a 1D Tensor but got None")
    if offsets.dim() != 1:
        raise ValueError("offsets has to be a 1D Tensor")
    return input, offsets, per_sample_weights, include_last_offset


def _check_mode(mode: str, scale_grad_by_freq: bool, sparse: bool) -> None:
    if mode not in MODES:
        raise ValueError("mode has to be one of sum, mean or max")
    if mode == "max" and scale_grad_by_freq:
        raise ValueError("max mode does not support scaling the gradient by the frequency")
    if mode == "max" and sparse:
        raise ValueError("max mode does not support sparse weights")


def _checked_places(
    input: Tensor, offsets: Tensor, weight: Tensor, include_last_offset: bool
) -> tuple[Tensor, Tensor]:
    """Indices and offsets in their common integer dtype. Raises RuntimeError where they are out of range."""
    dtype = torch.promote_types(input.dtype, offsets.dtype)
    input, offsets = input.to(dtype), offsets.to(dtype)
    if dtype not in (torch.int32, torch.int64):
        raise RuntimeError(
            "Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, Int; "
            f"but got {full_type_name(input)} instead (while checking arguments for embedding_bag)"
        )
    if include_last_offset and offsets.size(0) < 1:
        raise RuntimeError("include_last_offset: number of offset should be at least 1")
    if offsets.size(0) > 0 and can_read_values(offsets):
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0:
            raise RuntimeError(
                "offsets[0] has to be 0, i.e., the first sequence in the mini-batch has to start from position "
                f"0. However, got {first}"
            )
        if last > input.size(0):
            raise RuntimeError(
                f"offsets[-1] can not be greater than input's length {input.size(0)} but got offsets[-1] of "
                f"{last}"
            )
    if input.size(0) > 0 and can_read_values(input):
        low, high = int(input.min()), int(input.max())
        if low < 0 or high >= weight.size(0):
            outside = ((input < 0) | (input >= weight.size(0))).nonzero()[0]
            value = int(input[outside])
            raise RuntimeError(  # both of ATen's wordings, which depend on the path it takes
                f"embedding_bag: Expected idx >= 0 && idx < num_embeddings but found idx to be {value}. Index "
                f"{int(outside)} of input takes value {value} which is not in the valid range [0, {weight.size(0)})"
            )
    return input, offsets


def _check_weights(weight: Tensor, per_sample_weights: Tensor | None) -> None:
    if not weight.is_floating_point():
        raise RuntimeError(
            "Expected tensor for argument #1 'weight' to have one of the following scalar types: Half, BFloat16, "
            f"Float, Double; but got {full_type_name(weight)} instead (while checking arguments for embedding_bag)"
        )
    if per_sample_weights is not None and per_sample_weights.dtype != weight.dtype:
        raise RuntimeError(
            "Expected tensor for argument #1 'weight' to have the same type as tensor for argument #1 "
            f"'per_sample_weights'; but type {full_type_name(weight)} does not equal "
            f"{full_type_name(per_sample_weights)} (while checking arguments for embedding_bag)"
        )


def _checked_padding_idx(padding_idx: int | None, num_embeddings: int) -> int:
    """The row that counts for nothing, from 0; -1 for none."""
    if padding_idx is None:
        return -1
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise RuntimeError(
            f"padding_idx must be within the number of embeddings, -{num_embeddings} through "
            f"{num_embeddings - 1}, but got {padding_idx}"
        )
    return padding_idx % num_embeddings
