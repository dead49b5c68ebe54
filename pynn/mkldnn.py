"""Tensors of oneDNN's own blocked layout (`x.to_mkldnn()`), which the elementary operations do not read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def of_dense_copies(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call it with dense copies; the results have the first argument's layout and dtype, as torch's function has it.

    A copy is float32, as oneDNN computes (avg_pool3d in bfloat16 too, which torch has of no dense tensor) and among
    float32 parameters, which torch allows here; beside a dense tensor of 16 bits it has these. The copies are
    differentiable both ways. What works in place writes its result back.
    """
    (x, *_), leaves = args, tree_leaves((args, kwargs))
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_mkldnn]
    is_narrow = any(leaf.is_floating_point() and leaf.dtype != torch.float32 for leaf in others)

    def dense(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_mkldnn:
            return leaf
        return leaf.to_dense(None if is_narrow or not leaf.is_floating_point() else torch.float32)

    def blocked(leaf: Any) -> Any:
        return leaf.to_mkldnn(x.dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    result = tree_map(blocked, function(*tree_map(dense, args), **tree_map(dense, kwargs)))
    is_in_place = function.__name__.endswith("_") or kwargs.get("inplace") is True
    return x.copy_(result) if is_in_place else result
