"""Attention's forward kernel: blocked, with the online softmax.

For a block of queries the keys are visited block by block. With the running maximum m and sum l of each query

    m'  = max(m, max(scores))        weights = 2^(scores - m')        shrink = 2^(m - m')
    l'  = l * shrink + sum(weights)  out'    = out * shrink + weights @ value

and in the end out = out' / l', logsumexp = log(2^m' * l'). Scores are in units of log 2: the factor log2(e) is
in the packed queries, together with the scale.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao et al.,
        "FlashAttention" (2022). The NaN and full-mask behaviour is torch's.
"""

from __future__ import annotations

from functools import cache as remember
from typing import Any

from compiler_bridge.cpu.attention_blocks import (
    LANES,
    LN_2,
    LOG2_E,
    MINUS_INFINITY,
    TILE,
    add_bool_mask,
    add_number_mask,
    exp2_of_score,
    fill,
    fill_dropout_factors,
    float_from_bits,
    mask_causal,
    multiply_block,
    multiply_elements,
    pack_transposed,
    rows_as_float32,
    store_scaled_row,
)
from compiler_bridge.cpu.attention_slots import SLOT
from compiler_bridge.cpu.language import (
    f32,
    fma,
    helper,
    kernel,
    load,
    offset_pointer,
    outlined_helper,
    pointer,
    pointer_at,
    splat,
    store,
    where,
)
from compiler_bridge.cpu.mathlib import log

Q, K, V, MASK, SEED = (SLOT[name] for name in ("q", "k", "v", "mask", "seed"))
OUT, LOGSUMEXP, DROPOUT_BITS, KEPT_FACTOR_BITS = (
    SLOT[name] for name in ("out", "logsumexp", "dropout_bits", "kept_factor_bits")
)
HEADS, GROUP, SEQ, KV_SEQ = (SLOT[name] for name in ("heads", "group", "seq", "kv_seq"))
HEAD_DIM, VALUE_DIM, HEAD_COLS, VALUE_COLS = (
    SLOT[name] for name in ("head_dim", "value_dim", "head_cols", "value_cols")
)
SCALE_BITS, CAUSAL, QUERY_BLOCK, KEY_BLOCK, QUERY_BLOCKS = (
    SLOT[name] for name in ("scale_bits", "causal", "query_block", "key_block", "query_blocks")
)
PACK_KEYS, PACK_VALUES, SCRATCH, SCRATCH_BYTES = (
    SLOT[name] for name in ("pack_keys", "pack_values", "scratch", "scratch_bytes")
)


@outlined_helper
def update_softmax(scores, scores_row, keys, queries, largest, total, shrink):
    """One step of the online softmax: scores become weights; largest, total and shrink are per query.

    Shape: scores: [keys, scores_row]; queries is a multiple of LANES
    """
    for query in range(0, queries, LANES):
        before = load(largest, query, LANES)
        highest = before
        for key in range(keys):
            score = load(scores, key * scores_row + query, LANES)
            highest = where(score > highest, score, highest)
        # With every key masked so far the maximum is -inf; any finite number then gives weights of 0.
        shift = where(highest == MINUS_INFINITY, f32(0.0), highest)
        ratio = exp2_of_score(before - shift)
        partial = splat(f32(0.0), LANES)
        for key in range(keys):
            position = key * scores_row + query
            weight = exp2_of_score(load(scores, position, LANES) - shift)
            partial = partial + weight
            store(scores, position, weight)
        store(largest, query, highest)
        store(shrink, query, ratio)
        store(total, query, load(total, query, LANES) * ratio + partial)


@outlined_helper
def scale_rows(block, block_row, rows, factors):
    """block[row, :] *= factors[row]; block_row is a multiple of TILE."""
    for row in range(rows):
        factor = load(factors, row)
        for col in range(row * block_row, (row + 1) * block_row, TILE):
            store(block, col, load(block, col, TILE) * factor)


@outlined_helper
def store_rows(block, block_row, rows, cols, factors, target, row_stride, col_stride):
    """target[row, col] = block[row, col] * factors[row], in target's dtype."""
    for row in range(rows):
        store_scaled_row(block, row * block_row, cols, load(factors, row), target, row * row_stride, col_stride)


@outlined_helper
def finish_softmax(largest, total, inverse, queries, logsumexp):
    """inverse = 1 / total and logsumexp = ln(2) * largest + ln(total); a row without any weight gets 1 and 0."""
    for query in range(0, queries, LANES):
        weight = load(total, query, LANES)
        nothing = weight == f32(0.0)
        safe = where(nothing, f32(1.0), weight)
        store(inverse, query, f32(1.0) / safe)
        result = where(nothing, f32(0.0), fma(load(largest, query, LANES), LN_2, log(safe)))
        store(logsumexp, query, result, min(LANES, queries - query))


@helper
def block_of_task(task, blocks, causal):
    """Which block of queries: in order; for causal 0, last, 1, last - 1, ... so that any run costs the same."""
    index = task % blocks
    if causal == 0:
        return index
    return index // 2 if index % 2 == 0 else blocks - 1 - index // 2


@remember
def forward_kernel(dtype: str, mask_dtype: str | None, dropped: bool) -> Any:
    """The kernel for tensors of `dtype`; parallel over batch * heads * query blocks."""
    masked = mask_dtype is not None
    mask_storage = mask_dtype or "float32"
    add_mask = add_bool_mask if mask_dtype == "bool" else add_number_mask

    @kernel
    def attention_forward(tab, begin, end, thread):
        q, k, v = pointer(tab, Q, dtype), pointer(tab, K, dtype), pointer(tab, V, dtype)
        mask, out = pointer(tab, MASK, mask_storage), pointer(tab, OUT, dtype)
        query_block, key_block = tab[QUERY_BLOCK], tab[KEY_BLOCK]
        head_cols, value_cols = tab[HEAD_COLS], tab[VALUE_COLS]
        factor = float_from_bits(tab[SCALE_BITS]) * LOG2_E
        query_columns = pointer_at(tab[SCRATCH] + thread * tab[SCRATCH_BYTES], "float32")
        scores = offset_pointer(query_columns, head_cols * query_block)
        block_out = offset_pointer(scores, (key_block + 8) * query_block)
        largest = offset_pointer(block_out, query_block * value_cols)
        total = offset_pointer(largest, query_block)
        shrink = offset_pointer(total, query_block)
        packed_keys = offset_pointer(shrink, query_block)
        packed_values = offset_pointer(packed_keys, key_block * head_cols)
        factors = offset_pointer(packed_values, key_block * value_cols)
        square = offset_pointer(factors, (key_block + 8) * query_block)
        key_row = head_cols if tab[PACK_KEYS] != 0 else tab[K + 3]
        value_row = value_cols if tab[PACK_VALUES] != 0 else tab[V + 3]
        for task in range(begin, end):
            head = task // tab[QUERY_BLOCKS] % tab[HEADS]
            batch = task // tab[QUERY_BLOCKS] // tab[HEADS]
            first_query = block_of_task(task, tab[QUERY_BLOCKS], tab[CAUSAL]) * query_block
            queries = min(query_block, tab[SEQ] - first_query)
            lanes = (queries + TILE - 1) // TILE * TILE
            position = batch * tab[Q + 1] + head * tab[Q + 2] + first_query * tab[Q + 3]
            pack_transposed(offset_pointer(q, position), tab[Q + 3], tab[Q + 4], queries, tab[HEAD_DIM],
                            query_columns, query_block, factor)  # fmt: skip
            fill(largest, query_block, MINUS_INFINITY)
            fill(total, query_block, f32(0.0))
            fill(block_out, query_block * value_cols, f32(0.0))
            key_end = min(tab[KV_SEQ], first_query + queries) if tab[CAUSAL] != 0 else tab[KV_SEQ]
            key_base = batch * tab[K + 1] + head // tab[GROUP] * tab[K + 2]
            value_base = batch * tab[V + 1] + head // tab[GROUP] * tab[V + 2]
            for first_key in range(0, key_end, key_block):
                keys = min(key_block, key_end - first_key)
                key_rows = rows_as_float32(k, key_base + first_key * tab[K + 3], tab[K + 3], tab[K + 4], keys,
                                           tab[HEAD_DIM], packed_keys, head_cols, tab[PACK_KEYS])  # fmt: skip
                multiply_block(pointer_at(key_rows, "float32"), key_row, 1, query_columns, query_block, scores,
                               query_block, keys, lanes, tab[HEAD_DIM], False)  # fmt: skip
                if masked:
                    add_mask(scores, query_block, keys, queries, mask, first_key * tab[MASK + 4]
                             + batch * tab[MASK + 1] + head * tab[MASK + 2] + first_query * tab[MASK + 3],
                             tab[MASK + 3], tab[MASK + 4])  # fmt: skip
                if tab[CAUSAL] != 0 and first_key + keys > first_query + 1:
                    mask_causal(scores, query_block, keys, lanes, first_key, first_query)
                update_softmax(scores, query_block, keys, lanes, largest, total, shrink)
                if dropped:
                    index = ((batch * tab[HEADS] + head) * tab[SEQ] + first_query) * tab[KV_SEQ] + first_key
                    fill_dropout_factors(
                        factors, query_block, keys, queries, load(pointer(tab, SEED, "int64"), 0), index, tab[KV_SEQ],
                        float_from_bits(tab[DROPOUT_BITS]), float_from_bits(tab[KEPT_FACTOR_BITS]), square)  # fmt: skip
                    multiply_elements(scores, factors, keys * query_block)
                if first_key > 0:
                    scale_rows(block_out, value_cols, queries, shrink)
                value_rows = rows_as_float32(
                    v, value_base + first_key * tab[V + 3], tab[V + 3], tab[V + 4], keys, tab[VALUE_DIM],
                    packed_values, value_cols, tab[PACK_VALUES])  # fmt: skip
                multiply_block(scores, 1, query_block, pointer_at(value_rows, "float32"), value_row, block_out,
                               value_cols, queries, value_cols, keys, True)  # fmt: skip
            row = (batch * tab[HEADS] + head) * tab[SEQ] + first_query
            finish_softmax(largest, total, shrink, queries, offset_pointer(pointer(tab, LOGSUMEXP, "float32"), row))
            position = batch * tab[OUT + 1] + head * tab[OUT + 2] + first_query * tab[OUT + 3]
            store_rows(block_out, value_cols, queries, tab[VALUE_DIM], shrink, offset_pointer(out, position),
                       tab[OUT + 3], tab[OUT + 4])  # fmt: skip

    return attention_forward
