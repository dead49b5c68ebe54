"""Find attention in a Dynamo graph and make it the operator `pynn::attention`.

Before AOTAutograd a Dynamo graph calls three functions that contain attention:
`scaled_dot_product_attention`; `multi_head_attention_forward` (nn.MultiheadAttention and the layers of
nn.Transformer; Dynamo keeps it whole); `torch._transformer_encoder_layer_fwd` (the inference fast path of
nn.TransformerEncoderLayer, one C++ call). Each is replaced by a Python function that AOTAutograd traces
through, with `pynn::attention` where torch would run its C++ attention.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.modules.transformer_parts import transformer_encoder_layer_forward

from .attention import attention_formula

__all__ = ["rewrite_attention", "scaled_dot_product_attention"]

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes with an attention kernel; others (float64) become elementary operations."""


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function of this name, through `pynn::attention`; what that can't take goes to torch.

    Shape: query: [..., heads, seq, head_dim]   key, value: [..., kv_heads, kv_seq, head_dim]
           attn_mask: broadcastable to [..., heads, seq, kv_seq]   returns: [..., heads, seq, head_dim_v]
    """
    if not takes_attention(query, key, value, attn_mask, enable_gqa):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if not enable_gqa and not (query.shape[:-2] == key.shape[:-2] == value.shape[:-2]):
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        query, key, value = (x.expand(*leading, *x.shape[-2:]) for x in (query, key, value))
    if attn_mask is not None:
        attn_mask = four_dimensional_mask(attn_mask, query)
    q, k, v = (four_dimensional(x) for x in (query, key, value))
    seed = torch.ops.pynn.seed() if dropout_p > 0.0 else None
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    attend = torch.ops.pynn.attention if query.dtype in KERNEL_DTYPES else attention_formula
    options = (float(dropout_p), bool(is_causal), float(factor), bool(enable_gqa))
    out, _ = attend(q, k, v, attn_mask, seed, *options)
    return out if query.dim() == 4 else out.reshape(*query.shape[:-1], value.shape[-1])


def takes_attention(query: Any, key: Any, value: Any, mask: Any, gqa: bool) -> bool:
    """Whether `pynn::attention` covers these arguments; bad ones are left for torch to complain about."""
    tensors = [query, key, value] + ([] if mask is None else [mask])
    if any(not isinstance(x, Tensor) or x.is_nested or x.device != query.device for x in tensors):
        return False
    if not (query.dim() == key.dim() == value.dim() >= 3) or not query.dtype.is_floating_point:
        return False
    if not (query.dtype == key.dtype == value.dtype):
        return False
    if query.shape[-1] == 0 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return False
    if mask is not None and (mask.dim() > query.dim() or mask.dtype not in (torch.bool, query.dtype)):
        return False
    if gqa:
        same_batch = query.shape[:-3] == key.shape[:-3] == value.shape[:-3]
        return same_batch and key.shape[-3] == value.shape[-3] and query.shape[-3] % key.shape[-3] == 0
    return True


def four_dimensional(x: Tensor) -> Tensor:
    """[..., heads, seq, head_dim] -> [batch, heads, seq, head_dim]."""
    return x.unsqueeze(0) if x.dim() == 3 else x if x.dim() == 4 else x.flatten(0, -4)


def four_dimensional_mask(mask: Tensor, query: Tensor) -> Tensor:
    """The mask as [batch or 1, heads or 1, seq or 1, kv_seq or 1]."""
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    if query.dim() > 4:
        while mask.dim() < query.dim():
            mask = mask.unsqueeze(0)
        mask = mask.expand(*query.shape[:-3], *mask.shape[-3:]).flatten(0, -4)
    return mask


def attention_drawing_as_eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`; with dropout pynn's definition, whose mask torch's generator draws."""
    attend = scaled_dot_product_attention
    if dropout_p > 0.0:
        import pynn

        attend = pynn.functional.scaled_dot_product_attention.__wrapped__
    return attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def multi_head_attention_with(attend: Callable[..., Tensor]) -> Callable[..., Any]:
    """torch.nn.functional.multi_head_attention_forward with `attend` for its attention.

    torch's Python function, in which the name `scaled_dot_product_attention` is bound anew. While a graph is
    traced a torch-function mode is on; the function would notice and call itself again, by torch's name.
    """
    torch_function = F.multi_head_attention_forward
    bound = {
        **vars(F),
        "scaled_dot_product_attention": attend,
        "has_torch_function": lambda tensors: False,
    }
    function = types.FunctionType(torch_function.__code__, bound, argdefs=torch_function.__defaults__)
    function.__kwdefaults__ = torch_function.__kwdefaults__

    def multi_head_attention_forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return function(*args, **kwargs)

    return multi_head_attention_forward


def transformer_encoder_layer(*args: Any, **kwargs: Any) -> Tensor:
    """torch._transformer_encoder_layer_fwd by its pynn definition, with our attention inside."""
    return transformer_encoder_layer_forward(*args, **kwargs, attend=scaled_dot_product_attention)


def replacements(attend: Callable[..., Tensor]) -> dict[Any, Any]:
    return {
        F.scaled_dot_product_attention: attend,  # torch._C._nn's, under another name
        F.multi_head_attention_forward: multi_head_attention_with(attend),
        torch._transformer_encoder_layer_fwd: transformer_encoder_layer,
    }


REPLACEMENTS = replacements(scaled_dot_product_attention)
REPLACEMENTS_DRAWING_AS_EAGER = replacements(attention_drawing_as_eager)


def rewrite_attention(gm: torch.fx.GraphModule, eager_random: bool = False) -> torch.fx.GraphModule:
    """scaled_dot_product_attention(q, k, v) -> pynn::attention(q, k, v), in place; also inside submodules.

    Valid because the replacement computes the same function; arguments outside its domain are handed back
    to torch (`takes_attention`). The random numbers of dropout differ from torch's eager ones, unless
    `eager_random` asks for these: calls with dropout then become pynn's definition.
    """
    chosen = REPLACEMENTS_DRAWING_AS_EAGER if eager_random else REPLACEMENTS
    for module in gm.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        changed = False
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target in chosen:
                node.target = chosen[node.target]
                changed = True
        if changed:
            module.recompile()
    return gm
