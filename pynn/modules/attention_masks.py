"""The masks of multi-head attention: what is accepted, and the one additive mask it becomes."""

import math
import warnings

import torch
from torch import Tensor


def canonical_mask(
    mask: Tensor | None,
    mask_name: str,
    other_type: torch.dtype | None,
    other_name: str,
    target_type: torch.dtype,
    check_other: bool = True,
) -> Tensor | None:
    """A mask to be added to the scores: True -> -inf, False -> 0; float masks stay as they are."""
    if mask is None:
        return None
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise AssertionError(f"only bool and floating types of {mask_name} are supported")
    if check_other and other_type is not None and mask.dtype != other_type:
        warnings.warn(
            f"Support for mismatched {mask_name} and {other_name} is deprecated. "
            "Use same type for both instead.",
            stacklevel=3,
        )
    if mask.is_floating_point():
        return mask
    return torch.where(mask, -math.inf, torch.zeros((), dtype=target_type, device=mask.device))


def dtype_of(mask: Tensor | None) -> torch.dtype | None:
    """The dtype of a mask that may be missing."""
    return None if mask is None else mask.dtype


def resolve_masks(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    need_weights: bool,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None, bool]:
    """Additive masks, and whether the causal hint may stand in for attn_mask."""
    key_padding_mask = canonical_mask(
        key_padding_mask, "key_padding_mask", dtype_of(attn_mask), "attn_mask", dtype
    )
    if is_causal and attn_mask is None:
        raise RuntimeError(
            "Need attn_mask if specifying the is_causal hint. "
            "You may use the Transformer module method "
            "`generate_square_subsequent_mask` to create this mask."
        )
    if is_causal and key_padding_mask is None and not need_weights:
        return None, None, True
    attn_mask = canonical_mask(attn_mask, "attn_mask", None, "", dtype, check_other=False)
    return attn_mask, key_padding_mask, is_causal and key_padding_mask is None


def merge_masks(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, extra_keys: int, batch: int, keys: int
) -> Tensor | None:
    """One additive mask that broadcasts to the scores; the extra keys are always visible.

    Shape:   attn_mask: [1 or batch * heads, queries, keys - extra_keys]
             key_padding_mask: [batch, keys - extra_keys]
             returns: [batch or 1, heads or 1, queries or 1, keys]
    """
    if extra_keys and attn_mask is not None:
        attn_mask = append_zeros(attn_mask, -1, extra_keys)
    if extra_keys and key_padding_mask is not None:
        key_padding_mask = append_zeros(key_padding_mask, -1, extra_keys)
    if attn_mask is not None:
        one_for_all = attn_mask.shape[0] == 1
        attn_mask = attn_mask.unsqueeze(0) if one_for_all else attn_mask.unflatten(0, (batch, -1))
    if key_padding_mask is None:
        return attn_mask
    for axis, size in enumerate((batch, keys)):
        if key_padding_mask.shape[axis] != size:
            raise AssertionError(
                f"Expected key_padded_mask.shape[{axis}] to be {size}, but got {key_padding_mask.shape[axis]}"
            )
    key_padding_mask = key_padding_mask[:, None, None, :]
    return key_padding_mask if attn_mask is None else attn_mask + key_padding_mask


def append_zeros(x: Tensor, dim: int, count: int) -> Tensor:
    """x with `count` zero slices more at the end of `dim`."""
    shape = list(x.shape)
    shape[dim] = count
    return torch.cat([x, x.new_zeros(shape)], dim=dim)


def check_dims(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    num_heads: int,
) -> bool:
    """Whether the inputs have a batch axis; AssertionError where the number of axes does not fit."""
    if query.dim() not in (2, 3):
        raise AssertionError(
            f"query should be unbatched 2D or batched 3D tensor but received {query.dim()}-D query tensor"
        )
    is_batched = query.dim() == 3
    inputs = "For batched (3-D) `query`" if is_batched else "For unbatched (2-D) `query`"
    axes = query.dim()
    if key.dim() != axes or value.dim() != axes:
        raise AssertionError(
            f"{inputs}, expected `key` and `value` to be {axes}-D"
            f" but found {key.dim()}-D and {value.dim()}-D tensors respectively"
        )
    if key_padding_mask is not None and key_padding_mask.dim() != axes - 1:
        raise AssertionError(
            f"{inputs}, expected `key_padding_mask` to be `None` or {axes - 1}-D"
            f" but found {key_padding_mask.dim()}-D tensor instead"
        )
    if attn_mask is not None and attn_mask.dim() not in (2, 3):
        raise AssertionError(
            f"{inputs}, expected `attn_mask` to be `None`, 2-D or 3-D"
            f" but found {attn_mask.dim()}-D tensor instead"
        )
    if not is_batched and attn_mask is not None and attn_mask.dim() == 3:
        expected_shape = (num_heads, query.shape[0], key.shape[0])
        if attn_mask.shape != expected_shape:
            raise AssertionError(
                f"Expected `attn_mask` shape to be {expected_shape} but got {attn_mask.shape}"
            )
    return is_batched


def check_widths(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, num_heads: int, separate_weights: bool
) -> None:
    """AssertionError unless the widths fit the weights and key and value belong together."""
    width = query.shape[-1]
    if width != embed_dim:
        raise AssertionError(f"was expecting embedding dimension of {embed_dim}, but got {width}")
    if width % num_heads != 0:
        raise AssertionError(f"embed_dim {width} not divisible by num_heads {num_heads}")
    if separate_weights and key.shape[:2] != value.shape[:2]:
        raise AssertionError(
            f"key's sequence and batch dims {key.shape[:2]} do not match value's {value.shape[:2]}"
        )
    if not separate_weights and key.shape != value.shape:
        raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")


def check_learned_keys(
    bias_k: Tensor | None, bias_v: Tensor | None, static_k: Tensor | None, static_v: Tensor | None
) -> bool:
    """Whether a learned key and value are to be added; both or none must be given."""
    if bias_k is None and bias_v is None:
        return False
    if bias_v is None:
        raise AssertionError("bias_k is set but bias_v is None")
    if bias_k is None:
        raise AssertionError("bias_v is set but bias_k is None")
    if static_k is not None:
        raise AssertionError("bias cannot be added to static key.")
    if static_v is not None:
        raise AssertionError("bias cannot be added to static value.")
    return True


def check_attn_mask_shape(attn_mask: Tensor | None, queries: int, keys: int, rows: int) -> Tensor | None:
    """attn_mask with three axes.  returns: [1 or rows, queries, keys], rows = batch * heads"""
    if attn_mask is None:
        return None
    expected = {2: (queries, keys), 3: (rows, queries, keys)}.get(attn_mask.dim())
    if expected is None:
        raise RuntimeError(f"attn_mask's dimension {attn_mask.dim()} is not supported")
    if attn_mask.shape != expected:
        raise RuntimeError(
            f"The shape of the {attn_mask.dim()}D attn_mask is {attn_mask.shape}, but should be {expected}."
        )
    return attn_mask.unsqueeze(0) if attn_mask.dim() == 2 else attn_mask
