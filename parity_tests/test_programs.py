"""Whole random programs: compiled is no less accurate than eager, both against float64, gradients too."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import pynn
from parity_tests.measure import gradients, move_to_neighbour
from parity_tests.programs import Program, programs
from parity_tests.tolerances import FACTOR, FLOOR_ULPS

NEIGHBOURS = 4


def run(function, tensors: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs, and the gradients of the inputs."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    outputs = list(function(*leaves))
    return [t.detach() for t in outputs], gradients(outputs, leaves, dtype)


def in_float64(function, tensors: list[Tensor], dtype: torch.dtype):
    """Run in float64 throughout, casts inside the program included."""
    source = function.__globals__
    exact = {"torch": WIDE_TORCH}
    exec(source["SOURCE"], exact)
    return run(exact["program"], [t.double() for t in tensors], dtype)


class Widened:
    """torch, with every floating dtype a program may name replaced by float64."""

    float16 = bfloat16 = float32 = float64 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


WIDE_TORCH = Widened()


def errors(results, exact, scale: float) -> list[float]:
    """Largest error of each tensor, in roundings of its dtype at the program's scale."""
    found = []
    for value, best in zip(results, exact, strict=True):
        difference = (value.double() - best).abs()
        difference = torch.where(value.isnan() & best.isnan() | (value == best), 0.0, difference)
        unit = torch.finfo(value.dtype).eps * scale
        found.append(difference.nan_to_num(torch.inf).max().item() / unit if value.numel() else 0.0)
    return found


def check(program: Program) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [item.make(generator) for item in program.inputs]
    dtype = tensors[0].dtype
    function = program.function()
    function.__globals__["SOURCE"] = program.source
    eager, eager_grads = run(function, tensors, dtype)
    exact, exact_grads = in_float64(function, tensors, dtype)
    compiled = pynn.compile(function, dynamic=False, strict=True)
    own, own_grads = run(compiled, tensors, dtype)
    torch._dynamo.reset()
    for mine, theirs, best, what in [(own, eager, exact, 0), (own_grads, eager_grads, exact_grads, 1)]:
        assert [(t.shape, t.dtype) for t in mine] == [(t.shape, t.dtype) for t in theirs]
        # Cancellation leaves errors of the size of what cancelled, so the scale is all results', at least 1.
        scale = max([1.0, *(t.nan_to_num(0, 0, 0).abs().max().item() for t in best if t.numel())])
        found, allowed = errors(mine, best, scale), errors(theirs, best, scale)
        if not within(found, allowed):
            for number in range(1, NEIGHBOURS + 1):
                near = [t.clone() for t in tensors]
                move_to_neighbour(near, number)
                redone = run(function, near, dtype)[what], in_float64(function, near, dtype)[what]
                allowed = list(map(max, allowed, errors(*redone, scale)))
        kind = ["values", "gradients"][what]
        assert within(found, allowed), f"{kind}: errors {found} ulp, eager's {allowed}\n{program}"


def within(found: list[float], allowed: list[float]) -> bool:
    return all(a <= FACTOR * b + FLOOR_ULPS for a, b in zip(found, allowed, strict=True))


options = {
    "deadline": None,
    "derandomize": True,  # CI must not depend on luck; `pytest --hypothesis-seed` and more examples explore
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=6, **options)
@given(programs(most_steps=5))
def test_a_few_programs(program: Program):
    check(program)


@pytest.mark.slow
@settings(max_examples=80, **options)
@given(programs(most_steps=10))
def test_many_programs(program: Program):
    check(program)
