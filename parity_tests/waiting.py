"""Which rows the compiled executors can't be asked for yet, read off the compiler's own list."""

import functools
import warnings
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from compiler_bridge.capture.decompositions import WAITS_FOR_LOWERING
from parity_tests.cases import all_rows
from parity_tests.measure import MOST_SAMPLES, evaluate


class Overloads(TorchDispatchMode):
    """Collects the ATen overloads that run below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[OpOverload] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


@functools.cache
def operations_without_lowering(name: str) -> list[str]:
    """The operations of WAITS_FOR_LOWERING that torch's own layer or function reaches on this row's samples."""
    row = next(row for row in all_rows() if row.name == name)
    with Overloads() as overloads, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in row.draw(MOST_SAMPLES["numba"]):
            evaluate(row, torch.nn, sample, torch.float32)
    return sorted(str(operation) for operation in overloads.seen & WAITS_FOR_LOWERING)
