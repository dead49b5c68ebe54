"""Pointwise definitions evaluated block by block: bit for bit the whole, in the same strides."""

import pytest
import torch
from torch import Tensor

import pynn
from pynn import blocks

LARGE = 4 * blocks.BLOCK + 3
LAYOUTS = {
    "line": lambda: torch.randn(LARGE),
    "rows": lambda: torch.randn(300, 1000),
    "channels_last": lambda: torch.randn(2, 64, 50, 50).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(300, 1000).t(),
    "gaps": lambda: torch.randn(300, 2000)[:, ::2],
    "expanded": lambda: torch.randn(1000).expand(300, 1000),
    "bfloat16": lambda: torch.randn(300, 1000).bfloat16(),
}
FUNCTIONS = ["gelu", "elu", "hardswish"]


def run(name: str, x: Tensor, cotangent: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    out = getattr(pynn.functional, name)(leaf)
    return [out.detach(), *torch.autograd.grad(out, leaf, cotangent)]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_change_nothing(name: str, layout: str, monkeypatch):
    x = LAYOUTS[layout]()
    for cotangent in (torch.randn_like(x), x.new_ones(()).expand(x.shape)):
        found = run(name, x, cotangent)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "BLOCK", x.numel())  # too few elements to be cut
            wanted = run(name, x, cotangent)
        for ours, whole in zip(found, wanted, strict=True):
            assert torch.equal(ours, whole) and ours.stride() == whole.stride()


def test_double_backward_and_vmap_see_the_whole():
    x = torch.randn(LARGE, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(pynn.functional.gelu(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    reference = x.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(torch.nn.functional.gelu(reference).sum(), reference, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(first.sum(), reference)[0])
    mapped = torch.func.vmap(pynn.functional.gelu)(x.detach().view(-1, 1)[:LARGE])
    torch.testing.assert_close(mapped.view(-1), torch.nn.functional.gelu(x.detach()))
