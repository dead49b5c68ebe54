"""Multi-head attention: project, attend in every head, project back."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.init import constant_, xavier_normal_, xavier_uniform_
from torch.nn.parameter import Parameter

from pynn.construction import init_module
from pynn.definitions import PUBLIC, defines, is_traced
from pynn.modules._nested import (
    attend_by_sequence,
    gives_nan_without_keys,
    require_fast_path,
    why_not_fast_path,
)
from pynn.modules._softmax import softmax_of
from pynn.overrides import scripts_as

from .activation import softmax
from .attention import scaled_dot_product_attention
from .attention_masks import (
    append_zeros,
    canonical_mask,
    check_attn_mask_shape,
    check_dims,
    check_learned_keys,
    check_widths,
    dtype_of,
    merge_masks,
    resolve_masks,
)
from .dropout import dropout
from .linear import NonDynamicallyQuantizableLinear, linear

__all__ = ["MultiheadAttention", "multi_head_attention_forward"]

aten = torch.ops.aten


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention in num_heads subspaces at once.

        head_i = attention(query @ Wq_i.T, key @ Wk_i.T, value @ Wv_i.T)
        out = concat(head_1, ..., head_n) @ Wo.T + bias

    Args:    embed_dim_to_check: the width query must have
             in_proj_weight, in_proj_bias: Wq, Wk, Wv stacked; or, with use_separate_proj_weight,
             q_proj_weight, k_proj_weight and v_proj_weight
             bias_k, bias_v: one more, learned key and value
             add_zero_attn: one more key and value, of zeros
             dropout_p: share of the attention weights set to 0, in training only
             out_proj_weight, out_proj_bias: Wo and bias
             key_padding_mask, attn_mask: bool (True is hidden) or float (added to the scores)
             need_weights: also return the weights, averaged over heads if average_attn_weights
             static_k, static_v: keys and values already projected, [batch * heads, keys, head_dim]
             is_causal: a hint that attn_mask is the causal mask
    Shape:   query: [queries, batch, embed_dim]   key, value: [keys, batch, *]   (or without batch)
             key_padding_mask: [batch, keys]   attn_mask: [queries, keys] or [batch * heads, queries, keys]
             returns: [queries, batch, embed_dim], [batch, queries, keys] or [batch, heads, queries, keys]
    dtype:   floating point, the same for all, returned so; 16 bits: projections and attention compute in
             float32, and each is rounded
    Raises:  AssertionError on widths, lengths or head counts that do not fit, RuntimeError on mask shapes and
             dtypes that do not fit
    Source:  Vaswani et al. 2017, "Attention Is All You Need"; torch.nn.functional
    """
    is_batched = check_dims(query, key, value, key_padding_mask, attn_mask, num_heads)
    if not is_batched:
        query, key, value = with_batch_of_one(query, key, value)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    queries, batch, _ = query.shape
    attn_mask, key_padding_mask, is_causal = resolve_masks(
        attn_mask, key_padding_mask, is_causal, need_weights, query.dtype
    )
    check_widths(query, key, value, embed_dim_to_check, num_heads, use_separate_proj_weight)
    if use_separate_proj_weight:
        weights = separate_weights(q_proj_weight, k_proj_weight, v_proj_weight)
        q, k, v = project_separately(query, key, value, weights, in_proj_bias)
    else:
        q, k, v = project_packed(query, key, value, in_proj_weight, in_proj_bias)
    attn_mask = check_attn_mask_shape(attn_mask, queries, key.shape[0], batch * num_heads)

    extra_keys = int(add_zero_attn)
    if check_learned_keys(bias_k, bias_v, static_k, static_v):
        k = torch.cat([k, bias_k.repeat(1, batch, 1)])
        v = torch.cat([v, bias_v.repeat(1, batch, 1)])
        extra_keys += 1
    q = split_heads(q, num_heads)  # [batch, heads, queries, head_dim]
    k = split_heads(k, num_heads) if static_k is None else unpack_static("k", static_k, q)
    v = split_heads(v, num_heads) if static_v is None else unpack_static("v", static_v, q)
    if add_zero_attn:
        k, v = append_zeros(k, -2, 1), append_zeros(v, -2, 1)
    mask = merge_masks(attn_mask, key_padding_mask, extra_keys, batch, k.shape[-2])

    dropout_p = dropout_p if training else 0.0
    if need_weights:
        attended, weights = attend_with_weights(q, k, v, mask, dropout_p)
    else:
        attended, weights = scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal), None
    out = linear(join_heads(attended), out_proj_weight, out_proj_bias)  # [queries, batch, embed_dim]
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    if is_batched:
        return out, weights
    return out.squeeze(1), None if weights is None else weights.squeeze(0)


# torch's own function is Python as well: a tracer may look into this one.
PUBLIC["multi_head_attention_forward"] = multi_head_attention_forward
scripts_as(multi_head_attention_forward, F.multi_head_attention_forward)


def attend_with_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """Attention that returns its weights; a query with no key to attend gives NaN, as in torch.

    Shape:   q: [batch, heads, queries, head_dim]   k, v: [batch, heads, keys, head_dim]
             returns: as q, [batch, heads, queries, keys]
    """
    scores = torch.matmul(q * math.sqrt(1 / q.shape[-1]), k.transpose(-2, -1))
    if mask is not None:
        scores = scores + mask.to(scores.dtype)  # autocast narrows the product alone
    weights = softmax(scores, dim=-1)
    if dropout_p > 0:
        weights = dropout(weights, p=dropout_p)
    return torch.matmul(weights, v), weights


def project_packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """The three input projections out of one stacked weight, in as few products as the inputs allow.

    Shape:   weight: [3 * embed_dim, embed_dim]   bias: [3 * embed_dim]   returns: as query, key, value
    """
    if weight is None:
        raise AssertionError("use_separate_proj_weight is False but in_proj_weight is None")
    if query is key and key is value:
        return linear(query, weight, bias).chunk(3, dim=-1)
    weights = weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    if key is value:
        embed_dim = query.shape[-1]
        bias_kv = None if bias is None else bias[embed_dim:]
        k, v = linear(key, weight[embed_dim:], bias_kv).chunk(2, dim=-1)
        return linear(query, weights[0], biases[0]), k, v
    return tuple(linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))


def project_separately(
    query: Tensor, key: Tensor, value: Tensor, weights: tuple[Tensor, ...], bias: Tensor | None
) -> tuple[Tensor, ...]:
    """The three input projections, when key and value have widths of their own.

    Shape:   weights: [embed_dim, width of its input] each   bias: [3 * embed_dim]
    """
    embed_dim = query.shape[-1]
    for x, weight, name in zip((query, key, value), weights, ("query", "key", "value")):
        if weight.shape != (embed_dim, x.shape[-1]):
            raise AssertionError(
                f"expecting {name} weights shape of {(embed_dim, x.shape[-1])}, but got {weight.shape}"
            )
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))


def separate_weights(*weights: Tensor | None) -> tuple[Tensor, ...]:
    """All three separate weights; none may be missing."""
    for weight, name in zip(weights, "qkv"):
        if weight is None:
            raise AssertionError(f"use_separate_proj_weight is True but {name}_proj_weight is None")
    return weights


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[seq, batch, embed_dim] -> [batch, heads, seq, head_dim], without a copy."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).permute(1, 2, 0, 3)


def join_heads(x: Tensor) -> Tensor:
    """[batch, heads, seq, head_dim] -> [seq, batch, embed_dim]"""
    return x.permute(2, 0, 1, 3).flatten(-2)


def unpack_static(name: str, static: Tensor, q: Tensor) -> Tensor:
    """[batch * heads, keys, head_dim] -> [batch, heads, keys, head_dim]"""
    batch, heads, _, head_dim = q.shape
    if static.size(0) != batch * heads:
        raise AssertionError(f"expecting static_{name}.size(0) of {batch * heads}, but got {static.size(0)}")
    if static.size(2) != head_dim:
        raise AssertionError(f"expecting static_{name}.size(2) of {head_dim}, but got {static.size(2)}")
    return static.unflatten(0, (batch, heads))


def with_batch_of_one(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[seq, width] -> [seq, 1, width]; inputs that were the same tensor stay the same tensor."""
    batched_query = query.unsqueeze(1)
    batched_key = batched_query if key is query else key.unsqueeze(1)
    return batched_query, batched_key, batched_key if value is key else value.unsqueeze(1)


class MultiheadAttention(torch.nn.MultiheadAttention):
    """Attention in num_heads subspaces, with the projections into and out of them.

        head_i = attention(query @ Wq_i.T, key @ Wk_i.T, value @ Wv_i.T)
        out = concat(head_1, ..., head_n) @ Wo.T + bias

    Args:    embed_dim: width of query and output; num_heads must divide it
             dropout: share of the attention weights set to 0 in training
             bias: whether the projections have one
             add_bias_kv, add_zero_attn: one more key and value, learned or of zeros
             kdim, vdim: widths of key and value, default embed_dim
             batch_first: [batch, seq, width] in place of [seq, batch, width]
    Shape:   query: [queries, batch, embed_dim]   key: [keys, batch, kdim]   value: [keys, batch, vdim]
             returns: output as query, weights [batch, queries, keys] or None
    Raises:  ValueError when embed_dim or num_heads is not positive
    Source:  torch.nn.MultiheadAttention. Differs from torch in: evaluation takes the same path as training
    """

    def __init__(
        self,
        embed_dim,
        num_heads,
        dropout=0.0,
        bias=True,
        add_bias_kv=False,
        add_zero_attn=False,
        kdim=None,
        vdim=None,
        batch_first=False,
        device=None,
        dtype=None,
    ) -> None:
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(
                f"embed_dim and num_heads must be greater than 0,"
                f" got embed_dim={embed_dim} and num_heads={num_heads} instead"
            )
        init_module(MultiheadAttention, self)
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.head_dim = embed_dim // num_heads
        if self.head_dim * num_heads != self.embed_dim:
            raise AssertionError("embed_dim must be divisible by num_heads")
        self._make_parameters(bias, add_bias_kv, device, dtype)
        self.add_zero_attn = add_zero_attn
        self._reset_parameters()

    def _make_parameters(self, bias: bool, add_bias_kv: bool, device, dtype) -> None:
        """Register the projections, in torch's order of names."""

        def parameter(*shape: int) -> Parameter:
            return Parameter(torch.empty(shape, device=device, dtype=dtype))

        embed_dim = self.embed_dim
        if self._qkv_same_embed_dim:
            self.in_proj_weight = parameter(3 * embed_dim, embed_dim)
            for name in "qkv":
                self.register_parameter(f"{name}_proj_weight", None)
        else:
            self.q_proj_weight = parameter(embed_dim, embed_dim)
            self.k_proj_weight = parameter(embed_dim, self.kdim)
            self.v_proj_weight = parameter(embed_dim, self.vdim)
            self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", parameter(3 * embed_dim) if bias else None)
        self.out_proj = NonDynamicallyQuantizableLinear(
            embed_dim, embed_dim, bias=bias, device=device, dtype=dtype
        )
        if add_bias_kv:
            self.bias_k = parameter(1, 1, embed_dim)
            self.bias_v = parameter(1, 1, embed_dim)
        else:
            self.bias_k = self.bias_v = None

    def _reset_parameters(self) -> None:
        if self._qkv_same_embed_dim:
            xavier_uniform_(self.in_proj_weight)
        else:
            xavier_uniform_(self.q_proj_weight)
            xavier_uniform_(self.k_proj_weight)
            xavier_uniform_(self.v_proj_weight)
        if self.in_proj_bias is not None:
            constant_(self.in_proj_bias, 0.0)
            constant_(self.out_proj.bias, 0.0)
        if self.bias_k is not None:
            xavier_normal_(self.bias_k)
        if self.bias_v is not None:
            xavier_normal_(self.bias_v)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.is_nested or key.is_nested or value.is_nested:
            require_fast_path(self, query, key, value, attn_mask, key_padding_mask)
            options = {"need_weights": need_weights, "average_attn_weights": average_attn_weights}
            return attend_by_sequence(functools.partial(self.forward, **options), query, key, value)
        takes_weights = need_weights
        masks = [mask for mask in (attn_mask, key_padding_mask) if mask is not None]
        if not need_weights and query is key is value and not any(mask.is_floating_point() for mask in masks):
            takes_weights = gives_nan_without_keys(self, query, *masks)
        key_padding_mask = canonical_mask(
            key_padding_mask, "key_padding_mask", dtype_of(attn_mask), "attn_mask", query.dtype
        )
        attn_mask = canonical_mask(attn_mask, "attn_mask", None, "", query.dtype, check_other=False)
        given, is_batched = (query, key, value), query.dim() == 3
        if self.batch_first and is_batched:
            query, key, value = transpose_batch(query, key, value)
        out, weights = multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=takes_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        if self.batch_first and is_batched:
            out = out.transpose(0, 1)
            if not is_traced() and not why_not_fast_path(self, *given):
                out = out.contiguous()  # as the kernel of torch's fast path answers
        return out, weights if need_weights else None


def transpose_batch(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[batch, seq, width] -> [seq, batch, width]; inputs that were the same tensor stay the same tensor."""
    turned_query = query.transpose(0, 1)
    turned_key = turned_query if key is query else key.transpose(0, 1)
    return turned_query, turned_key, turned_key if value is key else value.transpose(0, 1)


@defines(aten._native_multi_head_attention.default)
def native_multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
    *,
    attend: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head self-attention as torch.nn.MultiheadAttention runs it in evaluation.

    Args:    mask: anything but 0 hides a key; mask_type 0: [queries, keys], 1: [batch, keys],
             2: [batch, heads, queries, keys]
             attend: what computes the attention where no weights are asked for, called with q, k, v and a
             bool mask (True takes part); the compiler passes its kernel
    Shape:   query, key, value: [batch, seq, embed_dim]
             returns: as query, weights [batch, (heads,) queries, keys] or None
    """
    q, k, v = (
        x.unflatten(-1, (num_head, embed_dim // num_head)).transpose(1, 2)  # [batch, heads, seq, head_dim]
        for x in project_packed(query, key, value, qkv_weight, qkv_bias)
    )
    hidden = None if mask is None else mask.to(torch.bool)
    if hidden is not None and mask_type == 1:
        hidden = hidden[:, None, None, :]  # [batch, 1, 1, keys]
    if attend is not None and not need_weights:
        attended, weights = attend(q, k, v, None if hidden is None else ~hidden), None
    else:
        scores = torch.matmul(q * math.sqrt(num_head / embed_dim), k.transpose(-2, -1))
        scores = scores if hidden is None else torch.where(hidden, -math.inf, scores)
        weights = softmax_of(scores, -1)  # [batch, heads, queries, keys]
        attended = torch.matmul(weights, v)
    out = linear(attended.transpose(1, 2).flatten(-2), proj_weight, proj_bias)
    if weights is None or not need_weights:
        return out, None
    return out, weights.mean(dim=1) if average_attn_weights else weights
