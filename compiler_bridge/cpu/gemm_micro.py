"""The register tile of the GEMM: a few rows of A times one panel of B, summed in registers.

    C[0:rows, 0:columns] (+)= sum over k of A[:, k] * B[k, :]

A comes packed as [k][ROWS] and B as [k][columns]. ROWS is 6 and the columns fill two registers (AVX2: 6 x 16
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
from compiler_bridge.cpu.language import broadcast_load, fma, load, outlined_helper, prefetch, splat, store

FEWER_ROWS = 4
"""Rows of the smaller tile."""


def zero_of(dtype: str) -> Any:
    """0 as a typed scalar of the sums."""
    return np.dtype(compute_dtype(dtype)).type(0)


@cache
def micro_kernel(compute: str, rows: int) -> Any:
    """multiply(k_count, a, b, c, c_row, accumulate) for a tile of ROWS or FEWER_ROWS rows.

    a: packed panel [k_count][ROWS]   b: packed panel [k_count][columns]
    c: first element of the tile, whose columns are contiguous and whose rows are c_row apart
    accumulate: 0 stores the sums, else they are added to C
    """
    width = panel_columns(compute)
    zero = zero_of(compute)
    has_all_rows = rows == ROWS

    @outlined_helper
    def multiply(k_count, a, b, c, c_row, accumulate):  # type: ignore[no-untyped-def]
        c0 = c1 = c2 = c3 = c4 = c5 = splat(zero, width)
        for row in range(rows):
            prefetch(c, row * c_row)
        for k in range(k_count):
            b_row = load(b, k * width, width)
            c0 = fma(broadcast_load(a, k * ROWS, width), b_row, c0)
            c1 = fma(broadcast_load(a, k * ROWS + 1, width), b_row, c1)
            c2 = fma(broadcast_load(a, k * ROWS + 2, width), b_row, c2)
            c3 = fma(broadcast_load(a, k * ROWS + 3, width), b_row, c3)
            if has_all_rows:
                c4 = fma(broadcast_load(a, k * ROWS + 4, width), b_row, c4)
                c5 = fma(broadcast_load(a, k * ROWS + 5, width), b_row, c5)
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
