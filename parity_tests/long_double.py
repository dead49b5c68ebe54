"""A torch function run in long double: what float64 results are measured against.

    with in_long_double() as run:
        y = torch.nn.functional.layer_norm(x, (768,))
    exact = run.value(y)                                   # numpy; 11 more bits on x86

A dispatch mode keeps a *shadow* of every storage: the same numbers in `numpy.longdouble`. torch runs each
elementary operation in float64 as ever, for its shapes, strides, branches, indices and random draws; the
shadow of its result is computed from the shadows of its inputs (`long_double_ops.py`). Views share a
storage, hence a shadow. An operation without a row there goes through torch's own Python decomposition,
which knows nothing of pynn. Where torch has none either (a convolution, a pooling), pynn's definition is followed:
only for the digits beyond float64's, since test_long_double holds the first ten against the C++ operation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
import torch._refs  # registers decompositions
from torch import Tensor
from torch._decomp import decomposition_table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import pynn  # noqa: F401  (fills DEFINITIONS)
from parity_tests.long_double_ops import CREATION, MOVES, RULES, longdouble, moved
from pynn.definitions import DEFINITIONS

# On x86 long double has a 64-bit significand, on aarch64 Linux 113 bits; elsewhere it may be no wider.
IS_WIDER = bool(numpy.finfo(longdouble).eps <= 2.0**-60)


# torch's decompositions of these compute with Python operators that a dispatch mode does not support.
BEYOND_A_MODE = {f"{kind}{dims}d{end}" for dims in (2, 3) for kind, end in
                 (("max_pool", "_with_indices"), ("adaptive_max_pool", ""))}  # fmt: skip


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def writes(func: torch._ops.OpOverload) -> bool:
    """Whether an operation changes numbers in place. Views say so too where they share or change metadata."""
    return func._schema.is_mutable and func.namespace != "prims" and torch.Tag.inplace_view not in func.tags


@contextmanager
def in_long_double() -> Iterator["LongDouble"]:
    """Follow what runs inside. Attention is spelled out there: its fused kernel has no parts to follow."""
    with sdpa_kernel(SDPBackend.MATH), LongDouble() as run:
        yield run


class LongDouble(TorchDispatchMode):
    """The mode; `memory` maps the address of a storage to that storage (kept alive) and its shadow."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[int, tuple[Any, numpy.ndarray]] = {}

    def value(self, x: Tensor) -> numpy.ndarray:
        """The exact value of a tensor; of one that is not floating-point, the tensor's own."""
        return self.shadow(x).copy() if is_float(x) else x.numpy()

    def shadow(self, x: Tensor) -> numpy.ndarray:
        """The tensor's elements in its storage's shadow; a storage never seen starts with torch's numbers."""
        storage = x.untyped_storage()
        if storage._cdata not in self.memory:
            count = storage.nbytes() // x.dtype.itemsize
            numbers = torch.as_strided(x.detach(), (count,), (1,), 0).double().numpy()
            with numpy.errstate(invalid="ignore"):  # NaN stays NaN
                self.memory[storage._cdata] = (storage, numbers.astype(longdouble))
        flat = self.memory[storage._cdata][1]
        strides = [stride * flat.itemsize for stride in x.stride()]
        start = x.storage_offset() if x.numel() else 0
        return numpy.lib.stride_tricks.as_strided(flat[start:], x.shape, strides)

    def seen(self, x: Tensor) -> bool:
        return x.untyped_storage()._cdata in self.memory

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        if func._schema.is_mutable:
            name = name.removesuffix("_")  # add_ writes what add computes
        if not (name in RULES or name in MOVES or name in CREATION):
            with self:
                if func in decomposition_table and name not in BEYOND_A_MODE:
                    return decomposition_table[func](*args, **kwargs)
                if func._can_decompose() and name not in BEYOND_A_MODE:
                    return func.decompose(*args, **kwargs)
                if func in DEFINITIONS:  # test_long_double holds what comes out against C++
                    return DEFINITIONS[func](*args, **kwargs)
        # The inputs' shadows, before an in-place operation writes to the inputs.
        inputs = tree_map(lambda x: self.shadow(x) if is_float(x) else x, (args, kwargs))
        shadows = None
        if name in RULES:
            arrays = tree_map(lambda x: x.numpy() if isinstance(x, Tensor) else x, inputs)
            arrays[1].pop("out", None)  # the result, where record writes
            with numpy.errstate(all="ignore"):
                shadows = RULES[name](*arrays[0], **arrays[1])
        elif name in MOVES:
            shadows = moved(func, *inputs)
        result = func(*args, **kwargs)
        self.record(
            func, [x for x in tree_leaves(result) if isinstance(x, Tensor)], shadows, name in CREATION
        )
        return result

    def record(self, func, outputs: list[Tensor], shadows: Any, is_creation: bool) -> None:
        """Write the shadows of the results. Views need none, nor does what torch just made."""
        if shadows is not None:
            shadows = shadows if isinstance(shadows, tuple) else (shadows,)
            for output, shadow in zip(outputs, shadows, strict=True):
                if is_float(output):
                    self.shadow(output)[...] = shadow
        elif is_creation and "empty" in func.__name__:
            return  # C++ may fill it unseen (at::tensor): its numbers are read when they are first asked for
        elif is_creation:
            with numpy.errstate(invalid="ignore"):
                for output in filter(is_float, outputs):
                    self.shadow(output)[...] = output.double().numpy()
        elif writes(func) or any(is_float(x) and not self.seen(x) for x in outputs):
            raise NotImplementedError(f"{func} has neither a row in long_double_ops.py nor a decomposition")
