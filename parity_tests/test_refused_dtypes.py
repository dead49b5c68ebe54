"""Dtypes that torch has no kernel or no gradient for, which a definition of elementary operations would take.

test_dtypes of torch's test_ops.py found some; the words are torch's.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pynn.functional as P
from parity_tests.test_refusals import outcome


def assert_same(call: Callable[[Any], torch.Tensor]) -> None:
    expected, found = outcome(call, F), outcome(call, P)
    if isinstance(expected, torch.Tensor):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    else:
        assert found == expected


def complex_half(*sizes: int) -> torch.Tensor:
    return torch.randn(sizes, dtype=torch.complex64).to(torch.complex32)


HALVES: dict[str, Callable[[Any], torch.Tensor]] = {
    "pixel_shuffle": lambda f: f.pixel_shuffle(complex_half(1, 4, 2, 2), 2),
    "pixel_shuffle by 1": lambda f: f.pixel_shuffle(complex_half(1, 4, 2, 2), 1),
    "pixel_shuffle of nothing": lambda f: f.pixel_shuffle(complex_half(0, 4, 2, 2), 2),
    "pixel_unshuffle": lambda f: f.pixel_unshuffle(complex_half(1, 4, 2, 2), 2),
    "channel_shuffle": lambda f: f.channel_shuffle(complex_half(1, 4, 2, 2), 2),
    "channel_shuffle of nothing": lambda f: f.channel_shuffle(complex_half(0, 4, 2, 2), 2),
    "native_channel_shuffle": lambda f: f.native_channel_shuffle(complex_half(1, 4, 2, 2), 2),
    "rms_norm": lambda f: f.rms_norm(complex_half(2, 3), (3,)),
    "adaptive_avg_pool1d": lambda f: f.adaptive_avg_pool1d(complex_half(1, 4, 2), 1),
    "adaptive_avg_pool2d": lambda f: f.adaptive_avg_pool2d(complex_half(1, 4, 2, 2), 1),
    "adaptive_avg_pool3d": lambda f: f.adaptive_avg_pool3d(complex_half(1, 4, 2, 2, 2), 1),
    "linear": lambda f: f.linear(complex_half(2, 3), complex_half(4, 3), complex_half(4)),
    "linear of a vector": lambda f: f.linear(complex_half(3), complex_half(4, 3), complex_half(4)),
    "linear of nothing": lambda f: f.linear(complex_half(2, 0), complex_half(4, 0), complex_half(4)),
    "conv_tbc": lambda f: f.conv_tbc(complex_half(3, 1, 2), complex_half(2, 2, 2), complex_half(2)),
    "silu": lambda f: f.silu(complex_half(3)),
    "soft_margin_loss": lambda f: f.soft_margin_loss(complex_half(3), torch.ones(3)),
    "gaussian_nll_loss": lambda f: f.gaussian_nll_loss(complex_half(3), complex_half(3), torch.ones(3)),
}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex_numbers_of_16_bits(name: str) -> None:
    """Were taken."""
    assert_same(HALVES[name])


def complex_leaf(*sizes: int) -> torch.Tensor:
    return torch.randn(sizes, dtype=torch.complex64, requires_grad=True)


LEAVES: dict[str, Callable[[Any], torch.Tensor]] = {
    "silu": lambda f: f.silu(complex_leaf(3)),
    "silu in place": lambda f: f.silu(complex_leaf(3).clone(), inplace=True),
    "silu without a gradient": lambda f: f.silu(complex_leaf(3).detach()),
    "soft_margin_loss": lambda f: f.soft_margin_loss(complex_leaf(3), torch.ones(3)),
    "bilinear": lambda f: f.bilinear(complex_leaf(2, 3), complex_leaf(2, 3), complex_leaf(4, 3, 3)),
    "bilinear, the bias alone": lambda f: f.bilinear(
        *[x.detach() for x in (complex_leaf(2, 3), complex_leaf(2, 3), complex_leaf(4, 3, 3))],
        complex_leaf(4),
    ),
    "embedding": lambda f: f.embedding(torch.tensor([0]), complex_leaf(2, 3)),
    "conv_tbc": lambda f: f.conv_tbc(complex_leaf(3, 1, 2), complex_leaf(2, 2, 2), complex_leaf(2)),
    "softmax of nothing": lambda f: f.softmax(complex_leaf(0, 3), 1),
    "log_softmax of nothing": lambda f: f.log_softmax(complex_leaf(0, 3), 1),
    "adaptive_avg_pool2d of nothing": lambda f: f.adaptive_avg_pool2d(complex_leaf(0, 2, 3, 3), 2),
    "adaptive_avg_pool2d to 1 of nothing": lambda f: f.adaptive_avg_pool2d(complex_leaf(0, 2, 3, 3), 1),
}


@pytest.mark.parametrize("name", LEAVES)
def test_gradients_of_complex_numbers(name: str) -> None:
    """Autograd found them."""
    assert_same(LEAVES[name])


@pytest.mark.parametrize("with_pos_weight", [False, True])
@pytest.mark.parametrize("asks", itertools.product([False, True], repeat=2), ids=str)
def test_complex_targets_of_binary_cross_entropy_with_logits(
    asks: tuple[bool, bool], with_pos_weight: bool
) -> None:
    """Its gradients were found; pos_weight * target is complex, and multiplies a logarithm in place, in C++."""
    for of_target, reduction in itertools.product((torch.complex64, torch.complex128), ("none", "mean")):
        x, target = torch.rand(3, 2), torch.rand(3, 2, dtype=of_target)
        x.requires_grad_(asks[0])
        target.requires_grad_(asks[1])
        pos_weight = torch.rand(2) if with_pos_weight else None
        assert_same(
            lambda f, x=x, target=target, weight=pos_weight, reduction=reduction: (
                f.binary_cross_entropy_with_logits(x, target, pos_weight=weight, reduction=reduction)
            )
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("dims", [1, 2])
def test_dilated_convolution_of_integers(dims: int, dtype: torch.dtype) -> None:
    """C++ has a kernel of int64 alone."""
    x, weight = torch.ones(1, 2, *[7] * dims).to(dtype), torch.ones(3, 2, *[2] * dims).to(dtype)
    for dilation in (1, 2):
        assert_same(lambda f, d=dilation: getattr(f, f"conv{dims}d")(x, weight, dilation=d))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_rows_of_integers_have_no_norm(dtype: torch.dtype) -> None:
    """Embedding with max_norm took them."""
    for indices in ([[0, 1]], []):
        weight = torch.ones(3, 2).to(dtype)
        assert_same(lambda f, i=indices, w=weight: f.embedding(torch.tensor(i).long(), w, max_norm=1.0))
