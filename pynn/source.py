"""Show the definition behind a name: the mathematics, where it stands, which C++ operation it replaces."""

import importlib
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from pynn.coverage import location_of
from pynn.definitions import DEFINITIONS, PUBLIC

# Looked through in this order; the last two are loaded when a name is not found before.
PLACES = ("pynn.functional", "pynn.modules", "pynn.attention.flex_attention", "pynn.attention.varlen")


def source(name: Any, *, show: bool = True) -> str:
    """The Python text behind a layer or function, with everything of pynn's that it calls.

    Args:    name: "layer_norm", "LayerNorm", "functional.layer_norm", or the object itself
             show: also print it
    Returns: the text: the definition, the mathematics behind it, and last what checks the arguments; each part is
             headed by its file and line and the ATen operation it defines
    Raises:  ValueError when pynn has no definition under this name
    """
    definition = _find(name)
    text = "\n\n".join(_part(part) for part in sorted(_reachable(definition), key=_is_check))
    if show:
        print(text)
    return text


def _find(name: Any) -> Any:
    """The object behind a name; functions before layers, as their names differ in case only."""
    if not isinstance(name, str):
        found = name
    else:
        short = name.rpartition(".")[2]
        places = map(importlib.import_module, PLACES)
        found = next((getattr(place, short) for place in places if hasattr(place, short)), None)
        if found is None:  # "lstm"
            layers = {layer.lower(): layer for layer in importlib.import_module("pynn.modules").__all__}
            found = getattr(importlib.import_module("pynn.modules"), layers.get(short.lower(), ""), None)
    if not getattr(inspect.unwrap(found) if callable(found) else found, "__module__", "").startswith("pynn."):
        raise ValueError(f"{name!r} has no pynn definition; pynn.coverage() lists the names that do")
    return inspect.unwrap(found)


def _part(value: Any) -> str:
    replaced = [str(overload) for overload, own in DEFINITIONS.items() if inspect.unwrap(own) is value]
    public = [name for name, own in PUBLIC.items() if inspect.unwrap(own) is value]
    head = f"# {location_of(value)}"
    head += "".join(f"    replaces torch.nn.functional.{name}" for name in public)
    head += f"    defines {', '.join(replaced)}" if replaced else ""
    return f"{head}\n{inspect.getsource(value).rstrip()}"


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
        yield from (base for base in value.__bases__ if base.__module__.startswith("pynn.modules"))
    functions = (
        [value] if inspect.isfunction(value) else [f for f in vars(value).values() if inspect.isfunction(f)]
    )
    functions += [f.__func__ for f in vars(value).values() if isinstance(f, staticmethod)]
    for function in filter(inspect.isfunction, map(inspect.unwrap, functions)):
        closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(value) else {}
        for name in _names(function.__code__):
            called = closure.get(name, function.__globals__.get(name))
            for one in called.values() if isinstance(called, dict) else (called,):
                one = inspect.unwrap(one) if callable(one) else one
                is_code = inspect.isfunction(one) or inspect.isclass(one)
                if is_code and one.__module__.startswith("pynn.modules"):
                    yield one


def _names(code: CodeType) -> Iterator[str]:
    """The global and closure names a function mentions, its inner functions included."""
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
