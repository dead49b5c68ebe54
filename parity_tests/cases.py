"""The table of rows. A row names a layer or a function and draws its samples; every test comes from it.

Rows come from the tables torch ships for its own tests (`module_db`, `op_db`), and from `cases_own` for
what those lack. A name that pynn does not define yet resolves to torch's own function: its row waits, and
starts to count on the day pynn defines it.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_map

from parity_tests.torch_version import IS_OLDER

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def seed(number: int) -> None:
    """Seed the CPU generator alone; torch.manual_seed also queues a call for each absent device."""
    torch.default_generator.manual_seed(number)


@dataclass
class Sample:
    """One call: `constructor` builds the module (unused for functions), args and kwargs call it."""

    args: tuple
    kwargs: dict = field(default_factory=dict)
    constructor: tuple[tuple, dict] = ((), {})
    training: bool = True

    def cast(self, dtype: torch.dtype) -> "Sample":
        """Return the sample with fresh floating-point tensors of another dtype."""

        def fresh(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            target = dtype if value.dtype.is_floating_point else value.dtype
            return value.detach().to(target, copy=True).requires_grad_(value.requires_grad)

        def construct(value: Any) -> Any:
            if isinstance(value, torch.nn.Module):
                return copy.deepcopy(value).to(dtype)
            return fresh(value)

        return Sample(
            tree_map(fresh, self.args), tree_map(fresh, self.kwargs),
            tree_map(construct, self.constructor), self.training,
        )  # fmt: skip

    def on(self, device: str) -> "Sample":
        """Return the sample with its tensors on a device, requiring gradients as before."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().to(device).requires_grad_(value.requires_grad)

        args, kwargs = tree_map(move, (self.args, self.kwargs))
        return Sample(args, kwargs, self.constructor, self.training)

    def differentiable(self) -> list[Tensor]:
        leaves = torch.utils._pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]


@dataclass(frozen=True)
class Row:
    """One layer or function.

    name:      "nn.LayerNorm", or "functional.softmax" with an optional ".variant"
    samples:   draws the samples in float32; called under a fixed seed
    errors:    (sample, exception type, message pattern, raised by the constructor or by the call)
    pointwise: each element is also measured against itself
    random:    draws random numbers: seeded alike, and C++ in the same dtype is the reference
    call:      for functions: how to call `nn.functional` when it is not simply by name
    reference: for what torch lacks: the same function, or a module with the same parameters, made of torch's
               C++ operations
    skip:      check, or dtype -> the reason it does not apply
    """

    name: str
    samples: Callable[[], list[Sample]]
    errors: Callable[[], list[tuple[Sample, type, str, str]]] = list
    dtypes: tuple[torch.dtype, ...] = FLOATS
    pointwise: bool = False
    random: bool = False
    call: Callable | None = None
    reference: Callable | None = None
    skip: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_module(self) -> bool:
        return self.name.startswith("nn.")

    @property
    def symbol(self) -> str:
        return self.name.split(".")[1]

    def look_up(self, nn: Any) -> Any:
        """Return the class, or the function, this row is about, in torch.nn or pynn."""
        if nn is torch.nn and self.reference is not None:
            return self.reference
        return getattr(nn if self.is_module else nn.functional, self.symbol)

    @property
    def exists(self) -> bool:
        """Whether the installed torch has it, or the row says what stands for it (2.11 has no linear_cross_entropy)."""
        if IS_OLDER and self.symbol == "scaled_mm":
            return False  # torch 2.11 has no kernel of it on the CPU
        return self.reference is not None or hasattr(
            torch.nn if self.is_module else torch.nn.functional, self.symbol
        )

    def defined(self, nn: Any) -> bool:
        """Whether `nn` has a definition of its own."""
        try:
            return self.look_up(nn) is not self.look_up(torch.nn)
        except AttributeError:
            return False

    def reason_to_skip(self, dtype: torch.dtype) -> str | None:
        """Why accuracy is not measured in a dtype, if it is not."""
        return self.skip.get(str(dtype).removeprefix("torch."))

    def build(self, nn: Any, sample: Sample, device: str = "cpu") -> Callable:
        """Return the callable under test: a module with seeded parameters (drawn on the CPU), or a function."""
        if not self.is_module:
            function = self.look_up(nn)
            if self.call is None:
                return function
            call = self.call
            return lambda *args, **kwargs: call(function, *args, **kwargs)
        args, kwargs = copy.deepcopy(sample.constructor)
        if nn is not torch.nn:
            # torch's tables hand built layers (TransformerEncoder's) to the constructor.
            args = tuple(nn.convert(a) if isinstance(a, torch.nn.Module) else a for a in args)
        seed(0)
        module = self.look_up(nn)(*args, **kwargs).train(sample.training)
        if isinstance(module, LazyModuleMixin):  # parameters exist after the first call only
            with torch.no_grad():
                first = sample.cast(torch.float32).on("cpu")
                module(*first.args, **first.kwargs)
        return module.to(device)

    def takes(self, sample: Sample) -> bool:
        """Whether the installed torch's constructor has these arguments (2.11 has no bias of normalisations)."""
        if not sample.constructor[1] or self.reference is not None:
            return True
        known = inspect.signature(self.look_up(torch.nn).__init__).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in known.values())
        return any_name or sample.constructor[1].keys() <= known.keys()

    def draw(self, most: int) -> list[Sample]:
        """Return at most `most` samples, spread evenly over what the table has."""
        seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = [sample for sample in self.samples() if self.takes(sample)]
        if len(samples) <= most:
            return samples
        step = (len(samples) - 1) / max(most - 1, 1)
        return [samples[round(i * step)] for i in range(most)]


@cache
def all_rows() -> tuple[Row, ...]:
    """Return the whole table, each name once, as far as the installed torch has what a row is about."""
    from parity_tests import cases_own, cases_torch

    rows = {row.name: row for row in [*cases_torch.function_rows(), *cases_torch.module_rows()]}
    rows.update({row.name: row for row in cases_own.own_rows()})
    return tuple(sorted((row for row in rows.values() if row.exists), key=lambda row: row.name))


def defined_rows() -> list[Row]:
    """Return the rows that pynn has a definition for."""
    import pynn

    return [row for row in all_rows() if row.defined(pynn)]
