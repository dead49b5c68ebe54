"""Keeping torch's own Python decompositions away from operations that are ours.

torch registers some of them (every mode of interpolation) as Python kernels of the operation itself, at its
Autograd and CompositeImplicitAutograd keys. These run while a graph is traced, before any table is asked.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload

from compiler_bridge.capture import run_time_sizes, sparse
from pynn.modules.padding import pad_circular

KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)


COMPOSITES = {
    torch.ops.aten._pad_circular.default: pad_circular,
    **run_time_sizes.COMPOSITES,
    **sparse.COMPOSITES,
}
"""What stands in for C++ composites: of circular padding, which would copy slice by slice into a new tensor, of
interpolation, which would bind the graph to the sizes it was traced with, and of sparse gradients, which would count
the rows that are no padding."""


@contextmanager
def without_python_kernels(operations: Iterable[OpOverload]) -> Generator[None, None, None]:
    """All overloads of these operations are what C++ says while this lasts: one node, with its own backward."""
    overloads = [
        getattr(packet, name)
        for packet in {operation.overloadpacket for operation in operations}
        for name in packet.overloads()
    ]
    touched = [*overloads, *COMPOSITES]
    kept = [dict(overload.py_kernels) for overload in touched]
    for overload in overloads:
        for key in KEYS:
            overload.py_kernels.pop(key, None)
    for composite, definition in COMPOSITES.items():
        composite.py_kernels[DispatchKey.CompositeImplicitAutograd] = definition
    forget_dispatch(touched)
    try:
        yield
    finally:
        for overload, kernels in zip(touched, kept):
            overload.py_kernels.clear()
            overload.py_kernels.update(kernels)
        forget_dispatch(touched)


def forget_dispatch(overloads: Iterable[OpOverload]) -> None:
    for overload in overloads:
        overload._dispatch_cache.clear()
