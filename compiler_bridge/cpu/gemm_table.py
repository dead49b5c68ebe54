"""The argument table that all kernels of one GEMM share: what is in each slot.

    C[o, i, m, n] (+)= sum over k of A[o, i, m, k] * B[o, i, k, n]      o, i: outer and inner batch

Strides count elements, of any sign and 0 included; sizes may be 0; everything is int64.
"""

from __future__ import annotations

SLOTS = (
    "A", "B", "C",                      # addresses of the first elements
    "M", "N", "K",
    "BATCH_OUTER", "BATCH_INNER",
    "A_OUTER", "A_INNER", "A_ROW", "A_K",         # strides
    "B_OUTER", "B_INNER", "B_K", "B_COLUMN",
    "C_OUTER", "C_INNER", "C_ROW", "C_COLUMN",
    "ACCUMULATE",                       # 1: C += A B, 0: C = A B (C is not read)
    "ROW_BLOCKS", "COLUMN_BLOCKS",      # the tiles of C that threads share out
    "K_BLOCK",                          # K is summed this many at a time
    "B_IS_PACKED",                      # 1: WORKSPACE holds B in panels, 0: each tile packs the panels it needs
    "B_BATCHES",                        # how many packed B there are: the batch, or 1 if all share one B
    "WORKSPACE",                        # address of packed B: [B_BATCHES][panel][K][columns of a panel]
    "SCRATCH", "SCRATCH_BYTES",         # address of thread 0's scratch, and how far the next thread's is
    "SCRATCH_B",                        # bytes from the start of a thread's scratch to its own B panel
    "SWAPPED",                          # 1: the rows of this table are the caller's columns (see below)
    "PACK_A", "PACK_A_TABLE",           # address of a function that fills a panel of A (0: strided load), its table
    "PACK_B", "PACK_B_TABLE",
    "EPILOGUE", "EPILOGUE_TABLE",       # address of a function called on each finished region of C (0: none)
)  # fmt: skip
"""Names of the slots, in order. `layout` documents the functions whose addresses are passed.

pack(table, panel, first, count, k_begin, k_count, thread) writes panel[k][lane] for k in [0, k_count) and every
lane of the panel, 0 for lanes >= count. `first` is batch * M + row for A and batch * N + column for B; `panel`
is the address, the element type that of the sums.

epilogue(table, row_begin, row_end, column_begin, column_end): C[rows, columns] is final and in cache; rows
count through the batches (batch * M + row) and a region never straddles two batches. Every element of C is in
exactly one region. With SWAPPED the roles of rows and columns, M and N, are exchanged inside the kernels only.
"""

SLOT = {name: index for index, name in enumerate(SLOTS)}

(
    A, B, C, M, N, K, BATCH_OUTER, BATCH_INNER,
    A_OUTER, A_INNER, A_ROW, A_K, B_OUTER, B_INNER, B_K, B_COLUMN, C_OUTER, C_INNER, C_ROW, C_COLUMN,
    ACCUMULATE, ROW_BLOCKS, COLUMN_BLOCKS, K_BLOCK, B_IS_PACKED, B_BATCHES, WORKSPACE,
    SCRATCH, SCRATCH_BYTES, SCRATCH_B, SWAPPED,
    PACK_A, PACK_A_TABLE, PACK_B, PACK_B_TABLE, EPILOGUE, EPILOGUE_TABLE,
) = range(len(SLOTS))  # fmt: skip
