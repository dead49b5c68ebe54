"""Attention: our kernels against torch's C++ (its flash kernel for CPUs), alternating in one process.

    python -m benchmarks.attention [--threads 1 2] [--seconds 0.5] [--only causal]

Prints milliseconds (medians) of forward, and of forward and backward, the ratio torch / ours, and the
GFLOP/s of the products (causal ones counted half): 4 batch heads seq kv_seq head_dim forward, 2.5 times
that backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from compiler_bridge.cpu.attention_run import bind_attention_backward, bind_attention_forward

aten = torch.ops.aten


@dataclass(frozen=True)
class Problem:
    """Shape of q, k and v, and whether causal."""

    batch: int
    heads: int
    seq: int
    head_dim: int
    causal: bool = False

    @property
    def flops(self) -> float:
        """Of the forward products."""
        whole = 4.0 * self.batch * self.heads * self.seq**2 * self.head_dim
        return whole / 2 if self.causal else whole

    def __str__(self) -> str:
        shape = (self.batch, self.heads, self.seq, self.head_dim)
        return f"{shape}{' causal' if self.causal else ''}"


PROBLEMS = [
    Problem(4, 8, 128, 32),
    Problem(1, 12, 1024, 64, causal=True),
    Problem(4, 4, 128, 64),
    Problem(4, 4, 128, 64, causal=True),
    Problem(1, 12, 512, 64),
    Problem(1, 3, 197, 64),
    Problem(2, 8, 256, 128, causal=True),
    Problem(1, 8, 33, 80),
]


def contenders(problem: Problem, threads: int) -> list[Callable[[], object]]:
    """Ours forward, ours backward, torch's forward, torch's backward."""
    shape = (problem.batch, problem.heads, problem.seq, problem.head_dim)
    q, k, v, grad_out = (torch.randn(shape) for _ in range(4))
    forward = bind_attention_forward(q, k, v, causal=problem.causal, threads=threads)
    forward.run()
    out, logsumexp = forward.tensors["out"], forward.tensors["logsumexp"]
    assert out is not None and logsumexp is not None
    backward = bind_attention_backward(
        grad_out, q, k, v, out, logsumexp, causal=problem.causal, threads=threads
    )
    torch_forward = aten._scaled_dot_product_flash_attention_for_cpu
    torch_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    torch_out, torch_logsumexp = torch_forward(q, k, v, 0.0, problem.causal)
    return [
        forward.run,
        backward.run,
        lambda: torch_forward(q, k, v, 0.0, problem.causal),
        lambda: torch_backward(grad_out, q, k, v, torch_out, torch_logsumexp, 0.0, problem.causal),
    ]


def alternate(functions: list[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each function; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or time.perf_counter() < end:
        for function, measured in zip(functions, times):
            start = time.perf_counter()
            function()
            measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in times]


def measure(problem: Problem, threads: int, seconds: float) -> tuple[float, float]:
    """Print one line; return the ratios torch / ours of forward and of forward and backward."""
    ours, ours_back, theirs, theirs_back = alternate(contenders(problem, threads), seconds)
    ratios = theirs / ours, (theirs + theirs_back) / (ours + ours_back)
    speed, speed_back = problem.flops / ours / 1e9, 2.5 * problem.flops / ours_back / 1e9
    print(
        f"{problem!s:28} {threads} threads  forward {ours * 1e3:8.3f} ms  torch {theirs * 1e3:8.3f}"
        f"  x{ratios[0]:.2f}  with backward {(ours + ours_back) * 1e3:8.3f} ms"
        f"  torch {(theirs + theirs_back) * 1e3:8.3f}  x{ratios[1]:.2f}"
        f"  GFLOP/s {speed:.0f} / {speed_back:.0f}",
        flush=True,
    )
    return ratios


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="per problem")
    parser.add_argument("--only", default="", help="problems whose text contains this")
    options = parser.parse_args()
    problems = [problem for problem in PROBLEMS if options.only in str(problem)]
    for threads in options.threads:
        torch.set_num_threads(threads)
        ratios = [ratio for problem in problems for ratio in measure(problem, threads, options.seconds)]
        print(f"{threads} threads: geometric mean x{statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
