"""C = A B for few rows of A, where B has contiguous k (a Linear's weight): B is read once, where it lies.

C[m, n] = sum over lanes of A[m, :] * B[:, n]
"""

# pyright: basic, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

from compiler_bridge.cpu import gemm_table as slot
from compiler_bridge.cpu.gemm_batch import finish_region, matrix_of
from compiler_bridge.cpu.gemm_micro import zero_of
from compiler_bridge.cpu.gemm_plan import TILE_BYTES, compute_dtype
from compiler_bridge.cpu.language import (
    NATIVE_LANES,
    fma,
    i64,
    kernel,
    load,
    offset_pointer,
    outlined_helper,
    pointer_at,
    reduce_add,
    splat,
    store,
)

DOT_ROWS = 4
DOT_COLUMNS = 3
"""Rows of A and columns of B whose sums are in registers at a time."""


@cache
def copy_rows(dtype: str) -> Any:
    """copy(tab, batch, rows): A as rows[row][k], in the dtype of the sums."""
    lanes = NATIVE_LANES
    a_matrix = matrix_of("A", dtype)

    @outlined_helper
    def copy(tab, batch, rows):  # type: ignore[no-untyped-def]
        k_total, row_stride, k_stride = tab[slot.K], tab[slot.A_ROW], tab[slot.A_K]
        matrix = a_matrix(tab, batch)
        for row in range(tab[slot.M]):
            done = i64(0)
            if k_stride == 1:
                done = k_total // lanes * lanes
                for k in range(0, done, lanes):
                    store(rows, row * k_total + k, load(matrix, row * row_stride + k, lanes))
            for k in range(done, k_total):
                store(rows, row * k_total + k, load(matrix, row * row_stride + k * k_stride))

    return copy


@cache
def dot_rows(compute: str) -> Any:
    """dot(a, row1, row2, row3, b, column1, column2, k_count, sums): sums[row][column] of a 4 x 3 tile.

    a: first row; row1 ... offsets of the others    b: first column; column1 ... offsets of the others
    """
    lanes = NATIVE_LANES if compute == "float32" else NATIVE_LANES // 2
    zero = zero_of(compute)

    @outlined_helper
    def dot(a, row1, row2, row3, b, column1, column2, k_count, sums):  # type: ignore[no-untyped-def]
        s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = s30 = s31 = s32 = splat(zero, lanes)
        for k in range(0, k_count, lanes):
            b0, b1, b2 = load(b, k, lanes), load(b, column1 + k, lanes), load(b, column2 + k, lanes)
            row = load(a, k, lanes)
            s00, s01, s02 = fma(row, b0, s00), fma(row, b1, s01), fma(row, b2, s02)
            row = load(a, row1 + k, lanes)
            s10, s11, s12 = fma(row, b0, s10), fma(row, b1, s11), fma(row, b2, s12)
            row = load(a, row2 + k, lanes)
            s20, s21, s22 = fma(row, b0, s20), fma(row, b1, s21), fma(row, b2, s22)
            row = load(a, row3 + k, lanes)
            s30, s31, s32 = fma(row, b0, s30), fma(row, b1, s31), fma(row, b2, s32)
        store(sums, 0, reduce_add(s00))
        store(sums, 1, reduce_add(s01))
        store(sums, 2, reduce_add(s02))
        store(sums, 3, reduce_add(s10))
        store(sums, 4, reduce_add(s11))
        store(sums, 5, reduce_add(s12))
        store(sums, 6, reduce_add(s20))
        store(sums, 7, reduce_add(s21))
        store(sums, 8, reduce_add(s22))
        store(sums, 9, reduce_add(s30))
        store(sums, 10, reduce_add(s31))
        store(sums, 11, reduce_add(s32))

    return dot


@cache
def dot_one_row(compute: str) -> Any:
    """dot(a, b, column1, column2, k_count, sums): sums[column] of a 1 x 3 tile."""
    lanes = NATIVE_LANES if compute == "float32" else NATIVE_LANES // 2
    wide = 2 * lanes
    zero = zero_of(compute)

    @outlined_helper
    def dot(a, b, column1, column2, k_count, sums):  # type: ignore[no-untyped-def]
        s0 = s1 = s2 = splat(zero, wide)
        whole = k_count // wide * wide
        for k in range(0, whole, wide):
            row = load(a, k, wide)
            s0 = fma(row, load(b, k, wide), s0)
            s1 = fma(row, load(b, column1 + k, wide), s1)
            s2 = fma(row, load(b, column2 + k, wide), s2)
        if whole < k_count:  # one more register
            row = load(a, whole, wide, lanes)
            s0 = fma(row, load(b, whole, wide, lanes), s0)
            s1 = fma(row, load(b, column1 + whole, wide, lanes), s1)
            s2 = fma(row, load(b, column2 + whole, wide, lanes), s2)
        store(sums, 0, reduce_add(s0))
        store(sums, 1, reduce_add(s1))
        store(sums, 2, reduce_add(s2))

    return dot


@cache
def write_sums(compute: str) -> Any:
    """write(tab, sums, rows, columns, a, b, b_column, k_done, c): add what is left of k, and write to C."""

    @outlined_helper
    def write(tab, sums, rows, columns, a, b, b_column, k_done, c):  # type: ignore[no-untyped-def]
        k_total = tab[slot.K]
        for row in range(rows):
            for column in range(columns):
                total = load(sums, row * DOT_COLUMNS + column)
                for k in range(k_done, k_total):
                    total = fma(load(a, row * k_total + k), load(b, column * b_column + k), total)
                index = row * tab[slot.C_ROW] + column * tab[slot.C_COLUMN]
                if tab[slot.ACCUMULATE] != 0:
                    total += load(c, index)
                store(c, index, total)

    return write


@cache
def dot_columns(dtype: str) -> Any:
    """dot_all(tab, batch, a, sums, column_begin, column_end): all rows times some columns."""
    compute = compute_dtype(dtype)
    lanes = NATIVE_LANES if compute == "float32" else NATIVE_LANES // 2
    find_b, find_c = matrix_of("B", dtype), matrix_of("C", compute)
    many, one, write = dot_rows(compute), dot_one_row(compute), write_sums(compute)

    @outlined_helper
    def dot_all(tab, batch, a, sums, column_begin, column_end):  # type: ignore[no-untyped-def]
        m, k_total, b_column = tab[slot.M], tab[slot.K], tab[slot.B_COLUMN]
        k_done = k_total // lanes * lanes
        b_matrix, c_matrix = find_b(tab, batch), find_c(tab, batch)
        for column in range(column_begin, column_end, DOT_COLUMNS):
            columns = min(DOT_COLUMNS, column_end - column)
            column1 = min(1, columns - 1) * b_column  # a column that does not exist repeats the last one
            column2 = min(2, columns - 1) * b_column
            b = offset_pointer(b_matrix, column * b_column)
            for row in range(0, m, DOT_ROWS):
                rows = min(DOT_ROWS, m - row)
                a_row = offset_pointer(a, row * k_total)
                if rows == 1:
                    one(a_row, b, column1, column2, k_done, sums)
                else:
                    row2, row3 = min(2, rows - 1) * k_total, min(3, rows - 1) * k_total
                    many(a_row, k_total, row2, row3, b, column1, column2, k_done, sums)
                c = offset_pointer(c_matrix, row * tab[slot.C_ROW] + column * tab[slot.C_COLUMN])
                write(tab, sums, rows, columns, a_row, b, b_column, k_done, c)

    return dot_all


@cache
def dot_kernel(dtype: str) -> Any:
    """Kernel over [batch][column block]."""
    compute = compute_dtype(dtype)
    copy, dot_all = copy_rows(dtype), dot_columns(dtype)

    @kernel
    def gemm_dot(tab, begin, end, thread):  # type: ignore[no-untyped-def]
        scratch = tab[slot.SCRATCH] + thread * tab[slot.SCRATCH_BYTES]
        sums, a = pointer_at(scratch, compute), pointer_at(scratch + TILE_BYTES, compute)
        n, blocks = tab[slot.N], tab[slot.COLUMN_BLOCKS]
        copied = i64(-1)
        for unit in range(begin, end):
            batch = unit // blocks
            block = unit - batch * blocks
            if batch != copied:
                copy(tab, batch, a)
                copied = batch
            column_begin, column_end = n * block // blocks, n * (block + 1) // blocks
            dot_all(tab, batch, a, sums, column_begin, column_end)
            finish_region(tab, batch, i64(0), tab[slot.M], column_begin, column_end)

    return gemm_dot
