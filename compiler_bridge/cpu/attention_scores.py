"""What the forward and the backward kernel share: a block of scores, dropout factors, rows of tensors."""

# pyright: basic, reportCallIssue=false
# Numba gives these functions their types.

from __future__ import annotations

from functools import cache as remember
from typing import Any

from compiler_bridge.cpu.attention_blocks import (
    LOG2_E,
    TILE,
    add_bool_mask,
    add_number_mask,
    fill_dropout_factors,
    float_from_bits,
    mask_causal,
    multiply_block,
    pack_rows,
    pack_transposed,
)
from compiler_bridge.cpu.attention_slots import slots
from compiler_bridge.cpu.language import (
    address_of,
    helper,
    load,
    offset_pointer,
    outlined_helper,
    pointer,
    pointer_at,
)

Q, K, V, MASK, SEED = slots("q", "k", "v", "mask", "seed")
HEADS, GROUP, SEQ, KV_SEQ, HEAD_DIM = slots("heads", "group", "seq", "kv_seq", "head_dim")
SCALE_BITS, DROPOUT_BITS, KEPT_FACTOR_BITS = slots("scale_bits", "dropout_bits", "kept_factor_bits")
CAUSAL, QUERY_BLOCK, HEAD_COLS, PACK_KEYS = slots("causal", "query_block", "head_cols", "pack_keys")
VALUE_DIM, VALUE_COLS, PACK_VALUES = slots("value_dim", "value_cols", "pack_values")
QUERY_COLUMNS, SCORES, FACTORS, SQUARE, PACKED_KEYS, PACKED_VALUES = slots(
    "query_columns", "scores", "factors", "square", "packed_keys", "packed_values"
)


@helper
def area(tab, scratch, slot):
    """A block of this thread's scratch."""
    return offset_pointer(scratch, tab[slot])


@helper
def rows_of(tab, tensor, slot, batch, head, row):
    """The tensor from one row of one head on."""
    return offset_pointer(tensor, batch * tab[slot + 1] + head * tab[slot + 2] + row * tab[slot + 3])


@outlined_helper
def rows_as_float32(tab, tensor, slot, rows, cols, packed, packed_row, pack):
    """A [rows, cols] block as float32: packed into scratch if asked, else where it lies."""
    if pack != 0:
        pack_rows(tensor, tab[slot + 3], tab[slot + 4], rows, cols, packed, packed_row)
        return packed
    return pointer_at(address_of(tensor), "float32")


@helper
def row_stride(tab, slot, packed_row, pack):
    """The row stride of what `rows_as_float32` returns."""
    return packed_row if pack != 0 else tab[slot + 3]


@helper
def whole_tiles(count):
    """`count` rounded up to a multiple of TILE."""
    return (count + TILE - 1) // TILE * TILE


@helper
def keys_seen(tab, first_query, queries):
    """How many keys a block of queries attends to."""
    if tab[CAUSAL] != 0:
        return min(tab[KV_SEQ], first_query + queries)
    return tab[KV_SEQ]


@outlined_helper
def pack_queries(tab, q, batch, head, first_query, queries, scratch):
    """query_columns = (query * scale * log2(e))^T."""
    factor = float_from_bits(tab[SCALE_BITS]) * LOG2_E
    pack_transposed(rows_of(tab, q, Q, batch, head, first_query), tab[Q + 3], tab[Q + 4], queries,
                    tab[HEAD_DIM], area(tab, scratch, QUERY_COLUMNS), tab[QUERY_BLOCK], factor)  # fmt: skip


@outlined_helper
def keys_as_float32(tab, k, batch, head, first_key, keys, scratch):
    """Rows of the keys a query head attends to; their stride is `row_stride(tab, K, ...)`."""
    rows = rows_of(tab, k, K, batch, head // tab[GROUP], first_key)
    return rows_as_float32(tab, rows, K, keys, tab[HEAD_DIM], area(tab, scratch, PACKED_KEYS), tab[HEAD_COLS],
                           tab[PACK_KEYS])  # fmt: skip


@outlined_helper
def values_as_float32(tab, v, batch, head, first_key, keys, scratch):
    """Rows of the values a query head attends to; their stride is `row_stride(tab, V, ...)`."""
    rows = rows_of(tab, v, V, batch, head // tab[GROUP], first_key)
    return rows_as_float32(tab, rows, V, keys, tab[VALUE_DIM], area(tab, scratch, PACKED_VALUES),
                           tab[VALUE_COLS], tab[PACK_VALUES])  # fmt: skip


@remember
def define_score_block(mask_dtype: str | None) -> Any:
    """`score_block` for a kind of mask."""
    masked = mask_dtype is not None
    mask_storage = mask_dtype or "float32"
    add_mask = add_bool_mask if mask_dtype == "bool" else add_number_mask

    @outlined_helper
    def score_block(tab, key_rows, batch, head, first_query, queries, first_key, keys, scratch):
        """scores = (key @ query^T) * scale + mask, in units of log 2; -inf above the diagonal when causal."""
        scores, row, lanes = area(tab, scratch, SCORES), tab[QUERY_BLOCK], whole_tiles(queries)
        key_row = row_stride(tab, K, tab[HEAD_COLS], tab[PACK_KEYS])
        multiply_block(key_rows, key_row, 1, area(tab, scratch, QUERY_COLUMNS), row, scores, row, keys, lanes,
                       tab[HEAD_DIM], False)  # fmt: skip
        if masked:
            mask = rows_of(tab, pointer(tab, MASK, mask_storage), MASK, batch, head, first_query)
            key_stride = tab[MASK + 4]
            add_mask(scores, row, keys, queries, mask, first_key * key_stride, tab[MASK + 3], key_stride)
        if tab[CAUSAL] != 0 and first_key + keys > first_query + 1:
            mask_causal(scores, row, keys, lanes, first_key, first_query)

    return score_block


@outlined_helper
def draw_factors(tab, batch, head, first_query, queries, first_key, keys, scratch):
    """factors = what dropout multiplies each weight of the block with; returns them."""
    factors = area(tab, scratch, FACTORS)
    index = ((batch * tab[HEADS] + head) * tab[SEQ] + first_query) * tab[KV_SEQ] + first_key
    fill_dropout_factors(
        factors, tab[QUERY_BLOCK], keys, queries, load(pointer(tab, SEED, "int64"), 0), index, tab[KV_SEQ],
        float_from_bits(tab[DROPOUT_BITS]), float_from_bits(tab[KEPT_FACTOR_BITS]),
        area(tab, scratch, SQUARE))  # fmt: skip
    return factors
