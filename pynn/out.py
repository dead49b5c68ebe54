"""The keyword `out=` that torch's functions have where they are the bare C++ operation; nothing documents it."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynn.definitions import type_name


def takes_out(definition: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function also write its result into a given tensor: function(..., out=tensor) returns that tensor.

    Raises:  RuntimeError when a gradient would be recorded, the dtypes differ, or elements of `out` overlap
    """

    @functools.wraps(definition)
    def function(*args: Any, out: Tensor | None = None, **kwargs: Any) -> Tensor:
        if out is None:
            return definition(*args, **kwargs)
        name = definition.__name__
        if not isinstance(out, Tensor):
            raise TypeError(f"{name}(): argument 'out' must be Tensor, not {type(out).__name__}")
        tensors = [x for x in (*args, *kwargs.values(), out) if isinstance(x, Tensor)]
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            raise RuntimeError(
                f"{name}(): functions with out=... arguments don't support automatic differentiation, but one of the "
                "arguments requires grad."
            )
        result = definition(*args, **kwargs)
        if out.dtype != result.dtype:
            raise RuntimeError(f"Found dtype {type_name(out)} but expected {type_name(result)}")
        if out.shape != result.shape:
            out.resize_(result.shape)
        return out.copy_(result)

    return function
