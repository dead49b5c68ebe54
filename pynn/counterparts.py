"""Which pynn class and function stands for which of torch's: read off the two packages, kept nowhere."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch.nn import Module

import pynn.functional
import pynn.modules
from pynn.overrides import scripts_as
from pynn.sharing import written_submodules

KINDS = type | FunctionType | BuiltinFunctionType


@functools.cache
def class_pairs() -> dict[type[Module], type[Module]]:
    """torch class -> the pynn class of the same name that derives from it, private ones included."""
    pairs = {}
    for family in written_submodules("pynn.modules"):
        for value in vars(sys.modules[f"pynn.modules.{family}"]).values():
            if isinstance(value, type) and value.__module__.startswith("pynn."):
                for base in value.__mro__[1:]:
                    if base.__name__ == value.__name__ and base.__module__.startswith("torch.nn.modules"):
                        pairs[base] = value
    return pairs


def object_pairs() -> dict[Any, Any]:
    """torch class or function -> pynn's, for every public name of torch.nn and of its loaded submodules."""
    public = {getattr(torch.nn, name) for name in torch.nn.modules.__all__}
    pairs = {cls: own for cls, own in class_pairs().items() if cls in public} | function_pairs()
    for module, own_module in twin_modules():
        pairs |= pairs_of(module, own_module)
    return pairs


def twin_modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    """torch.nn.x.y and pynn.x.y, wherever both are loaded and not one module."""
    for name, own in sorted(sys.modules.items()):
        module = sys.modules.get(f"torch.nn{name.removeprefix('pynn')}")
        is_family = name.startswith("pynn.modules") or name == "pynn.functional"
        if name.startswith("pynn.") and not is_family and module is not None and module is not own:
            yield module, own


def pairs_of(module: ModuleType, own_module: ModuleType) -> dict[Any, Any]:
    """The public classes and functions of a torch module that the pynn module defines anew."""
    pairs = {}
    for name, own in vars(own_module).items():
        value = vars(module).get(name)
        if name.startswith("_") or own is value or not isinstance(own, KINDS) or not isinstance(value, KINDS):
            continue
        if inspect.unwrap(own).__module__.startswith("pynn."):
            pairs[value] = own
            scripts_as(own, value)
    return pairs


@functools.cache
def function_pairs() -> dict[Callable, Callable]:
    """torch function -> the pynn function of the same name, for every name of torch.nn.functional."""
    pairs = {}
    for name, function in vars(torch.nn.functional).items():
        own = getattr(pynn.functional, name, function)
        if not name.startswith("_") and callable(function) and own is not function:
            if inspect.unwrap(own).__module__.startswith("pynn."):
                pairs[function] = own
    return pairs


@functools.cache
def pynns_objects() -> dict[Any, Any]:
    """torch's class or function -> pynn's."""
    return {**class_pairs(), **function_pairs()}


@functools.cache
def torchs_objects() -> dict[Any, Any]:
    """pynn's class or function -> torch's."""
    return {own: original for original, own in pynns_objects().items()}
