"""What torch refuses by dtype, size, determinism or type, and what it takes, in the same words: tables of calls."""

import importlib
import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pynn.functional as P
from parity_tests.torch_version import IS_OLDER, words


def outcome(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The results, or the type and words of the error."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return type(error), words(error)


def assert_same(function: str, *args: Any, **kwargs: Any) -> None:
    expected = outcome(getattr(F, function), *args, **kwargs)
    found = outcome(getattr(P, function), *args, **kwargs)
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), found
        assert found.dtype == expected.dtype
        assert torch.allclose(
            *[x.to(torch.complex128) for x in (found, expected)], rtol=0, atol=0, equal_nan=True
        )
    else:
        assert found == expected


# ---------------------------------------------------------------- padding of every dtype

PADDED = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int64),
    *(torch.float16, torch.complex32, torch.complex64),
)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", PADDED, ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_padding_of_every_dtype(dtype: torch.dtype, dims: int) -> None:
    """reflect and replicate once took unsigned integers, bool and 16-bit complex numbers, that C++ has no kernel for;
    a constant out of range wrapped around."""
    x = torch.randint(0, 2, (1, 2) + (4,) * dims).to(dtype)
    for widths in ((1, 1), (1, -1), (-1, -1)):
        for mode in ("reflect", "replicate", "circular"):
            assert_same("pad", x, widths * dims, mode)
        for value in (None, 1, 2.5, -1, 300, 70000, 2**64):
            assert_same("pad", x, widths * dims, "constant", value)


# ---------------------------------------------------------------- adaptive pooling of nothing


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex64], ids=str)
def test_adaptive_pooling_of_nothing(kind: str, dims: int, dtype: torch.dtype) -> None:
    """0 channels without a batch were refused by the maximum, in a batch taken by the mean of volumes."""
    for batch, channels, size, count in itertools.product(([], [0], [2]), (0, 3), (0, 4), (0, 1, 2)):
        x = torch.zeros(*batch, channels, *[size] * dims, dtype=dtype)
        assert_same(f"adaptive_{kind}_pool{dims}d", x, count)
        if dtype.is_floating_point and isinstance(outcome(pooled, F, kind, dims, x, count), torch.Tensor):
            gradients = [outcome(gradient, namespace, kind, dims, x, count) for namespace in (F, P)]
            assert str(gradients[0]) == str(gradients[1])


def pooled(namespace: Any, kind: str, dims: int, x: torch.Tensor, count: int) -> torch.Tensor:
    return getattr(namespace, f"adaptive_{kind}_pool{dims}d")(x, count)


def gradient(namespace: Any, kind: str, dims: int, x: torch.Tensor, count: int) -> Any:
    x = x.clone().requires_grad_()
    out = pooled(namespace, kind, dims, x, count)
    return torch.autograd.grad(out, x, torch.ones_like(out))


# ---------------------------------------------------------------- deterministic algorithms


@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unpooling_where_deterministic_algorithms_are_asked_for(dims: int, warn_only: bool) -> None:
    x = torch.ones((1, 1) + (2,) * dims)
    index = torch.arange(2**dims).reshape(x.shape)
    seen = []
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        for namespace in (F, P):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = outcome(getattr(namespace, f"max_unpool{dims}d"), x, index, 2)
            words = [(w.category, str(w.message).split(" (Triggered")[0]) for w in caught]
            seen.append((str(result), words))
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen[0] == seen[1]
    assert "deterministic" in str(seen[0]) or IS_OLDER


# ---------------------------------------------------------------- gradients at NaN

RECTIFIERS = (
    "hardtanh",
    "relu6",
    "hardshrink",
    "softshrink",
    "hardswish",
    "hardsigmoid",
    "elu",
    "celu",
    "selu",
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*RECTIFIERS, "relu", "leaky_relu"])
def test_gradient_at_nan(name: str, dtype: torch.dtype) -> None:
    """As in C++'s vector loops; its scalar ones, for what is left over, differ from them."""
    gradients = []
    for namespace in (F, P):
        x = torch.full((1024,), torch.nan, dtype=dtype, requires_grad=True)
        out = getattr(namespace, name)(x)
        gradients.append(torch.autograd.grad(out, x, torch.full_like(out, 2))[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0, equal_nan=True)


# ---------------------------------------------------------------- no tensor where one should be

TENSORS = (
    "weight",
    "mat_b",
    "target",
    "input2",
    "x2",
    "indices",
    "positive",
    "negative",
    "key",
    "value",
    "grid",
)
POOLED = ("max_pool", "adaptive_max_pool", "fractional_max_pool")


def functions_defined() -> list[str]:
    names = [name for name in dir(F) if hasattr(P, name) and inspect.isfunction(getattr(P, name))]
    return [name for name in names if not name.startswith("_") and getattr(F, name) is not getattr(P, name)]


def other_arguments(name: str) -> list[Any]:
    """Something for each of the other arguments that have to be there."""
    if name.startswith(POOLED):
        return [2]
    _, *others = inspect.signature(getattr(P, name)).parameters.values()
    needed = [p.name for p in others if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    given = {"var": torch.ones(2, 2), **dict.fromkeys(TENSORS, torch.ones(2, 2))}
    return [given.get(argument, 2) for argument in needed]


@pytest.mark.parametrize("value", [None, [1.0, 2.0], 1.5], ids=str)
@pytest.mark.parametrize("name", functions_defined())
@pytest.mark.filterwarnings("ignore")
def test_no_tensor_as_first_argument(name: str, value: Any) -> None:
    """75 functions raised another error, mostly AttributeError for TypeError; alpha_dropout took what came."""
    arguments = other_arguments(name)
    expected, found = [outcome(getattr(space, name), value, *arguments) for space in (F, P)]
    assert expected[0] in (TypeError, AttributeError, ValueError)
    # which of the two it is for max_pool3d_with_indices changed
    assert found[0] is expected[0] or (IS_OLDER and {found[0], expected[0]} == {AttributeError, TypeError})
    if "must be Tensor" in expected[1]:
        assert found == expected


def test_no_tensor_as_keyword_argument() -> None:
    assert_same("linear", input=None, weight=torch.ones(2, 2))
    assert_same("relu", input=[1.0])


# ---------------------------------------------------------------- numbers of the wrong type

NUMBERS = (
    *(2.0, "2", None, True, 2, (None,), ("a",), (True, 2), (2, 1.5), (2, "a"), (1.5, 2), (2, 2)),
    *(torch.tensor(2), torch.tensor(2.0), [torch.tensor(2), 2], torch.tensor([2, 2]), {2}, range(2, 4)),
)
POOLED_BY = {
    "max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3, "max_pool1d_with_indices": 1, "max_pool2d_with_indices": 2,
    "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "adaptive_max_pool1d": 1, "adaptive_max_pool2d": 2,
    "adaptive_max_pool3d": 3, "adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 3,
}  # fmt: skip


@pytest.mark.parametrize("function", POOLED_BY)
def test_pooling_by_what_is_no_number(function: str) -> None:
    """Failed in the arithmetic on it, or ran: adaptive pooling by True, or by (None,) in one dimension."""
    x = torch.randn(2, 3, *[6] * POOLED_BY[function])
    for number in NUMBERS:
        expected, found = (outcome(getattr(space, function), x, number) for space in (F, P))
        if not isinstance(expected, tuple) or not isinstance(expected[0], type):
            torch.testing.assert_close(found, expected)
        elif expected[0] is not IndexError:
            assert found == expected, number


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adaptive_max_pooling_of_nothing_to_a_negative_size(dims: int) -> None:
    """The negative size was complained of first."""
    assert_same(f"adaptive_max_pool{dims}d", torch.zeros(2, 3, *[0] * dims), -1)
    assert_same(f"adaptive_max_pool{dims}d", torch.zeros(2, 3, *[4] * dims), -1)


# ---------------------------------------------------------------- classes

CLASSES = {
    "one of a line": (lambda f: f(torch.randn(4), torch.tensor([2]))),
    "one of a line, alone": (lambda f: f(torch.randn(4), torch.tensor([2]), reduction="none")),
    "three of a line": (lambda f: f(torch.randn(4), torch.tensor([2, 1, 0]))),
    "no batch": (lambda f: f(torch.randn(3, 4), torch.tensor(1))),
    "bytes of an area": (lambda f: f(torch.randn(3, 4, 2, 2), torch.zeros(3, 2, 2, dtype=torch.uint8))),
    "bytes of a line": (lambda f: f(torch.randn(3, 4, 2), torch.zeros(3, 2, dtype=torch.uint8))),
    "bytes": (lambda f: f(torch.randn(3, 4), torch.zeros(3, dtype=torch.uint8))),
    "int8": (lambda f: f(torch.randn(3, 4), torch.zeros(3, dtype=torch.int8))),
    "int8 and a wrong weight": (
        lambda f: f(torch.randn(3, 4), torch.zeros(3, dtype=torch.int8), torch.ones(5))
    ),
    "a square weight": (lambda f: f(torch.randn(3, 4), torch.tensor([1, 2, 3]), torch.ones(2, 2))),
    "a square weight of areas": (
        lambda f: f(torch.randn(3, 4, 2, 2), torch.ones(3, 2, 2, dtype=torch.int64), torch.rand(2, 2))
    ),
    "five weights of areas": (
        lambda f: f(torch.randn(3, 4, 2, 2), torch.ones(3, 2, 2, dtype=torch.int64), torch.ones(5))
    ),
    "five weights and a wrong size": (
        lambda f: f(torch.randn(3, 4, 2), torch.ones(3, 3, dtype=torch.int64), torch.ones(5))
    ),
    "a float64 weight": (lambda f: f(torch.randn(3, 4), torch.tensor([1, 2, 3]), torch.ones(4).double())),
    "no target": (lambda f: f(torch.randn(3, 4), None)),
    "a list of weights": (lambda f: f(torch.randn(3, 4), torch.tensor([1, 2, 3]), [1.0] * 4)),
    **{
        f"ignore_index {number!r}": lambda f, number=number: f(
            torch.randn(3, 4), torch.tensor([1, 2, 9]), ignore_index=number
        )
        for number in (9, 9.0, True, None, "9")
    },
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("function", ["nll_loss", "cross_entropy"])
def test_classes_and_their_weights(function: str, name: str) -> None:
    """Areas took targets of uint8 and refused weights of another shape, one target of a line failed in a gather, and
    what was complained of first differed."""
    results = []
    for namespace in (F, P):
        torch.manual_seed(0)
        results.append(outcome(CLASSES[name], getattr(namespace, function)))
    expected, found = results
    if isinstance(expected, torch.Tensor):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


# ---------------------------------------------------------------- group_norm and margin_ranking_loss


@pytest.mark.parametrize("number", [2.0, "2", None, True, [2], 2, torch.tensor(2)], ids=repr)
def test_groups_that_are_no_number(number: Any) -> None:
    """True ran, and 2.0 failed in a reshape."""
    assert_same("group_norm", torch.ones(2, 6, 5), number)


@pytest.mark.parametrize("eps", ["x", None, [1], 1, True], ids=repr)
def test_eps_and_margin_that_are_no_number(eps: Any) -> None:
    """Failed in the addition."""
    assert_same("group_norm", torch.ones(2, 6, 5), 2, None, None, eps)
    assert_same("group_norm", torch.ones(2, 6, 5), 2, [1.0] * 6)
    assert_same("margin_ranking_loss", *[torch.ones(3)] * 3, eps)


# ---------------------------------------------------------------- linear

INPUTS = ((3, 4), (4,), (2, 3, 4), (0, 4), (3, 5), ())
WEIGHTS = ((6, 4), (4,), ())
BIASES = (None, (6,), (1,), (), (5,), (0,), (6, 1), (3, 6), (2, 3, 6))


def whole_numbers(*shapes: tuple[int, ...] | None, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """Small enough for every order of additions to be exact."""
    torch.manual_seed(0)
    return [None if shape is None else torch.randint(-3, 4, shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", BIASES, ids=str)
def test_linear_with_a_bias_of_any_shape(bias: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    """What broadcast to something larger, or against a weight of one dimension, ran; the words were the addition's."""
    for input, weight in itertools.product(INPUTS, WEIGHTS):
        assert_same("linear", *whole_numbers(input, weight, bias, dtype=dtype))


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.complex64], ids=str)
def test_linear_of_two_dtypes(dtype: torch.dtype, position: int) -> None:
    """A bias of another dtype was added, and raised the result to its own."""
    for input in ((3, 4), (2, 3, 4), (4,)):
        tensors = whole_numbers(input, (6, 4), (6,), dtype=torch.float32)
        tensors[position] = tensors[position].to(dtype)
        assert_same("linear", *tensors)
        assert_same("linear", *tensors[:2])


@pytest.mark.parametrize("value", [None, [1.0], 1], ids=str)
def test_linear_by_what_is_no_tensor(value: Any) -> None:
    """Failed at value.dim()."""
    assert_same("linear", torch.ones(3, 4), value)
    assert_same("linear", torch.ones(3, 4), torch.ones(2, 4), value)


# ---------------------------------------------------------------- losses with a weight, and a weight's norm


@pytest.mark.parametrize("function", ["l1_loss", "mse_loss"])
@pytest.mark.parametrize("legacy", [(None, None), (False, None), (None, False), (True, True)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "other"])
def test_reduction_of_a_loss_with_a_weight(
    function: str, reduction: str, legacy: tuple[bool | None, bool | None]
) -> None:
    """size_average and reduce were looked at without a weight only, and an unknown reduction had other words."""
    x, target, weight = torch.tensor([[1.0, 2, 5], [0, 4, 1], [3, 3, 8]])
    assert_same(function, x, target, *legacy, reduction=reduction, weight=weight)


def test_margin_of_bools() -> None:
    x = torch.ones(3, dtype=torch.bool)
    assert_same("margin_ranking_loss", x, x, x)


@pytest.mark.parametrize("dim", [-3, 2, 5])
@pytest.mark.parametrize("package", ["", ".parametrizations"])
def test_norm_of_a_weight_over_dimensions_that_it_has_not(package: str, dim: int) -> None:
    """A dimension beyond the last was counted from the first again."""
    norms = [importlib.import_module(f"{nn}.utils{package}").weight_norm for nn in ("torch.nn", "pynn")]
    expected, found = (outcome(norm, torch.nn.Linear(3, 4), dim=dim) for norm in norms)
    assert expected[0] is IndexError and found == expected


class OfNoDimensions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(-2.0))


@pytest.mark.parametrize("dim", [None, -1, 0])
def test_norm_of_a_weight_of_no_dimensions(dim: int | None) -> None:
    """torch takes the module for None and -1, and then can't compute the weight."""
    norms = (
        importlib.import_module(f"{nn}.utils.parametrizations").weight_norm for nn in ("torch.nn", "pynn")
    )
    expected, found = (outcome(norm, OfNoDimensions(), dim=dim) for norm in norms)
    if isinstance(expected, torch.nn.Module):
        assert found.weight == -2
    else:
        assert found == expected


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_attention_of_no_fractions(dtype: torch.dtype, causal: bool) -> None:
    x = torch.ones(1, 2, 3, 4, dtype=dtype)
    assert_same("scaled_dot_product_attention", x, x, x, is_causal=causal)
    if not IS_OLDER:  # which looks at the dtype first
        assert_same("scaled_dot_product_attention", x[:, :, :0], x, x, is_causal=causal)
