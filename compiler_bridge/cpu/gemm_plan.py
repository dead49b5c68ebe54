"""How one matrix product is carried out: which kernels, over what range, with what blocks and workspace.

`plan_gemm` is a pure function of sizes, strides and thread count, cheap enough to be called again whenever a
symbolic size changes. It holds no address: the caller puts those into the table's slots (see `gemm_table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler_bridge.cpu.gemm_table import SLOTS
from compiler_bridge.cpu.host import NATIVE_LANES, cache_bytes

DTYPES = ("float32", "float64", "bfloat16", "float16")

ROWS = 6
"""Rows of a packed panel of A, padded where there are fewer."""

ENTRY = 8
"""int64 that say where the rows of a tile begin: one vector, of which ROWS are used (`gemm_indirect`)."""

FEWER_ROWS = 4
"""Rows of the smaller register tile."""

TILE_BYTES = 1024
"""Scratch for one register tile, before everything else a thread keeps there: whole cache lines."""

LONG_SUM = 8
"""Threads share out K, not C, where K is so many times longer than C is wide: each then packs its own part of A
and B, which costs more than to add up their sums."""

LINE = 64
"""Bytes of a cache line."""

MAX_BLOCK_ROWS = 144
"""Rows of A packed at a time."""

MAX_SHARED_K_BYTES = 768 * 4
"""K summed in registers at a time, in bytes of A, where B is packed for all: more gains nothing."""

SHORTEST_RUN = 8
"""Contiguous elements of a segment of the sum from which on finding it costs little beside its products."""

MAX_ROWS_OF_LOCAL_B = 800
"""Up to as many rows, a panel of B that `indirect` needs is packed by each thread just before its use, and does not
go to memory."""

MAX_ROWS_OF_FOUND_B = 240
"""Rows of A packed at a time where each panel of B is packed once for each block of rows."""

MAX_SHORT_RUN = 48
"""Runs of so many elements are read where they lie, not copied into panels of B (`gemm_runs`)."""

RUNS_K_BLOCK = 128
"""k that `gemm_runs` sums at a time: their panel of A stays in L1."""

MAX_PLACES_BYTES = 128 * 1024
"""Places of the tiles of a block of rows: a part of L2."""

REGION_BYTES = 256 * 1024
"""The part of C that an epilogue gets at a time (or one panel of columns): still in L2, beside packed A."""

MAX_DIRECT_COLUMNS = 128
"""Up to as many columns of C, a row-major A is read where it lies: packing it would not pay."""

MAX_DIRECT_K_MAJOR_COLUMNS = 64
"""Up to as many columns of C, an A whose rows lie side by side is read where it lies."""

MAX_DOT_ROWS = 12
"""Up to as many rows, B with contiguous k is read where it lies (`dot`)."""

MAX_AXPY_ROWS = 4
"""Up to as many rows, B with contiguous columns is read where it lies (`axpy`)."""


@dataclass(frozen=True)
class GemmEntry:
    """One parallel loop: kernel `gemm_kernels.gemm_kernel(kernel, dtype)` over [0, length), then a barrier."""

    kernel: str
    length: int


@dataclass(frozen=True)
class GemmPlan:
    """What to run.

    entries:          in order; none if C is empty
    table:            slot name -> number, for every slot whose value is known without addresses
    workspace_bytes:  shared memory whose address goes into slot WORKSPACE (64-byte aligned)
    scratch_bytes:    memory of each thread; slot SCRATCH is the address of thread 0's (64-byte aligned),
                      thread t works at SCRATCH + t * scratch_bytes
    threads:          how many threads there is scratch for and work was cut for
    """

    dtype: str
    entries: tuple[GemmEntry, ...]
    table: dict[str, int]
    workspace_bytes: int
    scratch_bytes: int
    threads: int

    def fill_table(self, **addresses: int) -> list[int]:
        """The whole table; slots not given are 0. Raises KeyError for a name that is no slot."""
        for name in addresses:
            if name not in SLOTS:
                raise KeyError(f"{name} is not a slot of the GEMM table; slots: {', '.join(SLOTS)}")
        return [addresses.get(name, self.table.get(name, 0)) for name in SLOTS]


def compute_dtype(dtype: str) -> str:
    """dtype of the operands -> dtype of the sums and of C."""
    return "float64" if dtype == "float64" else "float32"


def panel_columns(dtype: str) -> int:
    """Columns of a packed panel of B (rows are ROWS)."""
    columns = max(16, 2 * NATIVE_LANES)
    return columns // 2 if dtype == "float64" else columns


def line_elements(dtype: str) -> int:
    """Elements of an operand in one cache line."""
    return LINE // {"float32": 4, "float64": 8}.get(dtype, 2)


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(a: int, b: int) -> int:
    return -(-a // b) * b


def plan_gemm(
    m: int,
    n: int,
    k: int,
    batch: int | tuple[int, int],
    dtype: str,
    a_strides: Sequence[int],
    b_strides: Sequence[int],
    c_strides: Sequence[int],
    threads: int,
    *,
    has_pack_a: bool = False,
    has_pack_b: bool = False,
    accumulate: bool = False,
    b_prepacked: bool = False,
    run: int = 0,
    k_segments: Sequence[int] = (1, 0, 0),
) -> GemmPlan:
    """Plan C (+)= A B for a batch of matrices.

    Args:    batch: number of matrices, or (outer, inner) for a batch with two strides
             dtype: of A and B (one of DTYPES); C has `compute_dtype(dtype)`
             a_strides, b_strides, c_strides: elements, (batch, row, column) or (outer, inner, row, column)
             has_pack_a, has_pack_b: that operand comes from a function in slots PACK_A / PACK_B
             accumulate: C += A B instead of C = A B
             run: not 0 where columns of B are segments of so many elements found by a function (PLACES_B)
             k_segments: how many segments of k the sum has, and how far apart they are in A and in B
             b_prepacked: WORKSPACE already holds B as an earlier `pack_b` with the same sizes left it
    Raises:  ValueError for an unknown dtype or a wrong number of strides
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    outer, inner = (1, batch) if isinstance(batch, int) else batch
    a, b, c = (_four_strides(strides) for strides in (a_strides, b_strides, c_strides))
    segments, a_segment, b_segment = k_segments
    problem = _Problem(m, n, k * segments, outer, inner, dtype, a, b, c, max(1, threads), has_pack_a, has_pack_b,
                       accumulate, b_prepacked, run, k, a_segment, b_segment)  # fmt: skip
    if m * n * outer * inner == 0:
        return GemmPlan(dtype, (), problem.table(False), 0, 0, problem.threads)
    if problem.is_better_swapped():
        return _plan(problem.swapped(), swapped=True)
    return _plan(problem.folded(), swapped=False)


def _four_strides(strides: Sequence[int]) -> tuple[int, int, int, int]:
    if len(strides) == 3:
        return (0, *strides)  # type: ignore[return-value]
    if len(strides) != 4:
        raise ValueError(f"strides {strides}: expected (batch, row, column) or (outer, inner, row, column)")
    return tuple(strides)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Problem:
    m: int
    n: int
    k: int
    outer: int
    inner: int
    dtype: str
    a: tuple[int, int, int, int]  # strides: outer, inner, row, k
    b: tuple[int, int, int, int]  # outer, inner, k, column
    c: tuple[int, int, int, int]  # outer, inner, row, column
    threads: int
    has_pack_a: bool
    has_pack_b: bool
    accumulate: bool
    b_prepacked: bool
    run: int = 0
    k_run: int = 0  # of a segment of the sum
    a_segment: int = 0
    b_segment: int = 0

    @property
    def batch(self) -> int:
        return self.outer * self.inner

    def is_better_swapped(self) -> bool:
        """Whether C^T = B^T A^T suits the kernels better: few columns, or C is column-major."""
        if self.has_pack_a or self.has_pack_b or self.b_prepacked:
            return False
        c_row, c_column = self.c[2:]
        if self.n <= MAX_AXPY_ROWS and self.m > self.n:
            return True
        return c_row == 1 and c_column != 1 and self.m >= panel_columns(self.dtype)

    def swapped(self) -> _Problem:
        """The transposed product."""
        (ao, ai, ar, ak), (bo, bi, bk, bc), (co, ci, cr, cc) = self.a, self.b, self.c
        return _Problem(self.n, self.m, self.k, self.outer, self.inner, self.dtype, (bo, bi, bc, bk),
                        (ao, ai, ak, ar), (co, ci, cc, cr), self.threads, False, False,
                        self.accumulate, False, 0, self.k_run, self.b_segment, self.a_segment)  # fmt: skip

    def folded(self) -> _Problem:
        """The batch as more rows, where all matrices share B and rows follow each other evenly.

        Row batch * m + row of the folded product is what callbacks call it anyway.
        """
        one_batch = self.outer == 1
        if self.batch == 1 or not one_batch or self.b[1] != 0 or self.has_pack_b:
            return self
        if self.c[1] != self.m * self.c[2] or (self.a[1] != self.m * self.a[2] and not self.has_pack_a):
            return self
        return replace(self, m=self.m * self.inner, inner=1)

    def can_cross_segments(self, packs_own_b: bool, columns: int) -> bool:
        """Whether k of several segments can be packed side by side: all of A and B is packed, and not by the register
        tile or row by row."""
        packs_a = columns > MAX_DIRECT_COLUMNS or self.a[3] != 1 or self.dtype != compute_dtype(self.dtype)
        return packs_a and self.a[2] != 1 and not (packs_own_b and self.b[3] == 1)

    def table(self, swapped: bool) -> dict[str, int]:
        """The slots that describe the product itself."""
        names = (
            "M N K BATCH_OUTER BATCH_INNER A_OUTER A_INNER A_ROW A_K B_OUTER B_INNER B_K B_COLUMN "
            "C_OUTER C_INNER C_ROW C_COLUMN ACCUMULATE SWAPPED RUN K_RUN A_SEGMENT B_SEGMENT"
        ).split()
        values = (self.m, self.n, self.k, self.outer, self.inner, *self.a, *self.b, *self.c,
                  int(self.accumulate), int(swapped), self.run, max(1, self.k_run or self.k),
                  self.a_segment, self.b_segment)  # fmt: skip
        return dict(zip(names, values))


def _plan(problem: _Problem, swapped: bool) -> GemmPlan:
    packs = problem.has_pack_a or problem.has_pack_b or problem.b_prepacked or problem.k_run < problem.k
    if not packs and problem.b[2] == 1 and problem.m <= MAX_DOT_ROWS and problem.k > 0:
        return _plan_dot(problem, swapped)
    if not packs and problem.b[3] == 1 and problem.m <= MAX_AXPY_ROWS:
        return _plan_axpy(problem, swapped)
    if problem.run > 0 and _suits_runs(problem):
        return _plan_runs(problem, swapped)
    return _plan_packed(problem, swapped)


def _suits_runs(problem: _Problem) -> bool:
    """Whether short runs of B are read where they lie: then threads share out K, and each keeps all sums in L2."""
    fits = _bytes_of_sums(problem) <= cache_bytes(2) // 4
    shared = problem.threads == 1 or _parts_of_k(problem) > 1
    in_place = problem.dtype == compute_dtype(problem.dtype)
    return problem.run <= MAX_SHORT_RUN and problem.batch == 1 and in_place and fits and shared


def _bytes_of_sums(problem: _Problem) -> int:
    """Of a thread of `gemm_runs`: [panel of A][segment][run][lane], in whole register tiles."""
    width, itemsize = panel_columns(problem.dtype), 8 if problem.dtype == "float64" else 4
    rows = problem.n // problem.run * _round_up(problem.run, ROWS)
    return _divide_up(problem.m, width) * rows * width * itemsize


def _plan_runs(problem: _Problem, swapped: bool) -> GemmPlan:
    """Columns of B that are short runs: each thread takes a part of K (`gemm_runs`)."""
    width, itemsize = panel_columns(problem.dtype), 8 if problem.dtype == "float64" else 4
    parts = _parts_of_k(problem)
    k_part = _round_up(_divide_up(problem.k, parts), 8)
    k_block = min(RUNS_K_BLOCK, _round_up(k_part, ENTRY))
    scratch_b = TILE_BYTES + _round_up(problem.run * itemsize, LINE)
    scratch_panel = scratch_b + problem.n // problem.run * k_block * 8
    scratch = scratch_panel + k_block * width * itemsize + _bytes_of_sums(problem)
    table = problem.table(swapped) | {
        "K_BLOCK": k_block, "K_PARTS": parts, "K_PART": k_part, "PARTIAL": 0,
        "SCRATCH_B": scratch_b, "SCRATCH_PANEL": scratch_panel, "SCRATCH_BYTES": scratch,
    }  # fmt: skip
    entries = (GemmEntry("runs", parts),)
    if parts > 1:
        entries = (*entries, GemmEntry("sum_parts", problem.m))
    workspace = (parts - 1) * problem.m * problem.n * itemsize
    return GemmPlan(problem.dtype, entries, table, workspace, scratch, problem.threads)


def _plan_dot(problem: _Problem, swapped: bool) -> GemmPlan:
    """Few rows, B with contiguous k: each thread takes columns; A is copied into scratch as [row][k]."""
    itemsize = 8 if problem.dtype == "float64" else 4
    column_blocks = _share_out(problem.n, problem.batch, problem.threads, DOT_BLOCK_COLUMNS)
    table = problem.table(swapped) | {"COLUMN_BLOCKS": column_blocks}
    scratch = TILE_BYTES + _round_up(problem.m * problem.k * itemsize, LINE)
    entries = (GemmEntry("dot", problem.batch * column_blocks),)
    return GemmPlan(problem.dtype, entries, table | {"SCRATCH_BYTES": scratch}, 0, scratch, problem.threads)


def _plan_axpy(problem: _Problem, swapped: bool) -> GemmPlan:
    """Few rows, B with contiguous columns: each thread takes columns and sums them in scratch."""
    itemsize = 8 if problem.dtype == "float64" else 4
    column_blocks = _share_out(problem.n, problem.batch, problem.threads, AXPY_BLOCK_COLUMNS)
    width = _round_up(_divide_up(problem.n, column_blocks) + 1, 16)
    scratch = _round_up(problem.m * width * itemsize, LINE)
    table = problem.table(swapped) | {"COLUMN_BLOCKS": column_blocks, "SCRATCH_BYTES": scratch}
    return GemmPlan(problem.dtype, (GemmEntry("axpy", problem.batch * column_blocks),), table, 0, scratch,
                    problem.threads)  # fmt: skip


DOT_BLOCK_COLUMNS = 96
AXPY_BLOCK_COLUMNS = 1024


def _share_out(columns: int, batch: int, threads: int, block: int) -> int:
    """Number of column blocks: at most `block` columns each, and enough of them for even work."""
    blocks = _divide_up(columns, block)
    if batch % threads != 0:
        blocks = _round_up(blocks, threads)
    return max(1, min(blocks, _divide_up(columns, 16)))


def _plan_packed(problem: _Problem, swapped: bool) -> GemmPlan:
    itemsize = 8 if problem.dtype == "float64" else 4
    width = panel_columns(problem.dtype)
    panels = _divide_up(problem.n, width)
    found = problem.run > 0  # all of B packed would be a copy of a convolution's windows
    most_rows = MAX_ROWS_OF_FOUND_B if found else MAX_BLOCK_ROWS
    parts = _parts_of_k(problem)
    k_part = _round_up(_divide_up(problem.k, parts), 8)
    of_a_part = problem if parts == 1 else replace(problem, threads=1)
    shared_b = problem.b[0] == 0 and problem.b[1] == 0 and not problem.has_pack_b
    packs_own_b = not problem.b_prepacked and (problem.batch == 1 or not shared_b)
    row_blocks, column_blocks = _blocks(of_a_part, panels, most_rows)
    if packs_own_b and not found and _suits_one_row_block(of_a_part, panels, width, itemsize):
        row_blocks, column_blocks = _blocks(of_a_part, panels, problem.m)
    local = found or (row_blocks == 1 and packs_own_b)
    b_batches = 1 if shared_b else problem.batch
    most_k = _max_k_block(width, itemsize, local and not found)
    crosses = problem.k_run < 2 * most_k and problem.can_cross_segments(
        local, _divide_up(problem.n, column_blocks)
    )
    k_unit = k_part if crosses else min(k_part, problem.k_run)
    k_blocks = max(1, _divide_up(k_unit, most_k))
    k_block = max(1, min(k_unit, _round_up(_divide_up(k_unit, k_blocks), 8)))
    block_rows = _divide_up(problem.m, row_blocks)
    # room for two rows more: rows are cut unevenly by at most two
    block_bytes = (_divide_up(block_rows + 2, ROWS) * ROWS * k_block + 8) * itemsize
    scratch_b = TILE_BYTES + _round_up(block_bytes, LINE)
    scratch = scratch_b + _round_up(width * k_block * itemsize, LINE)
    table = problem.table(swapped) | {
        "ROW_BLOCKS": row_blocks, "COLUMN_BLOCKS": column_blocks, "K_BLOCK": k_block,
        "K_PARTS": parts, "K_PART": k_part, "K_LIMIT": max(1, problem.k if crosses else problem.k_run),
        "B_IS_PACKED": int(not local), "B_BATCHES": b_batches,
        "SCRATCH_B": scratch_b, "SCRATCH_BYTES": scratch,
    }  # fmt: skip
    entries = (GemmEntry("multiply", problem.batch * parts * row_blocks * column_blocks),)
    if not local and not problem.b_prepacked:
        entries = (GemmEntry("pack_b", b_batches * panels), *entries)
    workspace = 0 if local else b_batches * panels * width * problem.k * itemsize
    if parts > 1:
        entries = (*entries, GemmEntry("sum_parts", problem.m))
        table |= {"PARTIAL": _round_up(workspace, LINE)}
        workspace = table["PARTIAL"] + (parts - 1) * problem.m * problem.n * itemsize
    return GemmPlan(problem.dtype, entries, table, workspace, scratch, problem.threads)


def _suits_one_row_block(problem: _Problem, panels: int, width: int, itemsize: int) -> bool:
    """Whether all rows of A stay in L2 while panels of B pass by: B then needs no workspace, and is not written and
    read once more (3 to 20% of the time of a linear layer's weight gradient). Threads share out columns, so each
    packs A."""
    fits = problem.m * _max_k_block(width, itemsize, local=True) * itemsize <= cache_bytes(2) * 3 // 4
    alone = problem.threads == 1 or problem.batch % problem.threads == 0
    return fits and (alone or (panels >= 4 * problem.threads and not problem.has_pack_a))


def _parts_of_k(problem: _Problem) -> int:
    """How many threads share out K, 1 where they share out C."""
    is_long = problem.k >= LONG_SUM * max(problem.m, problem.n)
    return problem.threads if is_long and problem.batch == 1 and not problem.b_prepacked else 1


def plan_indirect(
    m: int,
    n: int,
    segments: int,
    run: int,
    batch: int,
    dtype: str,
    b_strides: Sequence[int],
    c_column: int,
    threads: int,
    *,
    b_segment: int = 0,
    has_pack_b: bool = False,
    b_prepacked: bool = False,
) -> GemmPlan:
    """Plan a product whose K is `segments` runs of `run` elements of A, found by a function (`gemm_indirect`).

    Args:    b_strides: outer, inner, element of the run, column
             b_segment: stride of B from one segment to the next
             b_prepacked: as for `plan_gemm`
    """
    b: Any = tuple(b_strides)
    problem = _Problem(m, n, segments * run, 1, batch, dtype, (0, 0, 0, 0), b, (0, 0, 0, c_column),
                       max(1, threads), True, has_pack_b, False, False)  # fmt: skip
    if m * n * batch == 0:
        return GemmPlan(dtype, (), problem.table(False), 0, 0, problem.threads)
    itemsize, width = 8 if dtype == "float64" else 4, panel_columns(dtype)
    panels = _divide_up(n, width)
    tile_bytes = (segments + 1) * ENTRY * 8
    most_rows = max(ROWS, MAX_PLACES_BYTES // tile_bytes * ROWS)
    panel_bytes = width * problem.k * itemsize
    local = m <= min(most_rows, MAX_ROWS_OF_LOCAL_B) and panel_bytes <= cache_bytes(2) * 5 // 8
    row_blocks, column_blocks = _blocks(problem, panels, m if local else min(most_rows, MAX_BLOCK_ROWS))
    local = local and row_blocks == 1
    shared_b = b[0] == 0 and b[1] == 0 and not has_pack_b
    b_batches = 1 if shared_b else batch
    scratch_b = TILE_BYTES + LINE + _round_up(run * itemsize, LINE)
    tiles = _divide_up(_divide_up(m, row_blocks) + 2, FEWER_ROWS)
    scratch_panel = scratch_b + tiles * tile_bytes
    local = local and not b_prepacked
    scratch = scratch_panel + (panel_bytes if local else 0)
    table = problem.table(False) | {
        "ROW_BLOCKS": row_blocks, "COLUMN_BLOCKS": column_blocks, "SEGMENTS": segments, "RUN": run,
        "SEGMENT_BLOCK": max(1, MAX_SHARED_K_BYTES // itemsize // max(1, run)), "B_SEGMENT": b_segment,
        "B_IS_PACKED": int(not local), "B_BATCHES": b_batches, "SCRATCH_B": scratch_b,
        "SCRATCH_PANEL": scratch_panel, "SCRATCH_BYTES": scratch,
    }  # fmt: skip
    units = batch * row_blocks * column_blocks
    # rows of one phase of a stride follow each other, and some have more taps than others
    table["THREADS"] = problem.threads if units % problem.threads == 0 else 1
    table["TURNS"] = units // table["THREADS"]
    entries = (GemmEntry("indirect", units),)
    if not local and not b_prepacked:
        entries = (GemmEntry("pack_indirect", b_batches * panels), *entries)
    workspace = 0 if local else b_batches * panels * panel_bytes
    return GemmPlan(dtype, entries, table, workspace, scratch, problem.threads)


def packing_plan(plan: GemmPlan) -> GemmPlan | None:
    """The packing of all of B by itself, for plans of the same B with `b_prepacked`, whatever their rows, blocks and
    threads. None where the plan reads B as it lies, or takes its columns from functions."""
    table = plan.table
    is_indirect = table.get("SEGMENTS", 0) > 0
    panels = table.get("B_BATCHES", 0) * _divide_up(table.get("N", 0), panel_columns(plan.dtype))
    if (
        not plan.entries
        or table["SWAPPED"]
        or panels * table["K"] == 0
        or (table["RUN"] > 0 and not is_indirect)
    ):
        return None
    itemsize = 8 if plan.dtype == "float64" else 4
    nbytes = panels * panel_columns(plan.dtype) * table["K"] * itemsize
    entries = (GemmEntry("pack_indirect" if is_indirect else "pack_b", panels),)
    return replace(plan, entries=entries, workspace_bytes=nbytes)


def _max_k_block(width: int, itemsize: int, local: bool) -> int:
    """K summed in registers at a time.

    A panel of B that is packed just before its use should stay in L1 with room for the next; a block of A
    should take less than half of L2.
    """
    if local:
        return cache_bytes(1) * 3 // 4 // (width * itemsize)
    return min(MAX_SHARED_K_BYTES, cache_bytes(2) * 7 // 16 // MAX_BLOCK_ROWS) // itemsize


def _blocks(problem: _Problem, panels: int, most_rows: int = MAX_BLOCK_ROWS) -> tuple[int, int]:
    """Row and column blocks of each C, such that every thread gets the same work."""
    row_blocks = _divide_up(problem.m, most_rows)
    threads = problem.threads
    if threads == 1 or problem.batch % threads == 0 or problem.batch >= 8 * threads:
        return row_blocks, 1
    in_rows = _round_up(row_blocks, threads)
    if row_blocks == 1 and (panels >= 4 * threads or panels % threads == 0):
        return 1, threads
    if problem.m >= in_rows * 4 * ROWS:
        return in_rows, 1
    return row_blocks, min(threads, panels)
