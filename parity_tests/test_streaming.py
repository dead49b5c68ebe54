"""Results too large for the caches are written past them (`emit/streaming.py`); here the caches are said to hold
nothing."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pynn
from compiler_bridge.emit import kernel, streaming
from parity_tests.executors import in_executor_process

STREAMED = {
    "pointwise": ((4, 256), F.relu),
    "two results": ((4, 256), lambda x: (x + 1, x * 2)),
    "parts of a vector": ((1, 1000), F.relu),
    "rows of an input that begins anywhere": ((5, 259), lambda x: x[1:, 3:] * 2),
    "joined": ((4, 128), lambda x: torch.cat([x + 1, x * 2], 1)),
    "softmax": ((4, 256), lambda x: F.softmax(x, -1)),
    "layer norm": ((4, 256), lambda x: F.layer_norm(x, (256,))),
    "vectors across the sum": ((8, 256), lambda x: x - x.mean(0)),
}
PLAIN = {
    "rows of odd length": ((4, 255), lambda x: x - x.mean(1, keepdim=True)),
    "joined at odd places": ((4, 255), lambda x: torch.cat([x + 1, x * 2], 1)),
    "much arithmetic": ((4, 256), lambda x: F.dropout(F.gelu(x.erf()), 0.5)),
    "a sum": ((4, 256), lambda x: x.sum()),
}


def run(name: str, dtype: torch.dtype) -> int:
    """Compare with torch; how many stores went past the caches."""
    shape, function = {**STREAMED, **PLAIN}[name]
    decided: list[bool] = []

    def note(*arguments: object) -> bool:
        decided.append(streaming.is_aligned(*arguments))  # type: ignore[arg-type]
        return decided[-1]

    torch._dynamo.reset()
    with patch.object(streaming, "cache_bytes", lambda level: 0), patch.object(kernel, "is_aligned", note):
        x = torch.randn(shape).to(dtype)
        ours, theirs = pynn.compile(function, strict=True, dynamic=False)(x), function(x)
        if name != "much arithmetic":
            torch.testing.assert_close(ours, theirs)
    return sum(decided)


@pytest.mark.parametrize("executor", ["python", "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STREAMED)
def test_large_results(name: str, dtype: torch.dtype, executor: str):
    assert in_executor_process(executor, run, name, dtype) > 0


@pytest.mark.parametrize("name", PLAIN)
def test_what_goes_through_the_caches(name: str):
    assert run(name, torch.float32) == 0


def test_small_results_go_through_the_caches():
    with patch.object(kernel, "is_aligned", lambda *arguments: pytest.fail("asked")):
        pynn.compile(lambda x: x + 3, strict=True)(torch.randn(4, 256))


@pytest.mark.slow
def test_training(monkeypatch):
    """A network's step with every large enough result written past the caches."""
    monkeypatch.setattr(streaming, "cache_bytes", lambda level: 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 16))
    x = torch.randn(48, 32)

    def gradients(function) -> list[Tensor]:
        return list(torch.autograd.grad(function(x).square().mean(), list(model.parameters())))

    torch.testing.assert_close(gradients(pynn.compile(model, strict=True)), gradients(model))
