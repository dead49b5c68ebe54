"""What every GEMM kernel does with its table: find one matrix of the batch, report a finished region."""

# pyright: basic, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

from compiler_bridge.cpu import gemm_table as slot
from compiler_bridge.cpu.gemm_callback import call_epilogue, function_table
from compiler_bridge.cpu.gemm_plan import panel_columns
from compiler_bridge.cpu.language import offset_pointer, outlined_helper, pointer


@cache
def matrix_of(name: str, dtype: str) -> Any:
    """find(tab, batch): first element of matrix number `batch` of "A", "B" or "C"."""
    base, outer, inner = slot.SLOT[name], slot.SLOT[f"{name}_OUTER"], slot.SLOT[f"{name}_INNER"]

    @outlined_helper
    def find(tab, batch):  # type: ignore[no-untyped-def]
        batch_outer = batch // tab[slot.BATCH_INNER]
        batch_inner = batch - batch_outer * tab[slot.BATCH_INNER]
        return offset_pointer(pointer(tab, base, dtype), batch_outer * tab[outer] + batch_inner * tab[inner])

    return find


@cache
def block_of_unit(dtype: str) -> Any:
    """find(tab, unit): batch, first row, last row + 1, first column, last column + 1 of a unit of work, counted
    [batch][column block][row block]."""
    width = panel_columns(dtype)

    @outlined_helper
    def find(tab, unit):  # type: ignore[no-untyped-def]
        m, n = tab[slot.M], tab[slot.N]
        row_blocks, column_blocks = tab[slot.ROW_BLOCKS], tab[slot.COLUMN_BLOCKS]
        panels, pairs = (n + width - 1) // width, (m + 1) // 2
        batch = unit // (row_blocks * column_blocks)
        within = unit - batch * row_blocks * column_blocks
        column_block = within // row_blocks
        row_block = within - column_block * row_blocks
        # an even number of rows, except in the last block, is a sum of whole tiles
        row_begin = pairs * row_block // row_blocks * 2
        row_end = min(m, pairs * (row_block + 1) // row_blocks * 2)
        column_begin = panels * column_block // column_blocks * width
        column_end = min(n, panels * (column_block + 1) // column_blocks * width)
        return batch, row_begin, row_end, column_begin, column_end

    return find


@outlined_helper
def finish_region(tab, batch, row_begin, row_end, column_begin, column_end):  # type: ignore[no-untyped-def]
    """Call the epilogue on a finished region, in the caller's rows and columns."""
    if tab[slot.EPILOGUE] == 0:
        return
    table = function_table(tab, slot.EPILOGUE_TABLE)
    if tab[slot.SWAPPED] != 0:
        first = batch * tab[slot.N]
        call_epilogue(
            tab[slot.EPILOGUE], table,
            first + column_begin, first + column_end, row_begin, row_end,
        )  # fmt: skip
    else:
        first = batch * tab[slot.M]
        call_epilogue(
            tab[slot.EPILOGUE], table,
            first + row_begin, first + row_end, column_begin, column_end,
        )  # fmt: skip
