"""Packing: a strided matrix -> a contiguous panel, in the order in which the register tile reads it.

A panel holds some rows of A or columns of B, called lanes here, for a range of k:

    panel[k][lane] = source[lane * lane_stride + k * k_stride]

A lane that does not exist repeats the last one that does, or is 0; its sums are never written to C. 16-bit
operands become float32 on the way.
"""

# pyright: basic, reportCallIssue=false

from __future__ import annotations

from functools import cache
from typing import Any

from compiler_bridge.cpu.gemm_plan import FEWER_ROWS, ROWS, panel_columns
from compiler_bridge.cpu.language import (
    i64,
    load,
    offset_pointer,
    outlined_helper,
    prefetch,
    store,
    transpose8,
)

K_STEP = 4
"""k that are packed for one panel before going to the next, where lanes are contiguous. Each k is then read as
a stream; and even where k are a multiple of 4 KiB apart, so few fit into one set of the first-level cache."""

K_CHUNK = 64
"""k that are packed for one group of lanes before going to the next: the groups write to the same lines, which
stay in the first-level cache so long (64 x 32 float32 are 8 KiB)."""

FEWEST_TRANSPOSED = 3
"""As many elements of eight lanes are transposed in registers; fewer are copied one by one."""

TAPS_CHUNK = 16
"""Elements of a run that are packed for one group of lanes before going to the next, where taps lie side by side:
the rows of 9 taps (18 KiB) stay in the first-level cache so long."""

GROUP = 8
"""Lanes that are packed together, and k that one transposition in registers takes at a time.

A panel of A has 6 lanes: each k then overwrites the two too many that the one before it wrote, and two
elements beyond the panel are written (the next panel's, or padding).
"""


@cache
def transpose_lanes() -> Any:
    """transpose(panel, width, source, lane_stride, lanes, count, ahead): up to eight lanes, whose elements lie side
    by side.

    panel[k * width + lane] = source[lane * lane_stride + k]; what lies `ahead` elements further is asked for.
    """

    @outlined_helper
    def transpose(panel, width, source, lane_stride, lanes, count, ahead):  # type: ignore[no-untyped-def]
        lane1, lane2 = min(1, lanes - 1) * lane_stride, min(2, lanes - 1) * lane_stride
        lane3, lane4 = min(3, lanes - 1) * lane_stride, min(4, lanes - 1) * lane_stride
        lane5, lane6 = min(5, lanes - 1) * lane_stride, min(6, lanes - 1) * lane_stride
        lane7 = min(7, lanes - 1) * lane_stride
        for k in range(0, count, GROUP):
            some = min(GROUP, count - k)
            target = offset_pointer(panel, k * width)
            for lane in range(lanes):
                prefetch(source, k + ahead + lane * lane_stride)
            if some < FEWEST_TRANSPOSED:
                for i in range(some):
                    for lane in range(lanes):
                        store(target, i * width + lane, load(source, lane * lane_stride + k + i))
                continue
            columns = transpose8(
                load(source, k, GROUP, some),
                load(source, k + lane1, GROUP, some),
                load(source, k + lane2, GROUP, some),
                load(source, k + lane3, GROUP, some),
                load(source, k + lane4, GROUP, some),
                load(source, k + lane5, GROUP, some),
                load(source, k + lane6, GROUP, some),
                load(source, k + lane7, GROUP, some),
            )
            store(target, 0, columns[0])
            store(target, width, columns[1])
            store(target, 2 * width, columns[2])
            if some > 3:
                store(target, 3 * width, columns[3])
            if some > 4:
                store(target, 4 * width, columns[4])
            if some > 5:
                store(target, 5 * width, columns[5])
            if some > 6:
                store(target, 6 * width, columns[6])
            if some > 7:
                store(target, 7 * width, columns[7])

    return transpose


@cache
def pack_group() -> Any:
    """pack(panel, width, source, lane_stride, k_stride, lanes, k_count): up to eight lanes of a panel."""
    transpose = transpose_lanes()

    @outlined_helper
    def pack(panel, width, source, lane_stride, k_stride, lanes, k_count):  # type: ignore[no-untyped-def]
        if lane_stride == 1:
            for k in range(k_count):
                store(panel, k * width, load(source, k * k_stride, GROUP, lanes))
            return
        if k_stride == 1:
            transpose(panel, width, source, lane_stride, lanes, k_count, i64(K_CHUNK))
            return
        for k in range(k_count):
            for lane in range(lanes):
                store(panel, k * width + lane, load(source, lane * lane_stride + k * k_stride))

    return pack


@cache
def pack_panel(dtype: str) -> Any:
    """pack(panel, width, source, lane_stride, k_stride, lanes, k_count): a panel `width` lanes wide."""
    columns = panel_columns(dtype)
    pack_lanes = pack_group()

    @outlined_helper
    def pack(panel, width, source, lane_stride, k_stride, lanes, k_count):  # type: ignore[no-untyped-def]
        if lane_stride == 1 and lanes == columns:
            for k in range(k_count):
                store(panel, k * columns, load(source, k * k_stride, columns))
            return
        for k_begin in range(0, k_count, K_CHUNK):
            count = min(K_CHUNK, k_count - k_begin)
            part = offset_pointer(panel, k_begin * width)
            for first in range(0, lanes, GROUP):
                group = offset_pointer(source, first * lane_stride + k_begin * k_stride)
                some = min(GROUP, lanes - first)
                pack_lanes(offset_pointer(part, first), width, group, lane_stride, k_stride, some, count)

    return pack


@cache
def pack_taps(dtype: str) -> Any:
    """pack(panel, source, strides, lanes, run, taps): a panel of B whose k is `taps` runs; strides are those of
    lanes, along the run, and between taps.

    panel[tap * run + i][lane] = source[lane * lane_stride + i * run_stride + tap * tap_stride]
    """
    width = panel_columns(dtype)
    pack_run, transpose = pack_panel(dtype), transpose_lanes()

    @outlined_helper
    def pack(panel, source, strides, lanes, run, taps):  # type: ignore[no-untyped-def]
        lane_stride, run_stride, tap_stride = strides
        if tap_stride != 1 or lane_stride == 1:
            for tap in range(taps):
                target = offset_pointer(panel, tap * run * width)
                first = offset_pointer(source, tap * tap_stride)
                pack_run(target, i64(width), first, lane_stride, run_stride, lanes, run)
            return
        for begin in range(i64(0), run, TAPS_CHUNK):
            for first in range(i64(0), lanes, GROUP):
                group = offset_pointer(source, first * lane_stride)
                some = min(GROUP, lanes - first)
                for i in range(begin, min(begin + TAPS_CHUNK, run)):
                    transpose(
                        offset_pointer(panel, i * width + first), run * width,
                        offset_pointer(group, i * run_stride), lane_stride, some, taps, TAPS_CHUNK * run_stride,
                    )  # fmt: skip

    return pack


@outlined_helper
def pack_contiguous_rows(block, source, k_stride, rows, large, k_count):  # type: ignore[no-untyped-def]
    """All panels of A, whose rows are contiguous; the first `large` panels have ROWS rows."""
    for k_begin in range(0, k_count, K_STEP):
        k_end = min(k_begin + K_STEP, k_count)
        target, row, index = block, i64(0), i64(0)
        while row < rows:
            count = min(ROWS if index < large else FEWER_ROWS, rows - row)
            if row + GROUP <= rows and k_end < k_count:
                for k in range(k_begin, k_end):
                    store(target, k * ROWS, load(source, k * k_stride + row, GROUP))
            else:  # nothing beyond the rows may be read, nor anything of the next panel overwritten
                for k in range(k_begin, k_end):
                    store(target, k * ROWS, load(source, k * k_stride + row, GROUP, count), count)
            target = offset_pointer(target, ROWS * k_count)
            row += count
            index += 1
