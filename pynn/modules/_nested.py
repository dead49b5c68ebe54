"""Torch's fast path of evaluation in the Transformer's layers, where it shows in results.

Sequences of unequal lengths: nested tensors, and zeros for padding. Queries without a key: NaN.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynn.definitions import can_read_values, is_traced
from pynn.overrides import is_taken_over

from .module import Module


def sequence_by_sequence(
    attention: Any, forward: Callable[[Tensor], Tensor], src: Tensor, *masks: Tensor | None
) -> Tensor:
    """forward of every sequence of a nested tensor alone.

    Args:    attention: the first layer's
    Shape:   src: nested [batch, seq, width], seq of its own for each   returns: as src
    Raises:  AssertionError as require_fast_path
    """
    require_fast_path(attention, src, src, src, *masks)
    return torch.nested.as_nested_tensor([forward(sequence) for sequence in src.unbind()], layout=src.layout)


def require_fast_path(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor | None
) -> None:
    """Raise where torch.nn.MultiheadAttention would not take nested tensors: outside its fast path of evaluation."""
    reason = why_not_fast_path(attention, query, key, value, *masks)
    if reason:
        raise AssertionError(
            "MultiheadAttention does not support NestedTensor outside of its fast path. The fast path was not hit "
            f"because {reason}"
        )


def why_not_fast_path(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor | None
) -> str:
    """The first obstacle, in torch's order and words; "" if there is none."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    tensors = [query, key, value, weight, bias, attention.out_proj.weight, attention.out_proj.bias]
    obstacles: list[tuple[Callable[[], bool], str]] = [
        (
            lambda: not torch.backends.mha.get_fastpath_enabled(),
            "torch.backends.mha.get_fastpath_enabled() was not True",
        ),
        (
            lambda: query.dim() != 3,
            f"input not batched; expected query.dim() of 3 but got {query.dim()}",
        ),
        (
            lambda: not (query is key and key is value),
            "non-self attention was used (query, key, and value are not the same Tensor)",
        ),
        (
            lambda: bias is not None and query.dtype != bias.dtype,
            f"dtypes of query ({query.dtype}) and self.in_proj_bias don't match",
        ),
        (lambda: weight is None, "in_proj_weight was None"),
        (
            lambda: query.dtype != weight.dtype,
            f"dtypes of query ({query.dtype}) and self.in_proj_weight don't match",
        ),
        (lambda: attention.training, "training is enabled"),
        (lambda: attention.num_heads % 2 != 0, "self.num_heads is not even"),
        (lambda: not attention.batch_first, "batch_first was not True"),
        (lambda: attention.bias_k is not None, "self.bias_k was not None"),
        (lambda: attention.bias_v is not None, "self.bias_v was not None"),
        (lambda: attention.add_zero_attn, "add_zero_attn was enabled"),
        (lambda: not attention._qkv_same_embed_dim, "_qkv_same_embed_dim was not True"),
        (
            lambda: query.is_nested and any(mask is not None for mask in masks),
            "supplying both src_key_padding_mask and src_mask at the same time is not supported with NestedTensor "
            "input",
        ),
        (torch.is_autocast_enabled, "autocast is enabled"),
        (lambda: is_taken_over(tensors), "some Tensor argument has_torch_function"),
        (
            lambda: torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors),
            "grad is enabled and at least one of query or the input/output projection weights or biases requires_grad",
        ),
    ]
    return next((reason for is_present, reason in obstacles if is_present()), "")


def gives_nan_without_keys(attention: Any, x: Tensor, *masks: Tensor | None) -> bool:
    """Whether a query whose keys are all hidden gets NaN from self-attention, as on torch's fast path.

    Elsewhere it gets 0, and so it does under a tracer, whose graphs hold the one attention.
    """
    is_masked = any(mask is not None for mask in masks)
    return is_masked and not is_traced() and not why_not_fast_path(attention, x, x, x)


def layer_gives_nan_without_keys(layer: Any, src: Tensor, *masks: Tensor | None) -> bool:
    """gives_nan_without_keys of an encoder layer, whose fast path asks for more."""
    if not gives_nan_without_keys(layer.self_attn, src, *masks):
        return False
    if layer.self_attn.in_proj_bias is None or not layer.activation_relu_or_gelu:
        return False
    if layer.norm1.eps != layer.norm2.eps or any(
        m._forward_hooks or m._forward_pre_hooks for m in layer.modules()
    ):
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in layer.parameters()))


def attend_by_sequence(
    attention: Callable[..., tuple[Tensor, Tensor | None]], query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor | None]:
    """attention(query, key, value) for every sequence of nested tensors alone.

    Shape:   query, key, value: nested [batch, seq, width]
             returns: as query, weights padded with zeros [batch, (heads,) longest query, longest key] or None
    """
    results = [attention(*parts) for parts in zip(query.unbind(), key.unbind(), value.unbind(), strict=True)]
    out = torch.nested.as_nested_tensor([result for result, _ in results], layout=query.layout)
    weights = [each for _, each in results if each is not None]
    return out, padded_together(weights) if weights else None


def padded_together(parts: list[Tensor]) -> Tensor:
    """A stack of matrices, each filled up with zeros to the size of the largest."""
    rows, cols = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    fill = [(0, cols - part.shape[-1], 0, rows - part.shape[-2]) for part in parts]
    padded = [torch.constant_pad_nd(part, amount) for part, amount in zip(parts, fill, strict=True)]
    return torch.stack(padded)


def gives_zeros_for_padding(
    encoder: Module, src: Tensor, mask: Tensor | None, key_padding_mask: Tensor | None
) -> bool:
    """Whether torch would take its fast path with nested tensors, whose padding reads 0 at the end.

    Args:    key_padding_mask: 0 or -inf, as canonical_mask makes it
    """
    layer = encoder.layers[0]
    if key_padding_mask is None or mask is not None or src.dim() != 3 or layer.training:
        return False
    if not (getattr(encoder, "use_nested_tensor", False) and torch.backends.mha.get_fastpath_enabled()):
        return False
    if torch.is_autocast_enabled() or src.is_meta:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (src, *layer.parameters())):
        return False
    return not getattr(encoder, "mask_check", True) or is_left_aligned(key_padding_mask)


def is_left_aligned(key_padding_mask: Tensor) -> bool:
    """Whether no sequence goes on after its padding begins; False where the mask cannot be looked into."""
    if is_traced() or not can_read_values(key_padding_mask):
        return False
    hidden = key_padding_mask != 0
    return not bool((hidden[:, :-1] & ~hidden[:, 1:]).any())
