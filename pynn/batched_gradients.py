"""Gradients and tangents under the older vmap: torch.autograd.grad(is_grads_batched=True), vectorised Jacobians.

It has batching rules for a small part of torch's operations only (flatten, slices of everything and most in-place
ones are missing), so a backward or jvp of ours is run under torch.vmap instead, for the whole batch at once.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor


def with_batched_gradients(backward: Callable) -> Callable:
    """The same backward or jvp, which also takes gradients or tangents that are batched by the older vmap."""

    @functools.wraps(backward)
    def computed(ctx: Any, *grads: Any) -> Any:
        is_batched = [isinstance(x, Tensor) and is_legacy_batchedtensor(x) for x in grads]
        if not any(is_batched):
            return backward(ctx, *grads)
        return _under_vmap(functools.partial(backward, ctx), grads, is_batched)

    return computed


def _under_vmap(backward: Callable, grads: tuple, is_batched: list[bool]) -> tuple:
    level = torch._C._vmapmode_increment_nesting() - 1  # type: ignore[attr-defined]
    torch._C._vmapmode_decrement_nesting()  # type: ignore[attr-defined]
    stacked = [
        torch._remove_batch_dim(x, level, 1, 0) if batched else x
        for x, batched in zip(grads, is_batched, strict=True)
    ]
    absent: list[bool] = []

    def present_results(*tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        results = backward(*[next(remaining) if batched else x for x, batched in zip(grads, is_batched)])
        results = results if isinstance(results, tuple) else (results,)
        absent[:] = [x is None for x in results]
        return tuple(x for x in results if x is not None)

    batch = [x for x, batched in zip(stacked, is_batched, strict=True) if batched]
    found = iter(torch.vmap(present_results)(*batch))
    return tuple(None if none else torch._add_batch_dim(next(found), 0, level) for none in absent)


def outside_older_vmap() -> Any:
    """Where random numbers that are not batched may be drawn: the older vmap refuses every draw inside it."""
    return torch._C._ExcludeDispatchKeyGuard(_VMAP_MODE)


_VMAP_MODE = torch._C.DispatchKeySet(torch._C._parse_dispatch_key("VmapMode"))  # type: ignore[attr-defined]
