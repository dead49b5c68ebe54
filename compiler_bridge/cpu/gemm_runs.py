"""A GEMM whose columns of B are short runs, read where they lie: the weight gradient of an image's convolution.

    C[m, s * RUN + i] (+)= sum over k of A[m, k] * B[place(k, s) + i]

`gemm_multiply` copies such columns into panels, run by run, which is little beside the products where a run is many
channels, but not where it is three channels of a few taps. Here the register tile lies the other way: its rows are
elements of a run, broadcast from memory, its columns are rows of A, and the place in B is looked up for each k.

    for k block:  find places;  for panel of A:  for segment:  for six elements of the run:  register tile

Each thread takes a part of K and keeps all its sums, transposed, in scratch (they stay in L2).
"""

# pyright: basic, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

from compiler_bridge.cpu import gemm_table as slot
from compiler_bridge.cpu.gemm_batch import finish_region, matrix_of
from compiler_bridge.cpu.gemm_callback import call_pack, function_table
from compiler_bridge.cpu.gemm_micro import zero_of
from compiler_bridge.cpu.gemm_multiply import SEGMENTS_FOUND, small_panels, sums_of_part
from compiler_bridge.cpu.gemm_pack import pack_panel
from compiler_bridge.cpu.gemm_plan import ENTRY, FEWER_ROWS, ROWS, TILE_BYTES, compute_dtype, panel_columns
from compiler_bridge.cpu.language import (
    address_of,
    broadcast_load,
    fma,
    i64,
    kernel,
    load,
    offset_pointer,
    outlined_helper,
    pointer,
    pointer_at,
    splat,
    store,
    where,
)

NEAR_K = 128
"""Elements between one k of A and the next up to which a panel of it is read where it lies."""


@cache
def run_tile(dtype: str, rows: int) -> Any:
    """multiply(places, k_count, b, count, panel, panel_k, sums): adds the products of `rows` elements of a run.

    places: of the run in B, by k. b: the first element's pointer for place 0. An element from `count` on repeats the
    last one, and its sums are to be ignored. panel: [k][columns], panel_k apart. sums: [rows][columns]
    """
    width, zero = panel_columns(dtype), zero_of(dtype)
    has_all_rows = rows == ROWS

    @outlined_helper
    def multiply(places, k_count, b, count, panel, panel_k, sums):  # type: ignore[no-untyped-def]
        c0 = c1 = c2 = c3 = c4 = c5 = splat(zero, width)
        b1, b2 = offset_pointer(b, min(1, count - 1)), offset_pointer(b, min(2, count - 1))
        b3, b4 = offset_pointer(b, min(3, count - 1)), offset_pointer(b, min(4, count - 1))
        b5 = offset_pointer(b, min(5, count - 1))
        for k in range(k_count):
            place = load(places, k)
            columns = load(panel, k * panel_k, width)
            c0 = fma(broadcast_load(b, place, width), columns, c0)
            c1 = fma(broadcast_load(b1, place, width), columns, c1)
            c2 = fma(broadcast_load(b2, place, width), columns, c2)
            c3 = fma(broadcast_load(b3, place, width), columns, c3)
            if has_all_rows:
                c4 = fma(broadcast_load(b4, place, width), columns, c4)
                c5 = fma(broadcast_load(b5, place, width), columns, c5)
        store(sums, 0, load(sums, 0, width) + c0)
        store(sums, width, load(sums, width, width) + c1)
        store(sums, 2 * width, load(sums, 2 * width, width) + c2)
        store(sums, 3 * width, load(sums, 3 * width, width) + c3)
        if has_all_rows:
            store(sums, 4 * width, load(sums, 4 * width, width) + c4)
            store(sums, 5 * width, load(sums, 5 * width, width) + c5)

    return multiply


@outlined_helper
def padded_run(tab):  # type: ignore[no-untyped-def]
    """Rows of the sums that a segment has: whole register tiles."""
    return (tab[slot.RUN] + ROWS - 1) // ROWS * ROWS


@outlined_helper
def find_places(tab, k_begin, k_count, found, table, zeros, thread):  # type: ignore[no-untyped-def]
    """table[segment][k] = place in B, that of `zeros` in the padding; `found` has room for SEGMENTS_FOUND entries."""
    segments = tab[slot.N] // tab[slot.RUN]
    for first in range(i64(0), segments, SEGMENTS_FOUND):
        some = min(SEGMENTS_FOUND, segments - first)
        for k in range(i64(0), k_count, ENTRY):
            count = min(ENTRY, k_count - k)
            call_pack(
                tab[slot.PLACES_B], function_table(tab, slot.PLACES_B_TABLE), address_of(found),
                k_begin + k, count, first, some, thread,
            )  # fmt: skip
            for segment in range(some):
                places = load(found, segment * ENTRY, ENTRY)
                at = (first + segment) * tab[slot.K_BLOCK] + k
                store(table, at, where(places >= 0, places, zeros), count)


@cache
def panel_of_a(dtype: str) -> Any:
    """find(tab, row, k_begin, k_count, scratch): some rows of A as the tile's columns, and how far apart its k are."""
    width = panel_columns(dtype)
    find_a, pack = matrix_of("A", dtype), pack_panel(dtype)

    @outlined_helper
    def find(tab, row, k_begin, k_count, scratch):  # type: ignore[no-untyped-def]
        rows = min(width, tab[slot.M] - row)
        row_step, k_step = tab[slot.A_ROW], tab[slot.A_K]
        first = offset_pointer(find_a(tab, i64(0)), row * row_step + k_begin * k_step)
        if row_step == 1 and rows == width and k_step <= NEAR_K:
            return first, k_step
        pack(scratch, i64(width), first, row_step, k_step, rows, k_count)
        return scratch, i64(width)

    return find


@cache
def multiply_segments(dtype: str) -> Any:
    """multiply(tab, table, k_count, panel, panel_k, sums): one panel of A with every segment."""
    width = panel_columns(dtype)
    six, four = run_tile(dtype, ROWS), run_tile(dtype, FEWER_ROWS)

    @outlined_helper
    def multiply(tab, table, k_count, panel, panel_k, sums):  # type: ignore[no-untyped-def]
        run, padded = tab[slot.RUN], padded_run(tab)
        tiles = (run + ROWS - 1) // ROWS
        large = tiles - small_panels(run)
        b = pointer_at(address_of(pointer(tab, slot.B, dtype)), dtype)  # zeros lie outside of B's array
        for segment in range(tab[slot.N] // run):
            places = offset_pointer(table, segment * tab[slot.K_BLOCK])
            target, element = offset_pointer(sums, segment * padded * width), i64(0)
            for index in range(tiles):
                size = ROWS if index < large else FEWER_ROWS
                first, count = offset_pointer(b, element), min(size, run - element)
                if index < large:
                    six(places, k_count, first, count, panel, panel_k, target)
                else:
                    four(places, k_count, first, count, panel, panel_k, target)
                target = offset_pointer(target, size * width)
                element += size

    return multiply


@cache
def write_sums(dtype: str) -> Any:
    """write(tab, part, sums): the sums of a part of K -> C, or where `sum_parts` finds them."""
    width = panel_columns(dtype)
    find_sums = sums_of_part(dtype)

    @outlined_helper
    def write(tab, part, sums):  # type: ignore[no-untyped-def]
        c, steps = find_sums(tab, i64(0), part)
        run, padded = tab[slot.RUN], padded_run(tab)
        segments = tab[slot.N] // run
        accumulate = tab[slot.ACCUMULATE] if part == 0 else i64(0)
        for row in range(tab[slot.M]):
            lane = (row // width * segments * padded) * width + row % width
            for segment in range(segments):
                for i in range(run):
                    element = load(sums, lane + (segment * padded + i) * width)
                    index = row * steps[0] + (segment * run + i) * steps[1]
                    if accumulate != 0:
                        element += load(c, index)
                    store(c, index, element)

    return write


@cache
def runs_kernel(dtype: str) -> Any:
    """Kernel over the parts of K."""
    assert dtype == compute_dtype(dtype), "16-bit operands are copied into panels, and widened there"
    width, zero = panel_columns(dtype), zero_of(dtype)
    itemsize = 8 if dtype == "float64" else 4
    find_a, multiply, write = panel_of_a(dtype), multiply_segments(dtype), write_sums(dtype)

    @kernel
    def gemm_runs(tab, begin, end, thread):  # type: ignore[no-untyped-def]
        scratch = tab[slot.SCRATCH] + thread * tab[slot.SCRATCH_BYTES]
        found = pointer_at(scratch, "int64")
        table = pointer_at(scratch + tab[slot.SCRATCH_B], "int64")
        panel_scratch = pointer_at(scratch + tab[slot.SCRATCH_PANEL], dtype)
        sums = offset_pointer(panel_scratch, tab[slot.K_BLOCK] * width)
        zeros = pointer_at(scratch + TILE_BYTES, dtype)
        for i in range(tab[slot.RUN]):
            store(zeros, i, zero)
        no_place = (scratch + TILE_BYTES - address_of(pointer(tab, slot.B, dtype))) // itemsize
        rows_of_panel = tab[slot.N] // tab[slot.RUN] * padded_run(tab)
        panels = (tab[slot.M] + width - 1) // width
        for part in range(begin, end):
            for row in range(panels * rows_of_panel):
                store(sums, row * width, splat(zero, width))
            k_first = part * tab[slot.K_PART]
            k_end = min(tab[slot.K], k_first + tab[slot.K_PART])
            for k_begin in range(k_first, k_end, tab[slot.K_BLOCK]):
                k_count = min(tab[slot.K_BLOCK], k_end - k_begin)
                find_places(tab, k_begin, k_count, found, table, no_place, thread)
                for index in range(panels):
                    panel, panel_k = find_a(tab, index * width, k_begin, k_count, panel_scratch)
                    target = offset_pointer(sums, index * rows_of_panel * width)
                    multiply(tab, table, k_count, panel, panel_k, target)
            write(tab, i64(part), sums)
            if tab[slot.K_PARTS] == 1:
                finish_region(tab, i64(0), i64(0), tab[slot.M], i64(0), tab[slot.N])

    return gemm_runs
