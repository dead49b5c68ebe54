"""The two kernels of a packed GEMM: pack all of B, then multiply tile by tile.

A tile is some rows and columns of one C of the batch. For each block of k its rows of A are packed into the
thread's scratch (they stay in L2), then every panel of B (it stays in L1) meets every panel of A:

    for k block:  pack A;  for panel of B:  for panel of A:  register tile
                           after the last k block, every few panels of B:  epilogue

Where one tile has all the rows, B is read only once, and packing it beforehand would cost as much as using it:
each panel is packed just before its use (by the first register tile, if B's columns are contiguous), while the
tiles before it asked for its cache lines. Where few columns meet A, A is read where it lies.
"""

# pyright: basic, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

from compiler_bridge.cpu import gemm_table as slot
from compiler_bridge.cpu.gemm_batch import block_of_unit, finish_region, matrix_of
from compiler_bridge.cpu.gemm_callback import call_pack, function_table
from compiler_bridge.cpu.gemm_micro import register_tile, write_tile, zero_of
from compiler_bridge.cpu.gemm_pack import pack_contiguous_rows, pack_panel
from compiler_bridge.cpu.gemm_plan import (
    ENTRY,
    FEWER_ROWS,
    MAX_DIRECT_COLUMNS,
    MAX_DIRECT_K_MAJOR_COLUMNS,
    REGION_BYTES,
    ROWS,
    TILE_BYTES,
    compute_dtype,
    line_elements,
    panel_columns,
)
from compiler_bridge.cpu.language import (
    address_of,
    i64,
    kernel,
    load,
    offset_pointer,
    outlined_helper,
    pointer,
    pointer_at,
    splat,
    store,
)

PACK_K_STEP = 128
"""How much of k is packed for one panel of B before going to the next one: bounds the pages in use."""

SEGMENTS_FOUND = TILE_BYTES // (ENTRY * 8)
"""Segments whose places are found at a time: so many have room."""


@cache
def pack_panel_of_runs(dtype: str) -> Any:
    """pack(tab, batch, column, columns, panel, k_begin, k_count, thread): B where columns are segments of RUN
    contiguous elements, each found by the caller's function (the windows of a convolution)."""
    width, zero = panel_columns(dtype), zero_of(dtype)

    @outlined_helper
    def copy_part(b, places, count, first, part, panel):  # type: ignore[no-untyped-def]
        for k in range(count):
            place = load(places, k)
            if place < 0:
                store(panel, k * width, splat(zero, width), part)
            elif part == width:
                store(panel, k * width, load(b, place + first, width))
            else:
                store(panel, k * width, load(b, place + first, width, part), part)

    @outlined_helper
    def pack(tab, batch, column, columns, panel, k_begin, k_count, thread):  # type: ignore[no-untyped-def]
        run, b = tab[slot.RUN], pointer(tab, slot.B, dtype)
        scratch = tab[slot.SCRATCH] + thread * tab[slot.SCRATCH_BYTES]
        places = pointer_at(scratch, "int64")  # where the register tile's scratch is, which is not in use now
        last_segment = (column + columns - 1) // run + 1
        for first_segment in range(column // run, last_segment, SEGMENTS_FOUND):
            segments = min(SEGMENTS_FOUND, last_segment - first_segment)
            for k in range(i64(0), k_count, ENTRY):
                count = min(ENTRY, k_count - k)
                call_pack(
                    tab[slot.PLACES_B], function_table(tab, slot.PLACES_B_TABLE), address_of(places),
                    batch * tab[slot.K] + k_begin + k, count, first_segment, segments, thread,
                )  # fmt: skip
                for segment in range(segments):
                    start = (first_segment + segment) * run - column  # lane at which the segment begins
                    lane = max(0, start)
                    part = min(start + run, columns) - lane
                    target = offset_pointer(panel, k * width + lane)
                    copy_part(b, offset_pointer(places, segment * ENTRY), count, lane - start, part, target)

    return pack


@outlined_helper
def place_of_k(tab, k, step, segment_step):  # type: ignore[no-untyped-def]
    """Where k is in an operand: so many steps within its segment."""
    segment = k // tab[slot.K_RUN]
    return segment * segment_step + (k - segment * tab[slot.K_RUN]) * step


@outlined_helper
def next_count(k, end, most, limit):  # type: ignore[no-untyped-def]
    """How many k to take from here: at most so many, and none beyond the next multiple of `limit`."""
    return max(0, min(most, min(end - k, limit - k % limit)))


@cache
def pack_panel_of_b(dtype: str) -> Any:
    """pack(tab, batch, column, panel, k_begin, k_count, thread): from memory or by the caller's function."""
    width = panel_columns(dtype)
    matrix, pack_strided, pack_runs = matrix_of("B", dtype), pack_panel(dtype), pack_panel_of_runs(dtype)

    @outlined_helper
    def pack(tab, batch, column, panel, k_begin, k_count, thread):  # type: ignore[no-untyped-def]
        count = min(width, tab[slot.N] - column)
        if tab[slot.PLACES_B] != 0:
            pack_runs(tab, batch, column, count, panel, k_begin, k_count, thread)
        elif tab[slot.PACK_B] != 0:
            call_pack(
                tab[slot.PACK_B], function_table(tab, slot.PACK_B_TABLE), address_of(panel),
                batch * tab[slot.N] + column, count, k_begin, k_count, thread,
            )  # fmt: skip
        else:
            first = offset_pointer(matrix(tab, batch), column * tab[slot.B_COLUMN])
            done = i64(0)
            while done < k_count:  # one segment after the other
                some = next_count(k_begin + done, k_begin + k_count, k_count, tab[slot.K_RUN])
                at_k = place_of_k(tab, k_begin + done, tab[slot.B_K], tab[slot.B_SEGMENT])
                target, source = offset_pointer(panel, done * width), offset_pointer(first, at_k)
                pack_strided(target, i64(width), source, tab[slot.B_COLUMN], tab[slot.B_K], count, some)
                done += some

    return pack


@cache
def pack_b_kernel(dtype: str) -> Any:
    """Kernel over the panels of all B: WORKSPACE[batch][panel][k][column of the panel]."""
    compute = compute_dtype(dtype)
    width = panel_columns(dtype)
    pack = pack_panel_of_b(dtype)

    @kernel
    def gemm_pack_b(tab, begin, end, thread):  # type: ignore[no-untyped-def]
        k_total = tab[slot.K]
        panels = (tab[slot.N] + width - 1) // width
        workspace = pointer(tab, slot.WORKSPACE, compute)
        for k_begin in range(i64(0), k_total, PACK_K_STEP):
            k_count = min(PACK_K_STEP, k_total - k_begin)
            for unit in range(begin, end):
                batch = unit // panels
                column = (unit - batch * panels) * width
                panel = offset_pointer(workspace, (unit * k_total + k_begin) * width)
                pack(tab, batch, column, panel, k_begin, k_count, thread)

    return gemm_pack_b


@outlined_helper
def small_panels(rows):  # type: ignore[no-untyped-def]
    """How many of the ceil(rows / ROWS) panels of A have FEWER_ROWS rows.

    They come last, and the very last may lack some rows.
    """
    panels = (rows + ROWS - 1) // ROWS
    return min(panels, (panels * ROWS - rows) // (ROWS - FEWER_ROWS))


@cache
def pack_block_of_a(dtype: str) -> Any:
    """pack(tab, batch, row, row_end, block, k_begin, k_count, thread): rows of A as [panel][k][ROWS]."""
    matrix, pack_strided = matrix_of("A", dtype), pack_panel(dtype)

    @outlined_helper
    def pack(tab, batch, row, row_end, block, k_begin, k_count, thread):  # type: ignore[no-untyped-def]
        panels = (row_end - row + ROWS - 1) // ROWS
        large = panels - small_panels(row_end - row)
        first = matrix(tab, batch)
        if tab[slot.A_ROW] == 1 and tab[slot.PACK_A] == 0:
            first = offset_pointer(first, row + place_of_k(tab, k_begin, tab[slot.A_K], tab[slot.A_SEGMENT]))
            pack_contiguous_rows(block, first, tab[slot.A_K], row_end - row, large, k_count)
            return
        for index in range(panels):
            count = min(ROWS if index < large else FEWER_ROWS, row_end - row)
            panel = offset_pointer(block, index * ROWS * k_count)
            if tab[slot.PACK_A] != 0:
                call_pack(
                    tab[slot.PACK_A], function_table(tab, slot.PACK_A_TABLE), address_of(panel),
                    batch * tab[slot.M] + row, count, k_begin, k_count, thread,
                )  # fmt: skip
            else:
                done = i64(0)
                while done < k_count:  # one segment after the other
                    some = next_count(k_begin + done, k_begin + k_count, k_count, tab[slot.K_RUN])
                    at_k = place_of_k(tab, k_begin + done, tab[slot.A_K], tab[slot.A_SEGMENT])
                    target, source = (
                        offset_pointer(panel, done * ROWS),
                        offset_pointer(first, row * tab[slot.A_ROW] + at_k),
                    )
                    pack_strided(target, i64(ROWS), source, tab[slot.A_ROW], tab[slot.A_K], count, some)
                    done += some
            row += count

    return pack


@cache
def block_of_a(dtype: str) -> Any:
    """block(tab, batch, row, row_end, columns, scratch, k_begin, k_count, thread): A as the tiles read it.

    Returns (first element, step between rows, step between k) and how far apart panels of ROWS and of
    FEWER_ROWS rows begin. Where few columns meet A, it stays where it lies; else it is packed into scratch.
    """
    pack, find_a = pack_block_of_a(dtype), matrix_of("A", dtype)

    @outlined_helper
    def packed(tab, batch, row, row_end, columns, scratch, k_begin, k_count, thread):  # type: ignore[no-untyped-def]
        pack(tab, batch, row, row_end, scratch, k_begin, k_count, thread)
        return (scratch, i64(1), i64(ROWS)), ROWS * k_count, ROWS * k_count

    @outlined_helper
    def block(tab, batch, row, row_end, columns, scratch, k_begin, k_count, thread):  # type: ignore[no-untyped-def]
        is_near = columns <= MAX_DIRECT_COLUMNS and tab[slot.K_LIMIT] == tab[slot.K_RUN]
        if is_near and tab[slot.A_K] == 1 and tab[slot.PACK_A] == 0:
            step = tab[slot.A_ROW]
            at_k = place_of_k(tab, k_begin, i64(1), tab[slot.A_SEGMENT])
            first = offset_pointer(find_a(tab, batch), row * step + at_k)
            return (first, step, i64(1)), ROWS * step, FEWER_ROWS * step
        if columns <= MAX_DIRECT_K_MAJOR_COLUMNS and tab[slot.A_ROW] == 1 and tab[slot.PACK_A] == 0:
            at_k = place_of_k(tab, k_begin, tab[slot.A_K], tab[slot.A_SEGMENT])
            first = offset_pointer(find_a(tab, batch), row + at_k)
            return (first, i64(1), tab[slot.A_K]), i64(ROWS), i64(FEWER_ROWS)
        return packed(tab, batch, row, row_end, columns, scratch, k_begin, k_count, thread)

    return block if dtype == compute_dtype(dtype) else packed


@cache
def multiply_panel(dtype: str) -> Any:
    """multiply(tile, k_count, rows, columns, block_of_a, b, b_k, panel, c, steps, accumulate, ahead).

    One panel of B with all the panels of A in the block. `c` is their first element of C, steps those between
    its rows and columns. b_k: 0 where B is packed in `panel`; else the first tile packs B from b on.
    ahead: (pointer, line_step, lane_step, part_step) of the next panel; each tile asks for a part of it.
    """
    compute = compute_dtype(dtype)
    width, line = panel_columns(compute), line_elements(dtype)
    six, four, write = register_tile(dtype, ROWS), register_tile(dtype, FEWER_ROWS), write_tile(compute)

    @outlined_helper
    def multiply(  # type: ignore[no-untyped-def]
        tile, k_count, rows, columns, block_of_a, b, b_k, panel, c, steps, accumulate, ahead
    ):
        (a, a_row, a_k), large_step, small_step = block_of_a
        next_panel, line_step, lane_step, part_step = ahead
        c_row, c_column = steps
        panels = (rows + ROWS - 1) // ROWS
        large = panels - small_panels(rows)
        whole_columns = columns == width and c_column == 1
        for index in range(panels):
            size = ROWS if index < large else FEWER_ROWS
            count = min(size, rows)
            direct = whole_columns and rows >= size
            target, target_row = c if direct else tile, c_row if direct else i64(width)
            add = accumulate if direct else i64(0)
            part, block = (next_panel, line_step, lane_step), (a, a_row, a_k)
            if index < large:
                six(k_count, block, count, b, b_k, panel, target, target_row, add, part)
            else:
                four(k_count, block, count, b, b_k, panel, target, target_row, add, part)
            if not direct:
                write(tile, c, c_row, c_column, count, columns, accumulate)
            b_k = i64(0)
            next_panel = offset_pointer(next_panel, part_step)
            if (index + 1) * line >= width:
                line_step = lane_step = i64(0)
            a = offset_pointer(a, large_step if index < large else small_step)
            c = offset_pointer(c, size * c_row)
            rows -= size

    return multiply


@cache
def panel_of_b(dtype: str) -> Any:
    """panel(tab, batch, column, columns, k_begin, k_count, thread): B as the tiles read it.

    Returns the packed panel, and b_k: 0, or how far apart the rows of B are, where the first tile packs them.
    """
    compute = compute_dtype(dtype)
    width = panel_columns(dtype)
    pack = pack_panel_of_b(dtype)

    @outlined_helper
    def find(tab, batch, column, columns, k_begin, k_count, thread):  # type: ignore[no-untyped-def]
        if tab[slot.B_IS_PACKED] != 0:
            panels = (tab[slot.N] + width - 1) // width
            first = panels * batch if tab[slot.B_BATCHES] > 1 else i64(0)
            start = ((first + column // width) * tab[slot.K] + k_begin) * width
            return offset_pointer(pointer(tab, slot.WORKSPACE, compute), start), i64(0)
        scratch = tab[slot.SCRATCH] + thread * tab[slot.SCRATCH_BYTES]
        panel = pointer_at(scratch + tab[slot.SCRATCH_B], compute)
        if (
            tab[slot.PACK_B] == 0
            and tab[slot.PLACES_B] == 0
            and tab[slot.B_COLUMN] == 1
            and tab[slot.B_K] != 0
            and columns == width
        ):
            return panel, tab[slot.B_K]
        pack(tab, batch, column, panel, k_begin, k_count, thread)
        return panel, i64(0)

    return find


@cache
def steps_ahead(dtype: str) -> Any:
    """steps(tab): (line_step, lane_step, part_step) of a panel of B where it lies; 0s where it isn't read."""
    line = line_elements(dtype)

    @outlined_helper
    def steps(tab):  # type: ignore[no-untyped-def]
        b_k, b_column = tab[slot.B_K], tab[slot.B_COLUMN]
        if tab[slot.B_IS_PACKED] != 0 or tab[slot.PACK_B] != 0 or tab[slot.PLACES_B] != 0:
            return i64(0), i64(0), i64(0)
        return b_k, b_column if b_k == 1 else b_k, line * b_column

    return steps


@cache
def sums_of_part(dtype: str) -> Any:
    """find(tab, batch, part): where the sums over a part of K go, and how far apart its rows and columns are: C for
    part 0, else the workspace."""
    compute = compute_dtype(dtype)
    find_c = matrix_of("C", compute)
    itemsize = 8 if compute == "float64" else 4

    @outlined_helper
    def find(tab, batch, part):  # type: ignore[no-untyped-def]
        if part == 0:
            return find_c(tab, batch), (tab[slot.C_ROW], tab[slot.C_COLUMN])
        place = tab[slot.PARTIAL] + (part - 1) * tab[slot.M] * tab[slot.N] * itemsize
        return pointer_at(tab[slot.WORKSPACE] + place, compute), (tab[slot.N], i64(1))

    return find


@cache
def multiply_tile(dtype: str) -> Any:
    """multiply(tab, batch, part, row_begin, row_end, column_begin, column_end, thread): one tile of C, the sum over
    one part of K."""
    compute = compute_dtype(dtype)
    width = panel_columns(dtype)
    region_elements = REGION_BYTES // (8 if compute == "float64" else 4)
    find_b, find_sums = matrix_of("B", dtype), sums_of_part(dtype)
    find_block, find_panel, find_steps = block_of_a(dtype), panel_of_b(dtype), steps_ahead(dtype)
    multiply_columns = multiply_panel(dtype)

    @outlined_helper
    def multiply(tab, batch, part, row_begin, row_end, column_begin, column_end, thread):  # type: ignore[no-untyped-def]
        k_first = part * tab[slot.K_PART]
        k_total = min(tab[slot.K], k_first + tab[slot.K_PART])
        c, steps = find_sums(tab, batch, part)
        scratch = tab[slot.SCRATCH] + thread * tab[slot.SCRATCH_BYTES]
        tile, a_scratch = pointer_at(scratch, compute), pointer_at(scratch + TILE_BYTES, compute)
        b_matrix, c_rows = find_b(tab, batch), offset_pointer(c, row_begin * steps[0])
        line_step, lane_step, part_step = find_steps(tab)
        rows, all_columns = row_end - row_begin, column_end - column_begin
        k_begin = k_first
        while k_begin < max(k_total, k_first + 1):  # once even when K is 0: C becomes 0
            k_count = next_count(k_begin, k_total, tab[slot.K_BLOCK], tab[slot.K_LIMIT])
            accumulate = i64(1) if k_begin > k_first else tab[slot.ACCUMULATE] if part == 0 else i64(0)
            block = find_block(
                tab, batch, row_begin, row_end, all_columns, a_scratch, k_begin, k_count, thread
            )
            finished = column_begin
            for column in range(column_begin, column_end, width):
                columns = min(width, column_end - column)
                panel, b_k = find_panel(tab, batch, column, columns, k_begin, k_count, thread)
                at_k = place_of_k(tab, k_begin, tab[slot.B_K], tab[slot.B_SEGMENT])
                b = offset_pointer(b_matrix, at_k + column * tab[slot.B_COLUMN])
                c = offset_pointer(c_rows, column * steps[1])
                ahead = (offset_pointer(b, width * tab[slot.B_COLUMN]), line_step, lane_step, part_step)
                multiply_columns(
                    tile, k_count, rows, columns, block, b, b_k, panel, c, steps, accumulate, ahead
                )
                done = column + columns
                is_whole = done == column_end or (done + width - finished) * rows > region_elements
                if is_whole and k_begin + k_count >= k_total and tab[slot.K_PARTS] == 1:
                    finish_region(tab, batch, row_begin, row_end, finished, done)
                    finished = done
            k_begin += max(1, k_count)

    return multiply


@cache
def multiply_kernel(dtype: str) -> Any:
    """Kernel over the tiles of C: [batch][column block][row block], or over those of every part of K."""
    multiply, find_block = multiply_tile(dtype), block_of_unit(dtype)

    @kernel
    def gemm_multiply(tab, begin, end, thread):  # type: ignore[no-untyped-def]
        for unit in range(begin, end):
            batch, row_begin, row_end, column_begin, column_end = find_block(tab, unit)
            part = i64(0)
            if tab[slot.K_PARTS] > 1:
                batch, part = part, batch
            multiply(tab, batch, part, row_begin, row_end, column_begin, column_end, thread)

    return gemm_multiply


@cache
def sum_parts_kernel(dtype: str) -> Any:
    """Kernel over the rows of C: adds the sums of parts 1, 2 ... of K to those of part 0, which are in C."""
    compute = compute_dtype(dtype)
    width = panel_columns(dtype)
    region_elements = REGION_BYTES // (8 if compute == "float64" else 4)
    find_sums = sums_of_part(dtype)

    @outlined_helper
    def add_row(c, c_column, partial, columns):  # type: ignore[no-untyped-def]
        done = i64(0)
        if c_column == 1:
            done = columns // width * width
            for column in range(i64(0), done, width):
                store(c, column, load(c, column, width) + load(partial, column, width))
        for column in range(done, columns):
            store(c, column * c_column, load(c, column * c_column) + load(partial, column))

    @kernel
    def gemm_sum_parts(tab, begin, end, thread):  # type: ignore[no-untyped-def]
        n = tab[slot.N]
        rows = max(1, region_elements // n)
        for first in range(begin, end, rows):
            last = min(end, first + rows)
            for part in range(i64(1), tab[slot.K_PARTS]):
                c, steps = find_sums(tab, i64(0), i64(0))
                partial, part_steps = find_sums(tab, i64(0), part)
                for row in range(first, last):
                    source = offset_pointer(partial, row * part_steps[0])
                    add_row(offset_pointer(c, row * steps[0]), steps[1], source, n)
            finish_region(tab, i64(0), first, last, i64(0), n)

    return gemm_sum_parts
