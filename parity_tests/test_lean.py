"""Plain graphs are called without AOTAutograd's runtime, and nobody can tell (`capture/lean.py`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._guards import TracingContext

from compiler_bridge import backend
from compiler_bridge.capture import lean, lean_calls
from parity_tests.lean_calls import is_ours, leaf, strict
from parity_tests.torch_version import IS_OLDER


@pytest.fixture
def plain(monkeypatch) -> list[bool]:
    """For every captured graph, whether it was found plain."""
    found: list[bool] = []
    finish = lean.LeanCall.finish

    def record(self, full):
        result = finish(self, full)
        found.append(result is not full)
        return result

    monkeypatch.setattr(lean.LeanCall, "finish", record)
    return found


# ------------------------------------------------------------------------------------------ a table of programs
def mutates_input(x: Tensor) -> Tensor:
    y = x * 2
    x.detach().add_(1)
    return y


def two_views(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.sin()
    return y[0], y[1]


PLAIN = {
    "pointwise": lambda x: F.relu(x) * 3,
    "matmul": lambda x: F.gelu(x @ x.T).sum(),
    "reshaped": lambda x: (x @ x.T).reshape(2, -1, x.shape[0]),
    "two outputs": lambda x: (x.sin(), x.cos()),
    "one without gradient": lambda x: (x.exp(), x.argmax(1), (x > 0)),
    "detached output": lambda x: (x.exp(), x.detach() * 2),
    "transposed output": lambda x: (x.exp().T * 2).tanh(),
    "nothing saved": lambda x: x + 1,
    "saves its output": lambda x: x.exp(),
    "gradient of zero": lambda x: x * 0,
    "index": lambda x: F.embedding(torch.tensor([[0, 2], [1, 1]]), x),
    "expanded output": lambda x: x.sum(0).expand(3, x.shape[1]) * 1,
}

OTHERS = {
    "view of the input": lambda x: (x.view(-1), x * 2),
    "views of one result": two_views,
    "mutated input": mutates_input,
}


def run(function: Any, x: Tensor) -> list[Tensor]:
    """Outputs, x afterwards, and the gradient of a weighted sum of what has one."""
    inputs = x.detach().clone().requires_grad_()
    with torch.set_grad_enabled(True):
        outputs = function(inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    differentiable = [y for y in outputs if y.requires_grad]
    weights = [leaf(*y.shape, seed=i).detach().to(y.dtype) for i, y in enumerate(differentiable)]
    gradients = torch.autograd.grad(differentiable, inputs, weights) if differentiable else ()
    return [*outputs, inputs, *gradients]


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert [y.requires_grad for y in actual] == [y.requires_grad for y in expected]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_programs(plain, name):
    """Three calls: AOTAutograd's, with which the backward is compiled, and two of ours."""
    compiled = strict(PLAIN[name], dynamic=False)
    for seed in range(3):
        x = leaf(4, 6, seed=seed)
        same(run(compiled, x), run(PLAIN[name], x))
    assert plain == [True]
    outputs = compiled(leaf(4, 6))
    assert is_ours(outputs[0] if isinstance(outputs, tuple) else outputs)
    plain.clear()
    with torch.no_grad():
        for seed in range(3):
            x = leaf(4, 6, seed=seed)
            torch.testing.assert_close(compiled(x), PLAIN[name](x))
    assert plain == [True]


@pytest.mark.parametrize("name", OTHERS)
def test_other_programs(plain, name):
    """What needs AOTAutograd's runtime keeps it."""
    compiled = strict(OTHERS[name], dynamic=False)
    for seed in range(3):
        x = leaf(4, 6, seed=seed)
        same(run(compiled, x), run(OTHERS[name], x))
    assert plain == [False]


class Counting(nn.Module):
    """y = step(its buffers, x), which changes them."""

    def __init__(self, step: Callable[[Counting, Tensor], Any]):
        super().__init__()
        self.register_buffer("total", torch.zeros(6, dtype=torch.float64))
        self.register_buffer("calls", torch.tensor(0))
        self.step = step

    def forward(self, x: Tensor) -> Any:
        return self.step(self, x)


def counts(module: Counting, x: Tensor) -> Tensor:
    module.calls.add_(1)
    module.total.add_(x.detach().sum(0)).mul_(0.5)
    return x.exp() * 2


def uses_the_new_value(module: Counting, x: Tensor) -> Tensor:
    module.total.add_(1)
    return x * module.total


def uses_the_old_value(module: Counting, x: Tensor) -> Tensor:
    y = x * module.total.clone()
    module.total.add_(1)
    return y


def returns_the_buffer(module: Counting, x: Tensor) -> tuple[Tensor, Tensor]:
    module.total.add_(1)
    return x * 2, module.total


MUTATING = {
    "batch norm": lambda: nn.BatchNorm1d(6, dtype=torch.float64),
    "two buffers": lambda: Counting(counts),
    "new value": lambda: Counting(uses_the_new_value),
    "old value": lambda: Counting(uses_the_old_value),
    "returned": lambda: Counting(returns_the_buffer),
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", MUTATING)
def test_mutated_buffers(plain, name: str, gradients: bool):
    """New values are copied into buffers, whose versions go up. The old one is saved as a copy: AOTAutograd saved
    the buffer itself, and the backward raised."""
    ours, eager = MUTATING[name]().train(), MUTATING[name]().train()
    compiled = strict(ours, dynamic=False)
    for seed in range(3):
        x = leaf(4, 6, seed=seed)
        before = {key: (value._version, value.clone()) for key, value in ours.named_buffers()}
        results = [run(module, x) if gradients else no_grad(module, x) for module in (compiled, eager)]
        same(results[0], results[1])
        for (key, one), other in zip(ours.named_buffers(), eager.buffers()):
            torch.testing.assert_close(one, other)
            version, value = before[key]
            assert one._version > version or torch.equal(one, value)
    assert plain == [True]


@torch.no_grad()
def no_grad(function: Any, x: Tensor) -> list[Tensor]:
    outputs = function(x.detach())
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def test_autocast(plain):
    """Compiled under autocast: AOTAutograd's, which switches it off around the graphs."""

    def function(x):
        return x @ x.T

    x = leaf(4, 6).detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = strict(function, dynamic=False)
        for _ in range(2):
            torch.testing.assert_close(compiled(x), function(x))
    assert plain == [False]


SYMBOLIC = {
    "pointwise": lambda x: x.exp() * x,
    "sum": lambda x: x.exp().sum(),
    "matmul": lambda x: (x @ x.T).reshape(-1),
    "two outputs": lambda x: (x.sin().T, x.detach().sum()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_sizes(plain, name):
    """Sizes that are symbols are saved and passed to the backward as integers."""
    function = SYMBOLIC[name]
    compiled = strict(function, dynamic=True)
    for rows in (3, 5, 4, 7):
        same(run(compiled, leaf(rows, 6)), run(function, leaf(rows, 6)))
    assert plain == [True]
    outputs = compiled(leaf(4, 6))
    assert is_ours(outputs[0] if isinstance(outputs, tuple) else outputs)
    with torch.no_grad():
        for rows in (3, 5, 4):
            torch.testing.assert_close(compiled(leaf(rows, 6)), function(leaf(rows, 6)))
    assert plain == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [True, False])
def test_symbolic_sizes_are_passed_on(gradients):
    """Dynamo compiles what takes an output of a dynamic graph for any size at once, as with AOTAutograd's runtime."""
    compiled = strict(lambda x: x.exp(), dynamic=True)
    marks = []
    mark = "_dynamo_weak_dynamic_indices" if IS_OLDER else "_dynamo_propagated_dynamic_indices"
    for _ in range(3):
        y = compiled(leaf(4, 6).requires_grad_(gradients))
        marks.append(getattr(y, mark))
        if gradients:
            y.sum().backward()
    assert marks == [{0, 1}] * 3


def test_fallback_graphs(monkeypatch):
    """A graph that runs through ATen may return views; they become tensors of their own."""
    from compiler_bridge import pipeline

    def refuse(*arguments):
        raise NotImplementedError("in this test")

    monkeypatch.setattr(pipeline, "compile_graph", refuse)

    def function(x):
        return (x @ x.T).reshape(2, -1)

    compiled = backend.compile(function, dynamic=False)
    with pytest.warns(Warning, match="in this test"):
        for _ in range(3):
            x = leaf(4, 6)
            y = compiled(x).mul_(2)
            expected = torch.autograd.grad(2 * function(x).sum(), x)
            torch.testing.assert_close(torch.autograd.grad(y.sum(), x), expected)
    assert is_ours(compiled(x))


def test_torch_without_the_private_names(monkeypatch, plain):
    """Where a version of torch lacks any of them, everything runs as AOTAutograd runs it."""
    monkeypatch.setattr(lean_calls.Torch, "find", staticmethod(lambda: None))
    compiled = strict(PLAIN["pointwise"], dynamic=False)
    for _ in range(2):
        same(run(compiled, leaf(4, 6)), run(PLAIN["pointwise"], leaf(4, 6)))
    assert plain == [False]


def test_metadata_that_is_described_differently(monkeypatch, plain):
    """A field of another name: AOTAutograd's runtime."""
    monkeypatch.setattr(lean, "NOTHING", ("no_such_field",))
    compiled = strict(PLAIN["nothing saved"], dynamic=False)
    same(run(compiled, leaf(4, 6)), run(PLAIN["nothing saved"], leaf(4, 6)))
    assert plain == [False]


@pytest.mark.parametrize("name", lean.NOTHING)
def test_each_thing_a_graph_may_need(monkeypatch, plain, name):
    """A graph that needs any of these keeps AOTAutograd's runtime."""

    class Context:
        @staticmethod
        def try_get():
            context = TracingContext.try_get()
            if context is None or context.fw_metadata is None:
                return context
            metadata = copy.copy(context.fw_metadata)
            setattr(metadata, name, 1)
            return SimpleNamespace(fw_metadata=metadata, fakify_first_call=False)

    monkeypatch.setattr(lean, "TracingContext", Context)
    compiled = strict(PLAIN["nothing saved"], dynamic=False)
    same(run(compiled, leaf(4, 6)), run(PLAIN["nothing saved"], leaf(4, 6)))
    assert plain == [False]
