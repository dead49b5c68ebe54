"""Which pynn class and function stands for which of torch's: read off the two packages, kept nowhere."""

import functools
import inspect
import sys
from collections.abc import Callable

import torch
from torch.nn import Module

import pynn.functional
import pynn.modules
from pynn.sharing import written_submodules


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
