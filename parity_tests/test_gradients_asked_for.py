"""Which of a function's tensors may ask for a gradient: the same ones as in torch, or the same words of refusal."""

import itertools
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import pynn
import pynn.functional as P
from parity_tests.cases import Row, Sample, defined_rows, seed
from parity_tests.test_refusals import outcome


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape)


def probabilities(*shape: int) -> Tensor:
    return torch.rand(shape) * 0.8 + 0.1


def signs(*shape: int) -> Tensor:
    return torch.randn(shape).sign()


def classes(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape)


def three() -> tuple[Tensor, ...]:
    return numbers(3, 4), numbers(3, 4), numbers(3, 4)


# name, and what follows a full stop -> tensors and others by position, and by keyword
LOSSES: dict[str, Any] = {
    **{name: lambda: (three()[:2], {}) for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")},
    **{f"{name}.weighted": lambda: (three()[:2], {"weight": probabilities(3, 4)})
       for name in ("mse_loss", "l1_loss", "huber_loss")},
    "smooth_l1_loss.beta 0": lambda: (three()[:2], {"beta": 0.0}),
    "poisson_nll_loss": lambda: ((numbers(3, 4), 3 * probabilities(3, 4)), {"full": True}),
    "gaussian_nll_loss": lambda: ((numbers(3, 4), numbers(3, 4), probabilities(3, 4)), {}),
    "nll_loss": lambda: ((numbers(3, 4), classes(3)), {"weight": probabilities(4)}),
    "nll_loss.areas": lambda: ((numbers(2, 4, 3, 3), classes(2, 3, 3)), {"weight": probabilities(4)}),
    "cross_entropy": lambda: ((numbers(3, 4), classes(3)), {"weight": probabilities(4)}),
    "cross_entropy.smooth": lambda: ((numbers(3, 4), classes(3)), {"weight": probabilities(4), "label_smoothing": 0.1}),
    "cross_entropy.probabilities": lambda: ((numbers(3, 4), probabilities(3, 4)), {"weight": probabilities(4)}),
    "linear_cross_entropy": lambda: ((numbers(3, 4), numbers(4, 4), classes(3)),
                                     {"weight": probabilities(4), "linear_bias": numbers(4)}),
    "binary_cross_entropy": lambda: ((probabilities(3, 4), probabilities(3, 4)), {"weight": probabilities(3, 4)}),
    "binary_cross_entropy_with_logits": lambda: (
        (numbers(3, 4), probabilities(3, 4)), {"weight": probabilities(3, 4), "pos_weight": probabilities(4)}),
    "kl_div": lambda: ((numbers(3, 4), probabilities(3, 4)), {}),
    "kl_div.log_target": lambda: ((numbers(3, 4), numbers(3, 4)), {"log_target": True}),
    "soft_margin_loss": lambda: ((numbers(3, 4), signs(3, 4)), {}),
    "multilabel_soft_margin_loss": lambda: ((numbers(3, 4), probabilities(3, 4)), {"weight": probabilities(4)}),
    "hinge_embedding_loss": lambda: ((numbers(3, 4), signs(3, 4)), {}),
    "cosine_embedding_loss": lambda: ((numbers(3, 4), numbers(3, 4), signs(3)), {}),
    "margin_ranking_loss": lambda: ((numbers(3, 4), numbers(3, 4), signs(3, 4)), {}),
    "triplet_margin_loss": lambda: (three(), {"swap": True}),
    "triplet_margin_with_distance_loss": lambda: (three(), {}),
    "multi_margin_loss": lambda: ((numbers(3, 4), classes(3)), {"weight": probabilities(4)}),
    "multilabel_margin_loss": lambda: ((numbers(3, 4), torch.tensor([[1, -1, 0, 0]] * 3)), {}),
    "ctc_loss": lambda: ((numbers(5, 2, 4).log_softmax(2), torch.tensor([[1, 2], [3, 1]]), (5, 4), (2, 1)), {}),
}  # fmt: skip
# torch 2.11 lacks linear_cross_entropy.
LOSSES = {name: draw for name, draw in LOSSES.items() if hasattr(F, name.split(".")[0])}


def gradients(namespace: Any, name: str, asking: tuple, args: tuple, kwargs: dict, reduction: str) -> Any:
    """The loss, and the gradients of the arguments of these positions and keywords."""
    args = tuple(leaf(x, i in asking) for i, x in enumerate(args))
    kwargs = {key: leaf(x, key in asking) for key, x in kwargs.items()}
    loss = getattr(namespace, name)(*args, **kwargs, reduction=reduction)
    leaves = [(args[key] if isinstance(key, int) else kwargs[key]) for key in asking]
    return loss.detach(), torch.autograd.grad(loss.sum(), leaves, allow_unused=True) if leaves else ()


def leaf(x: Any, requires_grad: bool) -> Any:
    return x.detach().requires_grad_() if requires_grad else x


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("row", LOSSES)
def test_gradients_that_torch_gives_or_refuses(row: str, reduction: str) -> None:
    """Weights of classes and of elements, and the target of soft_margin_loss, had gradients where C++ has none."""
    torch.manual_seed(0)
    args, kwargs = LOSSES[row]()
    name = row.partition(".")[0]
    floats = [key for key, x in [*enumerate(args), *kwargs.items()]
              if isinstance(x, Tensor) and x.is_floating_point()]  # fmt: skip
    for count in range(len(floats) + 1):
        for asking in itertools.combinations(floats, count):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected, found = (
                    outcome(gradients, f, name, asking, args, kwargs, reduction) for f in (F, P)
                )
            if isinstance(expected[0], Tensor):
                torch.testing.assert_close(found, expected)
            else:
                assert found == expected


def test_nothing_is_refused_without_gradients() -> None:
    weight = torch.ones(4, requires_grad=True)
    with torch.no_grad():
        P.cross_entropy(numbers(3, 4), classes(3), weight)
        P.soft_margin_loss(numbers(4), weight)


# ---------------------------------------------------------------- gradients of gradients


def derivatives_of_gradients(namespace: Any, row: Row, sample: Sample) -> list[Tensor | None] | None:
    """Of the sum of all gradients; None where torch has none of its own: no gradient, or it is not differentiable."""
    sample = sample.cast(torch.float64 if torch.float64 in row.dtypes else row.dtypes[0])
    leaves = sample.differentiable()
    seed(0)
    results = row.build(namespace, sample)(*sample.args, **sample.kwargs)
    asking = [x for x in tree_leaves(results) if isinstance(x, Tensor) and x.requires_grad]
    if not (leaves and asking):
        return None
    first = torch.autograd.grad(sum(x.sum() for x in asking), leaves, create_graph=True, allow_unused=True)
    total = sum(x.sum() for x in first if x is not None)
    if namespace is torch.nn and not (isinstance(total, Tensor) and total.requires_grad):
        return None
    try:
        return [*torch.autograd.grad(total, leaves, allow_unused=True)]
    except RuntimeError:  # NotImplementedError too
        if namespace is torch.nn:
            return None
        raise


@pytest.mark.parametrize(
    "row", [row for row in defined_rows() if not row.is_module], ids=lambda row: row.name
)
@pytest.mark.filterwarnings("ignore")
def test_gradients_that_torch_can_differentiate(row: Row) -> None:
    """Those that do not depend on the input, as of ReLU, poolings, nll_loss and padding by edges, had no graph, so that
    differentiating them raised where C++ gives 0."""
    for sample in row.draw(3):
        expected = derivatives_of_gradients(torch.nn, row, sample)
        if expected is not None:
            found = derivatives_of_gradients(pynn, row, sample)
            assert found is not None
            for own, theirs in zip(found, expected, strict=True):
                if theirs is not None:
                    torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("name", ["relu", "gelu", "max_pool2d"])
def test_second_derivative_through_a_checkpoint(name: str) -> None:
    """The saved tensors were asked for twice, which torch.utils.checkpoint refuses."""
    drawn, options = torch.randn(1, 2, 4, 4), (2,) if name == "max_pool2d" else ()
    found = []
    for namespace in (F, P):
        x = drawn.clone().requires_grad_()
        y = checkpoint(getattr(namespace, name), x, *options, use_reentrant=False)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(torch.autograd.grad((first * first).sum(), x)[0])
    torch.testing.assert_close(*found)


WRITTEN = {
    "Linear": ((3, 4), (2, 3)),
    "Conv1d": ((3, 4, 3), (2, 3, 5)),
    "Conv2d": ((3, 4, 3), (2, 3, 5, 5)),
    "ConvTranspose2d": ((3, 4, 3), (2, 3, 5, 5)),
    "LayerNorm": ((3,), (2, 3)),
    "RMSNorm": ((3,), (2, 3)),
    "BatchNorm2d": ((3,), (2, 3, 5, 5)),
    "GroupNorm": ((1, 3), (2, 3, 5)),
    "InstanceNorm2d": ((3, 1e-5, 0.1, True), (2, 3, 5, 5)),
    "PReLU": ((), (2, 3)),
    "LSTM": ((3, 4), (5, 2, 3)),
    "GRUCell": ((3, 4), (2, 3)),
}
"""Layer -> arguments, input's shape."""


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_parameters_written_between_forward_and_backward(name: str, of_input: bool) -> None:
    """RMSNorm kept its weight when nobody needed it, and complained that it was overwritten."""
    arguments, shape = WRITTEN[name]

    def backward(nn: Any) -> None:
        layer = getattr(nn, name)(*arguments)
        out = layer(torch.ones(shape, requires_grad=of_input))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(1)
        (out[0] if isinstance(out, tuple) else out).sum().backward()

    errors = [error and error[0] for error in (outcome(backward, nn) for nn in (torch.nn, pynn))]
    assert errors[0] == errors[1]
