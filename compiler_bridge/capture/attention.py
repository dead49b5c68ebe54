"""The attention operator: what its kernels compute, as plain torch operations, and how it enters a graph.

    scores    = query @ key^T * scale + mask
    weights   = dropout(softmax(scores))
    out       = weights @ value
    logsumexp = log(sum(exp(scores)))

`pynn::attention` and `pynn::attention_backward` are opaque to AOTAutograd, so that they reach the lowering
whole. Their eager implementations here are the definition: the interpreter runs them, the kernels of
`cpu/attention_*.py` are tested against them, and dtypes without a kernel fall back to them.

A row whose scores are all -inf (every key masked) gives out = 0 and logsumexp = 0, as torch does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .random import random_uniform

__all__ = [
    "attention_backward_definition",
    "attention_backward_meta",
    "attention_definition",
    "attention_formula",
    "attention_meta",
]

LIBRARY = torch.library.Library("pynn", "FRAGMENT")
LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? seed, float dropout, bool causal, "
    "float scale, bool gqa) -> (Tensor out, Tensor logsumexp)"
)
LIBRARY.define(
    "attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? seed, "
    "Tensor out, Tensor logsumexp, float dropout, bool causal, float scale, bool gqa, bool mask_grad) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dmask)"
)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit tensors, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def empty_seq_major(
    batch: int, heads: int, seq: int, head_dim: int, like: Tensor, dtype: torch.dtype
) -> Tensor:
    """An empty [batch, heads, seq, head_dim] whose memory is [batch, seq, heads, head_dim], as torch's is.

    Merging the heads afterwards (transpose, reshape) is then a view.
    """
    return like.new_empty(batch, seq, heads, head_dim, dtype=dtype).transpose(1, 2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, kv_heads, ...] -> [batch, heads, ...]: query head h reads key head h // (heads // kv_heads)."""
    kv_heads = x.shape[1]
    if kv_heads == heads:
        return x
    group = heads // kv_heads
    return x.unsqueeze(2).expand(-1, -1, group, -1, -1).reshape(x.shape[0], heads, *x.shape[2:])


def attention_scores(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """query @ key^T * scale + mask, -inf above the diagonal when causal.

    Shape: q: [batch, heads, seq, head_dim]   k: [batch, heads, kv_seq, head_dim]
           mask: broadcastable to the result   returns: [batch, heads, seq, kv_seq]
    """
    scores = torch.matmul(q * scale, k.transpose(-2, -1))
    if causal:
        queries = torch.arange(q.shape[-2], device=q.device).unsqueeze(-1)
        keys = torch.arange(k.shape[-2], device=q.device)
        scores = torch.where(keys <= queries, scores, -math.inf)
    if mask is not None:
        if mask.dtype == torch.bool:
            zero = torch.zeros((), dtype=scores.dtype, device=q.device)
            scores = scores + torch.where(mask, zero, -math.inf)
        else:
            scores = scores + mask.to(scores.dtype)
    return scores


def dropout_factors(seed: Tensor, shape: torch.Size, dropout: float, dtype: torch.dtype) -> Tensor:
    """What each softmax weight is multiplied with: 0 with probability dropout, else 1 / (1 - dropout)."""
    kept = random_uniform(seed, list(shape)) >= dropout
    factor = 1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0
    return kept.to(dtype) * factor


def attention_formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
    gqa: bool,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax written out.

    Shape: q: [batch, heads, seq, head_dim]   k: [batch, kv_heads, kv_seq, head_dim]
           v: [batch, kv_heads, kv_seq, head_dim_v]   mask: broadcastable to [batch, heads, seq, kv_seq]
           returns: [batch, heads, seq, head_dim_v] and logsumexp [batch, heads, seq]
    dtype: float32 for 16-bit inputs, results included: the caller rounds. Backward subtracts sums of `out`
           from sums that nearly equal them, where a rounded `out` would leave little of the difference
    """
    dtype = compute_dtype(q.dtype)
    batch, heads, seq, _ = q.shape
    if k.shape[-2] == 0:
        empty = q.new_zeros(batch, heads, seq, v.shape[-1], dtype=dtype)
        return empty, q.new_zeros(batch, heads, seq, dtype=dtype)
    key = repeat_heads(k.to(dtype), heads)
    value = repeat_heads(v.to(dtype), heads)
    scores = attention_scores(q.to(dtype), key, mask, causal, scale)
    largest = scores.detach().amax(-1, keepdim=True)
    largest = torch.where(largest == -math.inf, 0.0, largest)
    exponentials = torch.exp(scores - largest)
    total = exponentials.sum(-1, keepdim=True)
    nothing = total == 0
    weights = exponentials / torch.where(nothing, 1.0, total)
    logsumexp = torch.where(nothing, 0.0, largest + torch.log(total)).squeeze(-1)
    if dropout > 0.0 and seed is not None:
        weights = weights * dropout_factors(seed, weights.shape, dropout, dtype)
    return torch.matmul(weights, value), logsumexp


def attention_definition(q, k, v, mask, seed, dropout, causal, scale, gqa):
    """`attention_formula`, its result ordered in memory as the kernel's is."""
    result, logsumexp = attention_formula(q, k, v, mask, seed, dropout, causal, scale, gqa)
    out = attention_meta(q, v)[0]
    out.copy_(result)
    return out, logsumexp


def attention_backward_definition(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    dropout: float,
    causal: bool,
    scale: float,
    gqa: bool,
    mask_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `attention`, the weights recomputed from logsumexp.

        dvalue   = weights^T @ grad_out
        dweights = grad_out @ value^T
        dscores  = softmax * (dweights - sum(grad_out * out))
        dquery   = dscores @ key * scale        dkey = dscores^T @ query * scale

    Shape: as `attention`; dmask: mask's shape, or [0] without mask_grad
    """
    dtype = compute_dtype(q.dtype)
    heads, kv_heads = q.shape[1], k.shape[1]
    query, grad = q.to(dtype), grad_out.to(dtype)
    key, value = repeat_heads(k.to(dtype), heads), repeat_heads(v.to(dtype), heads)
    softmax = torch.exp(attention_scores(query, key, mask, causal, scale) - logsumexp.unsqueeze(-1))
    dweights = torch.matmul(grad, value.transpose(-2, -1))
    weights = softmax
    if dropout > 0.0 and seed is not None:
        factors = dropout_factors(seed, softmax.shape, dropout, dtype)
        weights, dweights = softmax * factors, dweights * factors
    dvalue = torch.matmul(weights.transpose(-2, -1), grad)
    delta = (grad * out.to(dtype)).sum(-1, keepdim=True)
    dscores = softmax * (dweights - delta)
    dquery = torch.matmul(dscores, key) * scale
    dkey = torch.matmul(dscores.transpose(-2, -1), query) * scale
    if kv_heads != heads:
        dkey = dkey.unflatten(1, (kv_heads, -1)).sum(2)
        dvalue = dvalue.unflatten(1, (kv_heads, -1)).sum(2)
    dq, dk, dv, dmask = attention_backward_meta(q, k, v, mask, mask_grad)
    dq.copy_(dquery)
    dk.copy_(dkey)
    dv.copy_(dvalue)
    if mask is not None and mask_grad:
        dmask.copy_(dscores.sum_to_size(mask.shape))
    return dq, dk, dv, dmask


def attention_meta(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Empty results of `attention`: shapes, strides and dtypes."""
    batch, heads, seq, _ = q.shape
    dtype = compute_dtype(q.dtype)
    out = empty_seq_major(batch, heads, seq, v.shape[-1], q, dtype)
    return out, q.new_empty(batch, heads, seq, dtype=dtype)


def attention_backward_meta(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, mask_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty results of `attention_backward`: each gradient ordered in memory as its tensor."""
    dmask = q.new_empty(0)
    if mask is not None and mask_grad:
        dmask = mask.new_empty(mask.shape)  # contiguous
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.preserve_format) for x in (q, k, v))
    return dq, dk, dv, dmask


def attention_fake(q, k, v, mask, seed, dropout, causal, scale, gqa):
    check_attention_shapes(q, k, v, mask)
    return attention_meta(q, v)


def attention_backward_fake(
    grad_out, q, k, v, mask, seed, out, logsumexp, dropout, causal, scale, gqa, mask_grad
):
    return attention_backward_meta(q, k, v, mask, mask_grad)


def check_attention_shapes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """Raises: ValueError when the four tensors cannot be attended to together."""
    if not (q.dim() == k.dim() == v.dim() == 4):
        raise ValueError(f"pynn::attention takes 4-d tensors, got {q.dim()}-d, {k.dim()}-d and {v.dim()}-d")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"query and key have head_dim {q.shape[-1]} and {k.shape[-1]}; they must be equal")
    if k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1] != 0:
        raise ValueError(
            f"heads of query, key, value are {q.shape[1]}, {k.shape[1]}, {v.shape[1]}; key and value must "
            "have the same number, a divisor of query's"
        )
    if mask is not None and mask.dim() != 4:
        raise ValueError(f"the mask must be 4-d (sizes of 1 broadcast), got shape {tuple(mask.shape)}")


def save_for_backward(ctx, inputs, output):
    q, k, v, mask, seed, dropout, causal, scale, gqa = inputs
    out, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    ctx.save_for_backward(q, k, v, mask, seed, out, logsumexp)
    ctx.options = (dropout, causal, scale, gqa)
    ctx.mask_grad = mask is not None and ctx.needs_input_grad[3]


def differentiate(ctx, grad_out, grad_logsumexp):
    dq, dk, dv, dmask = torch.ops.pynn.attention_backward(
        grad_out, *ctx.saved_tensors, *ctx.options, ctx.mask_grad
    )
    return dq, dk, dv, dmask if ctx.mask_grad else None, None, None, None, None, None


LIBRARY.impl("attention", attention_definition, "CompositeExplicitAutograd")
LIBRARY.impl("attention_backward", attention_backward_definition, "CompositeExplicitAutograd")
torch.library.register_fake("pynn::attention", attention_fake, lib=LIBRARY)
torch.library.register_fake("pynn::attention_backward", attention_backward_fake, lib=LIBRARY)
torch.library.register_autograd(
    "pynn::attention", differentiate, setup_context=save_for_backward, lib=LIBRARY
)
