"""Attention's backward kernels: the weights are computed again from logsumexp, block by block.

    weights  = exp(scores - logsumexp)         dweights = grad_out @ value^T
    dscores  = weights * (dweights - delta)    delta    = sum(grad_out * out)
    dvalue  += weights^T @ grad_out            dkey    += dscores^T @ query * scale
    dquery  += dscores @ key * scale           dmask   += dscores

One task owns a key head (with a mask gradient shared by heads or batches, all that share it), so that dkey
and dvalue are summed by one thread in a fixed order. When there are fewer key heads than threads the query
blocks of a head are dealt out to `chunks` tasks, each with partial sums of its own, which
`attention_backward_finish` adds up.

Source: Dao et al., "FlashAttention" (2022), with the loops over queries outside.
"""

# pyright: basic, reportCallIssue=false
# Numba gives these functions their types.

from __future__ import annotations

from functools import cache as remember
from typing import Any

from compiler_bridge.cpu.attention_blocks import (
    LANES,
    LOG2_E,
    add_to_row,
    exp2_of_score,
    fill,
    float_from_bits,
    multiply_block,
    multiply_elements,
    pack_transposed,
    store_scaled_row,
    whole_vectors,
)
from compiler_bridge.cpu.attention_scores import (
    area,
    define_score_block,
    draw_factors,
    keys_as_float32,
    keys_seen,
    pack_queries,
    row_stride,
    rows_as_float32,
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
    reduce_add,
    splat,
    store,
    transpose8,
)

Q, K, V, OUT, LOGSUMEXP = slots("q", "k", "v", "out", "logsumexp")
GRAD_OUT, DQ, DK, DV, DMASK, DMASK_SUMS = slots("grad_out", "dq", "dk", "dv", "dmask", "dmask_sums")
BATCH, HEADS, GROUP, SEQ, KV_SEQ = slots("batch", "heads", "group", "seq", "kv_seq")
HEAD_DIM, VALUE_DIM, HEAD_COLS, VALUE_COLS = slots("head_dim", "value_dim", "head_cols", "value_cols")
SCALE_BITS, QUERY_BLOCK, KEY_BLOCK, QUERY_BLOCKS = slots(
    "scale_bits", "query_block", "key_block", "query_blocks"
)
PACK_QUERIES, PACK_KEYS, PACK_VALUES, PACK_GRADS = slots(
    "pack_queries", "pack_keys", "pack_values", "pack_grads"
)
CHUNKS, BATCH_TASKS, HEAD_TASKS, MASK_SEQ, MASK_KV_SEQ = slots(
    "chunks", "batch_tasks", "head_tasks", "mask_seq", "mask_kv_seq"
)
SCRATCH, SCRATCH_BYTES, PARTIAL_DK, PARTIAL_DV = slots("scratch", "scratch_bytes", "partial_dk", "partial_dv")
GRAD_COLUMNS, SCORES, DSCORES, DQUERY = slots("grad_columns", "scores", "dscores", "block_out")
SUMS_OF_EXP, DELTA, PACKED_QUERIES, PACKED_GRADS = slots("total", "delta", "packed_queries", "packed_grads")


@outlined_helper
def row_products(a, a_row, a_col, b, b_row, b_col, rows, cols, target, padded_rows):
    """target[row] = sum over columns of a[row, :] * b[row, :]; 0 from `rows` up to `padded_rows`."""
    whole = whole_vectors(cols, a_col) if b_col == 1 else 0
    for row in range(rows):
        partial = splat(f32(0.0), 8)
        for col in range(0, whole, 8):
            partial = fma(load(a, row * a_row + col, 8), load(b, row * b_row + col, 8), partial)
        total = reduce_add(partial)
        for col in range(whole, cols):
            total = fma(load(a, row * a_row + col * a_col), load(b, row * b_row + col * b_col), total)
        store(target, row, total)
    for row in range(rows, padded_rows):
        store(target, row, f32(0.0))


@outlined_helper
def copy_padded(source, count, target, padded_count):
    """target = source, then zeros."""
    for index in range(count):
        store(target, index, load(source, index))
    for index in range(count, padded_count):
        store(target, index, f32(0.0))


@outlined_helper
def differentiate_softmax(scores, dweights, row, keys, queries, logsumexp, delta, factor):
    """scores = weights = 2^(scores - logsumexp * log2(e)); dweights = weights * (dweights - delta) * factor.

    Shape: scores, dweights: [keys, row]; logsumexp, delta: [queries], a multiple of LANES
    """
    for query in range(0, queries, LANES):
        shift = -load(logsumexp, query, LANES)
        mean = load(delta, query, LANES)
        for key in range(keys):
            position = key * row + query
            weight = exp2_of_score(fma(shift, LOG2_E, load(scores, position, LANES)))
            store(scores, position, weight)
            store(dweights, position, weight * (load(dweights, position, LANES) - mean) * factor)


@outlined_helper
def add_mask_gradient(dscores, dscores_row, keys, queries, dmask, dmask_row):
    """dmask[query, key] += dscores[key, query]; both float32, by 8 x 8 transposes."""
    whole_keys, whole_queries = keys // 8 * 8, queries // 8 * 8
    for query in range(0, whole_queries, 8):
        for key in range(0, whole_keys, 8):
            p = key * dscores_row + query
            rows = transpose8(
                load(dscores, p, 8), load(dscores, p + dscores_row, 8),
                load(dscores, p + 2 * dscores_row, 8), load(dscores, p + 3 * dscores_row, 8),
                load(dscores, p + 4 * dscores_row, 8), load(dscores, p + 5 * dscores_row, 8),
                load(dscores, p + 6 * dscores_row, 8), load(dscores, p + 7 * dscores_row, 8),
            )  # fmt: skip
            target = query * dmask_row + key
            add_to_row(dmask, target, rows[0])
            add_to_row(dmask, target + dmask_row, rows[1])
            add_to_row(dmask, target + 2 * dmask_row, rows[2])
            add_to_row(dmask, target + 3 * dmask_row, rows[3])
            add_to_row(dmask, target + 4 * dmask_row, rows[4])
            add_to_row(dmask, target + 5 * dmask_row, rows[5])
            add_to_row(dmask, target + 6 * dmask_row, rows[6])
            add_to_row(dmask, target + 7 * dmask_row, rows[7])
    for query in range(queries):
        for key in range(whole_keys if query < whole_queries else 0, keys):
            target = query * dmask_row + key
            store(dmask, target, load(dmask, target) + load(dscores, key * dscores_row + query))


@outlined_helper
def scale_block(block, count, factor):
    """block[0 .. count) *= factor; count is a multiple of 8."""
    for position in range(0, count, 8):
        store(block, position, load(block, position, 8) * factor)


@outlined_helper
def fill_rows(block, row_stride, rows, cols, value):
    """block[row, 0 .. cols) = value; cols is a multiple of 8."""
    for row in range(rows):
        fill(offset_pointer(block, row * row_stride), cols, value)


@outlined_helper
def add_to_dmask(tab, batch, head, first_query, queries, first_key, keys, scratch):
    """dmask_sums += dscores, then dscores *= scale: what the scores are to query and key."""
    dscores, row = area(tab, scratch, DSCORES), tab[QUERY_BLOCK]
    sums = rows_of(tab, pointer(tab, DMASK_SUMS, "float32"), DMASK_SUMS, batch, head, first_query)
    add_mask_gradient(dscores, row, keys, queries, offset_pointer(sums, first_key), tab[DMASK_SUMS + 3])
    scale_block(dscores, keys * row, float_from_bits(tab[SCALE_BITS]))


@helper
def own_rows(tab, slot, partial_slot, cols, batch, kv_head, chunk):
    """Where a task sums up dkey or dvalue of a head: the result or a part of its own; and the row stride."""
    kv_heads = tab[HEADS] // tab[GROUP]
    if tab[partial_slot] != 0:
        part = (chunk * tab[BATCH] + batch) * kv_heads + kv_head
        return offset_pointer(pointer_at(tab[partial_slot], "float32"), part * tab[KV_SEQ] * cols), cols
    rows = offset_pointer(pointer(tab, slot, "float32"), batch * tab[slot + 1] + kv_head * tab[slot + 2])
    return rows, tab[slot + 3]


@remember
def define_prepare_block(dtype: str) -> Any:
    """`prepare_block` for query, key and value of `dtype`; out and its gradient are float32."""

    @outlined_helper
    def prepare_block(tab, batch, head, first_query, queries, scratch):
        """Pack a block of queries and of grad_out, both ways; delta, logsumexp; dquery = 0.

        Returns the addresses of queries and grad_out as float32 rows.
        """
        row, value_dim = tab[QUERY_BLOCK], tab[VALUE_DIM]
        q = pointer(tab, Q, dtype)
        query_rows = rows_of(tab, q, Q, batch, head, first_query)
        grad_rows = rows_of(tab, pointer(tab, GRAD_OUT, "float32"), GRAD_OUT, batch, head, first_query)
        out_rows = rows_of(tab, pointer(tab, OUT, "float32"), OUT, batch, head, first_query)
        pack_queries(tab, q, batch, head, first_query, queries, scratch)
        pack_transposed(grad_rows, tab[GRAD_OUT + 3], tab[GRAD_OUT + 4], queries, value_dim,
                        area(tab, scratch, GRAD_COLUMNS), row, f32(1.0))  # fmt: skip
        row_products(grad_rows, tab[GRAD_OUT + 3], tab[GRAD_OUT + 4], out_rows, tab[OUT + 3], tab[OUT + 4],
                     queries, value_dim, area(tab, scratch, DELTA), row)  # fmt: skip
        position = (batch * tab[HEADS] + head) * tab[SEQ] + first_query
        copy_padded(offset_pointer(pointer(tab, LOGSUMEXP, "float32"), position), queries,
                    area(tab, scratch, SUMS_OF_EXP), row)  # fmt: skip
        fill(area(tab, scratch, DQUERY), row * tab[HEAD_COLS], f32(0.0))
        return (
            rows_as_float32(tab, query_rows, Q, queries, tab[HEAD_DIM], area(tab, scratch, PACKED_QUERIES),
                            tab[HEAD_COLS], tab[PACK_QUERIES]),
            rows_as_float32(tab, grad_rows, GRAD_OUT, queries, value_dim, area(tab, scratch, PACKED_GRADS),
                            tab[VALUE_COLS], tab[PACK_GRADS]),
        )  # fmt: skip

    return prepare_block


@remember
def define_visit_keys(dtype: str, mask_dtype: str | None, dropped: bool, mask_grad: bool) -> Any:
    """`visit_keys` of the backward pass for one combination of features."""
    score_block = define_score_block(mask_dtype)

    @outlined_helper
    def visit_keys(tab, batch, head, first_query, queries, query_rows, grad_rows, first_key, keys,
                   dkey, dkey_row, dvalue, dvalue_row, scratch):  # fmt: skip
        """One block of queries against one block of keys: what they add to dvalue, dkey, dquery and dmask."""
        row, lanes, head_cols, value_cols = (
            tab[QUERY_BLOCK], whole_tiles(queries), tab[HEAD_COLS], tab[VALUE_COLS])  # fmt: skip
        scores, dscores = area(tab, scratch, SCORES), area(tab, scratch, DSCORES)
        key_rows = keys_as_float32(tab, pointer(tab, K, dtype), batch, head, first_key, keys, scratch)
        value_rows = values_as_float32(tab, pointer(tab, V, dtype), batch, head, first_key, keys, scratch)
        score_block(tab, key_rows, batch, head, first_query, queries, first_key, keys, scratch)
        multiply_block(value_rows, row_stride(tab, V, value_cols, tab[PACK_VALUES]), 1,
                       area(tab, scratch, GRAD_COLUMNS), row, dscores, row, keys, lanes, tab[VALUE_DIM],
                       False)  # fmt: skip
        if dropped:
            factors = draw_factors(tab, batch, head, first_query, queries, first_key, keys, scratch)
            multiply_elements(dscores, factors, keys * row)
        factor = f32(1.0) if mask_grad else float_from_bits(tab[SCALE_BITS])
        differentiate_softmax(scores, dscores, row, keys, lanes, area(tab, scratch, SUMS_OF_EXP),
                              area(tab, scratch, DELTA), factor)  # fmt: skip
        if mask_grad:
            add_to_dmask(tab, batch, head, first_query, queries, first_key, keys, scratch)
        if dropped:
            multiply_elements(scores, factors, keys * row)
        multiply_block(scores, row, 1, grad_rows, row_stride(tab, GRAD_OUT, value_cols, tab[PACK_GRADS]),
                       offset_pointer(dvalue, first_key * dvalue_row), dvalue_row, keys, value_cols, queries,
                       True)  # fmt: skip
        multiply_block(dscores, row, 1, query_rows, row_stride(tab, Q, head_cols, tab[PACK_QUERIES]),
                       offset_pointer(dkey, first_key * dkey_row), dkey_row, keys, head_cols, queries,
                       True)  # fmt: skip
        multiply_block(dscores, 1, row, key_rows, row_stride(tab, K, head_cols, tab[PACK_KEYS]),
                       area(tab, scratch, DQUERY), head_cols, queries, head_cols, keys, True)  # fmt: skip

    return visit_keys


@remember
def backward_kernel(dtype: str, mask_dtype: str | None, dropped: bool, mask_grad: bool) -> Any:
    """The kernel for tensors of `dtype`; parallel over batch tasks * head tasks * chunks."""
    prepare_block = define_prepare_block(dtype)
    visit_keys = define_visit_keys(dtype, mask_dtype, dropped, mask_grad)

    @outlined_helper
    def differentiate_head(tab, batch, kv_head, chunk, scratch):
        """dkey and dvalue of one key head, and dquery of the query heads it serves, for a chunk's queries."""
        dkey, dkey_row = own_rows(tab, DK, PARTIAL_DK, tab[HEAD_COLS], batch, kv_head, chunk)
        dvalue, dvalue_row = own_rows(tab, DV, PARTIAL_DV, tab[VALUE_COLS], batch, kv_head, chunk)
        fill_rows(dkey, dkey_row, tab[KV_SEQ], tab[HEAD_COLS], f32(0.0))
        fill_rows(dvalue, dvalue_row, tab[KV_SEQ], tab[VALUE_COLS], f32(0.0))
        blocks = (tab[QUERY_BLOCKS] - chunk + tab[CHUNKS] - 1) // tab[CHUNKS]
        for step in range(tab[GROUP] * blocks):
            head = kv_head * tab[GROUP] + step // blocks
            first_query = (chunk + step % blocks * tab[CHUNKS]) * tab[QUERY_BLOCK]
            queries = min(tab[QUERY_BLOCK], tab[SEQ] - first_query)
            query_rows, grad_rows = prepare_block(tab, batch, head, first_query, queries, scratch)
            key_end = keys_seen(tab, first_query, queries)
            for first_key in range(0, key_end, tab[KEY_BLOCK]):
                keys = min(tab[KEY_BLOCK], key_end - first_key)
                visit_keys(tab, batch, head, first_query, queries, query_rows, grad_rows, first_key, keys,
                           dkey, dkey_row, dvalue, dvalue_row, scratch)  # fmt: skip
            dq = rows_of(tab, pointer(tab, DQ, dtype), DQ, batch, head, first_query)
            for query in range(queries):
                store_scaled_row(area(tab, scratch, DQUERY), query * tab[HEAD_COLS], tab[HEAD_DIM], f32(1.0),
                                 dq, query * tab[DQ + 3], tab[DQ + 4])  # fmt: skip

    @kernel
    def attention_backward(tab, begin, end, thread):
        scratch = pointer_at(tab[SCRATCH] + thread * tab[SCRATCH_BYTES], "float32")
        batches, heads = tab[BATCH] // tab[BATCH_TASKS], tab[HEADS] // tab[GROUP] // tab[HEAD_TASKS]
        for task in range(begin, end):
            chunk = task % tab[CHUNKS]
            first_head = task // tab[CHUNKS] % tab[HEAD_TASKS] * heads
            first_batch = task // tab[CHUNKS] // tab[HEAD_TASKS] * batches
            for pair in range(batches * heads):
                batch, kv_head = first_batch + pair // heads, first_head + pair % heads
                differentiate_head(tab, batch, kv_head, chunk, scratch)

    return attention_backward


@outlined_helper
def finish_rows(partial, chunks, chunk_stride, cols, target, target_position, col_stride, row_cols):
    """target[col] = sum over chunks of partial[chunk, col]; the sums stay in chunk 0."""
    for col in range(0, row_cols, 8):
        total = load(partial, col, 8)
        for chunk in range(1, chunks):
            total = total + load(partial, chunk * chunk_stride + col, 8)
        store(partial, col, total)
    store_scaled_row(partial, 0, cols, f32(1.0), target, target_position, col_stride)


@remember
def finish_kernel(dtype: str) -> Any:
    """Adds up partial sums of dkey and dvalue and stores them as `dtype`; parallel over rows of both."""

    @kernel
    def attention_backward_finish(tab, begin, end, thread):
        dk, dv = pointer(tab, DK, dtype), pointer(tab, DV, dtype)
        kv_heads, kv_seq = tab[HEADS] // tab[GROUP], tab[KV_SEQ]
        for task in range(begin, end):
            row = task % kv_seq
            kv_head = task // kv_seq % kv_heads
            batch = task // kv_seq // kv_heads
            rows = tab[BATCH] * kv_heads * kv_seq
            if tab[PARTIAL_DK] != 0:
                partial = pointer_at(tab[PARTIAL_DK] + 4 * task * tab[HEAD_COLS], "float32")
                finish_rows(partial, tab[CHUNKS], rows * tab[HEAD_COLS], tab[HEAD_DIM], dk,
                            batch * tab[DK + 1] + kv_head * tab[DK + 2] + row * tab[DK + 3], tab[DK + 4],
                            tab[HEAD_COLS])  # fmt: skip
            if tab[PARTIAL_DV] != 0:
                partial = pointer_at(tab[PARTIAL_DV] + 4 * task * tab[VALUE_COLS], "float32")
                finish_rows(partial, tab[CHUNKS], rows * tab[VALUE_COLS], tab[VALUE_DIM], dv,
                            batch * tab[DV + 1] + kv_head * tab[DV + 2] + row * tab[DV + 3], tab[DV + 4],
                            tab[VALUE_COLS])  # fmt: skip

    return attention_backward_finish


@kernel
def attention_mask_clear(tab, begin, end, thread):
    """dmask_sums = 0; parallel over its rows."""
    sums = pointer(tab, DMASK_SUMS, "float32")
    for row in range(begin, end):
        for key in range(0, tab[KV_SEQ], 8):
            store(sums, row * tab[KV_SEQ] + key, splat(f32(0.0), 8), min(8, tab[KV_SEQ] - key))


@remember
def mask_finish_kernel(dtype: str) -> Any:
    """dmask = dmask_sums as `dtype`, summed over the rows or columns the mask broadcasts along.

    Parallel over the rows of dmask, which is contiguous.
    """

    @kernel
    def attention_mask_finish(tab, begin, end, thread):
        sums, dmask = pointer(tab, DMASK_SUMS, "float32"), pointer(tab, DMASK, dtype)
        rows = tab[SEQ] if tab[MASK_SEQ] == 1 else 1
        cols = tab[KV_SEQ] if tab[MASK_KV_SEQ] == 1 else 1
        for task in range(begin, end):
            for key in range(tab[MASK_KV_SEQ]):
                total = f32(0.0)
                for row in range(rows):
                    for col in range(cols):
                        total = total + load(sums, (task * rows + row) * tab[KV_SEQ] + key + col)
                store(dmask, task * tab[MASK_KV_SEQ] + key, total)

    return attention_mask_finish
