"""Arguments of the wrong kind are refused in the words of torch's argument parser: the table of pynn.argument_kinds."""

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pynn.functional as P
from parity_tests.cases import all_rows
from parity_tests.test_refusals import outcome
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
    *(
        torch.tensor(2),
        torch.tensor(0.5),
        torch.tensor(True),
        torch.ones(2),
        torch.ones((), requires_grad=True),
    ),
)


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
    if is_refused and name in LOOKED_AT:
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
