"""Make torch.nn itself resolve to pynn, for code that cannot be edited.

with pynn.install():
    model = third_party.build()         # its torch.nn.Linear(...) is now pynn's
"""

import sys
import threading
import types
from typing import Any

import torch

from pynn.counterparts import class_pairs, function_pairs

_lock = threading.Lock()
_depth = 0
_originals: list[tuple[types.ModuleType, str, Any]] = []


class Installation:
    """What install() returns: leaving its `with` block uninstalls."""

    def __enter__(self) -> "Installation":
        return self

    def __exit__(self, *exception: object) -> None:
        uninstall()


def install() -> Installation:
    """Let torch.nn.<Layer>, torch.nn.modules.<family>.<Layer> and torch.nn.functional.<function> be pynn's.

    Returns: a context manager that uninstalls; without `with`, call uninstall(). Calls nest.
    Scope:   every name of torch.nn, torch.nn.modules and its families and torch.nn.functional that holds an
             object with a pynn definition. Names imported elsewhere before (`from torch.nn import Linear`)
             keep what they hold, and so do layers already built: see convert(). While installed, such a
             layer is no instance of torch.nn.Linear (which is pynn's, its subclass), nor can it be pickled
    Thread:  the names change for all threads of the process at once
    """
    global _depth
    with _lock:
        if _depth == 0:
            _originals.extend(_replaceable_names())
            replacements = class_pairs() | function_pairs()
            for module, name, original in _originals:
                setattr(module, name, replacements[original])
        _depth += 1
    return Installation()


def uninstall() -> None:
    """Undo one install(); the outermost gives every name back what it held."""
    global _depth
    with _lock:
        if _depth == 0:
            raise RuntimeError("pynn is not installed: uninstall() undoes one call of install()")
        _depth -= 1
        if _depth == 0:
            for module, name, original in _originals:
                setattr(module, name, original)
            _originals.clear()


def _replaceable_names() -> list[tuple[types.ModuleType, str, Any]]:
    """(module, name, what it holds) for every public name under torch.nn that has a pynn counterpart."""
    public = {getattr(torch.nn, name) for name in torch.nn.modules.__all__}
    originals = {cls for cls in class_pairs() if cls in public} | function_pairs().keys()
    modules = [torch.nn, torch.nn.functional, torch.nn.modules]
    modules += [module for name, module in sys.modules.items() if name.startswith("torch.nn.modules.")]
    kinds = type | types.FunctionType | types.BuiltinFunctionType
    return [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, kinds) and value in originals
    ]
