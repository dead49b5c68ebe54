"""pynn.grad, against torch.nn.grad."""

import inspect

import pytest
import torch

import pynn

CASES = [
    (dims, options)
    for dims in (1, 2, 3)
    for options in ({}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2}, {"stride": [2] * dims})
]


@pytest.mark.parametrize("dims, options", CASES)
def test_gradients_of_convolutions(dims: int, options: dict):
    groups = options.get("groups", 1)
    x = torch.randn(2, 4, *[7] * dims, dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, *[3] * dims, dtype=torch.float64)
    out = getattr(torch.nn.functional, f"conv{dims}d")(x, weight, **options)
    grad = torch.randn_like(out)
    for name, args in (
        (f"conv{dims}d_input", (x.shape, weight, grad)),
        (f"conv{dims}d_weight", (x, weight.shape, grad)),
    ):
        ours, theirs = getattr(pynn.grad, name), getattr(torch.nn.grad, name)
        torch.testing.assert_close(ours(*args, **options), theirs(*args, **options))
        parameters = [
            [(p.name, p.default) for p in inspect.signature(f).parameters.values()] for f in (ours, theirs)
        ]
        assert parameters[0] == parameters[1]
