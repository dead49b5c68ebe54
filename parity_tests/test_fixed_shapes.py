"""dynamic=False keeps its meaning without being set around every call (`capture/fixed_shapes.py`)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compiler_bridge import backend, pipeline
from compiler_bridge.capture import annotations, fixed_shapes
from compiler_bridge.capture.fixed_shapes import context_of


@pytest.fixture(autouse=True)
def no_records():
    pipeline.records.clear()


def strict(function: Any) -> Any:
    return backend.compile(function, strict=True, dynamic=False)


def rows_of(count: int) -> Tensor:
    return torch.arange(count * 6, dtype=torch.float64).view(count, 6) / 10


def is_set_only_while_compiling(compiled: Any) -> bool:
    link = context_of(compiled).callback._torchdynamo_orig_backend
    while isinstance(link, fixed_shapes.CompileWith):
        if link._setting is not annotations.switch_off:
            return True
        link = link._convert
    return False


class Doubler(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.mark.parametrize("make", [lambda: lambda x: x * 2, Doubler], ids=["function", "module"])
def test_dynamic_false_compiles_anew_for_each_size(make):
    """... though the setting is no longer made around every call."""
    compiled = strict(make())
    assert is_set_only_while_compiling(compiled)
    for rows in (3, 5, 4, 5):
        torch.testing.assert_close(compiled(rows_of(rows)), rows_of(rows) * 2)
    assert len(pipeline.records) == 3
    assert not any(record.program.symbols for record in pipeline.records)


def test_dynamic_false_sets_nothing_around_a_call():
    seen = []

    @torch._dynamo.disable
    def look():
        seen.append(torch._dynamo.config.automatic_dynamic_shapes)

    def function(x):
        look()
        return x * 2

    compiled = backend.compile(function, dynamic=False)
    for _ in range(2):
        compiled(rows_of(3))
    assert seen == [True, True]


def test_dynamic_false_after_a_graph_break():
    def function(x):
        y = x * 2
        torch._dynamo.graph_break()
        return y.exp()

    compiled = backend.compile(function, dynamic=False)
    for rows in (3, 5, 4):
        torch.testing.assert_close(compiled(rows_of(rows)), function(rows_of(rows)))
    assert len(pipeline.records) == 6  # two graphs a size


def test_dynamic_false_under_another_stance():
    """The compiler that a stance of torch.compiler makes from ours keeps the setting."""
    compiled = strict(lambda x: x * 2)
    with torch.compiler.set_stance("eager_then_compile"):
        for rows in (3, 5, 4, 5, 4):
            torch.testing.assert_close(compiled(rows_of(rows)), rows_of(rows) * 2)
    assert not any(record.program.symbols for record in pipeline.records)


def test_copies_of_a_compiled_module():
    compiled = strict(nn.Linear(6, 3, dtype=torch.float64))
    expected = compiled(rows_of(4))
    torch.testing.assert_close(copy.deepcopy(compiled)(rows_of(4)), expected)


def test_dynamo_built_differently(monkeypatch):
    """Without a context to be found, dynamic=False is what torch.compile makes of it."""
    monkeypatch.setattr(fixed_shapes, "context_of", lambda compiled: None)
    compiled = strict(lambda x: x * 2)
    assert not is_set_only_while_compiling(compiled)
    torch.testing.assert_close(compiled(rows_of(3)), rows_of(3) * 2)
