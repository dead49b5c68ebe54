"""Losses over no classes, samples of nothing, and padding of what has been cropped, held against C++."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import pynn.functional as P
from parity_tests.test_refusals import assert_same, outcome

CLASSES = (
    ((2, 0), (2,)),
    ((0,), ()),
    ((0, 0), (0,)),
    ((2, 0, 3), (2, 3)),
    ((2, 0, 3, 3), (2, 3, 3)),
    ((2, 0, 0), (2, 0)),
)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy"])
def test_targets_of_no_classes_are_all_ignored(name: str, with_weights: bool, reduction: str) -> None:
    """Looked for class 0, and raised."""
    for shape, target_shape in CLASSES:
        found = []
        for functions in (F, P):
            x, target = torch.zeros(shape, requires_grad=True), torch.full(target_shape, -100)
            weight = torch.ones(0) if with_weights else None
            loss = outcome(getattr(functions, name), x, target, weight, reduction=reduction)
            if isinstance(loss, torch.Tensor):
                loss = loss.detach(), *torch.autograd.grad(loss.sum(), x)
            found.append(str(loss))
        assert found[0] == found[1]


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64)
NOTHING = (((1, 2), (1, 0, 2)), ((1, 0), (1, 2, 2)), ((0, 2), (0, 2, 2)))


@pytest.mark.parametrize("of_grid", DTYPES, ids=str)
@pytest.mark.parametrize("of_input", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_samples_of_nothing_have_any_dtype(dims: int, of_input: torch.dtype, of_grid: torch.dtype) -> None:
    """The grid's had to be the input's."""
    for input_size, grid_size in NOTHING:
        x = torch.ones(*input_size, *[3] * dims).to(of_input)
        grid = torch.zeros(*grid_size, *[2] * (dims - 2), dims).to(of_grid)
        for mode in ("bilinear", "nearest"):
            assert_same("grid_sample", x, grid, mode, align_corners=False)
        if not x.is_floating_point():
            continue  # another error of those for a dtype without gradients
        for leaf in (x, grid):
            leaf.requires_grad_(leaf.is_floating_point() or leaf.is_complex())
        found = [outcome(gradients_of_samples, functions.grid_sample, x, grid) for functions in (F, P)]
        assert str(found[0]) == str(found[1])


def gradients_of_samples(grid_sample, x: torch.Tensor, grid: torch.Tensor) -> tuple:
    leaves = [leaf for leaf in (x, grid) if leaf.requires_grad]
    return torch.autograd.grad(grid_sample(x, grid, align_corners=False).sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_circular_padding_of_what_is_cropped(size: int) -> None:
    """Raised where one side is cropped to less than the other one takes: C++ goes around again, on the right."""
    x = torch.arange(2.0 * size).view(1, 2, size)
    for left, right in itertools.product(range(-size, size + 2), repeat=2):
        core = size + min(left, 0) + min(right, 0)
        if core > 0 and left <= core:
            assert_same("pad", x, (left, right), "circular")


def test_circular_padding_on_the_left_of_what_is_cropped() -> None:
    """C++ reads what it has not written yet."""
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert P.pad(x, (3, -2), "circular").tolist() == [[[2.0, 1.0, 2.0, 1.0, 2.0]]]


@pytest.mark.parametrize("padding", [(-5, 2, 5, 1), (4, -3, -1, -4), (-2, -5, 5, -5)], ids=str)
def test_the_outermost_dimension_is_looked_at_first(padding: tuple[int, ...]) -> None:
    """Another one of two errors was raised."""
    assert_same("pad", torch.ones(1, 2, 4, 3), padding, "circular")
