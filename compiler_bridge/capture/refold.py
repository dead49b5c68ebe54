"""When the folding graph of a frozen graph runs: at the first call, and after one of its parameters changed.

What is looked at in every call, for each parameter and buffer that was folded:

    which tensor it is      id                a parameter was replaced; another model with the same code
    where its data is       data_ptr          p.data = other, model.to(...), share_memory_
    how often it was written to   _version    optimizers, load_state_dict, init, every in-place operation
    what is in it           its bytes         running statistics, which C++'s batch norm changes uncounted

The last for one-dimensional buffers of floating point numbers alone. Optimizers whose step isn't counted as writing
(torch's fused ones, those that write to p.data) are noticed by a hook after every `Optimizer.step`. Not noticed:
p.data.add_(1), numpy arrays over a parameter, and other writes that torch doesn't count;
`with torch.no_grad(): p.mul_(1)` afterwards makes them known.

Nothing here keeps a model alive. Folded values go when the memory of one of their parameters does.
"""

from __future__ import annotations

import ctypes
import operator
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.optim.optimizer import register_optimizer_step_post_hook

VERSION = operator.attrgetter("_version")
ADDRESS = torch.Tensor.data_ptr

Run = Callable[..., Sequence[Any]]


class Folded:
    """Folded values, and the state their parameters were in.

    values: in the order of the folding graph; None while they must be computed again
    """

    def __init__(self, frozen: Sequence[torch.Tensor], forget: Callable[[Any], None]):
        self.versions = tuple(map(VERSION, frozen))  # before the values: a write meanwhile must be seen
        self.addresses = tuple(map(ADDRESS, frozen))
        self.statistics = [i for i, tensor in enumerate(frozen) if may_be_statistics(tensor)]
        self.contents = contents(frozen, self.statistics)
        self.ids = frozenset(map(id, frozen))
        self.storages = [weakref.ref(tensor.untyped_storage(), forget) for tensor in frozen]
        self.values: tuple[torch.Tensor | None, ...] | None = None


def may_be_statistics(tensor: torch.Tensor) -> bool:
    """Whether C++'s batch norm may write to it."""
    return tensor.dim() == 1 and tensor.is_floating_point() and not isinstance(tensor, torch.nn.Parameter)


def contents(frozen: Sequence[torch.Tensor], positions: Sequence[int]) -> bytes:
    """The bytes of the tensors at these positions."""
    if not positions:
        return b""
    joined = torch.cat([frozen[position] for position in positions])
    return joined.view(torch.uint8).numpy().tobytes()


_alive: weakref.WeakSet[Folded] = weakref.WeakSet()


@dataclass
class Recipe:
    """How a frozen graph is computed.

    folding: graph of the inputs at `read`; its results are the folded values
    main:    takes the inputs at `passed`, the folded values, then what `once` gives
    once:    what main wants computed of its inputs when a frozen one has changed (`pipeline.OnceCall`), or None
    """

    folding: fx.GraphModule
    read: Sequence[int]
    passed: Sequence[int]
    main: Run
    once: Any

    def __post_init__(self) -> None:
        expected = [node.meta["val"] for node in self.folding.graph.find_nodes(op="output")[0].args[0]]
        self.layouts = [(tuple(map(int, val.shape)), tuple(map(int, val.stride()))) for val in expected]

    def compute(self, inputs: Sequence[Any]) -> tuple[torch.Tensor | None, ...]:
        """What follows the inputs at `passed`: None for what isn't needed once weights are packed."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # what autocast does is in the graph
            results = self.folding(*[inputs[position].detach() for position in self.read])
        values = [in_layout(value, *layout) for value, layout in zip(results, self.layouts)]
        if self.once is not None:
            own = len(self.passed)
            given = [*[inputs[position] for position in self.passed], *values]
            made = self.once.call(*[given[position] for position in self.once.positions])
            unused = [
                None if own + index in self.once.unused else value for index, value in enumerate(values)
            ]
            values = [*unused, *made]
        return tuple(values)


def refolding(recipe: Recipe, watched: Sequence[int]) -> Run:
    """A function of the whole graph's inputs that computes values of frozen inputs when one of these has changed.

    It can be called by several threads at once, and for any number of models with the same code.

    watched: positions of the inputs that the values depend on
    """
    note_optimizer_steps()
    main, take_watched, take_passed = recipe.main, taking(watched), taking(recipe.passed)
    remembered: dict[Any, Folded] = {}

    def fold(inputs: Sequence[Any], frozen: Sequence[torch.Tensor], key: Any) -> Any:
        if any(tensor.is_inference() for tensor in frozen):
            return recipe.compute(inputs)  # made in inference_mode: nobody counts what is written to it

        def forget(_: Any) -> None:
            remembered.pop(key, None)

        folded = Folded(frozen, forget)
        values = folded.values = recipe.compute(inputs)
        remembered[key] = folded
        _alive.add(folded)
        return values

    def run(*inputs: Any) -> Sequence[Any]:
        frozen = take_watched(inputs)
        key = identities(frozen)
        folded = remembered.get(key)
        values = None if folded is None else folded.values
        if (
            folded is None
            or values is None
            or folded.versions != tuple(map(VERSION, frozen))
            or folded.addresses != tuple(map(ADDRESS, frozen))
            or folded.contents != contents(frozen, folded.statistics)
        ):
            values = fold(inputs, frozen, key)
        return main(*take_passed(inputs), *values)

    return run


def references(objects: tuple[Any, ...]) -> bytes:
    """Where the objects lie, as CPython's tuple itself holds it: a tenth of the time of `tuple(map(id, objects))`."""
    return ctypes.string_at(id(objects) + tuple.__basicsize__, len(objects) * struct.calcsize("P"))


def ids(objects: tuple[Any, ...]) -> Any:
    return tuple(map(id, objects))


identities = references if references((ids, struct)) == struct.pack("PP", id(ids), id(struct)) else ids
"""Which objects these are: equal for the same ones, while they live."""


def taking(positions: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """operator.itemgetter that gives a tuple also for one position, and for none."""
    if len(positions) > 1:
        return operator.itemgetter(*positions)  # type: ignore[return-value]
    return lambda values: tuple([values[position] for position in positions])


def in_layout(value: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """The value with the strides that the main graph was compiled for."""
    if value.stride() == strides:
        return value
    return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device).copy_(value)


_noting = False


def note_optimizer_steps() -> None:
    """From the first frozen graph on, whatever an optimizer has stepped is folded again."""
    global _noting
    if not _noting:
        _noting = True
        register_optimizer_step_post_hook(stepped)


def stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return  # a traced step writes as every in-place operation does
    parameters: Iterable[Any] = (p for group in optimizer.param_groups for p in group["params"])
    ids = set(map(id, parameters)) if _alive else set[int]()
    for folded in list(_alive):
        if not folded.ids.isdisjoint(ids):
            folded.values = None
