"""freeze=True: GEMM's packing of a weight is done once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compiler_bridge import pipeline
from compiler_bridge.program import DynamicStep
from parity_tests.frozen import assert_same, frozen, images, randomize


def kernels_of(program):
    """Names of the kernels a program runs, those of its products included."""
    found = []
    for step in program.steps:
        steps = step.plan({}, 1).steps if isinstance(step, DynamicStep) else [step]
        found += [getattr(one.kernel, "name", one.kernel) for one in steps]
    return found


def convolution(*arguments, **options):
    return nn.Conv2d(*arguments, **options).to(memory_format=torch.channels_last)


def rows(count, columns=40):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(2))


def channels_last(*shape):
    return images(*shape).to(memory_format=torch.channels_last)


PACKED = {
    "linear": (lambda: nn.Linear(40, 72), lambda: rows(200)),
    "few rows": (lambda: nn.Linear(40, 72), lambda: rows(17)),
    "two layers": (lambda: nn.Sequential(nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 7)), lambda: rows(64)),
    "batch of matrices": (lambda: nn.Linear(40, 33), lambda: rows(60).view(3, 20, 40)),
    "convolution": (lambda: convolution(16, 24, 3, padding=1), lambda: channels_last(2, 16, 9, 9)),
    "weight in torch's layout": (lambda: nn.Conv2d(16, 24, 3), lambda: channels_last(1, 16, 9, 9)),
    "stride": (lambda: convolution(16, 40, 3, stride=2, padding=1), lambda: channels_last(2, 16, 30, 30)),
    "1x1": (lambda: convolution(16, 24, 1), lambda: channels_last(2, 16, 9, 9)),
    "image": (lambda: convolution(3, 16, 7, stride=2, padding=3), lambda: channels_last(1, 3, 32, 32)),
}


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(
            name,
            dtype,
            id=f"{name}-{dtype}",
            marks=[] if dtype is torch.float32 or name in ("linear", "convolution") else [pytest.mark.slow],
        )
        for name in PACKED
        for dtype in DTYPES
    ],
)
def test_weights_are_packed_once(name, dtype):
    make, inputs = PACKED[name]
    model, x = randomize(make()).to(dtype), inputs().to(dtype)
    compiled = frozen(model)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x), **tolerance)
            torch.testing.assert_close(compiled(x), model(x), **tolerance)
            next(model.parameters()).mul_(-0.5)
    program = pipeline.records[-1].program
    assert any("pack" in kernel for kernel in kernels_of(program.once.program))
    assert not any("pack" in kernel for kernel in kernels_of(program))


def test_packed_weights_serve_any_number_of_threads(monkeypatch):
    """Dynamo compiles again where the number changes; the kernels need not."""
    calls, compile_graph = [], pipeline.compile_graph

    def spying(*arguments):
        graph = compile_graph(*arguments)

        def run(*inputs):
            calls.append((graph, inputs))
            return graph(*inputs)

        run.once = graph.once
        return run

    monkeypatch.setattr(pipeline, "compile_graph", spying)
    model = randomize(nn.Sequential(convolution(16, 72, 3, padding=1), nn.Flatten(2), nn.Linear(100, 70)))
    x = channels_last(3, 16, 10, 10)
    assert_same(frozen(model), model, x)
    (graph, inputs), threads = calls[-1], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.testing.assert_close(graph(*inputs)[0], model(x), rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_packed_weights_serve_any_number_of_rows(graphs, folds):
    """Few rows read the weight where it lies."""
    model = randomize(nn.Linear(40, 72))
    compiled = frozen(model, dynamic=True)
    for count in (64, 300, 5, 2, 64):
        assert_same(compiled, model, rows(count))
    assert len(graphs) == len(folds) == 1


@pytest.mark.slow
def test_a_folded_weight_is_not_kept_beside_the_packed_one(folds):
    model = randomize(nn.Sequential(convolution(16, 24, 3, bias=False), nn.BatchNorm2d(24)))
    compiled = frozen(model)
    assert_same(compiled, model, channels_last(2, 16, 9, 9))
    (folded,) = folds
    sizes = [value.numel() for value in folded().values if value is not None]
    weight = 16 * 24 * 9
    assert len(folded().values) > len(sizes) and sum(weight <= size < 2 * weight for size in sizes) == 1


def test_an_index_out_of_range_is_torchs_own_error():
    """ATen then runs the graph, with the inputs it was traced for."""
    model = randomize(nn.Sequential(nn.Embedding(9, 40), nn.Linear(40, 72)))
    compiled = frozen(model)
    tokens = torch.arange(64).remainder(9)
    assert_same(compiled, model, tokens)
    with torch.no_grad(), pytest.raises(IndexError, match="out of range"):
        compiled(tokens + 1)
    assert_same(compiled, model, tokens)


def test_matrices_that_are_no_weights_are_not_packed():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(40, 40))

        def forward(self, x, y):
            return x @ y, self.weight @ x.mT, x @ (self.weight * y)

    model = Products()
    x, y = rows(64), rows(40)
    with torch.no_grad():
        for found, expected in zip(frozen(model)(x, y), model(x, y)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
