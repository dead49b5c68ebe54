"""Sequences of unequal lengths in the Transformer's layers: torch's nested tensors, and its zeros for padding."""

from collections.abc import Callable

import torch
from torch import Tensor

from pynn.definitions import can_read_values, is_traced

from .module import Module


def sequence_by_sequence(forward: Callable[[Tensor], Tensor], src: Tensor, *masks: Tensor | None) -> Tensor:
    """forward of every sequence of a nested tensor alone.

    Shape:   src: nested [batch, seq, width], seq of its own for each   returns: as src
    Raises:  AssertionError when a mask is given: a mask has one length for all
    """
    refuse_masks(*masks)
    return torch.nested.as_nested_tensor([forward(sequence) for sequence in src.unbind()], layout=src.layout)


def refuse_masks(*masks: Tensor | None) -> None:
    if any(mask is not None for mask in masks):
        raise AssertionError(
            "MultiheadAttention does not support NestedTensor together with src_key_padding_mask or src_mask: "
            "the lengths of its sequences are the mask"
        )


def attend_by_sequence(
    attention: Callable[..., tuple[Tensor, Tensor | None]], query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor | None]:
    """attention(query, key, value) for every sequence of nested tensors alone.

    Shape:   query, key, value: nested [batch, seq, width]
             returns: as query, weights padded with zeros [batch, (heads,) longest query, longest key] or None
    """
    if not (query.is_nested and key.is_nested and value.is_nested):
        raise AssertionError("MultiheadAttention needs query, key and value all nested, or none of them")
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
