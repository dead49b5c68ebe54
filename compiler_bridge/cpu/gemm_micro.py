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

from compiler_bridge.cpu.gemm_plan import ROWS, compute_dtype, panel_columns
from compiler_bridge.cpu.language import (
    broadcast_load,
    fma,
    load,
    offset_pointer,
    outlined_helper,
    prefetch,
    splat,
    store,
)

FEWER_ROWS = 4
"""Rows of the smaller tile."""


def zero_of(dtype: str) -> Any:
    """0 as a typed scalar of the sums."""
    return np.dtype(compute_dtype(dtype)).type(0)


@cache
def micro_kernel(compute: str, rows: int, packs_b: bool, line: int) -> Any:
    """multiply(k_count, a, a_row, a_k, count, b, b_k, panel, c, c_row, accumulate, ahead, ahead_line, ahead_lane).

    a: first row of A, in a packed panel (a_row 1, a_k ROWS) or where A lies; a row from `count` on repeats the
        last one, and its sums are to be ignored
    b: first row of B, whose columns are contiguous and whose rows are b_k apart
    panel: with packs_b, where the rows of B are copied to, [k_count][columns]: the tiles that follow use them
    c: first element of the tile, whose columns are contiguous and whose rows are c_row apart
    accumulate: 0 stores the sums, else they are added to C
    ahead: what will be wanted soon; every k one cache line of it is asked for. `line` elements make one:
        ahead[(k - k % line) * ahead_line + k % line * ahead_lane]
    """
    width = panel_columns(compute)
    zero = zero_of(compute)
    has_all_rows = rows == ROWS

    @outlined_helper
    def multiply(  # type: ignore[no-untyped-def]
        k_count, a, a_row, a_k, count, b, b_k, panel, c, c_row, accumulate, ahead, ahead_line, ahead_lane
    ):
        c0 = c1 = c2 = c3 = c4 = c5 = splat(zero, width)
        a1, a2 = offset_pointer(a, min(1, count - 1) * a_row), offset_pointer(a, min(2, count - 1) * a_row)
        a3, a4 = offset_pointer(a, min(3, count - 1) * a_row), offset_pointer(a, min(4, count - 1) * a_row)
        a5 = offset_pointer(a, min(5, count - 1) * a_row)
        for row in range(rows):
            prefetch(c, row * c_row)
        for k in range(k_count):
            prefetch(ahead, (k & -line) * ahead_line + (k & (line - 1)) * ahead_lane)
            b_row = load(b, k * b_k, width)
            if packs_b:
                store(panel, k * width, b_row)
            c0 = fma(broadcast_load(a, k * a_k, width), b_row, c0)
            c1 = fma(broadcast_load(a1, k * a_k, width), b_row, c1)
            c2 = fma(broadcast_load(a2, k * a_k, width), b_row, c2)
            c3 = fma(broadcast_load(a3, k * a_k, width), b_row, c3)
            if has_all_rows:
                c4 = fma(broadcast_load(a4, k * a_k, width), b_row, c4)
                c5 = fma(broadcast_load(a5, k * a_k, width), b_row, c5)
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
