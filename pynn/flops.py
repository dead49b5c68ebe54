"""torch.utils.flop_counter counts a definition as the ATen operation that it defines, by torch's formula."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverloadPacket
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def counted_as(operation: OpOverloadPacket) -> Callable:
    """Tell an active FlopCounterMode of this operation in place of those that the definition is made of.

    Those would be products of matrices under another name, and of a depthwise convolution none: pointwise
    multiplication is not counted. Under transforms of torch.func only they have the sizes of all samples.
    """

    def decorate(definition: Callable) -> Callable:
        @functools.wraps(definition)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
                return definition(*args, **kwargs)
            counters = _active_counters()
            registries = [counter.flop_registry for counter in counters]
            try:
                for counter in counters:
                    counter.flop_registry = {}
                out = definition(*args, **kwargs)
            finally:
                for counter, registry in zip(counters, registries):
                    counter.flop_registry = registry
            for counter in counters:
                counter._count_flops(operation, out, args, kwargs)
            return out

        return call

    return decorate


def _active_counters() -> list[Any]:
    module = sys.modules.get("torch.utils.flop_counter")
    mode_class = getattr(module, "_FlopCounterMode", ())
    return [mode.counter for mode in _get_current_dispatch_mode_stack() if isinstance(mode, mode_class)]
