"""What a tensor subclass sees of a definition: TestCompositeCompliance of torch's test_ops.py, for the functions that
wrote a subclass's values into plain tensors, or read or drew others for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing._internal import composite_compliance as compliance

import pynn.functional as F


def rrelu(x: torch.Tensor) -> torch.Tensor:
    """The same numbers as of a plain tensor: one for each that is not positive."""
    torch.manual_seed(0)
    return F.rrelu(x, 0.0, 1.0, training=True)


def statistics() -> list[torch.Tensor]:
    return [torch.zeros(3), torch.ones(3)]


def image(*size: int) -> torch.Tensor:
    return torch.randn(size, requires_grad=True)


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], tuple], dict[str, Any]]] = {
    "batch_norm": (F.batch_norm, lambda: (image(2, 3, 4), *statistics()), {"training": True}),
    "instance_norm": (F.instance_norm, lambda: (image(2, 3, 4), *statistics()), {}),
    "rrelu": (rrelu, lambda: (image(20),), {}),
    **{
        f"pdist, p = {p}": (F.pdist, lambda: (image(5, 4),), {"p": p})
        for p in (0.5, 1.0, 2.0, 3.0, torch.inf)
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_no_values_of_a_subclass_are_written_into_plain_tensors(name: str) -> None:
    function, draw, kwargs = CALLS[name]
    check = torch.testing.assert_close
    compliance.check_with_mode(function, draw(), kwargs, check)
    compliance.check_all_permutations(function, draw(), kwargs, check)


@pytest.mark.parametrize("name", CALLS)
def test_nor_in_derivatives(name: str) -> None:
    function, draw, kwargs = CALLS[name]
    check = torch.testing.assert_close
    compliance.check_backward_formula(function, draw(), kwargs, assert_equal_fn=check)
    compliance.check_forward_ad_formula(function, draw(), kwargs, assert_equal_fn=check)


def test_slopes_of_rrelu_are_drawn_inside_the_older_vmap() -> None:
    """test_forward_mode_AD_nn_functional_rrelu of test_ops_fwd_gradients.py."""
    x = image(20).double().detach().requires_grad_()
    assert torch.autograd.gradcheck(rrelu, x, check_forward_ad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_slopes_of_rrelu_under_vmap(randomness: str) -> None:
    """Which torch has no rule for: in the interval, equal or not from sample to sample."""
    x = -torch.ones(3, 50)
    slopes = -torch.vmap(lambda x: F.rrelu(x, 0.25, 0.5, training=True), randomness=randomness)(x)
    assert ((slopes >= 0.25) & (slopes < 0.5)).all()
    assert torch.equal(slopes[0], slopes[1]) == (randomness == "same")
