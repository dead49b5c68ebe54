"""The register tile of the GEMM: a few rows of A times one panel of B, summed in registers.

    C[0:rows, 0:columns] (+)= sum over k of A[:, k] * B[k, :]

A is packed as [k][ROWS], or is read where it lies; B is packed as [k][columns], or the tile packs it while
it multiplies. ROWS is 6 and the columns fill two registers (AVX2: 6 x 16
in float32, AVX-512: 6 x 32) or four where registers have four lanes and there are 32 of them (NEON: 6 x 16).
That is 12 or more independent sums, enough to hide the latency of fma, and leaves registers for B and a value
of A. A second tile of 4 rows makes every even number of rows a sum of whole tiles.
"""

# pyright: basic, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from compiler_bridge.cpu.gemm_plan import ROWS, compute_dtype, line_elements, panel_columns
from compiler_bridge.cpu.language import (
    broadcast_load,
    fma,
    helper,
    i64,
    load,
    offset_pointer,
    outlined_helper,
    prefetch,
    splat,
    store,
)


def zero_of(dtype: str) -> Any:
    """0 as a typed scalar of the sums."""
    return np.dtype(compute_dtype(dtype)).type(0)


PACKED, FETCHING, PACKING = "packed", "fetching", "packing"
"""Kinds of tile. `packed`: A and B are packed, and there is nothing else to do. `fetching`: A may lie anywhere,
and cache lines of `ahead` are asked for. `packing`: so may B, which is packed on the way."""


@cache
def micro_kernel(compute: str, rows: int, kind: str, line: int) -> Any:
    """multiply(k_count, block, count, b, b_k, panel, c, c_row, accumulate, ahead): one tile.

    block: first row of A, how far apart rows are, and k (`packed`: 1 and ROWS). A row from `count` on repeats
        the last one, and its sums are to be ignored
    b, b_k: `packing` only: first row of B, whose columns are contiguous, and how far apart rows are
    panel: packed panel of B, [k_count][columns]
    c: first element of the tile, whose columns are contiguous and whose rows are c_row apart
    accumulate: 0 stores the sums, else they are added to C
    ahead: what will be wanted soon, as (pointer, line_step, lane_step). `line` elements make a cache line; the
        one asked for at k is that of pointer[(k - k % line) * line_step + k % line * lane_step]
    """
    width = panel_columns(compute)
    zero = zero_of(compute)
    has_all_rows = rows == ROWS
    is_packed, packs_b = kind == PACKED, kind == PACKING

    @helper
    def multiply(k_count, block, count, b, b_k, panel, c, c_row, accumulate, ahead):  # type: ignore[no-untyped-def]
        a, a_row, a_k = block
        next_panel, line_step, lane_step = ahead
        c0 = c1 = c2 = c3 = c4 = c5 = splat(zero, width)
        a1 = offset_pointer(a, 1 if is_packed else min(1, count - 1) * a_row)
        a2 = offset_pointer(a, 2 if is_packed else min(2, count - 1) * a_row)
        a3 = offset_pointer(a, 3 if is_packed else min(3, count - 1) * a_row)
        a4 = offset_pointer(a, 4 if is_packed else min(4, count - 1) * a_row)
        a5 = offset_pointer(a, 5 if is_packed else min(5, count - 1) * a_row)
        a_step = ROWS if is_packed else a_k
        for row in range(rows):
            prefetch(c, row * c_row)
        for k in range(k_count):
            if not is_packed:
                prefetch(next_panel, (k & -line) * line_step + (k & (line - 1)) * lane_step)
            b_row = load(b, k * b_k, width) if packs_b else load(panel, k * width, width)
            if packs_b:
                store(panel, k * width, b_row)
            c0 = fma(broadcast_load(a, k * a_step, width), b_row, c0)
            c1 = fma(broadcast_load(a1, k * a_step, width), b_row, c1)
            c2 = fma(broadcast_load(a2, k * a_step, width), b_row, c2)
            c3 = fma(broadcast_load(a3, k * a_step, width), b_row, c3)
            if has_all_rows:
                c4 = fma(broadcast_load(a4, k * a_step, width), b_row, c4)
                c5 = fma(broadcast_load(a5, k * a_step, width), b_row, c5)
        if accumulate != 0:
            c0 += load(c, 0, width)
            c1 += load(c, c_row, width)
            c2 += load(c, 2 * c_row, width)
            c3 += load(c, 3 * c_row, width)
            if has_all_rows:
                c4 += load(c, 4 * c_row, width)
                c5 += load(c, 5 * c_row, width)
        store(c, 0, c0)
        store(c, c_row, c1)
        store(c, 2 * c_row, c2)
        store(c, 3 * c_row, c3)
        if has_all_rows:
            store(c, 4 * c_row, c4)
            store(c, 5 * c_row, c5)

    return multiply


@cache
def register_tile(dtype: str, rows: int) -> Any:
    """multiply(k_count, block, count, b, b_k, panel, c, c_row, accumulate, ahead): by the kind of tile it takes.

    b_k is 0 where B is packed; line_step is 0 where nothing is to be asked for.
    """
    compute, line = compute_dtype(dtype), line_elements(dtype)
    packed, fetching, packing = (
        micro_kernel(compute, rows, kind, line) for kind in (PACKED, FETCHING, PACKING)
    )

    @outlined_helper
    def multiply_packed(k_count, a, panel, c, c_row, accumulate):  # type: ignore[no-untyped-def]
        block, nothing = (a, i64(1), i64(ROWS)), (panel, i64(0), i64(0))
        packed(k_count, block, i64(ROWS), panel, i64(0), panel, c, c_row, accumulate, nothing)

    @outlined_helper
    def multiply_fetching(k_count, block, count, panel, c, c_row, accumulate, ahead):  # type: ignore[no-untyped-def]
        fetching(k_count, block, count, panel, i64(0), panel, c, c_row, accumulate, ahead)

    @outlined_helper
    def multiply_packing(k_count, block, count, b, b_k, panel, c, c_row, accumulate, ahead):  # type: ignore[no-untyped-def]
        packing(k_count, block, count, b, b_k, panel, c, c_row, accumulate, ahead)

    @helper
    def multiply(k_count, block, count, b, b_k, panel, c, c_row, accumulate, ahead):  # type: ignore[no-untyped-def]
        if b_k != 0:
            multiply_packing(k_count, block, count, b, b_k, panel, c, c_row, accumulate, ahead)
        elif ahead[1] != 0 or block[1] != 1 or block[2] != ROWS:
            multiply_fetching(k_count, block, count, panel, c, c_row, accumulate, ahead)
        else:
            multiply_packed(k_count, block[0], panel, c, c_row, accumulate)

    return multiply


@cache
def write_tile(compute: str) -> Any:
    """write(tile, c, c_row, c_column, rows, columns, accumulate): C (+)= the valid part of a whole tile.

    For tiles at the edge of C and for a C whose columns are not contiguous.
    """
    width = panel_columns(compute)

    @outlined_helper
    def write(tile, c, c_row, c_column, rows, columns, accumulate):  # type: ignore[no-untyped-def]
        for row in range(rows):
            for column in range(columns):
                index = row * c_row + column * c_column
                element = load(tile, row * width + column)
                if accumulate != 0:
                    element += load(c, index)
                store(c, index, element)

    return write
