"""Products that ATen has as one operation, compiled: kernels alone, no less accurate than C++."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parity_tests.executors import in_executor_process, prepare
from parity_tests.externs import computing_externs, record_graphs
from parity_tests.tolerances import compare

HAS_CHUNKS = hasattr(torch.nn, "LinearCrossEntropyOptions")  # since torch 2.13
TARGET = torch.tensor([3, 0, 8, -100, 5, 5, 1, 0, -100, 7])


def chunked_loss(reduction: str, weighted: bool) -> Callable[..., Tensor]:
    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        factors = torch.linspace(0.5, 2, 9, dtype=x.dtype) if weighted else None
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4, allow_retain_graph=True)
        return F.linear_cross_entropy(
            x, weight, TARGET, linear_bias=bias, weight=factors, reduction=reduction, options=options
        )

    return loss


OF_ROWS = (10, 6), (9, 6), (9,)
ROWS = {
    **{f"chunked loss, {r}": (chunked_loss(r, False), OF_ROWS) for r in ("mean", "sum", "none")},
    **{f"chunked loss, weighted {r}": (chunked_loss(r, True), OF_ROWS) for r in ("mean", "none")},
    "grouped_mm without groups": (lambda a, b: F.grouped_mm(a.relu(), b), ((3, 4, 16), (3, 16, 8))),
}
"""Functions and the shapes of their inputs."""


def run_row(name: str, executor: str, dtype: torch.dtype) -> list[str]:
    """Compare value and gradients; returns the ATen calls left."""
    function, shapes = ROWS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    found = []
    with record_graphs() as graphs:
        for run, kind in ((prepare(executor, function), dtype), (function, dtype), (function, torch.float64)):
            if kind == torch.float64 and name.startswith("grouped"):  # torch has no kernel of it
                run = lambda a, b: a.relu() @ b  # noqa: E731
            leaves = [x.to(kind).requires_grad_() for x in inputs]
            value = run(*leaves)
            cotangent = torch.linspace(-1, 1, value.numel()).view(value.shape).to(dtype).to(kind)
            if value.dim() == 0:
                cotangent = torch.ones_like(value)
            found.append([value.detach(), *torch.autograd.grad(value, leaves, cotangent)])
    for value, cpp, exact in zip(*found, strict=True):
        assert value.stride() == cpp.stride()
        comparison = compare(value, cpp, exact, False)
        assert comparison.passed, str(comparison)
    return computing_externs(graphs)


@pytest.mark.parametrize("executor", ["ir", pytest.param("python", marks=pytest.mark.slow), "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in ROWS if HAS_CHUNKS or "chunked" not in name])
def test_value_and_gradients_without_aten(name: str, dtype: torch.dtype, executor: str) -> None:
    if name.startswith("grouped") and dtype == torch.float32:
        pytest.skip("torch's shapes for tracers know bfloat16 only")
    assert not in_executor_process(executor, run_row, name, executor, dtype)
