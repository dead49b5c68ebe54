"""What the tests of `capture/lean.py` share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler_bridge import backend
from compiler_bridge.capture import lean_calls


def strict(function: Any, **options: Any) -> Any:
    return backend.compile(function, strict=True, **options)


def is_ours(output: Tensor) -> bool:
    """Whether the autograd node is that of lean_calls.py."""
    node: Any = type(output.grad_fn)
    return getattr(node, "_forward_cls", node).__module__ == lean_calls.__name__


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def warm(function: Any, *inputs: Tensor, dynamic: bool = False) -> Any:
    """Compiled, and through its first backward."""
    compiled = strict(function, dynamic=dynamic)
    compiled(*inputs).sum().backward()
    for value in inputs:
        value.grad = None
    assert is_ours(compiled(*inputs))
    return compiled
