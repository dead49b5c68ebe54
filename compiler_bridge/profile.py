"""Time every kernel of a compiled graph, one by one: where does a step spend its time?

with profile() as rows:
    model(x).sum().backward()
print_profile(rows)
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler_bridge import pipeline
from compiler_bridge import program as p
from compiler_bridge.cpu import threads as layout

REPEATS = 3


@dataclass
class Row:
    """One kernel call. seconds: the best of a few runs on the same memory."""

    graph: str
    kernel: str
    seconds: float


def entry_names(compiled: Any) -> list[str]:
    """A description of every entry of the plan, in order, for static sizes."""
    names: list[str] = []
    for step in compiled.program.steps:
        if isinstance(step, p.KernelStep):
            names.append(str(step.kernel))
        elif isinstance(step, p.DynamicStep):
            values = dict(zip(compiled._symbols, next(iter(compiled._specialized))[1:]))
            plan = step.plan(values, layout.thread_count())
            names += [f"{inner.description or step.description}" for inner in plan.steps]
    return names


@contextmanager
def profile() -> Generator[list[Row], None, None]:
    """Collect a Row for every kernel call of every graph compiled so far, while the block runs."""
    rows: list[Row] = []
    compiled = [r.compiled for r in pipeline.records]
    saved = [c._run_plan for c in compiled]
    try:
        for one in compiled:
            one._run_plan = timed_runner(one, one._run_plan, rows)
        yield rows
    finally:
        for one, run in zip(compiled, saved):
            one._run_plan = run


def timed_runner(compiled: Any, run: Any, rows: list[Row]) -> Any:
    def run_timed(header: ctypes.c_int64) -> None:
        run(header)
        address = header.value
        words = np.ctypeslib.as_array((ctypes.c_int64 * layout.HEADER_WORDS).from_address(address))
        first, last = int(words[layout.HEADER_FIRST_ENTRY]), int(words[layout.HEADER_LAST_ENTRY])
        names = entry_names(compiled)
        for entry in range(first, last):
            words[layout.HEADER_FIRST_ENTRY], words[layout.HEADER_LAST_ENTRY] = entry, entry + 1
            best = min(timed(run, address) for _ in range(REPEATS))
            rows.append(Row(compiled.program.name, names[entry] if entry < len(names) else "?", best))
        words[layout.HEADER_FIRST_ENTRY], words[layout.HEADER_LAST_ENTRY] = first, last

    return run_timed


def timed(run: Any, address: int) -> float:
    start = time.perf_counter()
    run(address)
    return time.perf_counter() - start


def print_profile(rows: list[Row], most: int = 25) -> None:
    """The kernels that take the most time, summed over calls."""
    from rich.console import Console
    from rich.table import Table

    total: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        total.setdefault((row.graph, row.kernel), []).append(row.seconds)
    table = Table("graph", "kernel", "calls", "ms", "share")
    everything = sum(row.seconds for row in rows) or 1.0
    for (graph, kernel), times in sorted(total.items(), key=lambda item: -sum(item[1]))[:most]:
        spent = sum(times)
        table.add_row(graph, kernel, str(len(times)), f"{spent * 1e3:.2f}", f"{spent / everything:.1%}")
    Console(width=130).print(table)
