"""Nested tensors (torch.nested, of C++'s own layout): a batch of tensors of unequal sizes.

Few of the elementary operations read them. So a function whose elements do not know each other takes the buffer that
holds them all, and any other the tensors of the batch one by one:

    out[i] = function(x[i])

ANSWERS has the functions that torch has kernels for, with the restrictions of these, in their words. Any other fails
at the first operation that nested tensors lack, as torch's does. (Those of layout jagged are a tensor subclass, which
answers itself: see pynn.overrides.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_nested(x: Tensor) -> bool:
    """Whether x is a nested tensor of C++'s own layout."""
    return x.is_nested and x.layout == torch.strided


def one_by_one(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """out[i] = function(batches[0][i], batches[1][i], ...)."""
    parts = [function(*tensors) for tensors in zip(*[x.unbind() for x in batches], strict=True)]
    return torch.nested.as_nested_tensor(parts, layout=torch.strided) if parts else batches[0].clone()


# ---- element by element ----------------------------------------------------------------------------------


def of_elements(function: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """function of the buffer that holds the elements of x one after the other."""
    if not x.is_contiguous():
        raise RuntimeError("NestedTensor must be contiguous to get buffer.")
    return of_buffer(function, x, *args, **kwargs)


def of_buffer(function: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """function of the buffer of x, whichever way its elements lie in there."""
    if x.size(0) == 0:
        return x
    if function.__name__.endswith("_") or kwargs.get("inplace") is True:
        source = x.clone()  # what the gradient needs of it is not overwritten
        return x.copy_(_like(x, function(source.values().clone(), *args, **kwargs)))
    elements = x.values()
    result = function(elements, *args, **kwargs)
    return x if result is elements else _like(x, result)


def _like(x: Tensor, elements: Tensor) -> Tensor:
    """The nested tensor of the sizes of x with these elements in its buffer."""
    places = x._nested_tensor_size(), x._nested_tensor_strides(), x._nested_tensor_storage_offsets()
    return torch._nested_view_from_buffer_copy(
        elements, *places
    )  # a view would not know being changed in place


# ---- tensor by tensor ------------------------------------------------------------------------------------


def softmax_of_each(
    function: Callable,
    x: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Along a dimension of each."""
    if dim is None:
        dim = torch.nn.functional._get_softmax_dim(function.__name__, x.dim(), _stacklevel)
    if x.size(0) == 0:
        return x.clone()
    if not -x.dim() <= dim < x.dim():
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-x.dim()}, {x.dim() - 1}], but got {dim})"
        )
    if dim % x.dim() == 0:
        raise RuntimeError("Cannot apply softmax across nested dimension 0")
    return one_by_one(lambda each: function(each, dim % x.dim() - 1, dtype=dtype), x)


def linear_of_each(function: Callable, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of matrices with as many columns as weight has, one below the other in memory."""
    if weight.is_nested:
        raise RuntimeError("Linear does not support nested weight when input is a nested tensor.")
    if x.dim() != 3 or weight.dim() != 2:
        raise RuntimeError(
            "Linear requires nested_tensor.dim == 3 and dense_matrix.dim == 2. Nested tensor dim: "
            f"{x.dim()}. Dense tensor dim: {weight.dim()}"
        )
    if not x.is_contiguous():
        raise RuntimeError("for now linear only supports contiguous nested tensor")
    widths = [each.size(-1) for each in x.unbind()]
    if len(set(widths)) > 1:
        raise RuntimeError(
            "Expected all tensors in nested tensor to have the same trailing dimension, instead last dimension "
            f"equals: {widths}"
        )
    if widths[0] != weight.size(1):
        raise RuntimeError(
            "Shape mismatch for NestedTensor Linear: Expected input's (a nested tensor) 'last_dim' to equal "
            f"'weight.size(1), but got: last_dim = {widths[0]}, and weight.size(1) = {weight.size(1)}"
        )
    return one_by_one(lambda each: function(each, weight, bias), x)


def layer_norm_of_each(
    function: Callable, x: Tensor, normalized_shape: list[int], *args: Any, **kwargs: Any
) -> Tensor:
    """Along the last dimensions of each, which must be equal in all of them."""
    count = len(normalized_shape)
    sizes = x._nested_tensor_size()
    if count >= x.dim() or bool((sizes[:, -count:] != sizes[0, -count:]).any()):
        raise RuntimeError("normalized_shape extends into irregular dimensions for the nested tensor")
    for axis, (expected, size) in enumerate(zip(normalized_shape, sizes[0, -count:].tolist(), strict=True)):
        if expected != size:
            raise RuntimeError(f"The shape at dimension {axis}of normalized_shape doesn't match the input")
    return one_by_one(lambda each: function(each, normalized_shape, *args, **kwargs), x)


def embedding_of_each(
    function: Callable, indices: Tensor, weight: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Of indices of unequal lengths."""
    return one_by_one(lambda each: function(each, weight, *args, **kwargs), indices)


def attention_of_each(
    function: Callable,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Of sequences of unequal lengths, each attending to its own keys alone."""
    if not (key.is_nested and value.is_nested):
        raise RuntimeError("Expected both to be nested, but got a nested self and non-nested other")
    if attn_mask is not None:
        raise RuntimeError(
            "Scaled_dot_product_attention: Nested tensors for query / key are not supported when an explicit "
            "attn_mask is set"
        )
    if not all(x.is_contiguous() for x in (query, key, value)):
        raise RuntimeError(
            "scaled_dot_product_attention: If inputs are nested tensors they must be contiguous"
        )
    if is_causal:
        raise RuntimeError(
            "_scaled_dot_product_attention: Nested tensors for query / key are not supported when is_causal=True"
        )
    if query.size(0) != key.size(0):
        raise RuntimeError(
            f"matmul: Expected size for the 1st dimension of 2nd input tensor to be: {query.size(0)} "
            f"but got: {key.size(0)}."
        )
    return one_by_one(lambda q, k, v: function(q, k, v, dropout_p=dropout_p, **kwargs), query, key, value)


ANSWERS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(["gelu", "relu", "relu_", "silu", "softsign", "tanh", "tanhshrink"], of_elements),
    "dropout": of_buffer,
    "embedding": embedding_of_each,
    "layer_norm": layer_norm_of_each,
    "linear": linear_of_each,
    "scaled_dot_product_attention": attention_of_each,
    "softmax": softmax_of_each,
    "softmin": softmax_of_each,
}
"""By the function's name: function, its arguments -> its result, where the first of these is nested."""
