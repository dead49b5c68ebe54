"""Embedding: rows of a table picked by index."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.argument_types import require_int
from pynn.definitions import (
    NARROW_DTYPES,
    Function,
    can_read_values,
    defines,
    refuse_complex_gradient,
    traced_as,
    type_name,
    widen,
)
from pynn.dtype_names import full_type_name

__all__ = [
    "embedding",
    "one_hot",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


@defines(aten.embedding.default)
def embedding_forward(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """out[*, :] = weight[indices[*], :]."""
    rows = weight.index_select(0, indices.reshape(-1))
    if indices.dim() == 1:  # all that a sparse weight can be asked for
        return rows
    return rows.view(*indices.shape, weight.size(1))  # [*, embedding_dim]


@defines(aten.embedding_dense_backward.default)
def embedding_dense_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    """Row r is the sum of grad over the positions with index r; row padding_idx is 0.

    Args:    scale_grad_by_freq: divide row r by the number of those positions
    dtype:   accumulates in float32 for 16-bit inputs
    """
    flat_indices = indices.reshape(-1)
    rows = widen(grad).reshape(flat_indices.numel(), grad.size(-1))
    if padding_idx >= 0:
        rows = torch.where((flat_indices == padding_idx).unsqueeze(1), 0, rows)
    if scale_grad_by_freq:
        counts = torch.zeros(num_weights, dtype=rows.dtype, device=rows.device)
        counts = counts.index_add(0, flat_indices, torch.ones_like(flat_indices, dtype=rows.dtype))
        rows = rows / counts.index_select(0, flat_indices).unsqueeze(1)
    table = torch.zeros((num_weights, grad.size(-1)), dtype=rows.dtype, device=rows.device)
    return table.index_add(0, flat_indices, rows).to(grad.dtype)


def embedding_sparse_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, dtype: torch.dtype
) -> Tensor:
    """The same sum as a sparse tensor of that dtype, which lists one row per position.

    Of 16 bits one row per index, already added up in float32: the sparse tensor's own sum rounds after each row.
    """
    flat_indices = indices.reshape(-1)
    rows = grad.reshape(flat_indices.numel(), grad.size(-1))
    if padding_idx >= 0:
        keeps = flat_indices != padding_idx
        flat_indices, rows = flat_indices[keeps], rows[keeps]
    if dtype in NARROW_DTYPES and can_read_values(flat_indices):
        flat_indices, places = flat_indices.unique(return_inverse=True)
        rows = rows.new_zeros(len(flat_indices), grad.size(-1), dtype=torch.float32).index_add(
            0, places, widen(rows)
        )
    rows, shape = rows.to(dtype), (num_weights, grad.size(-1))
    return torch.sparse_coo_tensor(flat_indices.unsqueeze(0), rows, shape, check_invariants=False)


def limit_row_norms(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> None:
    """Scale the rows of weight that indices name, in place, so that no p-norm exceeds max_norm.

    Raises:  RuntimeError for integers
    """
    if indices.numel() == 0:
        return
    if not (weight.is_floating_point() or weight.is_complex()):
        raise RuntimeError(
            f"norm(): input dtype should be either floating point or complex. Got {type_name(weight)} instead."
        )
    with torch.no_grad():
        table = weight.detach()
        flat_indices = indices.reshape(-1).long()
        rows = table.index_select(0, flat_indices)
        magnitudes = widen(rows).abs()
        if norm_type == torch.inf:
            norms = magnitudes.amax(1, keepdim=True)
        else:
            norms = magnitudes.pow(norm_type).sum(1, keepdim=True).pow(1 / norm_type)
        scale = torch.where(norms > max_norm, max_norm / (norms + 1e-7), 1)
        # an index that occurs twice writes the same row twice
        table.index_copy_(0, flat_indices, (rows * scale).to(table.dtype))


# ---- public functions ------------------------------------------------------------------------------------


class _Embedding(Function):
    """embedding_forward with its dense or sparse backward; linear in weight, keeps only the indices."""

    @staticmethod
    def forward(
        weight: Tensor, indices: Tensor, padding_idx: int, scale_grad_by_freq: bool, sparse: bool
    ) -> Tensor:
        return embedding_forward(weight, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        weight, indices, *ctx.options = inputs
        ctx.num_weights = weight.size(0)
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (indices,) = ctx.saved_tensors
        padding_idx, scale_grad_by_freq, sparse = ctx.options
        if sparse:
            if scale_grad_by_freq:
                raise RuntimeError(
                    "embedding_backward: scale_grad_by_freq not supported with sparse gradients"
                )
            grad_weight = embedding_sparse_backward(grad, indices, ctx.num_weights, padding_idx, grad.dtype)
        else:
            grad_weight = embedding_dense_backward(
                grad, indices, ctx.num_weights, padding_idx, scale_grad_by_freq
            )
        return grad_weight, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return embedding_forward(tangent, *ctx.saved_tensors)


@traced_as(F.embedding)
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """out[*, :] = weight[input[*], :].

    Args:    padding_idx: the row that gets no gradient
             max_norm: first scale the rows in use, in place, so that no norm_type-norm exceeds it
             scale_grad_by_freq: divide a row's gradient by how often it occurs in input
             sparse: the gradient is a sparse tensor
    Shape:   input: [*] integers   weight: [num_embeddings, embedding_dim]   returns: [*, embedding_dim]
    dtype:   weight any, returned so (max_norm: floating point or complex); input int64 or int32
    Raises:  IndexError when an index is out of range; RuntimeError for an input of another dtype and a weight
             that is no matrix; AssertionError for a padding_idx out of range
    Source:  aten/native/Embedding.cpp
    """
    if padding_idx is None:
        padding_idx = -1
    else:
        padding_idx = normalized_padding_idx(padding_idx, weight.size(0))
        require_int("embedding", 3, "padding_idx", padding_idx)
    if weight.dim() != 2:
        raise RuntimeError("'weight' must be 2-D")
    if input.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(
            "Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, Int; "
            f"but got {full_type_name(input)} instead (while checking arguments for embedding)"
        )
    input = beside(weight, input)
    if max_norm is not None:
        limit_row_norms(weight, input, max_norm, norm_type)
    refuse_complex_gradient("embedding", weight)
    return _Embedding.apply(weight, input, padding_idx, scale_grad_by_freq, sparse)


def beside(weight: Tensor, tensor: Tensor) -> Tensor:
    """The tensor without its values where the weight has none: C++ looks up real indices in a meta weight."""
    return tensor.to(weight.device) if weight.device.type == "meta" else tensor


def normalized_padding_idx(padding_idx: int, num_embeddings: int) -> int:
    """A negative index counts from the end. Raises AssertionError when out of range."""
    is_outside = padding_idx >= num_embeddings if padding_idx > 0 else padding_idx < -num_embeddings
    if is_outside:
        raise AssertionError("Padding_idx must be within num_embeddings")
    return padding_idx + num_embeddings if padding_idx < 0 else padding_idx


@traced_as(F.one_hot)
def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """out[*, c] = 1 where input[*] = c, else 0.

    Args:    num_classes: -1 takes the largest value + 1
    Shape:   input: [*] int64   returns: [*, num_classes] int64
    dtype:   int64, returned so
    Raises:  RuntimeError for another dtype, values outside [0, num_classes), or no values and no num_classes
    Source:  aten/native/Onehot.cpp
    """
    if input.dtype != torch.int64:
        raise RuntimeError("one_hot is only applicable to index tensor of type LongTensor.")
    if input.numel() == 0 and num_classes <= 0:
        raise RuntimeError("Can not infer total number of classes from empty tensor.")
    if input.numel() > 0 and can_read_values(input):
        if input.min() < 0:
            raise RuntimeError("Class values must be non-negative.")
        if num_classes == -1:
            num_classes = int(input.max()) + 1
        elif input.max() >= num_classes:
            raise RuntimeError("Class values must be smaller than num_classes.")
    classes = torch.arange(num_classes, device=input.device)
    return (input.unsqueeze(-1) == classes).to(torch.int64)
