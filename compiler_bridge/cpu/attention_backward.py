"""Attention's backward kernels: the weights are computed again from logsumexp, block by block.

    weights  = exp(scores - logsumexp)         dweights = grad_out @ value^T
    dscores  = weights * (dweights - delta)    delta    = sum(grad_out * out)
    dvalue  += weights^T @ grad_out            dkey    += dscores^T @ query * scale
    dquery  += dscores @ key * scale           dmask   += dscores

One task owns a key head (and, for a mask gradient shared between heads or batches, all that share it), so that
dkey and dvalue are summed by one thread in a fixed order. When there are fewer key heads than threads the
query blocks of a head are dealt out to `chunks` tasks, each with partial sums of its own, which
`attention_backward_finish` adds up.

Source: Dao et al., "FlashAttention" (2022), with the loops over queries outside.
"""

from __future__ import annotations

from functools import cache as remember
from typing import Any

from compiler_bridge.cpu.attention_blocks import (
    LANES,
    LOG2_E,
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
    reduce_add,
    splat,
    store,
    transpose8,
)

Q, K, V, MASK, SEED = (SLOT[name] for name in ("q", "k", "v", "mask", "seed"))
OUT, LOGSUMEXP, DROPOUT_BITS, KEPT_FACTOR_BITS = (
    SLOT[name] for name in ("out", "logsumexp", "dropout_bits", "kept_factor_bits")
)
GRAD_OUT, DQ, DK, DV = (SLOT[name] for name in ("grad_out", "dq", "dk", "dv"))
DMASK, DMASK_SUMS, MASK_SEQ, MASK_KV_SEQ = (SLOT[name] for name in ("dmask", "dmask_sums", "mask_seq", "mask_kv_seq"))
BATCH, HEADS, GROUP, SEQ, KV_SEQ = (SLOT[name] for name in ("batch", "heads", "group", "seq", "kv_seq"))
HEAD_DIM, VALUE_DIM, HEAD_COLS, VALUE_COLS = (
    SLOT[name] for name in ("head_dim", "value_dim", "head_cols", "value_cols")
)
SCALE_BITS, CAUSAL, QUERY_BLOCK, KEY_BLOCK, QUERY_BLOCKS = (
    SLOT[name] for name in ("scale_bits", "causal", "query_block", "key_block", "query_blocks")
)
PACK_QUERIES, PACK_KEYS, PACK_VALUES, PACK_GRADS = (
    SLOT[name] for name in ("pack_queries", "pack_keys", "pack_values", "pack_grads")
)
SCRATCH, SCRATCH_BYTES, CHUNKS, BATCH_TASKS, HEAD_TASKS, PARTIAL_DK, PARTIAL_DV = (
    SLOT[name]
    for name in ("scratch", "scratch_bytes", "chunks", "batch_tasks", "head_tasks", "partial_dk", "partial_dv")
)


@outlined_helper
def row_products(a, a_row, a_col, b, b_row, b_col, rows, cols, target, padded_rows):
    """target[row] = sum over columns of a[row, :] * b[row, :]; 0 from `rows` up to `padded_rows`."""
    for row in range(rows):
        total = f32(0.0)
        if a_col == 1 and b_col == 1:
            partial = splat(f32(0.0), 8)
            for col in range(0, cols, 8):
                count = min(8, cols - col)
                partial = partial + load(a, row * a_row + col, 8, count) * load(b, row * b_row + col, 8, count)
            total = reduce_add(partial)
        else:
            for col in range(cols):
                total = total + load(a, row * a_row + col * a_col) * load(b, row * b_row + col * b_col)
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
    """scores become weights = 2^(scores - logsumexp * log2(e)), dweights weights * (dweights - delta) * factor.

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
    for query in range(0, queries, 8):
        for key in range(0, keys, 8):
            count = min(8, keys - key)
            p = key * dscores_row + query
            rows = transpose8(
                load(dscores, p, 8), load(dscores, p + dscores_row, 8),
                load(dscores, p + 2 * dscores_row, 8), load(dscores, p + 3 * dscores_row, 8),
                load(dscores, p + 4 * dscores_row, 8), load(dscores, p + 5 * dscores_row, 8),
                load(dscores, p + 6 * dscores_row, 8), load(dscores, p + 7 * dscores_row, 8),
            )  # fmt: skip
            last = queries - query - 1
            target = query * dmask_row + key
            add_to_mask_row(dmask, target, count, rows[0])
            if last > 0:
                add_to_mask_row(dmask, target + dmask_row, count, rows[1])
            if last > 1:
                add_to_mask_row(dmask, target + 2 * dmask_row, count, rows[2])
            if last > 2:
                add_to_mask_row(dmask, target + 3 * dmask_row, count, rows[3])
            if last > 3:
                add_to_mask_row(dmask, target + 4 * dmask_row, count, rows[4])
            if last > 4:
                add_to_mask_row(dmask, target + 5 * dmask_row, count, rows[5])
            if last > 5:
                add_to_mask_row(dmask, target + 6 * dmask_row, count, rows[6])
            if last > 6:
                add_to_mask_row(dmask, target + 7 * dmask_row, count, rows[7])


@helper
def add_to_mask_row(dmask, position, count, values):
    store(dmask, position, load(dmask, position, 8, count) + values, count)


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


@remember
def backward_kernel(dtype: str, mask_dtype: str | None, dropped: bool, mask_grad: bool) -> Any:
    """The kernel for tensors of `dtype`; parallel over batch tasks * head tasks * chunks."""
    masked = mask_dtype is not None
    mask_storage = mask_dtype or "float32"
    add_mask = add_bool_mask if mask_dtype == "bool" else add_number_mask

    @outlined_helper
    def accumulate_block(tab, batch, head, first_query, dkey, dkey_row, dvalue, dvalue_row, scratch):
        """One block of queries against every key it sees: its dquery, and its part of dkey and dvalue."""
        q, k, v = pointer(tab, Q, dtype), pointer(tab, K, dtype), pointer(tab, V, dtype)
        grad_out, out, dq = pointer(tab, GRAD_OUT, dtype), pointer(tab, OUT, dtype), pointer(tab, DQ, dtype)
        query_block, key_block = tab[QUERY_BLOCK], tab[KEY_BLOCK]
        head_dim, value_dim, head_cols, value_cols = tab[HEAD_DIM], tab[VALUE_DIM], tab[HEAD_COLS], tab[VALUE_COLS]
        scale = float_from_bits(tab[SCALE_BITS])
        query_columns = scratch
        grad_columns = offset_pointer(query_columns, head_cols * query_block)
        scores = offset_pointer(grad_columns, value_cols * query_block)
        dscores = offset_pointer(scores, (key_block + 8) * query_block)
        dquery = offset_pointer(dscores, (key_block + 8) * query_block)
        logsumexp = offset_pointer(dquery, query_block * head_cols)
        delta = offset_pointer(logsumexp, query_block)
        packed_queries = offset_pointer(delta, query_block)
        packed_grads = offset_pointer(packed_queries, query_block * head_cols)
        packed_keys = offset_pointer(packed_grads, query_block * value_cols)
        packed_values = offset_pointer(packed_keys, key_block * head_cols)
        factors = offset_pointer(packed_values, key_block * value_cols)
        square = offset_pointer(factors, (key_block + 8) * query_block)
        query_row = head_cols if tab[PACK_QUERIES] != 0 else tab[Q + 3]
        grad_row = value_cols if tab[PACK_GRADS] != 0 else tab[GRAD_OUT + 3]
        key_row = head_cols if tab[PACK_KEYS] != 0 else tab[K + 3]
        value_row = value_cols if tab[PACK_VALUES] != 0 else tab[V + 3]

        queries = min(query_block, tab[SEQ] - first_query)
        lanes = (queries + TILE - 1) // TILE * TILE
        q_position = batch * tab[Q + 1] + head * tab[Q + 2] + first_query * tab[Q + 3]
        grad_position = batch * tab[GRAD_OUT + 1] + head * tab[GRAD_OUT + 2] + first_query * tab[GRAD_OUT + 3]
        out_position = batch * tab[OUT + 1] + head * tab[OUT + 2] + first_query * tab[OUT + 3]
        dq_position = batch * tab[DQ + 1] + head * tab[DQ + 2] + first_query * tab[DQ + 3]
        key_base = batch * tab[K + 1] + head // tab[GROUP] * tab[K + 2]
        value_base = batch * tab[V + 1] + head // tab[GROUP] * tab[V + 2]
        pack_transposed(offset_pointer(q, q_position), tab[Q + 3], tab[Q + 4], queries, head_dim,
                        query_columns, query_block, scale * LOG2_E)  # fmt: skip
        pack_transposed(offset_pointer(grad_out, grad_position), tab[GRAD_OUT + 3], tab[GRAD_OUT + 4], queries,
                        value_dim, grad_columns, query_block, f32(1.0))  # fmt: skip
        query_rows = pointer_at(rows_as_float32(q, q_position, tab[Q + 3], tab[Q + 4], queries, head_dim,
                                                packed_queries, head_cols, tab[PACK_QUERIES]), "float32")  # fmt: skip
        grad_rows = pointer_at(rows_as_float32(grad_out, grad_position, tab[GRAD_OUT + 3], tab[GRAD_OUT + 4],
                                               queries, value_dim, packed_grads, value_cols,
                                               tab[PACK_GRADS]), "float32")  # fmt: skip
        row_products(offset_pointer(grad_out, grad_position), tab[GRAD_OUT + 3], tab[GRAD_OUT + 4],
                     offset_pointer(out, out_position), tab[OUT + 3], tab[OUT + 4], queries, value_dim, delta,
                     query_block)  # fmt: skip
        row = (batch * tab[HEADS] + head) * tab[SEQ] + first_query
        copy_padded(offset_pointer(pointer(tab, LOGSUMEXP, "float32"), row), queries, logsumexp, query_block)
        fill(dquery, query_block * head_cols, f32(0.0))

        key_end = min(tab[KV_SEQ], first_query + queries) if tab[CAUSAL] != 0 else tab[KV_SEQ]
        for first_key in range(0, key_end, key_block):
            keys = min(key_block, key_end - first_key)
            key_rows = pointer_at(rows_as_float32(k, key_base + first_key * tab[K + 3], tab[K + 3], tab[K + 4], keys,
                                                  head_dim, packed_keys, head_cols, tab[PACK_KEYS]),
                                  "float32")  # fmt: skip
            value_rows = pointer_at(rows_as_float32(v, value_base + first_key * tab[V + 3], tab[V + 3], tab[V + 4],
                                                    keys, value_dim, packed_values, value_cols, tab[PACK_VALUES]),
                                    "float32")  # fmt: skip
            multiply_block(key_rows, key_row, 1, query_columns, query_block, scores, query_block, keys, lanes,
                           head_dim, False)  # fmt: skip
            if masked:
                mask_position = (batch * tab[MASK + 1] + head * tab[MASK + 2] + first_query * tab[MASK + 3]
                                 + first_key * tab[MASK + 4])  # fmt: skip
                add_mask(scores, query_block, keys, queries, pointer(tab, MASK, mask_storage), mask_position,
                         tab[MASK + 3], tab[MASK + 4])  # fmt: skip
            if tab[CAUSAL] != 0 and first_key + keys > first_query + 1:
                mask_causal(scores, query_block, keys, lanes, first_key, first_query)
            multiply_block(value_rows, value_row, 1, grad_columns, query_block, dscores, query_block, keys, lanes,
                           value_dim, False)  # fmt: skip
            if dropped:
                index = row * tab[KV_SEQ] + first_key
                fill_dropout_factors(
                    factors, query_block, keys, queries, load(pointer(tab, SEED, "int64"), 0), index, tab[KV_SEQ],
                    float_from_bits(tab[DROPOUT_BITS]), float_from_bits(tab[KEPT_FACTOR_BITS]), square)  # fmt: skip
                multiply_elements(dscores, factors, keys * query_block)
            if mask_grad:
                differentiate_softmax(scores, dscores, query_block, keys, lanes, logsumexp, delta, f32(1.0))
                position = (batch * tab[DMASK_SUMS + 1] + head * tab[DMASK_SUMS + 2]
                            + first_query * tab[DMASK_SUMS + 3] + first_key)  # fmt: skip
                add_mask_gradient(dscores, query_block, keys, queries,
                                  offset_pointer(pointer(tab, DMASK_SUMS, "float32"), position),
                                  tab[DMASK_SUMS + 3])  # fmt: skip
                scale_block(dscores, keys * query_block, scale)
            else:
                differentiate_softmax(scores, dscores, query_block, keys, lanes, logsumexp, delta, scale)
            if dropped:
                multiply_elements(scores, factors, keys * query_block)
            multiply_block(scores, query_block, 1, grad_rows, grad_row, offset_pointer(dvalue, first_key * dvalue_row),
                           dvalue_row, keys, value_cols, queries, True)  # fmt: skip
            multiply_block(dscores, query_block, 1, query_rows, query_row, offset_pointer(dkey, first_key * dkey_row),
                           dkey_row, keys, head_cols, queries, True)  # fmt: skip
            multiply_block(dscores, 1, query_block, key_rows, key_row, dquery, head_cols, queries, head_cols, keys,
                           True)  # fmt: skip
        for query in range(queries):
            store_scaled_row(dquery, query * head_cols, head_dim, f32(1.0), dq, dq_position + query * tab[DQ + 3],
                             tab[DQ + 4])  # fmt: skip

    @kernel
    def attention_backward(tab, begin, end, thread):
        scratch = pointer_at(tab[SCRATCH] + thread * tab[SCRATCH_BYTES], "float32")
        kv_heads = tab[HEADS] // tab[GROUP]
        batches, heads = tab[BATCH] // tab[BATCH_TASKS], kv_heads // tab[HEAD_TASKS]
        for task in range(begin, end):
            chunk = task % tab[CHUNKS]
            first_head = task // tab[CHUNKS] % tab[HEAD_TASKS] * heads
            first_batch = task // tab[CHUNKS] // tab[HEAD_TASKS] * batches
            for pair in range(batches * heads):
                batch, kv_head = first_batch + pair // heads, first_head + pair % heads
                part = (chunk * tab[BATCH] + batch) * kv_heads + kv_head
                dkey_row, dvalue_row = tab[DK + 3], tab[DV + 3]
                dkey = pointer_at(tab[DK] + 4 * (batch * tab[DK + 1] + kv_head * tab[DK + 2]), "float32")
                dvalue = pointer_at(tab[DV] + 4 * (batch * tab[DV + 1] + kv_head * tab[DV + 2]), "float32")
                if tab[PARTIAL_DK] != 0:
                    dkey_row = tab[HEAD_COLS]
                    dkey = pointer_at(tab[PARTIAL_DK] + 4 * part * tab[KV_SEQ] * dkey_row, "float32")
                if tab[PARTIAL_DV] != 0:
                    dvalue_row = tab[VALUE_COLS]
                    dvalue = pointer_at(tab[PARTIAL_DV] + 4 * part * tab[KV_SEQ] * dvalue_row, "float32")
                fill_rows(dkey, dkey_row, tab[KV_SEQ], tab[HEAD_COLS], f32(0.0))
                fill_rows(dvalue, dvalue_row, tab[KV_SEQ], tab[VALUE_COLS], f32(0.0))
                for member in range(tab[GROUP]):
                    for block in range(chunk, tab[QUERY_BLOCKS], tab[CHUNKS]):
                        accumulate_block(tab, batch, kv_head * tab[GROUP] + member, block * tab[QUERY_BLOCK],
                                         dkey, dkey_row, dvalue, dvalue_row, scratch)  # fmt: skip

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
