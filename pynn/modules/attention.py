"""Scaled dot-product attention: the function, and the ATen operators that compute it inside torch."""

import math
from typing import Any

import torch
from torch import Tensor

from pynn.constant_gradients import nothing_of
from pynn.definitions import defines, is_traced, traced_as, widen
from pynn.dtype_names import cpp_name
from pynn.memory_format import laid_out_like
from pynn.modules._softmax import SoftmaxFunction

from .dropout import dropout

__all__ = ["scaled_dot_product_attention"]

aten = torch.ops.aten


def has_plain_mask(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> bool:
    """Whether the mask is a tensor, and not a rule to make one by (torch.nn.attention.bias.CausalBias)."""
    return not hasattr(attn_mask, "_materialize")


@traced_as(torch.nn.functional.scaled_dot_product_attention, has_kernel=has_plain_mask)
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
    """Each query gathers the values whose keys resemble it.

        out = dropout(softmax(query @ key.T * scale + mask)) @ value

    Args:    attn_mask: bool (True takes part) or float (added to the scores), broadcast to the scores
             dropout_p: share of the weights set to 0; applied whatever the training mode
             is_causal: query i sees keys 0..i only; excludes attn_mask
             scale: factor on the scores, default 1 / sqrt(head_dim)
             enable_gqa: several query heads share one key and value head
    Shape:   query: [..., heads, queries, head_dim]   key: [..., heads, keys, head_dim]
             value: [..., heads, keys, value_dim]   returns: [..., heads, queries, value_dim]
    dtype:   computes in float32 for 16-bit inputs
    Raises:  RuntimeError on fewer than 2 dimensions, mixed dtypes or devices, an attn_mask of another
             dtype, attn_mask together with is_causal, head counts that do not divide
    Source:  Vaswani et al. 2017, "Attention Is All You Need"; aten/native/transformers/attention.cpp.
             A query with no key to attend gives 0. Differs from torch in: a score that is masked away
             has no influence even when it is infinite or NaN
    """
    check_inputs(query, key, value, attn_mask, dropout_p, is_causal)
    if attn_mask is not None and not has_plain_mask(query, key, value, attn_mask):
        if is_causal:
            raise ValueError("CausalBias should not be used with causal=True")
        mask = attn_mask._materialize(query.device)  # type: ignore[operator]
        return scaled_dot_product_attention(
            query, key, value, mask, dropout_p, scale=scale, enable_gqa=enable_gqa
        )
    if query.size(-2) == 0 or value.numel() == 0:
        # C++ looks no further
        out = query.new_zeros(*query.shape[:-1], value.size(-1))
        return out + nothing_of(query) + nothing_of(key) + nothing_of(value)
    refuse_without_kernel(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if enable_gqa:
        check_grouped_heads(query, key, value)
        key, value = repeat_heads(key, query.size(-3)), repeat_heads(value, query.size(-3))

    result_dtype, inputs = query.dtype, (query, key, value)
    query, key, value = widen(query), widen(key), widen(value)
    scores = attention_scores(query, key, attn_mask, is_causal, scale)  # [..., queries, keys]
    if attn_mask is not None:
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        shape = [*lead, query.size(-2), key.size(-2)]
        if list(scores.shape) != shape:
            raise RuntimeError(
                f"output with shape {shape} doesn't match the broadcast shape {list(scores.shape)}"
            )
    weights = AttentionWeights.apply(scores, -1)
    if dropout_p > 0:
        weights = dropout(weights, dropout_p)
    out = torch.matmul(weights, value).to(result_dtype)
    if is_in_order_of_query(*inputs, attn_mask, dropout_p):
        out = laid_out_like(out, torch.empty_like(inputs[0], device="meta"))
    return out


def is_in_order_of_query(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float
) -> bool:
    """Whether C++ answers in the query's order in memory: its flash kernel does, where that takes the inputs.

    Else it answers with the product of two matrices, in the plain order.
    """
    tensors = (query, key, value)
    return (
        all(x.dim() == 4 and x.stride(-1) == 1 and not x.is_nested for x in tensors)
        and query.shape[:2] == key.shape[:2] == value.shape[:2]  # nothing to broadcast
        and query.size(-1) == value.size(-1)
        and dropout_p == 0
        and (attn_mask is None or (attn_mask.dim() in (2, 4) and not attn_mask.requires_grad))
        and torch._C._get_flash_sdp_enabled()
    )


def refuse_without_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> None:
    """Inside `torch.nn.attention.sdpa_kernel` without MATH: RuntimeError where no kernel named there takes these.

    C++ is asked for its choice alone, which is a number; there is one definition here, whatever it is.
    """
    if not torch._C._get_math_sdp_enabled() and not query.is_nested:
        choice = {"scale": scale, "enable_gqa": enable_gqa}
        torch._fused_sdp_choice(query, key, value, attn_mask, dropout_p, is_causal, **choice)


def attention_scores(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    """How much each query resembles each key; -inf where it must not look.

        scores = query @ key.T * scale + mask

    Shape:   query: [..., queries, head_dim]   key: [..., keys, head_dim]   returns: [..., queries, keys]
    """
    if scale is None:
        head_dim = query.shape[-1]
        scale = 1 / math.sqrt(head_dim) if head_dim > 0 else math.inf
    scores = torch.matmul(query, key.transpose(-2, -1))
    if query.shape[-1] > 0:  # else 0, whatever the scale
        scores = scores * scale
    if is_causal:
        attn_mask = causal_mask(query.shape[-2], key.shape[-2], query.device)
    if attn_mask is None:
        return scores
    if attn_mask.dtype == torch.bool:
        return torch.where(attn_mask, scores, -math.inf)
    return scores + attn_mask.to(scores.dtype)


def attention_weights(scores: Tensor) -> Tensor:
    """Softmax over the keys; a row of -inf gives zeros instead of NaN.

        weights = exp(scores - max(scores)) / sum(exp(scores - max(scores)))

    Shape:   scores: [..., queries, keys]   returns: same as scores
    """
    _, numerator, denominator = shifted_exponentials(scores)
    return numerator / denominator


class AttentionWeights(SoftmaxFunction):
    """attention_weights with softmax's own gradient, weights * (grad - sum(weights * grad)).

    Differentiated as written, the numerator and the denominator would each hand back a large gradient, of
    which little is left once they are added. A row of zeros gets zeros.
    """

    @staticmethod
    def forward(scores: Tensor, dim: int) -> Tensor:
        return attention_weights(scores)


def differentiable_weights(scores: Tensor) -> Tensor:
    """attention_weights with its own gradient; as written while a tracer follows, which knows no Function."""
    if is_traced():
        return attention_weights(scores)
    return AttentionWeights.apply(scores, -1)


def shifted_exponentials(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of a softmax that cannot overflow: row_max, exp(scores - row_max) and its row sums.

    The maximum only keeps exp in range: the quotient does not depend on it, nor does its derivative,
    so none flows through it. A row of -inf has row_max 0 and sum 1, hence weights and logarithm 0.
    """
    if scores.shape[-1] == 0:
        row_max = scores.new_zeros((*scores.shape[:-1], 1))
    else:
        row_max = scores.detach().amax(dim=-1, keepdim=True)
        row_max = torch.where(row_max == -math.inf, 0.0, row_max)
    numerator = torch.exp(scores - row_max)
    denominator = numerator.sum(dim=-1, keepdim=True)
    return row_max, numerator, torch.where(denominator == 0, 1.0, denominator)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """True where key <= query, counted from the upper left corner.  returns: [queries, keys]"""
    query_position = torch.arange(queries, device=device).unsqueeze(-1)
    return torch.arange(keys, device=device) <= query_position


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Let groups of neighbouring query heads share one head of x: 0 0 1 1 2 2 ...

    Shape:   x: [..., shared_heads, seq, head_dim]   returns: [..., heads, seq, head_dim]
    """
    shared_heads, seq, head_dim = x.shape[-3:]
    if shared_heads == heads:
        return x
    x = x.unsqueeze(-3).expand(*x.shape[:-2], heads // shared_heads, seq, head_dim)
    return x.reshape(*x.shape[:-4], heads, seq, head_dim)


def sum_heads(gradient: Tensor, shared_heads: int) -> Tensor:
    """The transpose of repeat_heads: add up what the query heads of a group hand back.

    Shape:   gradient: [..., heads, seq, head_dim]   returns: [..., shared_heads, seq, head_dim]
    """
    heads, seq, head_dim = gradient.shape[-3:]
    if shared_heads == heads:
        return gradient
    grouped = gradient.reshape(*gradient.shape[:-3], shared_heads, heads // shared_heads, seq, head_dim)
    return grouped.sum(dim=-3)


def check_inputs(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool
) -> None:
    """Refuse what torch refuses, with torch's words."""

    def describe(attribute: str, of) -> str:
        return (
            f"but got query.{attribute}: {of(query)} key.{attribute}: {of(key)} "
            f"and value.{attribute}: {of(value)} instead."
        )

    if not query.dtype == key.dtype == value.dtype:
        names = describe("dtype", lambda x: cpp_name(x.dtype))
        raise RuntimeError(f"Expected query, key, and value to have the same dtype, {names}")
    if not query.device == key.device == value.device:
        names = describe("device", lambda x: x.device)
        raise RuntimeError(f"Expected query, key, and value to have the same device type, {names}")
    if min(query.dim(), key.dim(), value.dim()) < 2:
        names = describe("dim", lambda x: x.dim())
        raise RuntimeError(f"Expected query, key, and value to all be  at least 2 dimensional, {names}")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise RuntimeError(
            "Expected attn_mask dtype to be bool or float or to match query dtype, but got attn_mask.dtype: "
            f"{cpp_name(attn_mask.dtype)} and  query.dtype: {cpp_name(query.dtype)} instead."
        )
    if attn_mask is not None and is_causal and not hasattr(attn_mask, "_materialize"):
        raise RuntimeError(
            "_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True"
        )
    if query.dtype == torch.bool and query.numel() > 0:  # integers get so far as the product with value
        raise RuntimeError("expected scalar type Float but found Bool")
    if dropout_p > 1:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {dropout_p:g}")


def check_grouped_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Every key and value head must serve the same number of query heads."""
    heads, key_heads, value_heads = query.size(-3), key.size(-3), value.size(-3)
    if heads % key_heads != 0 or heads % value_heads != 0:
        raise RuntimeError("Number of heads in key and value must divide the number of heads in ")


@defines(aten._scaled_dot_product_attention_math.default)
def scaled_dot_product_attention_math(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    dropout_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention that also hands out its weights (torch's reference path).

    Args:    attn_mask: added to the scores; below the public function a mask is no longer boolean
             dropout_mask: a fixed True-keeps mask in place of random numbers
    Shape:   returns: output [..., queries, value_dim], weights after dropout [..., queries, keys]
    """
    if enable_gqa:
        key, value = repeat_heads(key, query.size(-3)), repeat_heads(value, query.size(-3))
    result_dtype = query.dtype
    query, key, value = widen(query), widen(key), widen(value)
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    weights = attention_weights(attention_scores(query, key, attn_mask, is_causal, scale))
    if dropout_p > 0 and dropout_mask is not None:
        weights = torch.where(dropout_mask, weights, 0.0)
        output = torch.matmul(weights, value * (1 / (1 - dropout_p)))
        return output.to(result_dtype), weights.to(result_dtype)
    if dropout_p > 0:
        weights = dropout(weights, dropout_p)
    return torch.matmul(weights, value).to(result_dtype), weights.to(result_dtype)


@defines(aten._scaled_dot_product_flash_attention_for_cpu.default)
def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention that hands its backward one number per query instead of all weights.

        out = softmax(scores) @ value        logsumexp = log(sum(exp(scores)))

    Shape:   query: [batch, heads, queries, head_dim]   key, value: [batch, shared_heads, keys, head_dim]
             returns: out as query, logsumexp [batch, heads, queries] (0 where a query has no key)
    dtype:   logsumexp is float32 for 16-bit inputs
    Source:  Dao et al. 2022, "FlashAttention"; the blocked kernel is the compiler's affair
    """
    key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    scores = attention_scores(widen(query), widen(key), attn_mask, is_causal, scale)
    row_max, numerator, denominator = shifted_exponentials(scores)
    output = torch.matmul(numerator / denominator, widen(value))
    logsumexp = row_max + torch.log(denominator)
    return output.to(query.dtype), logsumexp.squeeze(-1)


@defines(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def flash_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of flash_attention, its weights computed anew from the scores.

        weights     = exp(scores - logsumexp)
        grad_value  = weights.T @ grad_out
        grad_scores = weights * (grad_out @ value.T - sum(grad_out * out))
        grad_query  = grad_scores @ key * scale        grad_key = grad_scores.T @ query * scale

    Shape:   grad_out, out: as query   logsumexp: [batch, heads, queries]   returns: as query, key, value
    """
    heads, shared_heads = query.shape[1], key.shape[1]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    q, gradient, output = widen(query), widen(grad_out), widen(out)
    k, v = widen(repeat_heads(key, heads)), widen(repeat_heads(value, heads))

    weights = torch.exp(attention_scores(q, k, attn_mask, is_causal, scale) - logsumexp.unsqueeze(-1))
    grad_weights = torch.matmul(gradient, v.transpose(-2, -1))
    row_total = (gradient * output).sum(dim=-1, keepdim=True)
    grad_scores = weights * (grad_weights - row_total) * scale

    grad_query = torch.matmul(grad_scores, k)
    grad_key = sum_heads(torch.matmul(grad_scores.transpose(-2, -1), q), shared_heads)
    grad_value = sum_heads(torch.matmul(weights.transpose(-2, -1), gradient), shared_heads)
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype)
