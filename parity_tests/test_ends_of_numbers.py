"""Distances, normalisations and CTC where numbers end: NaN, infinities, squares that overflow.

test_activation_extremes.py does the same for activations. Every value and gradient is what C++ gives, or no farther
from C++ in float64 than C++ in the same dtype.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pynn.functional
from parity_tests.executors import prepare
from parity_tests.tolerances import compare

INF, NAN = torch.inf, torch.nan
Run = Callable[[Any, Tensor], Tensor]


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor | None) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    value = function(x)
    grad = torch.ones_like(value) if grad is None else grad.to(value.dtype).expand_as(value)
    return [value.detach(), *torch.autograd.grad(value, x, grad)]


def assert_as_in_cpp(run: Run, x: Tensor, grad: Tensor | None = None, executor: str = "eager") -> None:
    found = value_and_gradient(prepare(executor, lambda x: run(pynn.functional, x)), x, grad)
    cpp = value_and_gradient(lambda x: run(F, x), x, grad)
    exact = value_and_gradient(lambda x: run(F, x), x.double(), grad)
    for own, theirs, true in zip(found, cpp, exact, strict=True):
        comparison = compare(own, theirs, true, each=False)
        assert comparison.passed, f"{comparison}\n{own}\nC++\n{theirs}"


EXECUTORS = ["eager", pytest.param("numba", marks=pytest.mark.slow)]


# ---------------------------------------------------------------- distances

ROWS = torch.tensor([[1.0, 2, -1], [0.5, -2, 3], [4, 0, 1], [4, 0, 1], [-1, 1.5, 2]])


def rows_with(*elements: tuple[int, int, float]) -> Tensor:
    x = ROWS.clone()
    for row, column, value in elements:
        x[row, column] = value
    return x


DISTANT = {
    "NaN": rows_with((1, 0, NAN)),
    "inf": rows_with((1, 0, INF)),
    "NaN and infinities": rows_with((0, 1, NAN), (2, 2, INF), (4, 2, -INF)),
    "equal infinities": rows_with((0, 1, INF), (1, 1, INF)),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("p", [0, 0.5, 1, 1.5, 2, 3, INF])
def test_distances_of_rows_that_are_not_finite(p: float, executor: str) -> None:
    """pdist lost NaN: the distance for p = 0, the gradient for p = 1 and inf."""
    for x, dtype in itertools.product(DISTANT.values(), (torch.float32, torch.float64)):
        assert_as_in_cpp(lambda f, x: f.pdist(x, p), x.to(dtype), executor=executor)


@pytest.mark.parametrize("p", [0, 0.5, 1, 1.5, 2, 3, INF])
def test_gradients_of_distances_that_are_not_finite(p: float) -> None:
    """Those of equal rows, and all for p = 0, do not count, whatever they are."""
    pairs = torch.ones(10)
    for x, value, dtype in itertools.product((ROWS,), (NAN, INF, -INF), (torch.float32, torch.float64)):
        grad = pairs.clone()
        grad[7] = value  # of the two equal rows
        assert_as_in_cpp(lambda f, x: f.pdist(x, p), x.to(dtype), grad)
        grad[0] = NAN
        assert_as_in_cpp(lambda f, x: f.pdist(x, p), x.to(dtype), grad)


def test_a_count_has_no_gradient() -> None:
    """A gradient of NaN is not carried through a norm of p = 0, nor is there one of zeros."""
    for name, run in {
        "normalize": lambda f, x: f.normalize(x, 0.0),
        "pairwise_distance": lambda f, x: f.pairwise_distance(x, ROWS.flip(0), 0.0),
    }.items():
        x, y = (rows_with((1, 0, NAN)).requires_grad_() for _ in range(2))
        run(F, x).sum().backward()
        run(pynn.functional, y).sum().backward()
        assert str(x.grad) == str(y.grad), name


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("p", [-3, -2, -1.5, -1])
def test_norms_of_negative_powers(p: float, executor: str) -> None:
    """For p = -2 the squares overflowed, from 1e19 on."""
    for scale, dtype in ((1e19, torch.float32), (1e22, torch.float32), (1e160, torch.float64)):
        x = (ROWS.double() + 0.25).to(dtype) * scale
        assert_as_in_cpp(lambda f, x: f.normalize(x, p), x, executor=executor)
        assert_as_in_cpp(lambda f, x: f.pairwise_distance(x, x.flip(1).detach() / 3, p), x, executor=executor)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("p", [-2, 0.5, 1, 2, 3, INF])
def test_norms_of_one_element(p: float, executor: str) -> None:
    """Exact, whatever p: its square or cube overflowed, and its root was rounded (torch's test_ops_jit.py)."""
    x = torch.tensor([[0.2, -3, 1e15, -1e30, 1e-30]], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        own = prepare(executor, lambda x: pynn.functional.normalize(x, p, 0))(x.to(dtype))
        assert torch.equal(own, F.normalize(x.to(dtype), p, 0))
    if p in (0.5, 1, 2, INF):  # for others C++ has no gradient of 1e30
        assert_as_in_cpp(lambda f, x: f.normalize(x, p, 0), x.float(), executor=executor)
    assert_as_in_cpp(
        lambda f, x: f.pairwise_distance(x.t(), -2 * x.t().detach(), p), x.float()[:, :3], executor=executor
    )


def test_cosine_embedding_loss_of_short_vectors() -> None:
    """ATen keeps the cosine finite with an epsilon of float32, for every dtype: 4e-9 of it were missing."""
    target = torch.tensor([1.0, -1, 1, -1, 1])
    for scale, dtype in itertools.product((1, 1e-6, 1e-9), (torch.float32, torch.float64)):
        assert_as_in_cpp(
            lambda f, x: f.cosine_embedding_loss(x, x.flip(0).detach() + x.detach().mean(), target.to(x)),
            ROWS.to(dtype) * scale,
        )


# ---------------------------------------------------------------- normalisation

NORMALISED: dict[str, Run] = {
    "batch_norm": lambda f, x: f.batch_norm(x, torch.zeros(6).to(x), torch.ones(6).to(x), training=True),
    "batch_norm without statistics": lambda f, x: f.batch_norm(x, None, None, training=True),
    "instance_norm": lambda f, x: f.instance_norm(x),
    "group_norm": lambda f, x: f.group_norm(x, 2),
    "layer_norm": lambda f, x: f.layer_norm(x, (16,)),
    "rms_norm": lambda f, x: f.rms_norm(x, (16,)),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", NORMALISED)
def test_variances_that_overflow(name: str, executor: str) -> None:
    """Batch normalisation gave NaN, where it took the square of a rounding of the mean from an infinite variance."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 16).clamp(-3, 3)
    for scale in (1e25, 1e30, 1e36):
        assert_as_in_cpp(NORMALISED[name], x * scale, executor=executor)


def test_running_statistics_of_a_variance_that_overflows() -> None:
    x = torch.randn(4, 6, 16).clamp(-3, 3) * 1e36
    found = []
    for f in (F, pynn.functional):
        running = torch.zeros(6), torch.ones(6)
        f.batch_norm(x, *running, training=True)
        found.append(running)
    torch.testing.assert_close(found[1][0], found[0][0])
    assert torch.equal(found[1][1], found[0][1]) and found[0][1].isinf().all()


@pytest.mark.parametrize("scale", [1e30, 1e37, 1e38, 3.4e38])
@pytest.mark.parametrize("spread", [0, 1e-3, 1, 2])
def test_sums_that_overflow(scale: float, spread: float) -> None:
    """The mean was infinite where it is not, and the variance of equal numbers where the mean is rounded: C++ adds
    float32 in float64."""
    torch.manual_seed(0)
    x = (1 - spread * torch.rand(16, 6, 16)) * scale
    if spread < 1:  # else sums of the gradient overflow as well
        for name in ("batch_norm", "instance_norm"):
            assert_as_in_cpp(NORMALISED[name], x)
    found = []
    for f in (F, pynn.functional):
        running = torch.zeros(6), torch.ones(6)
        out = f.batch_norm(x, *running, training=True)
        found.append(running)
    assert out.isfinite().all()  # pynn's
    torch.testing.assert_close(*found)


# ---------------------------------------------------------------- CTC


def log_probabilities(absent: str) -> Tensor:
    x = torch.randn(6, 2, 4).log_softmax(2)
    if absent == "a blank":
        x[1, 0, 0] = -INF
    elif absent == "many":
        x[torch.rand(x.shape) < 0.4] = -INF
    elif absent == "a label":
        x[:, 0, 1] = -INF
    elif absent == "a step":
        x[2] = -INF
    return x


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("absent", ["a blank", "many", "a label", "a step"])
def test_ctc_of_what_is_impossible(absent: str, reduction: str, zero_infinity: bool) -> None:
    """The gradient of a probability of 0 is NaN in C++, and was 0."""
    torch.manual_seed(0)
    labels, lengths = torch.tensor([[1, 2], [3, 3]]), ((6, 5), (2, 2))
    for grad, dtype in itertools.product((1, -2, 0, INF, NAN), (torch.float32, torch.float64)):
        assert_as_in_cpp(
            lambda f, x: f.ctc_loss(x, labels, *lengths, reduction=reduction, zero_infinity=zero_infinity),
            log_probabilities(absent).to(dtype),
            torch.tensor(float(grad)),
        )


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e5])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("dims", [2, 3])
def test_places_that_are_nowhere(dims: int, mode: str, value: float, executor: str) -> None:
    """No element is there, so that the coordinate has no gradient, and was given NaN; with another padding mode C++
    reads past its memory. What C++ reads there is NaN in an image, 0 in a volume."""
    torch.manual_seed(0)
    image, grid = torch.randn(1, 2, *[4] * dims), torch.rand(1, 3, *[8] * (dims - 1), dims) * 2 - 1
    grid[0, 0, ..., 0], grid[0, 1, ..., 1] = value, value
    assert_as_in_cpp(
        lambda f, grid: f.grid_sample(image.to(grid), grid, mode=mode, align_corners=True),
        grid,
        None,
        executor,
    )
