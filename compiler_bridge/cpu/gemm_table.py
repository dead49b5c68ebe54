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
    "K_PARTS", "K_PART",                # threads share out K in so many parts of so many (the last may be shorter)
    "PARTIAL",                          # bytes from WORKSPACE to the sums of part 1, 2 ...: [part - 1][M][N]
    "B_IS_PACKED",                      # 1: WORKSPACE holds B in panels, 0: each tile packs its own
    "B_BATCHES",                        # how many packed B there are: the batch, or 1 if all share one B
    "WORKSPACE",                        # address of packed B: [B_BATCHES][panel][K][columns of a panel]
    "SCRATCH", "SCRATCH_BYTES",         # address of thread 0's scratch, and how far the next thread's is
    "SCRATCH_B",                        # bytes from the start of a thread's scratch to its own B panel
    "SWAPPED",                          # 1: the rows of this table are the caller's columns (see below)
    "PACK_A", "PACK_A_TABLE",           # function that fills a panel of A (0: strided load), and its table
    "PACK_B", "PACK_B_TABLE",
    "EPILOGUE", "EPILOGUE_TABLE",       # function called on each finished region of C (0: none)
    "SEGMENTS", "RUN",                  # `indirect`: K is so many segments of so many contiguous elements of A
    "B_SEGMENT",                        # stride of B between segments of the sum; B_K is that along the run
    "SCRATCH_PANEL",                    # `indirect`: bytes from the start of a thread's scratch to its panel of B
    "SEGMENT_BLOCK",                    # segments summed in registers at a time
    "THREADS", "TURNS",                 # `indirect`: so many threads take units in turn, so many each
    "PLACES_A", "PLACES_A_TABLE",       # functions that say where segments of A and rows of C begin, their tables
    "PLACES_C", "PLACES_C_TABLE",
    "PLACES_B", "PLACES_B_TABLE",       # function that says where segments of columns of B begin (0: PACK_B or strides)
    "K_RUN", "A_SEGMENT",               # K is segments of so many, A_SEGMENT and B_SEGMENT apart; A_K, B_K within them
    "K_LIMIT",                          # K_RUN where what is summed at a time ends with its segment, else K
)  # fmt: skip
"""Names of the slots, in order. Functions are passed as addresses of machine code with this signature:

pack(table, panel, first, count, k_begin, k_count, thread) writes panel[k][lane] for k_count values of k from
    k_begin on; lanes >= count may hold anything. A panel of A has ROWS lanes, one of B panel_columns(dtype);
    `panel` is an address of float32, or float64 for float64. `first` is the row of A (column of B) of lane 0,
    counted through the batches: batch * M + row (batch * N + column).

places(table, places, first, count, begin, length, thread) writes places[segment][8 lanes] for `length` segments
    from `begin` on: the element of A (from the slot's address on) at which the segment begins for row `first` +
    lane, counted like those of pack, or a negative number where it lies in the padding. For C: the row's first
    element, one segment. For B `first` + lane counts k through the batches, batch * K + k, and a segment is RUN
    columns.

epilogue(table, row_begin, row_end, column_begin, column_end): C[rows, columns] is final and in cache. Rows
    count through the batches, batch * M + row. Every element of C is in exactly one region. Regions straddle
    matrices of the batch only where all matrices share one B and rows follow each other evenly.

`table` is this same table from the position on that the slot after the function's holds: what such functions
need follows the GEMM's own slots. With SWAPPED the kernels compute C^T = B^T A^T: M,
N, rows and columns are the transposed product's everywhere in this table, not in the epilogue's arguments.
"""

SLOT = {name: index for index, name in enumerate(SLOTS)}

(
    A, B, C, M, N, K, BATCH_OUTER, BATCH_INNER,
    A_OUTER, A_INNER, A_ROW, A_K, B_OUTER, B_INNER, B_K, B_COLUMN, C_OUTER, C_INNER, C_ROW, C_COLUMN,
    ACCUMULATE, ROW_BLOCKS, COLUMN_BLOCKS, K_BLOCK, K_PARTS, K_PART, PARTIAL, B_IS_PACKED, B_BATCHES, WORKSPACE,
    SCRATCH, SCRATCH_BYTES, SCRATCH_B, SWAPPED,
    PACK_A, PACK_A_TABLE, PACK_B, PACK_B_TABLE, EPILOGUE, EPILOGUE_TABLE,
    SEGMENTS, RUN, B_SEGMENT, SCRATCH_PANEL, SEGMENT_BLOCK, THREADS, TURNS,
    PLACES_A, PLACES_A_TABLE, PLACES_C, PLACES_C_TABLE,
    PLACES_B, PLACES_B_TABLE,
    K_RUN, A_SEGMENT, K_LIMIT,
) = range(len(SLOTS))  # fmt: skip
