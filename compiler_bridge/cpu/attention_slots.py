"""The argument table of attention's kernels: one slot per name, the same for all of them."""

from __future__ import annotations

TENSORS = ("q", "k", "v", "mask", "seed", "out", "logsumexp", "grad_out", "dq", "dk", "dv", "dmask",
           "dmask_sums")
"""Tensors: a slot with the address, then four with the strides of batch, heads, rows, columns (elements)."""

SIZES = ("batch", "heads", "group", "seq", "kv_seq", "head_dim", "value_dim", "scale_bits", "dropout_bits",
         "kept_factor_bits", "causal", "query_block", "key_block", "query_blocks", "head_cols", "value_cols",
         "pack_queries", "pack_keys", "pack_values", "pack_grads", "chunks", "batch_tasks", "head_tasks", "scratch", "scratch_bytes",
         "partial_dk", "partial_dv", "mask_seq", "mask_kv_seq")  # fmt: skip
"""Plain numbers and workspace addresses."""

TENSOR_SLOTS = 5
SLOT = {name: TENSOR_SLOTS * index for index, name in enumerate(TENSORS)}
SLOT.update({name: TENSOR_SLOTS * len(TENSORS) + index for index, name in enumerate(SIZES)})
SLOT_COUNT = TENSOR_SLOTS * len(TENSORS) + len(SIZES)
