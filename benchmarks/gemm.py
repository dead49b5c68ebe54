"""Matrix products: ours against torch's (MKL or OpenBLAS), alternating in one process.

    python -m benchmarks.gemm [--threads 1] [--only substring] [--seconds 0.3] [--processor-time]

Prints GFLOP/s of both (medians) and their ratio; then the ratios' geometric mean and minimum, of each layout
(N: row-major, T: column-major, of A and of B) and of all. PYNN_LANES=8 measures the kernels for AVX2. On a busy
machine, --processor-time with one thread counts only the time the thread was running.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from compiler_bridge.cpu.gemm_launch import bind_matmul

SQUARES = (256, 384, 512, 768, 1024, 1536, 2048)
FEW_ROWS = (4, 8, 16, 32, 64)

# batch, m, n, k
ATTENTION = (
    (32, 128, 128, 32),  # scores of (4, 8, 128, 32)
    (32, 128, 32, 128),  # their product with the values
    (12, 1024, 1024, 64),  # (1, 12, 1024, 64)
    (12, 1024, 64, 1024),
)


def shapes() -> Iterator[tuple[int, int, int, int]]:
    """(batch, m, n, k) of every case; batch 0 is a plain mm."""
    for size in SQUARES:
        yield 0, size, size, size
    for rows in FEW_ROWS:
        yield 0, rows, 3072, 768
    for rows in FEW_ROWS:
        yield 0, rows, 768, 3072
    yield 0, 512, 768, 768
    yield 0, 512, 3072, 768
    yield 0, 512, 768, 3072
    yield from ATTENTION


def operand(batch: int, rows: int, columns: int, transposed: bool) -> torch.Tensor:
    """A random matrix or batch of them, row-major or column-major."""
    sizes = (columns, rows) if transposed else (rows, columns)
    x = torch.randn(batch, *sizes) if batch else torch.randn(*sizes)
    return x.transpose(-1, -2) if transposed else x


def alternate(
    functions: list[Callable[[], object]], seconds: float, clock: Callable[[], float]
) -> list[float]:
    """Median seconds of each function; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    end = time.perf_counter() + seconds * len(functions)
    while len(times[0]) < 5 or time.perf_counter() < end:
        for function, measured in zip(functions, times):
            start = clock()
            function()
            measured.append(clock() - start)
    return [statistics.median(measured) for measured in times]


def measure(
    batch: int, m: int, n: int, k: int, layout: str, seconds: float, clock: Callable[[], float]
) -> tuple[float, float]:
    """GFLOP/s of ours and of torch."""
    a, b = operand(batch, m, k, layout[0] == "T"), operand(batch, k, n, layout[1] == "T")
    sizes = (batch, m, n) if batch else (m, n)
    ours, theirs = torch.empty(*sizes), torch.empty(*sizes)
    run = bind_matmul(ours, a, b).run
    product = torch.bmm if batch else torch.mm
    taken = alternate([run, lambda: product(a, b, out=theirs)], seconds, clock)
    flops = 2 * max(batch, 1) * m * n * k
    return flops / taken[0] / 1e9, flops / taken[1] / 1e9


def measure_products(chosen: set[str], quick: bool, only: str, say: Callable[[dict], None]) -> list[dict]:
    """The gemm suite of `python -m benchmarks`: "eager" is torch's mm or bmm with out=."""
    records = []
    for batch, m, n, k in shapes():
        name = "bmm" if batch else "mm"
        size = f"{batch or ''}{'x' if batch else ''}{m}x{n}x{k}"
        if only not in f"{name} {size}":
            continue
        for layout in ("NN", "NT", "TN"):
            ours, theirs = measure(batch, m, n, k, layout, 0.05 if quick else 0.15, time.perf_counter)
            flops = 2.0 * max(batch, 1) * m * n * k
            seconds = {"eager": flops / theirs / 1e9, "pynn": flops / ours / 1e9}
            record = {"suite": "gemm", "name": name, "size": size, "mode": layout, "seconds": seconds}
            records.append(record | {"flops": flops})
            say(records[-1])
    return records


def summary(name: str, ratios: list[float]) -> str:
    """Geometric mean and minimum, in words."""
    geomean = math.exp(statistics.fmean(map(math.log, ratios)))
    return f"{name:>18}   cases {len(ratios)}  geomean {geomean:.3f}  worst {min(ratios):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.1, help="per case and implementation")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--processor-time", action="store_true", help="of the one thread")
    parser.add_argument("--layouts", default="NN,NT,TN")
    options = parser.parse_args()
    if options.processor_time and options.threads != 1:
        parser.error("--processor-time counts one thread; it needs --threads 1")
    clock = time.thread_time if options.processor_time else time.perf_counter
    torch.set_num_threads(options.threads)
    layouts = options.layouts.split(",")
    ratios: dict[str, list[float]] = {layout: [] for layout in layouts}
    print(f"threads {options.threads}; GFLOP/s ours, torch, ratio")
    for batch, m, n, k in shapes():
        name = f"{batch or ''}{'x' if batch else ''}{m}x{n}x{k}"
        if options.only not in name:
            continue
        cells = []
        for layout in layouts:
            ours, theirs = measure(batch, m, n, k, layout, options.seconds, clock)
            ratios[layout].append(ours / theirs)
            cells.append(f"{layout} {ours:6.1f} {theirs:6.1f} {ours / theirs:5.2f}")
        print(f"{name:>18}   " + "   ".join(cells), flush=True)
    for layout, some in ratios.items():
        print(summary(layout, some))
    print(summary("all", [ratio for some in ratios.values() for ratio in some]))


if __name__ == "__main__":
    main()
