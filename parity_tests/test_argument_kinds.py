"""Arguments of the wrong kind are refused in the words of torch's argument parser: the table of pynn.argument_kinds."""

import copy
import functools
import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pynn
import pynn.functional as P
from parity_tests.cases import all_rows
from parity_tests.test_refusals import outcome
from parity_tests.torch_version import IS_OLDER
from pynn.argument_kinds import ARGUMENTS, Argument

X, IMAGE = torch.ones(3, 4), torch.ones(1, 2, 6, 6)
# of what has no row under its own name
CALLS: dict[str, tuple] = {
    "affine_grid": (torch.ones(1, 2, 3), (1, 1, 3, 3)), "celu_": (X, 1.0), "elu_": (X, 1.0),
    "channel_shuffle": (IMAGE, 2), "native_channel_shuffle": (IMAGE, 2), "hardtanh_": (X, -1.0, 1.0),
    "leaky_relu_": (X, 0.1), "rrelu_": (X, 0.1, 0.3, True), "threshold_": (X, 0.1, 2.0), "threshold": (X, 0.1, 2.0),
    "conv_tbc": (torch.ones(5, 2, 3), torch.ones(3, 3, 4), torch.ones(4)), "softmin": (X, 1), "softplus": (X,),
    "fold": (torch.ones(1, 8, 9), (4, 4), 2), "unfold": (IMAGE, 2), "one_hot": (torch.tensor([0, 2]), 3),
    "max_pool1d_with_indices": (IMAGE[0], 2), "max_pool2d_with_indices": (IMAGE, 2), "gumbel_softmax": (X,),
    "max_pool3d_with_indices": (IMAGE[None], 2), "pad": (IMAGE, (1, 1)), "max_unpool3d": (
        torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1, dtype=torch.int64), 2),
    "max_unpool2d": (torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64), 2),
    "embedding": (torch.tensor([0, 2]), X), "embedding_bag": (torch.tensor([[0, 2]]), X),
}  # fmt: skip

VALUES = (
    *(None, "a", True, 3, 1.5, 2j, (1,), [1.0], (1, "a"), {}, torch.float32),
    *(np.int64(1), np.float32(0.5), np.array([1])),
    *(torch.tensor(2), torch.tensor(0.5), torch.tensor(True), torch.ones(2), torch.ones((), requires_grad=True)),
)  # fmt: skip


@functools.cache
def sample(name: str) -> tuple[tuple, dict]:
    """Arguments that torch takes."""
    if name in CALLS:
        return CALLS[name], {}
    row = next(row for row in all_rows() if row.symbol == name and not row.is_module and row.call is None)
    first = row.draw(1)[0]
    return first.args, first.kwargs


def assert_same_words(name: str, args: tuple, kwargs: dict) -> None:
    torch.manual_seed(0)
    expected = outcome(getattr(F, name), *copy.deepcopy(args), **copy.deepcopy(kwargs))
    found = outcome(getattr(P, name), *copy.deepcopy(args), **copy.deepcopy(kwargs))
    is_refused = isinstance(expected, tuple) and expected[0] is TypeError
    if is_refused and (name in LOOKED_AT or IS_OLDER):
        assert found[0] is TypeError
    elif is_refused and "must be" in expected[1]:
        assert found == expected
    elif is_refused and "invalid combination" in expected[1]:
        assert found[0] is TypeError
        assert found[1].split(" - got")[0] == expected[1].split(" - got")[0]
    elif not (isinstance(expected, tuple) and isinstance(expected[0], type) and name in LOOKED_AT):
        functions = tuple(f"{call.function.rstrip(chr(33))}(): argument" for call in ARGUMENTS[name])
        assert not (isinstance(found, tuple) and str(found[1]).startswith(functions)), found


def calls_with(name: str, argument: Argument, value: Any) -> list[tuple[tuple, dict]]:
    """The value in its place, and by name."""
    args, kwargs = sample(name)
    index = list(inspect.signature(getattr(P, name)).parameters).index(argument.keyword)
    if index < len(args):
        by_position = (*args[:index], value, *args[index + 1 :])
        return [(by_position, kwargs)]
    return [(args, {**kwargs, argument.keyword: value})]


# torch's Python looks at these first, and stumbles over some values itself
LOOKED_AT = {
    "affine_grid": "a tensor in the place of a bool",
    "batch_norm": "a tensor in the place of a bool",
    "instance_norm": "a tensor in the place of a bool",
    "normalize": "p is part of the choice of a norm",
    "smooth_l1_loss": "beta is compared with 0",
    "embedding": "the weight's size is read",
    "fold": "tuple() of what is no pair",
    "unfold": "tuple() of what is no pair",
}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
@pytest.mark.filterwarnings("ignore")
def test_arguments_of_the_wrong_kind(name: str) -> None:
    """Most failed later in other words, or were taken: training="a", keepdim=2, a probability of [0.5]."""
    for call in ARGUMENTS[name]:
        for argument in call.arguments:
            for value in VALUES:
                for args, kwargs in calls_with(name, argument, value):
                    assert_same_words(name, args, kwargs)


# ---------------------------------------------------------------- numbers of the right kind

NUMBERS = (0, 1, -1, 1.5, -0.5, 3e38, torch.inf, -torch.inf, torch.nan, True, torch.tensor(0.25))
TAKING_NUMBERS = {
    **dict.fromkeys(("elu", "celu", "elu_", "celu_"), ("alpha",)),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), ("negative_slope",)),
    **dict.fromkeys(("hardtanh", "hardtanh_"), ("min_val", "max_val")),
    **dict.fromkeys(("rrelu", "rrelu_"), ("lower", "upper")),
    **dict.fromkeys(("dropout", "dropout1d", "alpha_dropout", "feature_alpha_dropout"), ("p",)),
    "softplus": ("beta", "threshold"), "softshrink": ("lambd",), "hardshrink": ("lambd",), "pdist": ("p",),
    "normalize": ("p", "eps"), "local_response_norm": ("alpha", "beta", "k"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKING_NUMBERS)
@pytest.mark.filterwarnings("ignore")
def test_numbers_that_are_negative_or_not_finite(name: str) -> None:
    """elu and leaky_relu multiplied 0 by them, rrelu, softshrink, pdist and the dropouts took them, hardtanh_ refused
    an upper bound below the lower."""
    x = torch.tensor([[-100.0, -2, -0.5, 0], [0.5, 2, 100, torch.nan], [1, 2, torch.inf, -torch.inf]])
    x = x[None] if name in ("dropout1d", "local_response_norm") else x
    others = {"size": 2} if name == "local_response_norm" else {}
    others |= {"training": False} if "training" in inspect.signature(getattr(P, name)).parameters else {}
    for argument in TAKING_NUMBERS[name]:
        for number in NUMBERS:
            expected, found = (
                outcome(getattr(f, name), x.clone(), **others, **{argument: number}) for f in (F, P)
            )
            if isinstance(expected, torch.Tensor):
                torch.testing.assert_close(found, expected, equal_nan=True)
            else:
                assert found == expected


@pytest.mark.parametrize("number", [7e4, 1e39, -1e39, 2j], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_numbers_beyond_the_dtype(dtype: torch.dtype, number: Any) -> None:
    """Became infinite, and complex ones gave complex results."""
    x = torch.ones(3, dtype=dtype)
    for name, arguments in {
        **dict.fromkeys(("elu", "elu_", "leaky_relu", "leaky_relu_", "softplus", "hardshrink"), (number,)),
        "threshold": (number, 1),
        "threshold_": (1, number),
    }.items():
        expected, found = (outcome(getattr(f, name), x.clone(), *arguments) for f in (F, P))
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found, expected)
        else:
            assert found == expected


INDICES = (0, 1, -1, 4, 5, -5, -6, None, 1.0, -1.0, True, "a", torch.nan, (1,), torch.tensor(1))


@pytest.mark.parametrize("index", INDICES, ids=repr)
@pytest.mark.parametrize("layer", ["Embedding", "EmbeddingBag"])
def test_padding_index_of_any_kind(layer: str, index: Any) -> None:
    """Numbers with a fraction were taken, and NaN was out of range."""

    def built(nn: Any) -> Any:
        torch.manual_seed(0)
        module = getattr(nn, layer)(5, 3, padding_idx=index)
        out = module(torch.tensor([[1, 4]]))
        return torch.cat([out.flatten(), *torch.autograd.grad(out.sum(), module.weight)[0]]).detach()

    def called(functional: Any) -> Any:
        name = "embedding" if layer == "Embedding" else "embedding_bag"
        return getattr(functional, name)(torch.tensor([[1, 4]]), torch.ones(5, 3), padding_idx=index)

    for call, (theirs, ours) in ((built, (torch.nn, pynn)), (called, (F, P))):
        expected, found = outcome(call, theirs), outcome(call, ours)
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found, expected)
        else:
            assert found == expected
