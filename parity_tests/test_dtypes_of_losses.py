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
from parity_tests.torch_version import IS_OLDER

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
# each once mixed dtypes otherwise: mse_loss and smooth_l1_loss refused integers beside floating-point numbers and a
# bool target, huber_loss and binary_cross_entropy_with_logits gave the common dtype and took integer targets,
# kl_div and binary_cross_entropy took integers, soft_margin_loss gave the common dtype, hinge_embedding_loss of
# integers floating-point numbers
LOSSES = (
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
    *("binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div"),
    *("soft_margin_loss", "multilabel_soft_margin_loss", "hinge_embedding_loss"),
)


def same(call: Callable[[Any], Any]) -> None:
    """Equal results up to a rounding of their dtype, or equal errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = outcome(call, F), outcome(call, P)
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), found
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, equal_nan=True)
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


@pytest.mark.parametrize("second", (*DTYPES, torch.int8), ids=str)
@pytest.mark.parametrize("first", (*DTYPES, torch.int8), ids=str)
def test_ranking_of_two_dtypes(first: torch.dtype, second: torch.dtype) -> None:
    """margin_ranking_loss of integers gave integers; losses of classes took 16 bits and targets of any dtype."""
    x, signs = (
        torch.tensor([[1, 0, 2], [0, 1, 1]]).to(first),
        torch.tensor([[1, -1, 0], [1, 1, -1]]).to(second),
    )
    classes = torch.tensor([2, 0]).to(second)
    for reduction in ("none", "sum"):
        same(lambda f, r=reduction: f.margin_ranking_loss(x, x.flip(0), signs, reduction=r))
        same(lambda f, r=reduction: f.cosine_embedding_loss(x, x.flip(0), signs[:, 1], reduction=r))
        same(lambda f, r=reduction: f.multi_margin_loss(x, classes, reduction=r))
        same(lambda f, r=reduction: f.multilabel_margin_loss(x, signs, reduction=r))
        same(lambda f, r=reduction: f.poisson_nll_loss(x, classes[:, None], False, True, eps=1, reduction=r))


FLOATS = (torch.float32, torch.float64, torch.bfloat16)
WITH_GRADIENTS = ("huber_loss", "mse_loss", "smooth_l1_loss", "soft_margin_loss")


@pytest.mark.parametrize("second", DTYPES, ids=str)
@pytest.mark.parametrize("first", FLOATS, ids=str)
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradient_of_a_loss_of_two_dtypes(name: str, first: torch.dtype, second: torch.dtype) -> None:
    """huber_loss gave one, where C++ has none; soft_margin_loss of unsigned targets another than C++."""
    if IS_OLDER and name == "mse_loss" and first is not second:
        pytest.skip("torch 2.11 refuses it")
    x, target = torch.tensor([0.25, -0.5, 0.125]).to(first), torch.tensor([1, 0, 1]).to(second)

    def gradient(f: Any) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(getattr(f, name)(leaf, target), leaf)[0]

    same(gradient)


SHAPES = ((3, 4), (4,), (1, 4), (3, 1), (), (1,), (3,), (5,), (2, 3, 4), (0, 4))


@pytest.mark.parametrize("name", ["soft_margin_loss", "multilabel_soft_margin_loss", "hinge_embedding_loss"])
def test_targets_of_another_shape(name: str) -> None:
    """The classes of multilabel_soft_margin_loss were the target's; soft_margin_loss grew to the target's shape."""
    for shape, other in itertools.product(SHAPES, SHAPES):
        for reduction in ("none", "mean", "sum"):
            same(lambda f, s=shape, o=other, r=reduction: getattr(f, name)(
                torch.full(s, 0.5), torch.ones(o), reduction=r))  # fmt: skip


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
