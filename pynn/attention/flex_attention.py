"""torch.nn.attention.flex_attention: attention whose scores the caller may rewrite, one score at a time.

The block masks, their builders and the types are torch's own Python, shared; loading this file loads them.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.attention.flex_attention as _torch_flex
from torch import Tensor
from torch.nn.attention._utils import _validate_sdpa_input
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, FlexKernelOptions
from torch.overrides import TorchFunctionMode

from pynn.autocast import is_autocast_on
from pynn.definitions import widen
from pynn.memory_format import laid_out_like
from pynn.modules.attention import differentiable_weights, repeat_heads, shifted_exponentials
from pynn.sharing import share_names

_torchs_own = _torch_flex.flex_attention


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: FlexKernelOptions | None = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, AuxOutput]:
    """Attention with a function of the caller's between the scores and their softmax.

        scores[b, h, q, k] = score_mod(query[b, h, q] . key[b, h, k] * scale, b, h, q, k)
                             or -inf where block_mask.mask_mod(b, h, q, k) is False
        out = softmax(scores) @ value

    Args:    score_mod: (score, batch, head, query index, key index) -> score, all scalars; default: score
             block_mask: made by create_block_mask; its mask_mod decides
             scale: factor on the products, default 1 / sqrt(head_dim)
             enable_gqa: several query heads share one key and value head
             return_lse: deprecated, see return_aux
             kernel_options: checked; they steer torch's compiled kernels only
             return_aux: which of lse (logarithm of the summed exponentials) and max_scores to return as well
    Shape:   query: [batch, heads, queries, head_dim]   key: [batch or 1, shared_heads, keys, head_dim]
             value: [batch or 1, shared_heads, keys, value_dim]
             returns: [batch, heads, queries, value_dim], lse and max_scores [batch, heads, queries]
    dtype:   computes in float32 for 16-bit inputs; score_mod sees float32 scores
    Raises:  NotImplementedError on nested tensors and on other than 4 dimensions; ValueError where heads,
             batches, widths, devices or the sizes of block_mask do not fit
    Source:  Dong et al. 2024, "Flex Attention"; torch/_higher_order_ops/flex_attention.py (math_attention).
             A query with no key to attend gives 0, its lse is -inf. Differs from torch in: gradients (of
             captured tensors too), max_scores and every transform also on the CPU. As in torch's eager
             path, blocks that block_mask leaves out count only as far as its mask_mod says so
    """
    if torch.compiler.is_compiling() and not _needs_gradient_on_cpu(query, key, value):
        return _torchs_own(
            query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse, kernel_options,
            return_aux=return_aux,
        )  # fmt: skip
    check_inputs(query, key, value, enable_gqa)
    check_batches(query, key, block_mask)
    check_block_mask(query, key, block_mask)
    check_options(query, key, value, return_lse, kernel_options, return_aux)

    narrow = autocast_dtype(query.device.type)
    if narrow is not None:  # query, key and value in 16 bits; nothing else is cast
        query, key, value = (x if x.dtype == torch.float64 else x.to(narrow) for x in (query, key, value))
        with torch.autocast(query.device.type, enabled=False):
            return flex_attention(
                query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse, kernel_options,
                return_aux=return_aux,
            )  # fmt: skip
    scores = modified_scores(query, key, score_mod, block_mask, scale)  # [batch, heads, queries, keys]
    weights = differentiable_weights(scores)
    values = widen(repeat_heads(value, query.size(1))).to(weights.dtype)
    out = torch.matmul(weights, values).to(query.dtype)
    out = laid_out_like(out, query)
    if return_aux is None:
        return (out, log_sum_exp(scores)) if return_lse else out
    return out, AuxOutput(
        lse=log_sum_exp(scores) if return_aux.lse else None,
        max_scores=scores.amax(dim=-1) if return_aux.max_scores else None,
    )


def modified_scores(
    query: Tensor,
    key: Tensor,
    score_mod: Callable[..., Tensor] | None,
    block_mask: BlockMask | None,
    scale: float | None,
) -> Tensor:
    """How much each query resembles each key, as score_mod and the mask leave it.

    Shape:   returns: [batch, heads, queries, keys]
    """
    scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    key = repeat_heads(key, query.size(1)).to(dtype)
    scores = torch.matmul(query.to(dtype), key.transpose(-2, -1)) * scale
    if scores.numel() == 0:
        return scores
    indices = [torch.arange(size, device=scores.device) for size in scores.shape]
    with IndexingByTensors():
        if score_mod is not None:
            scores = over_all_scores(score_mod, with_score=True)(scores, *indices).to(dtype)
        if block_mask is not None:
            takes_part = over_all_scores(block_mask.mask_mod, with_score=False)(*indices)
            scores = torch.where(takes_part, scores, -math.inf)
    return scores


def over_all_scores(function: Callable[..., Tensor], with_score: bool) -> Callable[..., Tensor]:
    """A function of one score and its four indices, or of the indices alone, applied at every position.

    Each vmap adds one axis, from the keys outwards to the batch.
    """
    leading = (0,) if with_score else ()
    for axis in (3, 2, 1, 0):
        which = tuple(0 if position == axis else None for position in range(4))
        function = torch.vmap(function, in_dims=(*leading, *which))
    return function


class IndexingByTensors(TorchFunctionMode):
    """table[head] with a scalar tensor looks up an element, in place of asking for the tensor's value.

    Under vmap one scalar stands for many, so `table[head]` has no value to ask for; aten.index needs none.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is not Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        table, index = args
        indices = list(index) if isinstance(index, (tuple, list)) else [index]
        if not indices or not all(type(i) is int or isinstance(i, Tensor) for i in indices):
            return func(*args)
        tensors = [torch.tensor(i, device=table.device) if type(i) is int else i for i in indices]
        return torch.ops.aten.index.Tensor(table, tensors)


def log_sum_exp(scores: Tensor) -> Tensor:
    """log(sum(exp(scores))) over the keys; -inf for a row of -inf.

    Shape:   scores: [..., queries, keys]   returns: [..., queries]
    """
    row_max, numerator, denominator = shifted_exponentials(scores)
    result = (row_max + torch.log(denominator)).squeeze(-1)
    return torch.where((numerator == 0).all(dim=-1), -math.inf, result)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast, where it is on, makes of floating-point inputs."""
    is_on = is_autocast_on(device_type)
    return torch.get_autocast_dtype(device_type) if is_on else None


def check_inputs(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    """What torch requires of the tensors, but for what only its kernels cannot do."""
    if query.is_nested or key.is_nested or value.is_nested:
        raise NotImplementedError(
            "flex_attention does not support NestedTensor inputs, including torch.compile(flex_attention) with "
            "jagged NestedTensor inputs. Convert inputs to dense tensors before calling flex_attention."
        )
    _validate_sdpa_input(query, key, value, allow_lowp_kv=True)
    _torch_flex._validate_embed_dim(query, key, value)
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise NotImplementedError("NYI: query, key, and value must be 4D tensors")
    heads, shared_heads = query.size(1), key.size(1)
    if not enable_gqa and heads != shared_heads:
        raise ValueError(
            f"Expect query and key/value to have the same number of heads but got Hq={heads} and "
            f"Hkv={shared_heads}. Try setting enable_gqa=True for GQA."
        )
    if enable_gqa and heads % shared_heads != 0:
        raise ValueError(
            f"Expect number of query heads to be a multiple of kv heads for GQA "
            f"but got Hq={heads} and Hkv={shared_heads}."
        )


def check_batches(query: Tensor, key: Tensor, block_mask: BlockMask | None) -> None:
    """One batch of keys may serve many batches of queries, given a block mask for them."""
    batch, key_batch = query.size(0), key.size(0)
    if batch == key_batch:
        return
    if block_mask is None:
        raise ValueError(
            f"Expect query and key/value to have the same batch size, or non-none block_mask, "
            f"but got block_mask=None, Bq={batch}, and Bkv={key_batch}."
        )
    mask_batch = block_mask.kv_num_blocks.size(0)
    if mask_batch != batch:
        raise ValueError(
            f"Expect query and key/value to have the same batch size, or block_mask and query to have the "
            f"same batch size, but got Bq={batch}, Bkv={key_batch}, B_block_mask={mask_batch}."
        )
    if key_batch != 1:
        raise RuntimeError(f"Bq and Bkv must broadcast. Got Bq={batch} and Bkv={key_batch}")


def check_block_mask(query: Tensor, key: Tensor, block_mask: BlockMask | None) -> None:
    """A mask made for these lengths, whole, on this device."""
    if block_mask is None:
        return
    if block_mask.mask_mod is _torch_flex._sliced_mask_mod_error:
        raise RuntimeError("Cannot use mask_mod from a sliced BlockMask")
    any_size = _torch_flex._LARGE_SPARSE_BLOCK_SIZE
    queries, keys = query.size(-2), key.size(-2)
    if tuple(block_mask.BLOCK_SIZE) != (any_size, any_size):
        made_for = f"block_mask was created for block_mask.shape={block_mask.shape} but got"
        if hasattr(_torch_flex, "_validate_block_mask_shape"):  # torch 2.14 raises other errors
            _torch_flex._validate_block_mask_shape(query, key, queries, keys, *block_mask.shape[-2:])
        if queries > block_mask.shape[-2] or keys > block_mask.shape[-1]:
            raise ValueError(
                f"{made_for} q_len={queries} and kv_len={keys}. As the block mask was created for a smaller "
                "length than you're using it for, you likely need to create a new block mask."
            )
        if (queries, keys) != tuple(block_mask.shape[-2:]):
            raise ValueError(
                f"{made_for} q_len={queries} and kv_len={keys}. As the block mask was created for a larger "
                "length than you're using it for, you can either 1. create a new block mask with the correct "
                "length, or 2. 'adjust' the existing block mask to the correct length by calling "
                "block_mask._adjust(q_len, kv_len). This essentially 'crops' the block mask to the upper left "
                "corner, which does not work for all mask_mods!"
            )
    if query.device != block_mask.kv_num_blocks.device:
        raise RuntimeError(
            f"Expect q/k/v and block_mask to be on the same device "
            f"but got {query.device} and {block_mask.kv_num_blocks.device}."
        )


def check_options(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    return_lse: bool,
    kernel_options: FlexKernelOptions | None,
    return_aux: AuxRequest | None,
) -> None:
    """Options that contradict each other."""
    if return_lse and return_aux is not None:
        raise ValueError(
            "Cannot specify both return_lse and return_aux. "
            "return_lse is deprecated, please use return_aux=AuxRequest(lse=True) instead."
        )
    if return_lse:
        warnings.warn(
            "return_lse is deprecated and will be removed in v2.10. "
            "Please use return_aux=AuxRequest(lse=True) instead.",
            FutureWarning,
            stacklevel=3,
        )
    _torch_flex._apply_kernel_options(query, key, value, return_lse, kernel_options, None)


def _needs_gradient_on_cpu(*tensors: Tensor) -> bool:
    """Where torch's own refuses, under a tracer too."""
    return any(x.requires_grad and x.device.type == "cpu" for x in tensors)


__all__ = share_names(__name__, _torch_flex)


def __getattr__(name: str) -> Any:
    """torch's own for what is not in __all__ (_score_mod_signature, _vmap_for_bhqkv ...)."""
    return getattr(_torch_flex, name)
