"""What fuses with what: the number of passes over memory that layers take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pynn
from compiler_bridge import pipeline
from compiler_bridge.ir import Map, Reduce, node_reads

ROWS, COLS = 96, 160


def large_kernels(record: Any) -> list[list[Any]]:
    """The loops of each kernel that goes through a [ROWS, COLS] buffer."""

    def is_large(name: str) -> bool:
        buffer = record.fused.buffers.get(name)
        return buffer is not None and len(buffer.shape) == 2

    loops = [kernel.nodes for kernel in record.kernels if isinstance(kernel.nodes[0], (Map, Reduce))]
    return [nodes for nodes in loops if any(is_large(n) for node in nodes for n in node_reads(node))]


def compiled_records(function: Callable, inputs: list[Tensor], kinds: tuple[str, ...]) -> dict[str, Any]:
    torch._dynamo.reset()
    pipeline.records.clear()
    out = pynn.compile(function, dynamic=False, strict=True)(*inputs)
    out.backward(torch.ones_like(out))
    found = {record.kind: record for record in pipeline.records}
    return {kind: found[kind] for kind in kinds}


def rows(count: int = 1) -> list[Tensor]:
    return [torch.randn(ROWS, COLS, requires_grad=True) for _ in range(count)]


def affine() -> list[Tensor]:
    return [torch.randn(COLS, requires_grad=True), torch.randn(COLS, requires_grad=True)]


ONE_PASS: dict[str, tuple[Callable, Callable[[], list[Any]]]] = {
    "softmax": (lambda x: F.softmax(x, -1), rows),
    "log_softmax": (lambda x: F.log_softmax(x, -1), rows),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (COLS,), w, b), lambda: rows() + affine()),
    "rms_norm": (lambda x, w: F.rms_norm(x, (COLS,), w), lambda: rows() + affine()[:1]),
    "add and layer_norm": (lambda x, y, w, b: F.layer_norm(x + y, (COLS,), w, b), lambda: rows(2) + affine()),
    "swiglu": (lambda x, y: F.silu(x) * y, lambda: rows(2)),
}


@pytest.mark.parametrize("name", ONE_PASS)
def test_one_kernel_forward_and_one_backward(name: str) -> None:
    """Layer norm's backward once took two: weight * grad went through memory (`Grouper.merge_sources`)."""
    function, inputs = ONE_PASS[name]
    for record in compiled_records(function, inputs(), ("forward", "backward")).values():
        assert len(large_kernels(record)) == 1, record.program


def test_cross_entropy_does_not_write_its_log_probabilities() -> None:
    """The gather of the target's log-probability reads the logits (`fuse.solve_data`); the sum of a one-hot
    row is no loop (`rules.choose_one_hot`)."""
    target = torch.randint(COLS, (ROWS,))
    records = compiled_records(lambda x: F.cross_entropy(x, target), rows(), ("forward", "backward"))
    written = [b.name for b in records["forward"].program.buffers if b.numel == ROWS * COLS and b.kind != "input"]
    assert written == []
    backward = [node for nodes in large_kernels(records["backward"]) for node in nodes]
    assert not any(isinstance(node, Reduce) for node in backward)


@pytest.mark.parametrize("ignored", (-100, 3))
def test_cross_entropy_through_the_fused_gather(ignored: int) -> None:
    target = torch.randint(COLS, (ROWS,))
    target[::7] = ignored
    (x,) = rows()

    def function(x: Tensor) -> Tensor:
        return F.cross_entropy(x, target, ignore_index=ignored)

    compiled = torch.autograd.grad(pynn.compile(function, strict=True)(x), x)[0]
    exact = torch.autograd.grad(function(x.double()), x)[0]
    eager = torch.autograd.grad(function(x), x)[0]
    error, allowed = ((t - exact).abs().max().item() for t in (compiled, eager))
    assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize("position", (0, 4, -1, 5))
def test_the_sum_of_a_one_hot_row_is_its_term_if_in_range(position: int) -> None:
    def function(t: Tensor, a: Tensor) -> Tensor:
        return torch.where(torch.arange(5) == t[:, None], a[:, None], 0.0).sum(-1)

    t, a = torch.full((3,), position), torch.tensor([1.5, torch.inf, torch.nan])
    torch.testing.assert_close(
        pynn.compile(function, strict=True)(t, a), function(t, a), equal_nan=True, rtol=0, atol=0
    )
