"""torch.nn.attention.varlen: attention within sequences of unequal lengths that are packed end to end."""

import inspect
import math
from typing import Any

import torch
import torch.nn.attention.varlen as _torch_varlen
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest

from pynn.definitions import widen
from pynn.modules.attention import differentiable_weights, repeat_heads
from pynn.sharing import share_names

from .flex_attention import log_sum_exp

_torchs_own = _torch_varlen.varlen_attn
_TORCH_TAKES = set(inspect.signature(_torchs_own).parameters)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention within each of many packed sequences.

        out_n = softmax(query_n @ key_n.T * scale) @ value_n        for sequence n
        query_n = query[cu_seq_q[n] : cu_seq_q[n + 1]], key_n and value_n alike by cu_seq_k

    Query i of a sequence stands at key i + keys - queries (the last at the last) and sees the keys from
    `left` before to `right` after that place, window_size = (left, right), -1 for no end: (-1, 0) is causal.

    Args:    cu_seq_q, cu_seq_k: where each sequence begins, and the end of the last
             max_q, max_k: the length of the longest sequence
             return_aux: with lse=True also the logarithm of the summed exponentials
             scale: factor on the scores, default 1 / sqrt(head_dim)
             enable_gqa: several query heads share one key and value head
             seqused_k: how many keys of each sequence take part, default all
             block_table: key and value are pages; sequence n's are those numbered in row n
             num_splits: steers torch's kernel only
    Shape:   query: [tokens, heads, head_dim]   key, value: [key_tokens, shared_heads, head_dim], or
             [pages, page_size, shared_heads, head_dim]   cu_seq_q, cu_seq_k: [sequences + 1]
             seqused_k: [sequences]   block_table: [sequences, pages_per_sequence]
             returns: as query, lse [heads, tokens]
    dtype:   computes in float32 for 16-bit inputs
    Raises:  ValueError on head counts that do not fit and a window_size of other than two numbers
    Source:  torch/nn/attention/varlen.py; Dao 2023, "FlashAttention-2" (varlen, window), whose kernel torch
             calls. Differs from torch in: runs on every device and dtype, differentiable throughout, also
             with seqused_k and block_table. A query with no key to attend gives 0 and lse -inf
    """
    if torch.compiler.is_compiling() and query.device.type != "cpu":
        more = {
            "enable_gqa": enable_gqa,
            "seqused_k": seqused_k,
            "block_table": block_table,
            "num_splits": num_splits,
        }
        if not _TORCH_TAKES >= more.keys():  # torch 2.11 takes none of these
            more = {name: value for name, value in more.items() if value}
        return _torchs_own(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, return_aux=return_aux, scale=scale,
            window_size=window_size, **more,
        )  # fmt: skip
    check_heads(query, key, enable_gqa, block_table is not None)
    window_size = _torch_varlen._normalize_window_size(window_size)
    heads, head_dim = query.shape[-2:]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale

    # one row per sequence, as long as the longest: [sequences, max_q] and [sequences, max_k]
    query_rows, query_exists = token_numbers(cu_seq_q, max_q)
    key_rows, key_exists = key_numbers(key, cu_seq_k, seqused_k, block_table, max_k)
    if block_table is not None:
        key, value = key.flatten(0, 1), value.flatten(0, 1)  # [pages * page_size, shared_heads, head_dim]
    q = unpack(widen(query), query_rows, query_exists)  # [sequences, heads, max_q, head_dim]
    k = repeat_heads(unpack(widen(key), key_rows, key_exists), heads)
    v = repeat_heads(unpack(widen(value), key_rows, key_exists), heads)

    visible = visible_keys(query_exists, key_exists, *window_size)  # [sequences, 1, max_q, max_k]
    scores = torch.where(visible, torch.matmul(q, k.transpose(-2, -1)) * scale, -math.inf)
    out = torch.matmul(differentiable_weights(scores), v)  # [sequences, heads, max_q, head_dim]
    out = pack(out, cu_seq_q, query.shape[0], 0.0).to(query.dtype)
    if return_aux is None or not return_aux.lse:
        return out
    lse = pack(log_sum_exp(scores).unsqueeze(-1), cu_seq_q, query.shape[0], -math.inf)  # [tokens, heads, 1]
    return out, lse.squeeze(-1).transpose(0, 1)


def varlen_attn_out(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """out <- varlen_attn(query, key, value, ...); returns out, and lse where return_aux asks for it.

    Args:    out: written to; the others: as `varlen_attn`'s
    Shape:   out: as query; everything else as varlen_attn's
    dtype:   out may be of another dtype than query: the result is cast
    Raises:  as varlen_attn; RuntimeError when out is of another shape
    Source:  torch/nn/attention/varlen.py
    """
    result, lse = varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, return_aux=AuxRequest(lse=True), scale=scale,
        window_size=window_size, enable_gqa=enable_gqa, seqused_k=seqused_k, block_table=block_table,
        num_splits=num_splits,
    )  # fmt: skip
    out.copy_(result)
    return (out, lse) if return_aux is not None and return_aux.lse else out


def token_numbers(starts: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Which packed token stands at each place of each sequence, and whether there is one.

        starts = [0, 2, 5], longest = 3:   [[0, 1, 2], [2, 3, 4]],   [[True, True, False], [True, True, True]]

    Shape:   starts: [sequences + 1]   returns: two of [sequences, longest]
    """
    place = torch.arange(longest, device=starts.device)
    begin, end = starts[:-1].unsqueeze(-1), starts[1:].unsqueeze(-1)
    return begin + place, place < end - begin


def key_numbers(
    key: Tensor, starts: Tensor | None, used: Tensor | None, block_table: Tensor | None, longest: int
) -> tuple[Tensor, Tensor]:
    """token_numbers for keys, of which only the first few may be in use and which may lie in pages.

    Shape:   returns: two of [sequences, longest]
    """
    if block_table is not None:
        if used is None:
            raise ValueError("block_table requires seqused_k, the number of keys each sequence has")
        page_size = key.shape[1]
        place = torch.arange(longest, device=key.device)
        page = torch.clamp(place // page_size, max=block_table.shape[1] - 1)
        numbers = block_table[:, page] * page_size + place % page_size
        return numbers, place < used.unsqueeze(-1)
    if starts is None:
        raise ValueError("cu_seq_k may be None only with a block_table")
    numbers, exists = token_numbers(starts, longest)
    if used is not None:
        exists = exists & (torch.arange(longest, device=key.device) < used.unsqueeze(-1))
    return numbers, exists


def unpack(tokens: Tensor, numbers: Tensor, exists: Tensor) -> Tensor:
    """Packed tokens as one padded row per sequence; 0 where there is none.

    Shape:   tokens: [tokens, heads, dim]   numbers, exists: [sequences, longest]
             returns: [sequences, heads, longest, dim]
    """
    if tokens.shape[0] == 0:
        return tokens.new_zeros((*numbers.shape, *tokens.shape[1:])).transpose(1, 2)
    chosen = tokens.index_select(0, torch.where(exists, numbers, 0).flatten())
    rows = chosen.unflatten(0, numbers.shape)  # [sequences, longest, heads, dim]
    return torch.where(exists[..., None, None], rows, 0.0).transpose(1, 2)


def pack(rows: Tensor, starts: Tensor, tokens: int, nothing: float) -> Tensor:
    """unpack undone: the tokens of all rows end to end, `nothing` for those that belong to no sequence.

    Shape:   rows: [sequences, heads, longest, dim]   starts: [sequences + 1]   returns: [tokens, heads, dim]
    """
    longest = rows.shape[2]
    number = torch.arange(tokens, device=rows.device)
    if rows.numel() == 0:
        return rows.new_full((tokens, rows.shape[1], rows.shape[3]), nothing)
    sequence = (starts[1:] <= number.unsqueeze(-1)).sum(dim=-1).clamp(max=starts.shape[0] - 2)  # [tokens]
    place = number - starts[sequence]
    exists = (place >= 0) & (place < longest) & (number < starts[-1])
    chosen = torch.where(exists, sequence * longest + place, 0)
    packed = rows.transpose(1, 2).flatten(0, 1).index_select(0, chosen)
    return torch.where(exists[:, None, None], packed, nothing)


def visible_keys(query_exists: Tensor, key_exists: Tensor, left: int, right: int) -> Tensor:
    """Which keys each query sees: those of its sequence within the window around its own place.

    Shape:   query_exists: [sequences, max_q]   key_exists: [sequences, max_k]
             returns: [sequences, 1, max_q, max_k]
    """
    shift = key_exists.sum(dim=-1) - query_exists.sum(dim=-1)  # the last query stands at the last key
    query_place = torch.arange(query_exists.shape[1], device=shift.device).unsqueeze(-1)
    key_place = torch.arange(key_exists.shape[1], device=shift.device)
    distance = key_place - query_place - shift[:, None, None]  # [sequences, max_q, max_k]
    visible = query_exists.unsqueeze(-1) & key_exists.unsqueeze(-2)
    if left >= 0:
        visible = visible & (distance >= -left)
    if right >= 0:
        visible = visible & (distance <= right)
    return visible.unsqueeze(1)


def check_heads(query: Tensor, key: Tensor, enable_gqa: bool, in_pages: bool) -> None:
    """As many heads of keys as of queries, or with enable_gqa a divisor of that."""
    heads, shared_heads = query.size(1), key.size(2 if in_pages else 1)
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


__all__ = share_names(__name__, _torch_varlen)


def __getattr__(name: str) -> Any:
    """torch's own for what is not in __all__."""
    return getattr(_torch_varlen, name)
