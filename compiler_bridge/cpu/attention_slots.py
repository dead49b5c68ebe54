"""The argument table of attention's kernels: one slot per name, the same for all of them."""

from __future__ import annotations

TENSORS = ("q", "k", "v", "mask", "seed", "out", "logsumexp", "grad_out", "dq", "dk", "dv", "dmask",
           "dmask_sums")  # fmt: skip
"""Tensors: a slot with the address, then four with the strides of batch, heads, rows, columns (elements)."""

SIZES = (
    "batch", "heads", "group", "seq", "kv_seq", "head_dim", "value_dim",  # the problem
    "scale_bits", "dropout_bits", "kept_factor_bits", "causal",  # its options; bits of a float32
    "query_block", "key_block", "query_blocks", "head_cols", "value_cols",  # blocks, padded widths
    "pack_queries", "pack_keys", "pack_values", "pack_grads",  # 1: copied into scratch as float32
    "chunks", "batch_tasks", "head_tasks",  # backward: how the work is cut
    "mask_seq", "mask_kv_seq",  # sizes of the mask
    "scratch", "scratch_bytes", "partial_dk", "partial_dv",  # workspace: addresses, bytes per thread
)  # fmt: skip
"""Plain numbers and workspace addresses."""

AREAS = (
    "query_columns", "grad_columns", "scores", "dscores", "factors", "square", "block_out",
    "largest", "total", "shrink", "delta", "packed_queries", "packed_grads", "packed_keys", "packed_values",
)  # fmt: skip
"""Where each block lies in a thread's scratch, in float32 elements."""

TENSOR_SLOTS = 5
SLOT = {name: TENSOR_SLOTS * index for index, name in enumerate(TENSORS)}
SLOT.update({name: TENSOR_SLOTS * len(TENSORS) + index for index, name in enumerate(SIZES + AREAS)})
SLOT_COUNT = TENSOR_SLOTS * len(TENSORS) + len(SIZES) + len(AREAS)


def slots(*names: str) -> tuple[int, ...]:
    """The slots of several names."""
    return tuple(SLOT[name] for name in names)
