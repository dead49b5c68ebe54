"""Run one row's samples on one executor and on the C++ op, and compare values and gradients."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pynn
from parity_tests.cases import Row, Sample, all_rows, seed
from parity_tests.executors import in_executor_process, prepare
from parity_tests.long_double import in_long_double
from parity_tests.tolerances import Comparison, compare, error_in_ulps

# Compiling takes a second or so where eager takes a millisecond.
MOST_SAMPLES = {"eager": 24, "ir": 2, "python": 1, "numba": 2}
# As many as it takes to see, with 96%, what happens at one input in twenty: an activation on the other side of
# relu's kink, say, in 16 bits.
NEIGHBOURS = 64


@dataclass
class Outcome:
    """What a run gave: outputs, and the gradients of inputs and parameters. Tensors; arrays in long double."""

    values: list[Any]
    grads: list[Any]


@dataclass(frozen=True)
class Finding:
    """One comparison and what it is about, for the report."""

    what: str
    comparison: Comparison


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def gradients(outputs: list[Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Pull seeded cotangents (rounded to the dtype under test) back to the inputs; unused ones get 0."""
    outputs = [t for t in outputs if t.requires_grad]
    if not outputs or not inputs:
        return []
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(t.shape, generator=generator).to(dtype).to(t) for t in outputs]
    found = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g.detach() for g, t in zip(found, inputs, strict=True)]


def move_to_neighbour(tensors: list[Tensor], number: int) -> None:
    """Move each value towards zero by a random part, up to eps^(3/4): as good an input, with luck of its own.

    That is 3 roundings in bfloat16, 54 in float32 and 8192 in float64: enough of them for many different draws.
    """
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for t in tensors:
            if t.dtype.is_floating_point:
                part = torch.rand(t.shape, generator=generator, dtype=torch.float64)
                t.copy_(t.double() * (1 - part * torch.finfo(t.dtype).eps ** 0.75))


def evaluate(
    row: Row,
    nn: Any,
    sample: Sample,
    dtype: torch.dtype,
    executor: str = "eager",
    exact: bool = False,
    neighbour: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Run one sample in `dtype`; where `exact`, the same (already rounded) numbers in a wider type, on the CPU.

    That is float64, and for float64 long double: see tolerances.py. The outcome is on the CPU.
    """
    sample = sample.cast(dtype)
    subject = row.build(nn, sample)
    if isinstance(subject, torch.nn.Module):
        subject.to(dtype)
    if neighbour:
        parameters = list(subject.parameters()) if isinstance(subject, torch.nn.Module) else []
        move_to_neighbour(tensors_of((sample.args, sample.kwargs)) + parameters, neighbour)
    if exact:
        sample = sample.cast(torch.float64)
        if isinstance(subject, torch.nn.Module):
            subject.to(torch.float64)
    elif device != "cpu":
        torch.cuda.manual_seed(1)
        sample = sample.on(device)
        if isinstance(subject, torch.nn.Module):
            subject.to(device)
    inputs = sample.differentiable()
    if isinstance(subject, torch.nn.Module):
        inputs += [p for p in subject.parameters() if p.requires_grad]
    function = prepare(executor, subject)
    seed(1)
    with in_long_double() if exact and dtype is torch.float64 else nullcontext() as run:
        values = tensors_of(function(*sample.args, **sample.kwargs))
        grads = gradients(values, inputs, dtype)
    if run is not None:
        return Outcome([run.value(t) for t in values], [run.value(t) for t in grads])
    return Outcome([t.detach().cpu() for t in values], [t.cpu() for t in grads])


def attempt(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # whatever a wrong definition may raise is a finding, not a crash
        return error


class Reference:
    """The C++ op at one sample and at neighbouring inputs, with the exact results there."""

    def __init__(self, row: Row, sample: Sample, dtype: torch.dtype, device: str) -> None:
        self.run = partial(evaluate, row, torch.nn, sample, dtype, device=device)
        self.cpp = self.run()
        # Another dtype draws other random numbers; long double follows those of float64.
        random = row.random or sample.kwargs.get("dropout_p", 0.0) > 0.0
        self.has_exact = dtype is torch.float64 or not random
        self.seen: dict[int, tuple[Outcome, Outcome]] = {}

    @cached_property
    def exact(self) -> Outcome | None:
        return self.run(exact=True) if self.has_exact else None

    def neighbour(self, number: int) -> tuple[Outcome, Outcome]:
        """What C++ gives there and the exact results; without those, how far the input's rounding moves it."""
        if number not in self.seen:
            exact = self.run(exact=True, neighbour=number) if self.has_exact else self.cpp
            self.seen[number] = self.run(neighbour=number), exact
        return self.seen[number]


def compare_sample(
    row: Row, sample: Sample, dtype: torch.dtype, executor: str, nn: Any = pynn, device: str = "cpu"
) -> list[Finding] | None:
    """Compare one sample of `nn`'s definition; None where the C++ op does not take this dtype."""
    reference = attempt(lambda: Reference(row, sample, dtype, device))
    if isinstance(reference, Exception):
        return None
    own = attempt(lambda: evaluate(row, nn, sample, dtype, executor, device=device))
    if isinstance(own, Exception):
        lines = [line.strip() for line in f"{type(own).__name__}: {own}".splitlines() if line.strip()]
        text = " | ".join(lines[:4])
        return [Finding("call", Comparison(0, 0, f"C++ runs, pynn raises {text}"))]
    findings = []
    for what in ("values", "grads"):
        theirs, ours = getattr(reference.cpp, what), getattr(own, what)
        if len(theirs) != len(ours):
            problem = f"{len(ours)} {what}, C++ gives {len(theirs)}"
            findings.append(Finding(what, Comparison(0, 0, problem)))
            continue
        for i, value in enumerate(ours):
            for each in (False, True) if row.pointwise else (False,):
                comparison = compare_result(value, reference, what, i, each)
                findings.append(Finding(f"{what}[{i}]{' each' * each}", comparison))
    return findings


def compare_result(value: Tensor, reference: Reference, what: str, i: int, each: bool) -> Comparison:
    """Hold one tensor against the C++ op's; see tolerances.py for the rule and what it is measured against.

    One evaluation of the C++ op may be exact by luck, which a sum of five numbers often is. The neighbours have
    the same condition and other luck: where the sample fails, they are asked one after the other.
    """
    cpp = getattr(reference.cpp, what)[i]
    comparison = compare(value, cpp, None, each)
    if comparison.problem or (comparison.passed and cpp.dtype is torch.float64):
        return comparison
    if reference.exact is not None:
        comparison = compare(value, cpp, getattr(reference.exact, what)[i], each)
    for number in range(1, NEIGHBOURS + 1):
        if comparison.passed:
            break
        rounded, exact = (getattr(outcome, what)[i] for outcome in reference.neighbour(number))
        comparison = replace(comparison, cpp=max(comparison.cpp, error_in_ulps(rounded, exact, each)))
    return comparison


def measure_here(name: str, executor: str, dtype: torch.dtype, most: int | None = None) -> list[Finding]:
    row = next(row for row in all_rows() if row.name == name)
    findings = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, sample in enumerate(row.draw(most or MOST_SAMPLES[executor])):
            for finding in compare_sample(row, sample, dtype, executor) or []:
                findings.append(Finding(f"sample {number} {finding.what}", finding.comparison))
    return findings


def measure(name: str, executor: str, dtype: torch.dtype, most: int | None = None) -> list[Finding]:
    """Compare a row's samples with the C++ op, on one executor in one dtype."""
    return in_executor_process(executor, measure_here, name, executor, dtype, most)
