"""Activations where numbers end: every input of a table times every incoming gradient, infinities and NaN among them.

The rows of the table of cases draw gradients from a normal distribution, and missed that softplus and logsigmoid
answered an infinite gradient with NaN where C++ still has a (subnormal) slope, and that mish had a slope at inf.
Every element passes alone: what C++ gives, or no farther from the wider type's result than C++. Ordinary inputs are
few here, because their accuracy is test_parity's.
"""

import itertools
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import pynn
from parity_tests.executors import prepare
from parity_tests.long_double import IS_WIDER, in_long_double
from parity_tests.tolerances import compare

INF, NAN = torch.inf, torch.nan
INPUTS = [-INF, -1e4, -745, -100, -90, -30, -1, -0.0, 0.0, 1, 20, 30, 90, 100, 745, 1e4, INF, NAN]
GRADIENTS = [0, 1, -1, INF, -INF, NAN]

Run = Callable[[Any, Tensor], Tensor]


def elementwise(name: str, *args: Any, **kwargs: Any) -> Run:
    return lambda F, x: getattr(F, name)(x, *args, **kwargs)


def along_a_row(name: str) -> Run:
    """Each input beside a 0 and a 1; the gradient comes into the first."""
    return lambda F, x: getattr(F, name)(torch.stack([x, x * 0, x * 0 + 1], 1), dim=1)[:, 0]


ACTIVATIONS: dict[str, Run] = {
    **{name: elementwise(name) for name in (
        "relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink",
        "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus", "logsigmoid", "softsign",
        "tanhshrink",
    )},
    "threshold": elementwise("threshold", 0.5, 2.0),
    "leaky_relu upside down": elementwise("leaky_relu", -0.5),
    "elu of alpha": elementwise("elu", 1.5),
    "celu of alpha": elementwise("celu", 0.5),
    "gelu by tanh": elementwise("gelu", approximate="tanh"),
    "softplus of beta": elementwise("softplus", 2.0, 10.0),
    "prelu": lambda F, x: F.prelu(x, torch.full((1,), 0.25, dtype=x.dtype)),
    "glu of values": lambda F, x: F.glu(torch.stack([x, torch.ones_like(x)]), 0)[0],
    "glu of gates": lambda F, x: F.glu(torch.stack([torch.ones_like(x), x]), 0)[0],
    **{name: along_a_row(name) for name in ("softmax", "log_softmax", "softmin")},
}  # fmt: skip

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


CASES = list(itertools.product(INPUTS, GRADIENTS))


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every input with every gradient, and zeros after them: C++ answers NaN otherwise past its last whole vector."""
    cases = torch.tensor(CASES, dtype=dtype)
    x, grad = torch.cat([cases, cases.new_zeros(128, 2)]).t().contiguous()
    return x, grad


def value_and_gradient(function: Callable, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    value = function(x)
    return [value.detach(), *torch.autograd.grad(value, x, grad)]


def exactly(function: Callable, x: Tensor, grad: Tensor) -> list[Any]:
    """C++ in float64, or in long double for float64."""
    with in_long_double() if x.dtype is torch.float64 else nullcontext() as run:
        results = value_and_gradient(function, x.double(), grad.double())
    return results if run is None else [run.value(result) for result in results]


def differences(name: str, executor: str, dtype: torch.dtype) -> list[str]:
    function = ACTIVATIONS[name]
    x, grad = grid(dtype)

    def torchs(x: Tensor) -> Tensor:
        return function(torch.nn.functional, x)

    found = value_and_gradient(prepare(executor, lambda x: function(pynn.functional, x)), x, grad)
    cpp = value_and_gradient(torchs, x, grad)
    exact = exactly(torchs, x, grad)
    failed = []
    for what, own, theirs, true in zip(("value", "gradient"), found, cpp, exact, strict=True):
        for i in range(len(CASES)):
            one = slice(i, i + 1)
            if not compare(own[one], theirs[one], true[one], each=True).passed:
                case = f"{what} at x = {x[i]:g}, grad = {grad[i]:g}"
                failed.append(f"{case}: {own[i]:g}, C++ {theirs[i]:g}, exactly {true[i]:g}")
    return failed


def parameters() -> list:
    rows = []
    for name, executor, dtype in itertools.product(ACTIVATIONS, ("eager", "ir", "numba"), DTYPES):
        if executor == "eager" or dtype is not torch.float16:
            marks = [] if (executor, dtype) == ("eager", torch.float32) else [pytest.mark.slow]
            if dtype is torch.float64:
                marks.append(
                    pytest.mark.skipif(not IS_WIDER, reason="long double is no wider than float64 here")
                )
            label = f"{name}-{executor}-{str(dtype).removeprefix('torch.')}"
            rows.append(pytest.param(name, executor, dtype, id=label, marks=marks))
    return rows


@pytest.mark.parametrize("name, executor, dtype", parameters())
def test_infinite_gradients_and_inputs_as_in_cpp(name: str, executor: str, dtype: torch.dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failed = differences(name, executor, dtype)
    assert not failed, "\n".join(failed)
