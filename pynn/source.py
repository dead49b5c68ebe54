"""Show the definition behind a name: the mathematics, where it stands, which C++ operation it replaces."""

import importlib
import inspect
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any

import torch.nn.functional as F

from pynn.coverage import location_of
from pynn.definitions import DEFINITIONS, PUBLIC

# Looked through in this order; those of attention are loaded when a name is not found before.
PLACES = (
    "pynn.functional",
    "pynn.modules",
    "pynn.grad",
    "pynn.utils.rnn",
    "pynn.utils.parametrizations",
    "pynn.utils",
    "pynn.attention.flex_attention",
    "pynn.attention.varlen",
)


def source(name: Any, *, show: bool = True) -> str:
    """The Python text behind a layer or function, with everything of pynn's that it calls.

    Args:    name: "layer_norm", "LayerNorm", "functional.layer_norm", "nn.utils.weight_norm", or the object itself
             show: also print it
    Returns: the text; each part is headed by its file and line and the ATen operation it defines
    Raises:  ValueError when pynn has no definition under this name
    """
    definition = _find(name)
    text = "\n\n".join(_part(part) for part in _reachable(definition))
    if show:
        print(text)
    return text


def _find(name: Any) -> Any:
    """The object behind a name; functions before layers, as their names differ in case only."""
    if not isinstance(name, str):
        found = name
    else:
        path, _, short = name.rpartition(".")
        places = _places(path.removeprefix("torch.").removeprefix("nn.").removeprefix("nn"))
        found = next((getattr(place, short) for place in places if hasattr(place, short)), None)
    if not getattr(inspect.unwrap(found) if callable(found) else found, "__module__", "").startswith("pynn."):
        raise ValueError(f"{name!r} has no pynn definition; pynn.coverage() lists the names that do")
    return inspect.unwrap(found)


def _places(path: str) -> Iterator[ModuleType]:
    """The module of pynn at this path, where there is one, before the others."""
    for place in (f"pynn.{path}" if path else "pynn", *PLACES):
        try:
            yield importlib.import_module(place)
        except ModuleNotFoundError:  # "F.conv2d"
            continue


def _part(value: Any) -> str:
    replaced = [str(overload) for overload, own in DEFINITIONS.items() if inspect.unwrap(own) is value]
    public = [name for name, own in PUBLIC.items() if inspect.unwrap(own) is value]
    head = f"# {location_of(value)}"
    head += "".join(f"    replaces torch.nn.functional.{name}" for name in public if hasattr(F, name))
    head += f"    defines {', '.join(replaced)}" if replaced else ""
    return f"{head}\n{inspect.getsource(value).rstrip()}"


def _reachable(start: Any) -> list[Any]:
    """start and every function and class of pynn that it calls, directly or not, in order of first use."""
    found, waiting = [], [start]
    while waiting:
        value = waiting.pop(0)
        if value not in found:
            found.append(value)
            waiting.extend(_called_by(value))
    return found


def _called_by(value: Any) -> Iterator[Any]:
    functions = (
        [value] if inspect.isfunction(value) else [f for f in vars(value).values() if inspect.isfunction(f)]
    )
    functions += [f.__func__ for f in vars(value).values() if isinstance(f, staticmethod)]
    # a deprecated constructor wraps one that is C (NLLLoss2d)
    for function in filter(inspect.isfunction, map(inspect.unwrap, functions)):
        closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(value) else {}
        for name in _names(function.__code__):
            called = closure.get(name, function.__globals__.get(name))
            called = inspect.unwrap(called) if callable(called) else called
            is_code = inspect.isfunction(called) or inspect.isclass(called)
            if is_code and called.__module__.startswith("pynn.modules"):
                yield called


def _names(code: CodeType) -> Iterator[str]:
    """The global and closure names a function mentions, its inner functions included."""
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
