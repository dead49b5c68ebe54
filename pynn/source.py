"""Show the definition behind a name: the mathematics, where it stands, which C++ operation it replaces."""

import functools
import importlib
import inspect
import textwrap
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

FOLLOWED = ("pynn.modules", "pynn.windows", "pynn.attention", "pynn.grad", "pynn.utils")
"""Where the mathematics stands; elsewhere are the ways in and the checks that all functions share."""


def source(name: Any, *, show: bool = True) -> str:
    """The Python text behind a layer or function, with everything of pynn's that it calls.

    Args:    name: "layer_norm", "LayerNorm", "functional.layer_norm", "nn.utils.weight_norm", or the object itself
             show: also print it
    Returns: the text: the definition, the mathematics behind it, and last what checks the arguments; each part is
             headed by its file and line and the ATen operation it defines
    Raises:  ValueError when pynn has no definition under this name
    """
    definition = _find(name)
    parts = {location_of(part): part for part in _reachable(definition)}  # one of those made in a loop
    text = "\n\n".join(_part(part) for part in sorted(parts.values(), key=_is_check))
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
        if found is None:  # "lstm"
            layers = {layer.lower(): layer for layer in importlib.import_module("pynn.modules").__all__}
            found = getattr(importlib.import_module("pynn.modules"), layers.get(short.lower(), ""), None)
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
    replaced = _operations().get(value, [])
    public = [name for name, own in PUBLIC.items() if inspect.unwrap(own) is value]
    head = f"# {location_of(value)}"
    head += "".join(f"    replaces torch.nn.functional.{name}" for name in public if hasattr(F, name))
    head += f"    defines {', '.join(replaced)}" if replaced else ""
    head = textwrap.fill(
        head, 110, subsequent_indent="#     ", break_on_hyphens=False, break_long_words=False
    )
    return f"{head}\n{inspect.getsource(value).rstrip()}"


@functools.cache
def _operations() -> dict[Any, list[str]]:
    """Function -> the ATen operations it defines."""
    found: dict[Any, list[str]] = {}
    for overload, own in DEFINITIONS.items():
        for function in _made_of(inspect.unwrap(own)):
            found.setdefault(function, []).append(str(overload))
    return found


def _made_of(definition: Any) -> list[Any]:
    """The definition; what it calls, of one made for each number of dimensions (avg_pool in _average)."""
    if "<locals>" not in definition.__qualname__:
        return [definition]
    known = [definition.__globals__.get(name) for name in definition.__code__.co_names]
    called = dict.fromkeys(one for value in known for one in _definitions_in(value, []))
    return [one for one in called if not _is_check(one)]


def _reachable(start: Any) -> list[Any]:
    """start and every function and class of pynn that it calls or derives from, in order of first use."""
    found, waiting = [], [start]
    while waiting:
        value = waiting.pop(0)
        if value not in found:
            found.append(value)
            waiting.extend(_called_by(value))
    return found


def _is_check(value: Any) -> bool:
    return value.__module__.endswith("_checks") or value.__name__.lstrip("_").startswith("check")


def _called_by(value: Any) -> Iterator[Any]:
    if inspect.isclass(value):
        yield from (base for base in value.__bases__ if base.__module__.startswith(FOLLOWED))
    for function in _functions_of(value):
        yield from _mentioned_by(function)


def _functions_of(value: Any) -> list[Any]:
    """A function itself, of a class its methods."""
    members = [value] if inspect.isfunction(value) else vars(value).values()
    methods = [f.__func__ if isinstance(f, staticmethod) else f for f in members]
    return list(filter(inspect.isfunction, map(inspect.unwrap, methods)))


def _mentioned_by(function: Any) -> Iterator[Any]:
    names = list(_names(function.__code__))
    known = function.__globals__ | inspect.getclosurevars(function).nonlocals
    for name in names:
        yield from _definitions_in(known.get(name), names)


def _definitions_in(value: Any, names: list[str]) -> Iterator[Any]:
    """The functions and classes that a value leads to. names: what of a module is asked for"""
    if isinstance(value, (dict, list, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _definitions_in(one, [])
    elif inspect.ismodule(value) and value.__name__.startswith("pynn.modules."):
        for name in names:  # average.mean_along
            yield from _definitions_in(vars(value).get(name), [])
    elif inspect.ismethod(value) and inspect.isclass(value.__self__):
        if value.__self__.__module__ == "pynn.definitions":  # _relu = differentiable(relu_forward, ...)
            for function in _functions_of(value.__self__):
                yield from _mentioned_by(function)
        else:
            yield from _definitions_in(value.__self__, [])
    elif inspect.isfunction(value) or inspect.isclass(value):
        value = inspect.unwrap(value)
        if inspect.isfunction(value) and value.__name__ == "<lambda>":
            yield from _mentioned_by(value)
        elif (value.__module__ or "").startswith(FOLLOWED):
            yield value


def _names(code: CodeType) -> Iterator[str]:
    """The global and closure names a function mentions, its inner functions included."""
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
