"""What programs do around layers: torch.func, graph breaks, mutation, aliasing. Compiled, all is as in eager.

A row is a function of tensors. Its results, what it leaves in its arguments, and which tensors share memory
must be eager's; so must the gradient, for rows that do not write into their arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import pynn

Row = tuple[Callable[..., Any], tuple[tuple[int, ...], ...], bool]
ROWS: dict[str, Row] = {}


def row(*shapes: tuple[int, ...], writes: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """shapes: of the arguments; writes: the function writes into them."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        ROWS[function.__name__] = (function, shapes, writes)
        return function

    return enter


# ---------------------------------------------------------------- torch.func


@row((4, 3))
def vmap_of_a_layer(x: Tensor) -> Any:
    return vmap(lambda r: F.layer_norm(r, (3,)).softmax(-1))(x)


@row((5, 3), (3,))
def gradient_inside(x: Tensor, w: Tensor) -> Any:
    return grad(lambda w: (x @ w).tanh().sum())(w)


@row((5, 3), (3,))
def gradient_of_each_sample(x: Tensor, w: Tensor) -> Any:
    return vmap(grad(lambda w, r: (r @ w).tanh()), in_dims=(None, 0))(w, x)


@row((4,))
def jacobian_and_hessian(x: Tensor) -> Any:
    return jacrev(lambda x: x.sin() * x.sum())(x), hessian(lambda x: (x**3).sum())(x)


@row((4,), (4,))
def both_products(x: Tensor, t: Tensor) -> Any:
    out, pull = vjp(lambda x: x.exp() * x, x)
    return jvp(lambda x: x.exp() * x, (x,), (t,)), out, pull(t)[0]


LINEAR = nn.Linear(3, 2)


@row((5, 3))
def functional_call_of_a_layer(x: Tensor) -> Any:
    parameters = dict(LINEAR.named_parameters())
    return grad(lambda p: functional_call(LINEAR, p, (x,)).square().sum())(parameters)


@row((4, 4))
def gradient_of_running_totals(x: Tensor) -> Any:
    return grad(lambda x: x.cumsum(0).square().sum() + x.cumprod(1).sum() + x.cummax(0).values.sum())(x)


# ---------------------------------------------------------------- breaks, and what is not one graph


@row((4, 3))
def graph_breaks(x: Tensor) -> Any:
    y = x * 2
    torch._dynamo.graph_break()
    z = y.relu()
    return z + 1 if z.sum().item() > 0 else z - 1


@row((2, 3))
def checkpointed(x: Tensor) -> Any:
    return checkpoint(lambda x: x.sin().exp(), x, use_reentrant=False)


@row((4, 3))
def partly_without_gradient(x: Tensor) -> Any:
    with torch.no_grad():
        y = x * 2
    return y + x


@row((2, 3, 4))
def nested_results(x: Tensor) -> Any:
    return {"a": x + 1, "b": (x.sum(), [x.mean(), None, 3])}


# ---------------------------------------------------------------- mutation and aliasing


@row((4, 4))
def writes_into_views(x: Tensor) -> Any:
    y = x * 1
    y[1:3].mul_(2)
    y[:, 0] = 5.0
    y.t()[0].add_(1)
    y.diagonal().fill_(0)
    y.as_strided((2, 2), (1, 5)).zero_()
    return y


@row((4, 4), writes=True)
def writes_into_an_argument(x: Tensor) -> Any:
    x[1:].add_(1)
    x.t().mul_(2)
    return x.sum()


@row((4, 4), writes=True)
def returns_views_of_what_it_wrote(x: Tensor) -> Any:
    x.mul_(2)
    return x[1], x.t(), x


@row((2, 3), (2, 3), writes=True)
def swaps_its_arguments(x: Tensor, y: Tensor) -> Any:
    t = x.clone()
    x.copy_(y)
    y.copy_(t)
    return x - y


@row((6,), writes=True)
def writes_one_half_into_the_other(x: Tensor) -> Any:
    a, b = x.chunk(2)
    a.add_(b)
    return x


@row((6,))
def returns_aliases(x: Tensor) -> Any:
    y = x + 1
    return y, y[2:], y.view(2, 3), y, x, x.detach(), x[1:]


@row((3, 3))
def returns_expanded(x: Tensor) -> Any:
    return x[:1].expand(3, 3), x.unsqueeze(0).expand(2, 3, 3) + 1


@row((4, 3), (3,))
def fills_an_out_argument(x: Tensor, y: Tensor) -> Any:
    out = torch.empty(4, 3)
    torch.add(x.detach(), y.detach(), out=out)
    return out


FAST = ("graph_breaks", "gradient_inside")  # `make check`; the others wait for `make test`
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_program_does_what_eager_does(name: str):
    function, shapes, writes = ROWS[name]
    expected_inputs = [torch.randn(shape, requires_grad=not writes) for shape in shapes]
    inputs = [x.detach().clone().requires_grad_(not writes) for x in expected_inputs]
    expected = function(*expected_inputs)
    actual = pynn.compile(function, strict=True)(*inputs)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(inputs, expected_inputs)
    assert sharing([inputs, actual]) == sharing([expected_inputs, expected])
    if not writes:
        torch.testing.assert_close(gradients(actual, inputs), gradients(expected, expected_inputs))


def sharing(tree: Any) -> list[tuple[bool, bool]]:
    """For each pair of tensors: whether they are one tensor, whether they share memory."""
    tensors = [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return [
        (a is b, a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())
        for a, b in combinations(tensors, 2)
    ]


def gradients(results: Any, inputs: list[Tensor]) -> list[Tensor | None]:
    """Of a scalar made of all results that have one."""
    reached = [x for x in tree_leaves(results) if isinstance(x, Tensor) and x.requires_grad]
    if not reached:
        return []
    total = sum((x * x.detach().cos()).sum() for x in reached)
    return list(torch.autograd.grad(total, inputs, allow_unused=True))
