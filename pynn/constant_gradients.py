"""Gradients that do not depend on the input: with create_graph=True they can be differentiated again, which gives 0.

C++'s backward of ReLU, of a pooling or of nll_loss is an operation on the gradient *and* the input, with derivatives
for both. A gradient penalty can therefore be taken of any network. Formulas in Python may give a tensor that no graph
leads to the input from, and `torch.autograd.grad` of that raises.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def with_graph_to_inputs(backward: Callable) -> Callable:
    """The same backward; what it returns without a graph gets one that leads to the saved inputs, and gives 0."""

    @functools.wraps(backward)
    def computed(ctx: Any, *grads: Any) -> Any:
        if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return backward(ctx, *grads)
        ctx = _SavedOnce(ctx)
        gradients = backward(ctx, *grads)
        inputs = [x for x in ctx.saved_tensors if x is not None and x.requires_grad]
        if isinstance(gradients, tuple):
            return tuple(_connected(gradient, inputs) for gradient in gradients)
        return _connected(gradients, inputs)

    return computed


class _SavedOnce:
    """A context that asks for its saved tensors once: torch.utils.checkpoint computes them anew, and refuses a second
    time."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    @functools.cached_property
    def saved_tensors(self) -> tuple:
        return self._ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _connected(gradient: Tensor | None, inputs: list[Tensor]) -> Tensor | None:
    """The gradient plus nothing of each input."""
    if gradient is None or gradient.requires_grad or gradient.layout is not torch.strided:
        return gradient
    for x in inputs:
        if x.is_complex() == gradient.is_complex():
            gradient = gradient + nothing_of(x)
    return gradient


def nothing_of(x: Tensor) -> Tensor:
    """The sum of none of x's elements: 0, whose gradient is 0."""
    return x.unsqueeze(0).narrow(0, 0, 0).sum()
