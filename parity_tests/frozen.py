"""Small models and comparisons for the tests of freeze=True."""

from __future__ import annotations

import torch
from torch import nn

from compiler_bridge import backend


def randomize(model, seed=0):
    """Running statistics and affine parameters that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5)
                if name.endswith("running_var"):
                    tensor.add_(1)
    return model.eval()


def small_network():
    """Convolution and linear layer, each followed by a batch norm."""
    return randomize(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 36, 5, bias=False), nn.BatchNorm1d(5),
        )
    )  # fmt: skip


def images(*shape):
    return torch.randn(*(shape or (2, 3, 6, 6)), generator=torch.Generator().manual_seed(1))


def frozen(model, **options):
    return backend.compile(model, freeze=True, strict=True, **options)


def assert_same(compiled, model, *inputs):
    """The compiled model gives what the model as it is now gives, without gradients."""
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def targets(gm):
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


def in_place(model):
    with torch.no_grad():
        model[0].weight.mul_(2)
