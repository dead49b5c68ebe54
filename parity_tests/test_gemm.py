"""GEMM kernels against float64: no worse than torch's own product, in every layout, and their callbacks.

An element's error is measured in units of sum |a||b|, the scale of its rounding errors. The root mean square
of ours may be twice that of torch's (another order of summation), or one unit in the last place where torch's
is exact; and every element keeps the bound k * eps / 2 of any order of summation (and one rounding).
"""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler_bridge.cpu import gemm_table as slot
from compiler_bridge.cpu.gemm_launch import BoundGemm, as_callback, bind_matmul, matmul_into
from compiler_bridge.cpu.gemm_plan import REGION_BYTES, ROWS, compute_dtype, panel_columns, plan_gemm

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# m, n, k: around the tile (6 x 16, 6 x 32), around the blocks (144, 192, 384), few rows, few columns, empty
SIZES = (
    (1, 1, 1), (1, 33, 40), (2, 65, 33), (3, 100, 50), (4, 48, 64), (5, 7, 3), (6, 16, 8), (7, 33, 100),
    (8, 40, 41), (16, 97, 800), (9, 17, 16), (13, 31, 9), (64, 64, 64), (100, 130, 70), (145, 33, 385), (150, 200, 400),
    (300, 17, 9), (40, 1, 77), (513, 3, 20), (290, 50, 12), (0, 3, 3), (3, 0, 3), (30, 40, 0), (1, 5, 0),
)  # fmt: skip
LAYOUTS = ("NNN", "NTN", "TNN", "TTN", "NNT", "NTT", "SSS")


def make(shape: tuple[int, ...], layout: str, dtype: torch.dtype, fill: float | None = None) -> torch.Tensor:
    """A matrix (or batch) that is row-major N, column-major T, or strided in both dims S."""
    *batch, rows, columns = shape
    if layout == "S":
        x = torch.randn(*batch, rows * 2, columns * 3).to(dtype)[..., ::2, ::3]
    else:
        x = torch.randn(*batch, *((columns, rows) if layout == "T" else (rows, columns))).to(dtype)
        x = x.transpose(-1, -2) if layout == "T" else x
    return x if fill is None else x.fill_(fill)


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_no_worse(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, start: torch.Tensor | float = 0.0
) -> None:
    """out = start + a @ b, against the same in a wider type (float64, or long double for float64)."""
    precision = np.longdouble if out.dtype == torch.float64 else np.float64
    x, y = (t.to(out.dtype).numpy().astype(precision) for t in (a, b))
    begin = start.numpy().astype(precision) if isinstance(start, torch.Tensor) else start
    exact, scale = begin + x @ y, np.abs(begin) + np.abs(x) @ np.abs(y)
    theirs = torch.matmul(a.to(out.dtype), b.to(out.dtype)) + start
    assert out.shape == theirs.shape
    if out.numel() == 0:
        return
    number = np.finfo(np.float32 if out.dtype == torch.float32 else np.float64)
    scale = np.maximum(scale, number.tiny)
    ours, torchs = (np.abs(value.numpy() - exact) / scale for value in (out, theirs))
    assert ours.max() <= (a.shape[-1] + 2) * number.eps / 2
    ours_mean, torchs_mean = (float(np.sqrt(np.mean(error**2))) for error in (ours, torchs))
    assert ours_mean <= max(2 * torchs_mean, number.eps)


def is_fast(dtype: torch.dtype, layout: str, threads: int) -> bool:
    """Two threads share out the same products: those of float32 show that they do. Long double takes its time."""
    if dtype is torch.float64:
        return threads == 1 and layout in ("NNN", "SSS")
    return threads == 1 or dtype is torch.float32


PRODUCTS = [
    pytest.param(*case, id="-".join(map(str, case)), marks=[] if is_fast(*case) else [pytest.mark.slow])
    for case in itertools.product(DTYPES, LAYOUTS, (1, 2))
]


@pytest.mark.parametrize("dtype, layout, threads", PRODUCTS)
def test_product_is_no_worse_than_torch(dtype: torch.dtype, layout: str, threads: int):
    for m, n, k in SIZES:
        a, b = make((m, k), layout[0], dtype), make((k, n), layout[1], dtype)
        out = make((m, n), layout[2], sums_dtype(dtype), fill=float("nan"))
        matmul_into(out, a, b, threads=threads)
        assert_no_worse(out, a, b)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    m=st.integers(0, 160), n=st.integers(0, 80), k=st.integers(0, 420),
    batch=st.lists(st.integers(1, 3), max_size=2),
    layouts=st.tuples(*[st.sampled_from("NTS")] * 3), dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3), accumulate=st.booleans(), shared=st.sampled_from(("", "a", "b")),
)  # fmt: skip
def test_any_problem(m, n, k, batch, layouts, dtype, threads, accumulate, shared):
    torch.manual_seed(m * 7 + n * 3 + k)
    batch_a, batch_b = ([] if shared == "a" else batch), ([] if shared == "b" else batch)
    a, b = make((*batch_a, m, k), layouts[0], dtype), make((*batch_b, k, n), layouts[1], dtype)
    out = make((*batch, m, n), layouts[2], sums_dtype(dtype), fill=None if accumulate else float("nan"))
    start = out.clone() if accumulate else 0.0
    matmul_into(out, a, b, threads=threads, accumulate=accumulate)
    assert_no_worse(out, a, b, start)


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("layout", ("NN", "NT", "TN", "SS"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_sum_of_segments(dtype: torch.dtype, layout: str, threads: int):
    """C (+)= sum over s of A[s] @ B[s]: the weight gradient of a convolution, s counting images. Columns of C lie
    side by side, or rows do, so that the product is made transposed."""
    name = str(dtype).removeprefix("torch.")
    for segments, m, n, k in itertools.product((1, 2, 5), (3, 150), (5, 70), (0, 1, 33, 700)):
        a, b = make((segments, m, k), layout[0], dtype), make((segments, k, n), layout[1], dtype)
        out = make((m, n), "NT"[segments % 2], torch.float32, fill=2.0)
        plan = plan_gemm(
            m, n, k, 1, name, (0, *a.stride()[1:]), (0, *b.stride()[1:]), (0, *out.stride()), threads,
            accumulate=True, k_segments=(segments, a.stride(0), b.stride(0)),
        )  # fmt: skip
        BoundGemm(plan, (a, b, out)).run()
        left, right = a.transpose(0, 1).reshape(m, -1), b.reshape(-1, n)
        assert_no_worse(out, left, right, torch.full((m, n), 2.0))


@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("m", (1, 4, 8, 70))
def test_nan_and_infinity_reach_exactly_their_rows_and_columns(m: int, layout: str):
    """As in torch: 0 * inf is NaN, and nothing leaks out of padding (n, k are no multiples of the tile)."""
    a, b = make((m, 37), layout[0], torch.float32), make((37, 45), layout[1], torch.float32)
    a[0, 36], b[3, 44], b[5, 0] = float("inf"), float("nan"), float("-inf")
    a[:, 5] = 0.0
    out = matmul_into(torch.empty(m, 45), a, b)
    expected = (a.double() @ b.double()).float()
    torch.testing.assert_close(out.isnan(), expected.isnan())
    torch.testing.assert_close(out.isinf(), expected.isinf())
    assert out.isnan().any() and out.isinf().any()


@pytest.mark.parametrize("m", (2, 20, 300))
def test_empty_sum_overwrites_or_keeps(m: int):
    a, b = torch.empty(m, 0), torch.empty(0, 19)
    assert (matmul_into(torch.full((m, 19), float("nan")), a, b) == 0).all()
    assert (matmul_into(torch.full((m, 19), 3.0), a, b, accumulate=True) == 3).all()


@pytest.mark.parametrize("offset", ("row", "column", "k"))
def test_indices_beyond_32_bits(offset: str):
    """Strides of more than 2**31 elements, over memory that is reserved but hardly touched."""
    far = 2**31 + 16
    try:
        memory = mmap.mmap(-1, 2 * (far + 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    except OSError:
        pytest.skip("8 GB of address space are not available")
    storage = torch.frombuffer(memory, dtype=torch.float16)
    strides = {"row": ((far, 1), (4, 1)), "column": ((4, 1), (1, far)), "k": ((1, far), (4, 1))}[offset]
    k = 2 if offset == "k" else 3
    a, b = torch.as_strided(storage, (2, k), strides[0]), torch.randn(k, 40).half()
    if offset == "column":
        a, b = torch.randn(9, 3).half(), torch.as_strided(storage, (3, 2), strides[1])
    target = b if offset == "column" else a
    target.copy_(torch.randn(target.shape))
    assert_no_worse(matmul_into(torch.empty(a.shape[0], b.shape[1]), a, b), a, b)


# ---- prologue and epilogue --------------------------------------------------------------------------


def array_at(address: int, elements: int, dtype: Any = np.float32) -> np.ndarray:
    """Memory at an address as a flat array."""
    import ctypes

    nbytes = elements * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype)


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize(
    "batch, m, n, k",
    (
        (1, 150, 90, 400),
        (1, 20, 700, 30),
        (3, 50, 40, 20),
        (2, 3, 50, 40),
        (1, 200, 2, 64),
        (2, 40, 3, 16),
        (1, 20, 33, 700),
    ),
)
def test_epilogue_sees_each_finished_element_once(batch: int, m: int, n: int, k: int, threads: int):
    """The epilogue doubles its region and counts; also where the kernels work on the transposed product."""
    for layout in LAYOUTS[:4]:
        a, b = make((batch, m, k), layout[0], torch.float32), make((batch, k, n), layout[1], torch.float32)
        out = torch.full((batch, m, n), float("nan"))
        rows, seen = out.view(batch * m, n).numpy(), np.zeros((batch * m, n), int)

        def double(table, row_begin, row_end, column_begin, column_end, rows=rows, seen=seen):
            assert array_at(table, 1, np.int64) == [k] and row_begin // m == (row_end - 1) // m
            rows[row_begin:row_end, column_begin:column_end] *= 2
            seen[row_begin:row_end, column_begin:column_end] += 1

        callback = as_callback(double, 5)
        matmul_into(out, a, b, threads=threads, EPILOGUE=callback.address, EPILOGUE_TABLE=slot.K)
        assert (seen == 1).all()
        assert_no_worse(out / 2, a, b)


@pytest.mark.parametrize("m, n, k", ((144, 3072, 20), (290, 1500, 400), (2048, 40, 10)))
def test_epilogue_regions_stay_in_cache(m: int, n: int, k: int):
    """A region as wide as C had left the cache when its epilogue ran (144 rows of 3072 are 1.7 MB)."""
    sizes = []

    def record(table, row_begin, row_end, column_begin, column_end):
        sizes.append((row_end - row_begin) * (column_end - column_begin))

    callback = as_callback(record, 5)
    matmul_into(torch.empty(m, n), torch.randn(m, k), torch.randn(k, n), EPILOGUE=callback.address)
    assert sum(sizes) == m * n
    assert max(sizes) * 4 <= REGION_BYTES


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize(
    "batch, m, n, k",
    ((1, 150, 90, 400), (2, 200, 40, 20), (1, 5, 700, 30), (3, 7, 20, 33), (1, 13, 20, 700)),
)
def test_operands_made_by_packing_functions(batch: int, m: int, n: int, k: int, threads: int):
    """A and B exist only as functions that fill panels; the strides passed are never used."""
    a, b = torch.randn(batch, m, k), torch.randn(batch, k, n)
    by_row = a.view(batch * m, k).numpy()
    by_column = b.transpose(1, 2).reshape(batch * n, k).numpy()

    def fill(source, width, panel, first, count, k_begin, k_count):
        values = np.zeros((k_count, width), np.float32)
        values[:, :count] = source[first : first + count, k_begin : k_begin + k_count].T
        array_at(panel, values.size)[:] = values.ravel()

    def pack_a(table, panel, first, count, k_begin, k_count, thread):
        assert array_at(table, 1, np.int64) == [k] and count <= ROWS and thread < threads
        fill(by_row, ROWS, panel, first, count, k_begin, k_count)

    def pack_b(table, panel, first, count, k_begin, k_count, thread):
        assert array_at(table, 1, np.int64) == [k] and thread < threads
        fill(by_column, panel_columns("float32"), panel, first, count, k_begin, k_count)

    callbacks = as_callback(pack_a, 7), as_callback(pack_b, 7)
    empty = torch.empty(1).expand(batch, m, k), torch.empty(1).expand(batch, k, n)
    out = torch.full((batch, m, n), float("nan"))
    matmul_into(out, *empty, threads=threads, PACK_A=callbacks[0].address, PACK_A_TABLE=slot.K,
                PACK_B=callbacks[1].address, PACK_B_TABLE=slot.K)  # fmt: skip
    assert_no_worse(out, a, b)


def test_a_prologue_with_a_shared_b_sees_rows_through_the_batch():
    """With one B for all, the batch is folded into the rows; the callback's row numbers stay the same."""
    a, b = torch.randn(3, 30, 40), torch.randn(40, 50)
    by_row = a.view(90, 40).numpy()

    def pack_a(table, panel, first, count, k_begin, k_count, thread):
        values = np.zeros((k_count, ROWS), np.float32)
        values[:, :count] = by_row[first : first + count, k_begin : k_begin + k_count].T
        array_at(panel, values.size)[:] = values.ravel()

    out = torch.empty(3, 30, 50)
    matmul_into(out, torch.empty(1).expand(3, 30, 40), b, PACK_A=as_callback(pack_a, 7).address)
    assert_no_worse(out, a, b)


@pytest.mark.parametrize("m", (3, 12, 20, 300))
@pytest.mark.parametrize("n", (32, 70))
def test_operands_with_a_stride_of_zero(m: int, n: int):
    """Broadcast rows or columns: rows of B that are one row were taken for a B that is packed already."""
    a, b = torch.randn(m, 40), torch.randn(40, n)
    for x in (a, a[:1].expand(m, 40), a[:, :1].expand(m, 40)):
        for y in (b, b[:1].expand(40, n), b[:, :1].expand(40, n)):
            assert_no_worse(matmul_into(torch.empty(m, n), x, y), x, y)


LANES = """
    import torch
    from compiler_bridge.cpu.gemm_launch import matmul_into
    from compiler_bridge.cpu.gemm_plan import panel_columns
    from parity_tests.test_gemm import LAYOUTS, SIZES, assert_no_worse, make, sums_dtype

    assert panel_columns("float32") == max(16, 2 * {lanes})
    torch.manual_seed(5)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for m, n, k in SIZES:
            for layout in LAYOUTS:
                a, b = make((m, k), layout[0], dtype), make((k, n), layout[1], dtype)
                out = make((m, n), layout[2], sums_dtype(dtype), float("nan"))
                assert_no_worse(matmul_into(out, a, b, threads=2), a, b)
"""


@pytest.mark.slow  # a process of its own
@pytest.mark.parametrize("lanes", (4, 8))
def test_kernels_for_narrower_registers(lanes: int):
    """PYNN_LANES: what a machine with AVX2 or NEON runs, here."""
    environment = os.environ | {"PYNN_LANES": str(lanes)}
    command = [sys.executable, "-c", textwrap.dedent(LANES.format(lanes=lanes))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_lane_count_no_register_has_is_refused():
    environment = os.environ | {"PYNN_LANES": "12"}
    command = [sys.executable, "-c", "import compiler_bridge.cpu.host"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "PYNN_LANES=12: expected one of (4, 8, 16)" in result.stderr


# ---- the plan ----------------------------------------------------------------------------------------


def test_packed_b_can_be_kept():
    """A second product with the same B skips the packing."""
    m = 20_000  # too many rows for the second level cache: one packed B serves several blocks of rows
    a, b = torch.randn(m, 70), torch.randn(70, 90)
    bound = bind_matmul(torch.empty(m, 90), a, b, threads=1)
    assert [entry.kernel for entry in bound.plan.entries] == ["pack_b", "multiply"]
    bound.run()
    again = torch.full((m, 90), float("nan"))
    other = torch.randn(m, 70)
    plan = plan_gemm(m, 90, 70, 1, "float32", (0, 70, 1), (0, 0, 0), (0, 90, 1), 1, b_prepacked=True)
    assert [entry.kernel for entry in plan.entries] == ["multiply"]
    from compiler_bridge.cpu.gemm_launch import BoundGemm

    second = BoundGemm(plan, (other, b, again), WORKSPACE=bound.workspace_address)
    second.run()
    assert_no_worse(again, other, b)


@pytest.mark.parametrize("threads", (1, 2))
def test_b_is_packed_by_its_user_where_a_stays_in_cache(threads: int):
    """Then no copy of B goes to memory (a linear layer's weight gradient: 9 MiB of 22 in SegFormer's backward)."""
    a, b = torch.randn(300, 256).t(), torch.randn(300, 500)
    bound = bind_matmul(torch.empty(256, 500), a, b, threads=threads)
    assert ([entry.kernel for entry in bound.plan.entries], bound.plan.workspace_bytes) == (["multiply"], 0)
    bound.run()
    assert_no_worse(bound._tensors[2], a, b)


@pytest.mark.parametrize("threads", (2, 3, 4))
@pytest.mark.parametrize("batch, m, n", ((1, 512, 768), (1, 512, 3072), (1, 64, 3072), (1, 64, 768), (1, 100, 96),
                                         (1, 2048, 2048), (1, 300, 100), (32, 128, 128), (12, 1024, 64),
                                         (3, 100, 200)))  # fmt: skip
def test_threads_get_equal_work(batch: int, m: int, n: int, threads: int):
    """The thread with most elements of C has at most a quarter more than its share (a tile is a thread's own)."""
    plan = plan_gemm(m, n, 64, batch, "float32", (m * 64, 64, 1), (64 * n, n, 1), (m * n, n, 1), threads)
    length, blocks = plan.entries[-1].length, plan.table["ROW_BLOCKS"] * plan.table["COLUMN_BLOCKS"]
    assert length == batch * blocks
    panels, width = -(-n // panel_columns("float32")), panel_columns("float32")
    rows, columns = plan.table["ROW_BLOCKS"], plan.table["COLUMN_BLOCKS"]

    def work(unit: int) -> int:
        column, row = unit % blocks // rows, unit % blocks % rows
        first, last = (panels * c // columns * width for c in (column, column + 1))
        return (m * (row + 1) // rows - m * row // rows) * (min(n, last) - first)

    shares = [range(length * t // threads, length * (t + 1) // threads) for t in range(threads)]
    most = max(sum(work(unit) for unit in share) for share in shares)
    assert most <= 1.25 * batch * m * n / threads


@pytest.mark.parametrize("threads", (2, 3, 16))
@pytest.mark.parametrize("m, n, k", ((13, 14, 120), (150, 20, 1203), (20, 70, 560)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_share_out_a_long_sum(dtype: torch.dtype, m: int, n: int, k: int, threads: int):
    """Each a part of K, the last ones perhaps nothing; what C held counts once, whatever its strides."""
    for layout in ("NNN", "TNT", "SSS"):
        a, b = make((m, k), layout[0], dtype), make((k, n), layout[1], dtype)
        start = make((m, n), layout[2], sums_dtype(dtype))
        out = make((m, n), layout[2], sums_dtype(dtype)).copy_(start)
        bound = bind_matmul(out, a, b, threads=threads, accumulate=True)
        assert bound.plan.table["K_PARTS"] == threads and bound.plan.entries[-1].kernel == "sum_parts"
        bound.run()
        assert_no_worse(out, a, b, start)


@pytest.mark.parametrize("dtype, run, threads, kernels", (
    ("float32", 21, 1, ["runs"]),
    ("float64", 21, 2, ["runs", "sum_parts"]),
    ("float32", 84, 1, ["multiply"]),  # copying so long a run is little beside its products
    ("bfloat16", 21, 1, ["multiply"]),  # widened while it is copied
))  # fmt: skip
def test_short_runs_of_columns_are_read_where_they_lie(
    dtype: str, run: int, threads: int, kernels: list[str]
):
    plan = plan_gemm(
        64, 168, 4096, 1, dtype, (0, 1, 64), (0, 0, 0), (0, 168, 1), threads, has_pack_b=True, run=run
    )
    assert [entry.kernel for entry in plan.entries] == kernels


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="dtype 'int8'"):
        plan_gemm(1, 1, 1, 1, "int8", (0, 1, 1), (0, 1, 1), (0, 1, 1), 1)
    with pytest.raises(ValueError, match=r"strides \(1, 1\)"):
        plan_gemm(1, 1, 1, 1, "float32", (1, 1), (0, 1, 1), (0, 1, 1), 1)
    with pytest.raises(ValueError, match="do not fit"):
        matmul_into(torch.empty(2, 2), torch.empty(2, 3), torch.empty(4, 2))
    with pytest.raises(KeyError, match="NONSENSE"):
        matmul_into(torch.empty(2, 2), torch.empty(2, 3), torch.empty(3, 2), NONSENSE=1)
    assert compute_dtype("bfloat16") == "float32"


INTERPRETED = """
    import torch
    from compiler_bridge.cpu.gemm_launch import matmul_into
    from parity_tests.test_gemm import make, sums_dtype

    torch.manual_seed(3)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for batch, m, n, k, layout in ((2, 2, 19, 17, "NTN"), (2, 3, 5, 6, "NNN"), (2, 9, 35, 11, "NNN"),
                                       (2, 9, 17, 9, "SST"), (1, 13, 7, 107, "NTN")):
            a, b = make((batch, m, k), layout[0], dtype), make((batch, k, n), layout[1], dtype)
            out = make((batch, m, n), layout[2], sums_dtype(dtype), 0.0)
            matmul_into(out, a, b, threads=2)
            print(out.double().flatten().tolist())
"""


@pytest.mark.slow
def test_interpreted_kernels_give_the_same_bits():
    """The same source under plain Python (PYNN_INTERPRET=1)."""

    def run(interpret: str) -> str:
        environment = os.environ | {"PYNN_INTERPRET": interpret}
        command = [sys.executable, "-c", textwrap.dedent(INTERPRETED)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert run("1") == run("0")
