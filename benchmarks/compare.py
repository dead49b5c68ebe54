"""Timing several ways of doing the same work, taking turns in one process.

    eager     torch's own C++ kernels
    inductor  torch.compile's own backend, where there is a C++ compiler
    pynn      pynn.compile

A busy moment of the machine then falls on all of them, and the ratio of medians stands.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import cxx_compiler, wait_for_device
from compiler_bridge import pipeline

Work = Callable[[], object]

WARM_UPS = 3
LEAST_ROUNDS = 7
MOST_ROUNDS = 60
SHORTEST_BLOCK = 2e-3  # seconds; shorter calls are timed several at a time


def take_turns(contenders: dict[str, Work], budget: float) -> dict[str, float]:
    """Return each contender's median seconds a call.

    Args:    contenders: name -> the work, already built; the first calls compile
             budget: seconds to spend on the timed rounds; LEAST_ROUNDS are done in any case
    """
    calls = {}
    for name, work in contenders.items():
        for _ in range(WARM_UPS):
            work()
        calls[name] = max(1, round(SHORTEST_BLOCK / max(time_block(work, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    order = list(contenders)
    for number in itertools.count():
        enough = number >= LEAST_ROUNDS and time.perf_counter() - begin > budget
        if enough or number == MOST_ROUNDS:
            return {name: median(values) for name, values in times.items()}
        for name in order:
            times[name].append(time_block(contenders[name], calls[name]))
        order = order[1:] + order[:1]  # nobody always follows the same neighbour's cache contents
    raise AssertionError("unreachable")


def measure(build: dict[str, Callable[[], Work]], budget: float) -> dict:
    """Build the contenders and time those that run; returns {"seconds": ..., "errors": ..., "externs": ...}.

    errors: why a contender does not run
    externs: the ATen calls left in pynn's graphs; not even strict=True refuses them, and they are C++'s speed
    """
    contenders, errors = {}, {}
    earlier = list(pipeline.records)
    for name, make in build.items():
        try:
            work = make()
            work()
        except Exception as error:  # one contender's failure is a finding about that contender
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            errors[name] = " | ".join([type(error).__name__, *lines[:3]])
        else:
            contenders[name] = work
    found: dict = {"seconds": take_turns(contenders, budget)}
    new = [record for record in pipeline.records if not any(record is other for other in earlier)]
    externs = sorted({str(node.target) for record in new for node in record.externs})
    return found | ({"errors": errors} if errors else {}) | ({"externs": externs} if externs else {})


def measure_both_ways(
    suite: str,
    cases: Iterable[Any],
    build_work: Callable[[Any, Callable, bool], Work],
    chosen: set[str],
    budget: float,
    say: Callable[[dict], None],
) -> list[dict]:
    """Time every case forward, and forward and backward; `say` is told each record as it comes.

    Args:    cases: with name and size, and nbytes (and flops) of either way
             build_work: of a case, a compiler and whether to go backward
    """
    records = []
    for case in cases:
        for backward in (False, True):
            torch.manual_seed(0)
            torch._dynamo.reset()
            build = {
                name: partial(build_work, case, compiler, backward)
                for name, compiler in compilers(chosen).items()
            }
            record = {
                "suite": suite,
                "name": case.name,
                "size": case.size,
                "mode": "forward+backward" if backward else "forward",
                **measure(build, budget),
                "bytes": case.nbytes[backward],
            }
            if hasattr(case, "flops"):
                record["flops"] = case.flops[backward]
            records.append(record)
            say(record)
    return records


def time_block(work: Work, calls: int) -> float:
    """Seconds a call; on a CUDA device until the last kernel is done."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    wait_for_device()
    return (time.perf_counter() - begin) / calls


def compilers(chosen: set[str], freeze: bool = False) -> dict[str, Callable[[Callable], Callable]]:
    """Return name -> how it compiles, for the chosen contenders that this machine has.

    Args:    freeze: parameters are folded into inference graphs, by whoever compiles
    """
    import pynn

    known: dict[str, Callable[[Callable], Callable]] = {
        "eager": lambda function: function,
        "inductor": frozen_by_inductor if freeze else torch.compile,
        # strict: what does not become kernels is an error, not a measurement of something else.
        "pynn": partial(pynn.compile, strict=True, freeze=freeze),
    }
    if not cxx_compiler():
        known.pop("inductor")
    return {name: compiler for name, compiler in known.items() if name in chosen}


def frozen_by_inductor(function: Callable) -> Callable:
    """torch.compile with freezing. Dynamo asks for it too, before Inductor's options are read: set it globally
    (as TORCHINDUCTOR_FREEZING=1 does), but only for the first call."""
    compiled = torch.compile(function)

    def first(*inputs: object) -> object:
        nonlocal run
        with torch._inductor.config.patch(freezing=True):
            result = compiled(*inputs)
        run = compiled
        return result

    run: Callable = first
    return lambda *inputs: run(*inputs)


def forward_work(function: Callable, inputs: list) -> Work:
    """Inference: no graph is kept."""

    def work() -> object:
        with torch.no_grad():
            return function(*inputs)

    return work


def training_work(function: Callable, inputs: list, parameters: list[Tensor]) -> Work:
    """Forward, and gradients of every differentiable input and parameter, as fresh tensors."""
    leaves = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad] + parameters
    with torch.no_grad():
        out = function(*inputs)
    cotangent = torch.randn_like(out)

    def work() -> object:
        return torch.autograd.grad(function(*inputs), leaves, cotangent)

    return work
