"""Compiled calls carry no notes for the profiler (`capture/annotations.py`), other compilers' keep theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compiler_bridge import backend

NOTE = "Pregraph bytecode"


class Doubler(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def names_in_profile(function: Any) -> set[str]:
    x = torch.arange(6.0)
    function(x)
    with torch.profiler.profile() as profile:
        torch.testing.assert_close(function(x), x * 2)
    return {event.name for event in profile.events()}


@pytest.mark.parametrize("dynamic", [None, False, True])
@pytest.mark.parametrize("make", [lambda: lambda x: x * 2, Doubler], ids=["function", "module"])
def test_no_note_is_made(make: Any, dynamic: bool | None):
    torch._dynamo.reset()
    assert NOTE in names_in_profile(torch.compile(make(), backend="eager", dynamic=dynamic))
    torch._dynamo.reset()
    assert NOTE not in names_in_profile(backend.compile(make(), strict=True, dynamic=dynamic))
    assert torch._dynamo.config.record_runtime_overhead


def test_the_setting_is_taken_back_after_an_error():
    def function(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x * 2

    with pytest.raises(torch._dynamo.exc.Unsupported):
        backend.compile(function, strict=True, fullgraph=True)(torch.arange(6.0))
    assert torch._dynamo.config.record_runtime_overhead
