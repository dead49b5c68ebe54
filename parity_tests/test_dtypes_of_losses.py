"""Losses, and functions of several tensors, of two dtypes: what comes out, or in which words it is refused."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pynn.functional as P
from parity_tests.test_refusals import outcome

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
# each once mixed dtypes otherwise: mse_loss and smooth_l1_loss refused integers beside floating-point numbers and a
# bool target, huber_loss and binary_cross_entropy_with_logits gave the common dtype and took integer targets,
# kl_div and binary_cross_entropy took integers
LOSSES = (
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div"),
)


def same(call: Callable[[Any], Any]) -> None:
    """Equal results up to a rounding of their dtype, or equal errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = outcome(call, F), outcome(call, P)
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), found
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        torch.testing.assert_close(found, expected)
    else:
        # 1 - target is a subtraction of two bools where C++ writes it so
        assert found == expected or (found[0] is expected[0] and "two bool tensors" in expected[1])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_two_dtypes(name: str, reduction: str) -> None:
    # halves and quarters: exact in every dtype and in every order
    x, target = torch.tensor([[0.25, 0.5, 1.0]]), torch.tensor([[0.5, 1.0, 0.25]])
    for first, second in itertools.product(DTYPES, DTYPES):
        if first is not second and (
            first is torch.bfloat16 or (torch.bfloat16, "mean") == (second, reduction)
        ):
            continue  # C++ may round in between
        same(lambda f, a=first, b=second: getattr(f, name)(x.to(a), target.to(b), reduction=reduction))


@pytest.mark.parametrize("second", DTYPES, ids=str)
@pytest.mark.parametrize("first", DTYPES, ids=str)
def test_bilinear_of_several_dtypes(first: torch.dtype, second: torch.dtype) -> None:
    """input2 of another dtype was multiplied; the result's rows lay in columns."""
    for third in (torch.float32, second):
        tensors = [torch.ones(shape, dtype=dtype)
                   for shape, dtype in (((3, 4), first), ((3, 5), second), ((6, 4, 5), third))]  # fmt: skip
        same(lambda f, tensors=tensors: f.bilinear(*tensors))


def test_bilinear_and_logsigmoid_give_contiguous_results() -> None:
    """A view of them with other sizes raised."""
    x = torch.randn(4, 2, 3).permute(2, 0, 1)
    same(lambda f: f.logsigmoid(x))
    same(lambda f: f.bilinear(torch.ones(2, 3, 4), torch.ones(2, 3, 5), torch.ones(6, 4, 5), torch.ones(6)))


def test_integers_and_nan_are_refused() -> None:
    """normalize divided integers, softshrink took NaN for a threshold."""
    same(lambda f: f.normalize(torch.ones(3, 4, dtype=torch.int64)))
    same(lambda f: f.softshrink(torch.ones(3), float("nan")))
