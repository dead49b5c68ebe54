"""Keeping torch's own Python decompositions away from operations that the lowering takes whole.

torch registers some of them (every mode of interpolation) as Python kernels of the operation itself, at its
Autograd and CompositeImplicitAutograd keys. These run while a graph is traced, before any table is asked.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload

from pynn.modules.padding import pad_circular

KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)


COMPOSITES = {torch.ops.aten._pad_circular.default: pad_circular}
"""Definitions that stand in for C++ composites, which would copy slice by slice into a new tensor."""


@contextmanager
def without_python_kernels(operations: Iterable[OpOverload]) -> Generator[None, None, None]:
    """All overloads of these operations are what C++ says while this lasts: one node, with its own backward."""
    overloads = [
        getattr(packet, name)
        for packet in {operation.overloadpacket for operation in operations}
        for name in packet.overloads()
    ]
    taken = []
    for composite, definition in COMPOSITES.items():
        composite.py_kernels[DispatchKey.CompositeImplicitAutograd] = definition
        composite._dispatch_cache.clear()
    for overload in overloads:
        for key in KEYS:
            if key in overload.py_kernels:
                taken.append((overload, key, overload.py_kernels.pop(key)))
        overload._dispatch_cache.clear()
    try:
        yield
    finally:
        for overload, key, kernel in taken:
            overload.py_kernels[key] = kernel
        for composite in COMPOSITES:
            del composite.py_kernels[DispatchKey.CompositeImplicitAutograd]
        for overload in (*overloads, *COMPOSITES):
            overload._dispatch_cache.clear()
