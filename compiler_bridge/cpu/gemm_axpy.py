"""C = A B for few rows of A, where B has contiguous columns: B is read once, where it lies.

C[m, :] += A[m, k] * B[k, :]
"""

# pyright: basic, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

from compiler_bridge.cpu import gemm_table as slot
from compiler_bridge.cpu.gemm_batch import finish_region, matrix_of
from compiler_bridge.cpu.gemm_micro import zero_of
from compiler_bridge.cpu.gemm_plan import compute_dtype, panel_columns
from compiler_bridge.cpu.language import (
    fma,
    i64,
    kernel,
    load,
    offset_pointer,
    outlined_helper,
    pointer_at,
    splat,
    store,
)

K_STEP = 4
"""Rows of B that are added to a row of sums at a time."""


@cache
def add_rows(dtype: str) -> Any:
    """add(sums, columns, a, a_k, b, b_row): sums[:] += sum over four k of a[k] * b[k, :]."""
    compute = compute_dtype(dtype)
    lanes = panel_columns(compute)

    @outlined_helper
    def add(sums, columns, a, a_k, b, b_row):  # type: ignore[no-untyped-def]
        a0, a1 = splat(load(a, 0), lanes), splat(load(a, a_k), lanes)
        a2, a3 = splat(load(a, 2 * a_k), lanes), splat(load(a, 3 * a_k), lanes)
        b1, b2, b3 = offset_pointer(b, b_row), offset_pointer(b, 2 * b_row), offset_pointer(b, 3 * b_row)
        whole = columns // lanes * lanes
        for j in range(0, whole, lanes):
            total = load(sums, j, lanes)
            total = fma(a0, load(b, j, lanes), total)
            total = fma(a1, load(b1, j, lanes), total)
            total = fma(a2, load(b2, j, lanes), total)
            total = fma(a3, load(b3, j, lanes), total)
            store(sums, j, total)
        if whole < columns:
            count = columns - whole
            total = load(sums, whole, lanes, count)
            total = fma(a0, load(b, whole, lanes, count), total)
            total = fma(a1, load(b1, whole, lanes, count), total)
            total = fma(a2, load(b2, whole, lanes, count), total)
            total = fma(a3, load(b3, whole, lanes, count), total)
            store(sums, whole, total, count)

    return add


@cache
def add_row(dtype: str) -> Any:
    """add(sums, columns, a, b): sums[:] += a[0] * b[:]."""

    @outlined_helper
    def add(sums, columns, a, b):  # type: ignore[no-untyped-def]
        factor = load(a, 0)
        for j in range(columns):
            store(sums, j, fma(factor, load(b, j), load(sums, j)))

    return add


@cache
def axpy_columns(dtype: str) -> Any:
    """axpy_all(tab, batch, sums, column_begin, columns): sums[row][column] of all rows, some columns."""
    compute = compute_dtype(dtype)
    zero = zero_of(compute)
    find_a, find_b = matrix_of("A", dtype), matrix_of("B", dtype)
    add_four, add_one = add_rows(dtype), add_row(dtype)

    @outlined_helper
    def axpy_all(tab, batch, sums, column_begin, columns):  # type: ignore[no-untyped-def]
        m, k_total = tab[slot.M], tab[slot.K]
        a_row, a_k, b_row = tab[slot.A_ROW], tab[slot.A_K], tab[slot.B_K]
        a_matrix = find_a(tab, batch)
        b_matrix = offset_pointer(find_b(tab, batch), column_begin)
        for index in range(m * columns):
            store(sums, index, zero)
        whole = k_total // K_STEP * K_STEP
        for k in range(0, whole, K_STEP):
            b = offset_pointer(b_matrix, k * b_row)
            for row in range(m):
                a = offset_pointer(a_matrix, row * a_row + k * a_k)
                add_four(offset_pointer(sums, row * columns), columns, a, a_k, b, b_row)
        for k in range(whole, k_total):
            b = offset_pointer(b_matrix, k * b_row)
            for row in range(m):
                a = offset_pointer(a_matrix, row * a_row + k * a_k)
                add_one(offset_pointer(sums, row * columns), columns, a, b)

    return axpy_all


@cache
def write_rows(compute: str) -> Any:
    """write(tab, batch, sums, column_begin, columns): C (+)= the sums."""
    find_c = matrix_of("C", compute)

    @outlined_helper
    def write(tab, batch, sums, column_begin, columns):  # type: ignore[no-untyped-def]
        c = offset_pointer(find_c(tab, batch), column_begin * tab[slot.C_COLUMN])
        for row in range(tab[slot.M]):
            for column in range(columns):
                index = row * tab[slot.C_ROW] + column * tab[slot.C_COLUMN]
                total = load(sums, row * columns + column)
                if tab[slot.ACCUMULATE] != 0:
                    total += load(c, index)
                store(c, index, total)

    return write


@cache
def axpy_kernel(dtype: str) -> Any:
    """Kernel over [batch][column block]."""
    compute = compute_dtype(dtype)
    axpy_all, write = axpy_columns(dtype), write_rows(compute)

    @kernel
    def gemm_axpy(tab, begin, end, thread):  # type: ignore[no-untyped-def]
        sums = pointer_at(tab[slot.SCRATCH] + thread * tab[slot.SCRATCH_BYTES], compute)
        n, blocks = tab[slot.N], tab[slot.COLUMN_BLOCKS]
        for unit in range(begin, end):
            batch = unit // blocks
            block = unit - batch * blocks
            column_begin, column_end = n * block // blocks, n * (block + 1) // blocks
            axpy_all(tab, batch, sums, column_begin, column_end - column_begin)
            write(tab, batch, sums, column_begin, column_end - column_begin)
            finish_region(tab, batch, i64(0), tab[slot.M], column_begin, column_end)

    return gemm_axpy
