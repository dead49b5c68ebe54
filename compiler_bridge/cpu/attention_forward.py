"""Attention's forward kernel: blocked, with the online softmax.

For a block of queries the keys are visited block by block. With the running maximum m and sum l of each query

    m'  = max(m, max(scores))        weights = 2^(scores - m')        shrink = 2^(m - m')
    l'  = l * shrink + sum(weights)  out'    = out * shrink + weights @ value

and in the end out = out' / l', logsumexp = log(2^m' * l'). Scores are in units of log 2: the factor log2(e)
is in the packed queries, together with the scale.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Dao et al.,
        "FlashAttention" (2022). The NaN and full-mask behaviour is torch's.
"""

# pyright: basic, reportCallIssue=false
# Numba gives these functions their types.

from __future__ import annotations

from functools import cache as remember
from typing import Any

from compiler_bridge.cpu.attention_blocks import (
    LANES,
    LN_2,
    MINUS_INFINITY,
    TILE,
    exp2_of_score,
    fill,
    multiply_block,
    multiply_elements,
    store_scaled_row,
)
from compiler_bridge.cpu.attention_scores import (
    area,
    define_score_block,
    draw_factors,
    keys_as_float32,
    keys_seen,
    pack_queries,
    row_stride,
    rows_of,
    values_as_float32,
    whole_tiles,
)
from compiler_bridge.cpu.attention_slots import slots
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

Q, K, V, OUT, LOGSUMEXP = slots("q", "k", "v", "out", "logsumexp")
HEADS, SEQ, VALUE_DIM, CAUSAL = slots("heads", "seq", "value_dim", "causal")
QUERY_BLOCK, KEY_BLOCK, QUERY_BLOCKS = slots("query_block", "key_block", "query_blocks")
VALUE_COLS, PACK_VALUES, SCRATCH, SCRATCH_BYTES = slots(
    "value_cols", "pack_values", "scratch", "scratch_bytes"
)
SCORES, BLOCK_OUT, LARGEST, TOTAL, SHRINK = slots("scores", "block_out", "largest", "total", "shrink")


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
        store_scaled_row(block, row * block_row, cols, load(factors, row), target, row * row_stride,
                         col_stride)  # fmt: skip


@outlined_helper
def finish_softmax(largest, total, inverse, queries, logsumexp):
    """inverse = 1 / total, logsumexp = ln(2) * largest + ln(total); a row without any weight gets 1 and 0."""
    for query in range(0, queries, LANES):
        weight = load(total, query, LANES)
        nothing = weight == f32(0.0)
        safe = where(nothing, f32(1.0), weight)
        store(inverse, query, f32(1.0) / safe)
        result = where(nothing, f32(0.0), fma(load(largest, query, LANES), LN_2, log(safe)))
        store(logsumexp, query, result, min(LANES, queries - query))


@helper
def block_of_task(task, blocks, causal):
    """Which block of queries: in order; causal 0, last, 1, last - 1 ... so that stretches cost the same."""
    index = task % blocks
    if causal == 0:
        return index
    return index // 2 if index % 2 == 0 else blocks - 1 - index // 2


@remember
def forward_kernel(dtype: str, mask_dtype: str | None, dropped: bool) -> Any:
    """The kernel for tensors of `dtype`; parallel over batch * heads * query blocks."""
    score_block = define_score_block(mask_dtype)

    @outlined_helper
    def visit_keys(tab, batch, head, first_query, queries, first_key, keys, scratch):
        """One block of keys: scores, one step of the online softmax, and its part of the sum of values."""
        k, v = pointer(tab, K, dtype), pointer(tab, V, dtype)
        row, cols = tab[QUERY_BLOCK], tab[VALUE_COLS]
        scores, block_out = area(tab, scratch, SCORES), area(tab, scratch, BLOCK_OUT)
        shrink = area(tab, scratch, SHRINK)
        key_rows = keys_as_float32(tab, k, batch, head, first_key, keys, scratch)
        score_block(tab, key_rows, batch, head, first_query, queries, first_key, keys, scratch)
        update_softmax(scores, row, keys, whole_tiles(queries), area(tab, scratch, LARGEST),
                       area(tab, scratch, TOTAL), shrink)  # fmt: skip
        if dropped:
            factors = draw_factors(tab, batch, head, first_query, queries, first_key, keys, scratch)
            multiply_elements(scores, factors, keys * row)
        if first_key > 0:
            scale_rows(block_out, cols, queries, shrink)
        value_rows = values_as_float32(tab, v, batch, head, first_key, keys, scratch)
        value_row = row_stride(tab, V, cols, tab[PACK_VALUES])
        multiply_block(scores, 1, row, value_rows, value_row, block_out, cols, queries, cols, keys, True)

    @kernel
    def attention_forward(tab, begin, end, thread):
        q, out = pointer(tab, Q, dtype), pointer(tab, OUT, dtype)
        scratch = pointer_at(tab[SCRATCH] + thread * tab[SCRATCH_BYTES], "float32")
        block_out, shrink = area(tab, scratch, BLOCK_OUT), area(tab, scratch, SHRINK)
        largest, total = area(tab, scratch, LARGEST), area(tab, scratch, TOTAL)
        row, cols = tab[QUERY_BLOCK], tab[VALUE_COLS]
        for task in range(begin, end):
            head = task // tab[QUERY_BLOCKS] % tab[HEADS]
            batch = task // tab[QUERY_BLOCKS] // tab[HEADS]
            first_query = block_of_task(task, tab[QUERY_BLOCKS], tab[CAUSAL]) * row
            queries = min(row, tab[SEQ] - first_query)
            pack_queries(tab, q, batch, head, first_query, queries, scratch)
            fill(largest, row, MINUS_INFINITY)
            fill(total, row, f32(0.0))
            fill(block_out, row * cols, f32(0.0))
            key_end = keys_seen(tab, first_query, queries)
            for first_key in range(0, key_end, tab[KEY_BLOCK]):
                keys = min(tab[KEY_BLOCK], key_end - first_key)
                visit_keys(tab, batch, head, first_query, queries, first_key, keys, scratch)
            position = (batch * tab[HEADS] + head) * tab[SEQ] + first_query
            logsumexp = offset_pointer(pointer(tab, LOGSUMEXP, "float32"), position)
            finish_softmax(largest, total, shrink, queries, logsumexp)
            target = rows_of(tab, out, OUT, batch, head, first_query)
            store_rows(block_out, cols, queries, tab[VALUE_DIM], shrink, target, tab[OUT + 3], tab[OUT + 4])

    return attention_forward
