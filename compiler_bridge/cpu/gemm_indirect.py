"""A GEMM whose rows of A lie anywhere: convolutions without a copy of their windows.

    C[row, :] (+)= sum over segments s and i of A[place(row, s) + i] * B[s * RUN + i, :]

K is cut into SEGMENTS runs of RUN contiguous elements: the taps of a window times the channels. A function of the
caller says where each row of each segment begins, and which lie in the padding. A tile's places are looked up
once, for every panel of B (the indirection buffer of "The Indirect Convolution Algorithm", Dukhan 2019), and a
segment that lies in the padding for all rows of the tile costs nothing: the taps that a stride skips.
"""

# pyright: basic, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

from compiler_bridge.cpu import gemm_table as slot
from compiler_bridge.cpu.gemm_batch import block_of_unit, finish_region, matrix_of
from compiler_bridge.cpu.gemm_callback import call_pack, function_table
from compiler_bridge.cpu.gemm_micro import zero_of
from compiler_bridge.cpu.gemm_multiply import pack_panel_of_b, small_panels
from compiler_bridge.cpu.gemm_pack import pack_taps
from compiler_bridge.cpu.gemm_plan import (
    ENTRY,
    FEWER_ROWS,
    LINE,
    REGION_BYTES,
    ROWS,
    TILE_BYTES,
    compute_dtype,
    panel_columns,
)
from compiler_bridge.cpu.language import (
    address_of,
    broadcast_load,
    fma,
    i64,
    insert,
    iota,
    kernel,
    load,
    offset_pointer,
    outlined_helper,
    pointer,
    pointer_at,
    reduce_any,
    splat,
    store,
    where,
)

PANEL, COUNT = 6, 7
"""Lanes of an entry after the places of its rows: where its panel of B begins; in the first entry of a block of
segments, how many entries there are."""


@cache
def indirect_tile(dtype: str, rows: int) -> Any:
    """multiply(entries, run, a, panel, c, places, accumulate): one register tile, segment after segment.

    entries: [segment][ENTRY] places in A, see `write_entries`; places: where each row of C begins
    """
    width, zero = panel_columns(dtype), zero_of(dtype)
    has_all_rows = rows == ROWS

    @outlined_helper
    def multiply(entries, run, a, panel, c, places, accumulate):  # type: ignore[no-untyped-def]
        c0 = c1 = c2 = c3 = c4 = c5 = splat(zero, width)
        for segment in range(load(entries, COUNT)):
            entry = offset_pointer(entries, segment * ENTRY)
            a0, a1 = offset_pointer(a, load(entry, 0)), offset_pointer(a, load(entry, 1))
            a2, a3 = offset_pointer(a, load(entry, 2)), offset_pointer(a, load(entry, 3))
            a4, a5 = offset_pointer(a, load(entry, 4)), offset_pointer(a, load(entry, 5))
            b = offset_pointer(panel, load(entry, PANEL))
            for k in range(run):
                b_row = load(b, k * width, width)
                c0 = fma(broadcast_load(a0, k, width), b_row, c0)
                c1 = fma(broadcast_load(a1, k, width), b_row, c1)
                c2 = fma(broadcast_load(a2, k, width), b_row, c2)
                c3 = fma(broadcast_load(a3, k, width), b_row, c3)
                if has_all_rows:
                    c4 = fma(broadcast_load(a4, k, width), b_row, c4)
                    c5 = fma(broadcast_load(a5, k, width), b_row, c5)
        if accumulate != 0:
            c0 += load(c, load(places, 0), width)
            c1 += load(c, load(places, 1), width)
            c2 += load(c, load(places, 2), width)
            c3 += load(c, load(places, 3), width)
            if has_all_rows:
                c4 += load(c, load(places, 4), width)
                c5 += load(c, load(places, 5), width)
        store(c, load(places, 0), c0)
        store(c, load(places, 1), c1)
        store(c, load(places, 2), c2)
        store(c, load(places, 3), c3)
        if has_all_rows:
            store(c, load(places, 4), c4)
            store(c, load(places, 5), c5)

    return multiply


@outlined_helper
def write_entries(table, segments, block, count, zeros, panel_step):  # type: ignore[no-untyped-def]
    """Places of a tile's rows [segment][ENTRY], negative in the padding -> entries of the micro-kernel, in place.

    Each block of segments keeps its first place in the table; its entries move together where a segment is
    left out. A row in the padding reads `zeros`, one that does not exist what the first row reads.
    """
    lanes = iota(ENTRY, "int64")
    for first in range(i64(0), segments, block):
        start = offset_pointer(table, first * ENTRY)
        used = i64(0)
        for segment in range(min(block, segments - first)):
            places = load(start, segment * ENTRY, ENTRY)
            places = where(lanes < count, places, load(start, segment * ENTRY))
            if reduce_any(places >= 0):
                entry = where(places >= 0, places, zeros)
                store(start, used * ENTRY, insert(entry, PANEL, (first + segment) * panel_step))
                used += 1
        store(start, COUNT, used)


@cache
def prepare_tiles(dtype: str) -> Any:
    """prepare(tab, row, row_end, tables, zeros, thread): for each tile of the block its places in C and A."""
    width = panel_columns(dtype)

    @outlined_helper
    def prepare(tab, row, row_end, tables, zeros, thread):  # type: ignore[no-untyped-def]
        segments, run = tab[slot.SEGMENTS], tab[slot.RUN]
        panels = (row_end - row + ROWS - 1) // ROWS
        large = panels - small_panels(row_end - row)
        for index in range(panels):
            count = min(ROWS if index < large else FEWER_ROWS, row_end - row)
            places = offset_pointer(tables, index * (segments + 1) * ENTRY)
            entries = offset_pointer(places, ENTRY)
            call_pack(
                tab[slot.PLACES_C], function_table(tab, slot.PLACES_C_TABLE), address_of(places),
                row, count, i64(0), i64(1), thread,
            )  # fmt: skip
            call_pack(
                tab[slot.PLACES_A], function_table(tab, slot.PLACES_A_TABLE), address_of(entries),
                row, count, i64(0), segments, thread,
            )  # fmt: skip
            write_entries(entries, segments, tab[slot.SEGMENT_BLOCK], count, zeros, run * width)
            row += count

    return prepare


@outlined_helper
def write_rows(tile, width, c, places, rows, columns, c_column, accumulate):  # type: ignore[no-untyped-def]
    """The valid part of a whole tile -> C, for tiles at its edge and columns that are not contiguous."""
    for row in range(rows):
        for column in range(columns):
            index = load(places, row) + column * c_column
            element = load(tile, row * width + column)
            if accumulate != 0:
                element += load(c, index)
            store(c, index, element)


@cache
def pack_whole_panel(dtype: str) -> Any:
    """pack(tab, batch, column, panel, thread): a panel of B for all of K, from memory or by the caller's function,
    which counts k through the run and packs it for every segment."""
    width = panel_columns(dtype)
    find_b, pack_strided, pack_segments = matrix_of("B", dtype), pack_panel_of_b(dtype), pack_taps(dtype)

    @outlined_helper
    def pack(tab, batch, column, panel, thread):  # type: ignore[no-untyped-def]
        run, segments = tab[slot.RUN], tab[slot.SEGMENTS]
        if tab[slot.PACK_B] != 0:
            pack_strided(tab, batch, column, panel, i64(0), run, thread)
        elif segments == 1 or tab[slot.B_SEGMENT] == run * tab[slot.B_K]:
            pack_strided(tab, batch, column, panel, i64(0), tab[slot.K], thread)
        else:
            b = offset_pointer(find_b(tab, batch), column * tab[slot.B_COLUMN])
            strides = tab[slot.B_COLUMN], tab[slot.B_K], tab[slot.B_SEGMENT]
            pack_segments(panel, b, strides, min(width, tab[slot.N] - column), run, segments)

    return pack


@cache
def pack_indirect_kernel(dtype: str) -> Any:
    """Kernel over the panels of all B: WORKSPACE[batch][panel][k][column of the panel]."""
    width = panel_columns(dtype)
    pack = pack_whole_panel(dtype)

    @kernel
    def gemm_pack_indirect(tab, begin, end, thread):  # type: ignore[no-untyped-def]
        panels = (tab[slot.N] + width - 1) // width
        workspace = pointer(tab, slot.WORKSPACE, dtype)
        for unit in range(begin, end):
            batch = unit // panels
            panel = offset_pointer(workspace, unit * tab[slot.K] * width)
            pack(tab, batch, (unit - batch * panels) * width, panel, thread)

    return gemm_pack_indirect


@cache
def multiply_tiles(dtype: str) -> Any:
    """multiply(tab, rows, columns, tables, scratch, first_segment, panel, c, accumulate): one panel of B with
    every tile of the block; c is the panel's first column."""
    width = panel_columns(dtype)
    six, four = indirect_tile(dtype, ROWS), indirect_tile(dtype, FEWER_ROWS)

    @outlined_helper
    def multiply(tab, rows, columns, tables, scratch, first_segment, panel, c, accumulate):  # type: ignore[no-untyped-def]
        run, c_column = tab[slot.RUN], tab[slot.C_COLUMN]
        a = pointer_at(address_of(pointer(tab, slot.A, dtype)), dtype)  # zeros lie outside of A's array
        tile, tile_places = pointer_at(scratch, dtype), pointer_at(scratch + TILE_BYTES, "int64")
        panels = (rows + ROWS - 1) // ROWS
        large = panels - small_panels(rows)
        whole_columns = columns == width and c_column == 1
        for index in range(panels):
            size = ROWS if index < large else FEWER_ROWS
            places = offset_pointer(tables, index * (tab[slot.SEGMENTS] + 1) * ENTRY)
            entries = offset_pointer(places, (first_segment + 1) * ENTRY)
            direct = whole_columns and rows >= size
            target, target_places = c if direct else tile, places if direct else tile_places
            add = accumulate if direct else i64(0)
            if index < large:
                six(entries, run, a, panel, target, target_places, add)
            else:
                four(entries, run, a, panel, target, target_places, add)
            if not direct:
                write_rows(tile, i64(width), c, places, min(size, rows), columns, c_column, accumulate)
            rows -= size

    return multiply


@cache
def multiply_block(dtype: str) -> Any:
    """multiply(tab, batch, row_begin, row_end, column_begin, column_end, thread): some rows and columns of C."""
    width = panel_columns(dtype)
    itemsize = 8 if dtype == "float64" else 4
    region_elements = REGION_BYTES // itemsize
    prepare, tiles, pack = prepare_tiles(dtype), multiply_tiles(dtype), pack_whole_panel(dtype)

    @outlined_helper
    def multiply(tab, batch, row_begin, row_end, column_begin, column_end, thread):  # type: ignore[no-untyped-def]
        scratch = tab[slot.SCRATCH] + thread * tab[slot.SCRATCH_BYTES]
        tables = pointer_at(scratch + tab[slot.SCRATCH_B], "int64")
        start = address_of(pointer(tab, slot.A, dtype))
        zeros = (scratch + TILE_BYTES + LINE - start) // itemsize  # as a place in A
        first_row = batch * tab[slot.M]
        prepare(tab, first_row + row_begin, first_row + row_end, tables, zeros, thread)
        rows, segments, k_total = row_end - row_begin, tab[slot.SEGMENTS], tab[slot.K]
        panels = (tab[slot.N] + width - 1) // width
        first_panel = panels * batch if tab[slot.B_BATCHES] > 1 else i64(0)
        finished = column_begin
        for column in range(column_begin, column_end, width):
            columns = min(width, column_end - column)
            if tab[slot.B_IS_PACKED] != 0:
                start = (first_panel + column // width) * k_total * width
                panel = offset_pointer(pointer(tab, slot.WORKSPACE, dtype), start)
            else:
                panel = pointer_at(scratch + tab[slot.SCRATCH_PANEL], dtype)
                pack(tab, batch, column, panel, thread)
            c = offset_pointer(pointer(tab, slot.C, dtype), column * tab[slot.C_COLUMN])
            for segment in range(i64(0), segments, tab[slot.SEGMENT_BLOCK]):
                accumulate = i64(1) if segment > 0 else tab[slot.ACCUMULATE]
                tiles(tab, rows, columns, tables, scratch, segment, panel, c, accumulate)
            done = column + columns
            if done == column_end or (done + width - finished) * rows > region_elements:
                finish_region(tab, batch, row_begin, row_end, finished, done)
                finished = done

    return multiply


@cache
def indirect_kernel(dtype: str) -> Any:
    """Kernel over the blocks of C, [batch][column block][row block], which threads take in turn."""
    assert dtype == compute_dtype(dtype), "16-bit operands are widened first"
    width, zero = panel_columns(dtype), zero_of(dtype)
    multiply, find_block = multiply_block(dtype), block_of_unit(dtype)

    @kernel
    def gemm_indirect(tab, begin, end, thread):  # type: ignore[no-untyped-def]
        scratch = tab[slot.SCRATCH] + thread * tab[slot.SCRATCH_BYTES] + TILE_BYTES
        tile_places, zeros = pointer_at(scratch, "int64"), pointer_at(scratch + LINE, dtype)
        for row in range(ENTRY):
            store(tile_places, row, i64(row * width))
        for k in range(tab[slot.RUN]):
            store(zeros, k, zero)
        turns = tab[slot.TURNS]
        for unit in range(begin, end):
            block = unit % turns * tab[slot.THREADS] + unit // turns
            batch, row_begin, row_end, column_begin, column_end = find_block(tab, block)
            multiply(tab, batch, row_begin, row_end, column_begin, column_end, thread)

    return gemm_indirect
