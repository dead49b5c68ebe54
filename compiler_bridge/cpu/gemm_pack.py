"""Packing: strided matrices -> contiguous panels in the order in which the register tile reads them.

A panel holds `width` rows of A (or columns of B), called lanes here, for a range of k:

    panel[k][lane] = source[lane * lane_stride + k * k_stride]      0 for the lanes that do not exist

16-bit operands become float32 on the way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from compiler_bridge.cpu.gemm_micro import COMPUTE_DTYPE, ROWS, tile_columns, zero_of
from compiler_bridge.cpu.language import load, offset_pointer, outlined_helper, store, transpose8

GROUP = 8
"""Lanes and k values that one transposition in registers takes at a time."""

PACK_SLACK = GROUP - ROWS
"""Elements that packing A may write past the end of a panel (rows are stored eight lanes at a time)."""


@cache
def transpose_group(compute: str, panel_width: int) -> Any:
    """transpose_all(panel, source, lane_stride, k_count): eight lanes, as many whole groups of k as fit.

    panel[k][0:8] = source[0:8 * lane_stride][k]; returns the number of k done. Where the panel is narrower
    than eight lanes, each k overwrites what the one before it wrote too far.
    """

    @outlined_helper
    def transpose_all(panel, source, lane_stride, k_count):  # type: ignore[no-untyped-def]
        groups = k_count // GROUP
        for group in range(groups):
            start = group * GROUP
            columns = transpose8(
                load(source, start, GROUP),
                load(source, start + lane_stride, GROUP),
                load(source, start + 2 * lane_stride, GROUP),
                load(source, start + 3 * lane_stride, GROUP),
                load(source, start + 4 * lane_stride, GROUP),
                load(source, start + 5 * lane_stride, GROUP),
                load(source, start + 6 * lane_stride, GROUP),
                load(source, start + 7 * lane_stride, GROUP),
            )
            target = offset_pointer(panel, start * panel_width)
            store(target, 0, columns[0])
            store(target, panel_width, columns[1])
            store(target, 2 * panel_width, columns[2])
            store(target, 3 * panel_width, columns[3])
            store(target, 4 * panel_width, columns[4])
            store(target, 5 * panel_width, columns[5])
            store(target, 6 * panel_width, columns[6])
            store(target, 7 * panel_width, columns[7])
        return groups * GROUP

    return transpose_all


@cache
def pack_strided(compute: str, width: int) -> Any:
    """pack(panel, source, lane_stride, k_stride, lanes, k_begin, k_count): any strides, one element at a time."""
    zero = zero_of(compute)

    @outlined_helper
    def pack(panel, source, lane_stride, k_stride, lanes, k_begin, k_count):  # type: ignore[no-untyped-def]
        for k in range(k_begin, k_count):
            for lane in range(lanes):
                store(panel, k * width + lane, load(source, lane * lane_stride + k * k_stride))
            for lane in range(lanes, width):
                store(panel, k * width + lane, zero)

    return pack


@cache
def pack_columns(dtype: str) -> Any:
    """pack(panel, source, lane_stride, k_stride, lanes, k_count): one panel of B."""
    compute = COMPUTE_DTYPE[dtype]
    width = tile_columns(compute)
    strided = pack_strided(compute, width)
    transpose_all = transpose_group(compute, width)

    @outlined_helper
    def pack(panel, source, lane_stride, k_stride, lanes, k_count):  # type: ignore[no-untyped-def]
        if lane_stride == 1:
            if lanes == width:
                for k in range(k_count):
                    store(panel, k * width, load(source, k * k_stride, width))
            else:
                for k in range(k_count):
                    store(panel, k * width, load(source, k * k_stride, width, lanes))
            return
        done = 0
        if k_stride == 1 and lanes == width:
            for first in range(0, width, GROUP):
                rows = offset_pointer(source, first * lane_stride)
                done = transpose_all(offset_pointer(panel, first), rows, lane_stride, k_count)
        strided(panel, source, lane_stride, k_stride, lanes, done, k_count)

    return pack


@cache
def pack_rows(dtype: str) -> Any:
    """pack(panel, source, lane_stride, k_stride, lanes, k_count): one panel of A.

    Fewer than eight lanes exist: the missing rows of a transposition repeat the first ones, and their
    values land where the next k is written (or in the padding).
    """
    compute = COMPUTE_DTYPE[dtype]
    strided = pack_strided(compute, ROWS)
    transpose_rows = transpose_up_to_six(compute)

    @outlined_helper
    def pack(panel, source, lane_stride, k_stride, lanes, k_count):  # type: ignore[no-untyped-def]
        if lane_stride == 1:
            for k in range(k_count):
                store(panel, k * ROWS, load(source, k * k_stride, GROUP, lanes))
            return
        done = 0
        if k_stride == 1:
            done = transpose_rows(panel, source, lane_stride, lanes, k_count)
        strided(panel, source, lane_stride, k_stride, lanes, done, k_count)

    return pack


@cache
def transpose_up_to_six(compute: str) -> Any:
    """transpose_all(panel, source, lane_stride, lanes, k_count): as `transpose_group`, for 1 to ROWS lanes."""

    @outlined_helper
    def transpose_all(panel, source, lane_stride, lanes, k_count):  # type: ignore[no-untyped-def]
        # a lane that does not exist reads the last one that does; nobody reads what it becomes
        lane1 = min(1, lanes - 1) * lane_stride
        lane2 = min(2, lanes - 1) * lane_stride
        lane3 = min(3, lanes - 1) * lane_stride
        lane4 = min(4, lanes - 1) * lane_stride
        lane5 = min(5, lanes - 1) * lane_stride
        groups = k_count // GROUP
        for group in range(groups):
            start = group * GROUP
            last = load(source, start + lane5, GROUP)
            columns = transpose8(
                load(source, start, GROUP),
                load(source, start + lane1, GROUP),
                load(source, start + lane2, GROUP),
                load(source, start + lane3, GROUP),
                load(source, start + lane4, GROUP),
                last,
                last,
                last,
            )
            target = offset_pointer(panel, start * ROWS)
            store(target, 0, columns[0])
            store(target, ROWS, columns[1])
            store(target, 2 * ROWS, columns[2])
            store(target, 3 * ROWS, columns[3])
            store(target, 4 * ROWS, columns[4])
            store(target, 5 * ROWS, columns[5])
            store(target, 6 * ROWS, columns[6])
            store(target, 7 * ROWS, columns[7])
        return groups * GROUP

    return transpose_all
