"""Running a GEMM by itself, outside a compiled graph: for tests, benchmarks and experiments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from compiler_bridge import settings
from compiler_bridge.cpu import threads as thread_module
from compiler_bridge.cpu.gemm_kernels import gemm_kernel
from compiler_bridge.cpu.gemm_plan import GemmPlan, compute_dtype, plan_gemm

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class BoundGemm:
    """A plan with its memory: `run()` computes C. Keeps the tensors and buffers it was made with alive."""

    def __init__(
        self, plan: GemmPlan, tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor], **callbacks: int
    ):
        """callbacks: slots that hold addresses (PACK_A, EPILOGUE, WORKSPACE of a packed B ...)."""
        self.plan = plan
        self._tensors = tensors
        self._workspace = _aligned(plan.workspace_bytes)
        self._scratch = _aligned(plan.scratch_bytes * plan.threads)
        a, b, c = tensors
        if plan.table["SWAPPED"]:
            a, b = b, a
        self.workspace_address: int = self._workspace.ctypes.data
        addresses = {
            "A": a.data_ptr(), "B": b.data_ptr(), "C": c.data_ptr(),
            "WORKSPACE": self.workspace_address, "SCRATCH": self._scratch.ctypes.data,
        }  # fmt: skip
        table = plan.fill_table(**(addresses | callbacks))
        self._table = np.array(table, dtype=np.int64)
        if not settings.INTERPRET:
            self._words = _plan_words(plan, self._table.ctypes.data)
            self._header: int = self._words[0].ctypes.data
            self._run_plan = thread_module.load_drivers().run_plan

    def run(self) -> None:
        """Compute C."""
        if settings.INTERPRET:
            self._run_interpreted()
        else:
            self._run_plan(self._header)

    def _run_interpreted(self) -> None:
        """Every thread's share, one after the other."""
        for entry in self.plan.entries:
            kernel, threads = gemm_kernel(entry.kernel, self.plan.dtype), self.plan.threads
            for thread in range(threads):
                begin, end = entry.length * thread // threads, entry.length * (thread + 1) // threads
                kernel(self._table, begin, end, thread)


def _plan_words(plan: GemmPlan, table_address: int) -> tuple[np.ndarray, ...]:
    """The arrays `threads.run_plan` walks: header, slots, bases, entries (see threads.py)."""
    t = thread_module
    entries = np.zeros((len(plan.entries), t.ENTRY_WORDS), dtype=np.int64)
    for row, entry in zip(entries, plan.entries):
        row[t.ENTRY_KERNEL] = gemm_kernel(entry.kernel, plan.dtype).address
        row[t.ENTRY_LENGTH] = entry.length
        row[t.ENTRY_PARTS] = plan.threads
        row[t.ENTRY_BARRIER] = 1
    entries[-1:, t.ENTRY_BARRIER] = 0  # the end of the parallel region is one
    header = np.zeros(t.HEADER_WORDS, dtype=np.int64)
    slots, bases = np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64)
    header[t.HEADER_SLOTS] = slots.ctypes.data
    header[t.HEADER_BASES] = bases.ctypes.data
    header[t.HEADER_ARGUMENTS] = table_address
    header[t.HEADER_LAST_ENTRY] = len(plan.entries)
    header[t.HEADER_ENTRIES] = entries.ctypes.data
    t.set_team(header, plan.threads)
    return header, slots, bases, entries


def _aligned(nbytes: int) -> np.ndarray:
    """Uninitialized bytes at a 64-byte boundary."""
    raw = np.empty(nbytes + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def bind_matmul(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    threads: int | None = None,
    accumulate: bool = False,
    **callbacks: int,
) -> BoundGemm:
    """Prepare out (+)= a @ b.

    Shape:   a: [*, m, k]   b: [*, k, n]   out: [*, m, n]; any strides, up to two batch dims (broadcast)
    dtype:   a and b alike; out float32, or float64 for float64
    Raises:  ValueError when shapes or dtypes don't fit
    """
    dtype = _DTYPE_NAMES.get(a.dtype)
    if dtype is None or b.dtype != a.dtype or _DTYPE_NAMES.get(out.dtype) != compute_dtype(dtype):
        raise ValueError(f"dtypes {a.dtype}, {b.dtype} -> {out.dtype}: expected two alike, and that of sums")
    if a.shape[-1] != b.shape[-2] or out.shape[-2:] != (a.shape[-2], b.shape[-1]):
        raise ValueError(f"shapes {tuple(a.shape)} @ {tuple(b.shape)} -> {tuple(out.shape)} do not fit")
    if not 2 <= out.ndim <= 4:
        raise ValueError(f"out has {out.ndim} dims: expected 2 to 4")
    batch_shape = out.shape[:-2]
    a, b = a.expand(*batch_shape, *a.shape[-2:]), b.expand(*batch_shape, *b.shape[-2:])
    outer, inner = (1, 1, *batch_shape)[-2:]
    strides = [(0,) * (4 - x.ndim) + x.stride() for x in (a, b, out)]
    plan = plan_gemm(
        a.shape[-2], b.shape[-1], a.shape[-1], (outer, inner), dtype, *strides,
        threads=threads or torch.get_num_threads(), accumulate=accumulate,
        has_pack_a="PACK_A" in callbacks, has_pack_b="PACK_B" in callbacks,
    )  # fmt: skip
    return BoundGemm(plan, (a, b, out), **callbacks)


def matmul_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
    """out (+)= a @ b, returned; arguments as for `bind_matmul`."""
    bind_matmul(out, a, b, **options).run()
    return out


def as_callback(function: Callable[..., None], arguments: int) -> Any:
    """A Python function of int64 arguments as a C callback (for tests); `.address` is what the slots take."""
    callback = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(function)
    callback.address = ctypes.cast(callback, ctypes.c_void_p).value  # type: ignore[attr-defined]
    return callback
