"""Make torch.nn itself resolve to pynn, for code that cannot be edited.

with pynn.install():
    model = third_party.build()         # its torch.nn.Linear(...) is now pynn's
"""

import copyreg
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils._expanded_weights.expanded_weights_impl import HANDLED_FUNCTIONS

from pynn.counterparts import KINDS, class_pairs, object_pairs, pairs_of
from pynn.sharing import AroundImport, written_submodules

_lock = threading.Lock()
_depth = 0
_originals: list[tuple[types.ModuleType, str, Any]] = []
_lent: list[tuple[types.ModuleType, str, Any]] = []
_borrowers = 0


class Installation:
    """What install() returns: leaving its `with` block uninstalls."""

    def __enter__(self) -> "Installation":
        return self

    def __exit__(self, *exception: object) -> None:
        uninstall()


def install() -> Installation:
    """Let every public name of torch.nn and its submodules that has a pynn definition be pynn's.

    Returns: a context manager that uninstalls; without `with`, call uninstall(). Calls nest.
    Scope:   names of torch.nn, torch.nn.functional, torch.nn.modules and its families, torch.nn.utils,
             torch.nn.attention, ..., also of those imported later. Names imported elsewhere before
             (`from torch.nn import Linear`) keep what they hold, and so do layers already built: see convert().
             While installed, such a layer is no instance of torch.nn.Linear (which is pynn's, its subclass)
    Thread:  the names change for all threads of the process at once
    """
    global _depth
    with _lock:
        if _depth == 0:
            replacements = object_pairs()
            _originals.extend(_replaceable_names(replacements))
            for module, name, original in _originals:
                setattr(module, name, replacements[original])
            for function, rule in list(HANDLED_FUNCTIONS.items()):  # what it meets by name is pynn's now
                HANDLED_FUNCTIONS[replacements.get(function, function)] = rule
            for original in class_pairs():
                copyreg.pickle(original, _reduce)  # type: ignore[arg-type]
            sys.meta_path.insert(0, _LATER)
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
            for original in class_pairs():
                copyreg.dispatch_table.pop(original, None)
            sys.meta_path.remove(_LATER)


def installed() -> bool:
    """Whether torch.nn resolves to pynn."""
    return _depth > 0


@contextmanager
def torchs_names() -> Iterator[None]:
    """If pynn is installed: torch.nn's names hold torch's own for a while. Calls nest, also those of other threads."""
    global _borrowers
    with _lock:
        if _borrowers == 0:
            for module, name, original in _originals:
                _lent.append((module, name, vars(module)[name]))
                setattr(module, name, original)
        _borrowers += 1
    try:
        yield
    finally:
        with _lock:
            _borrowers -= 1
            if _borrowers == 0:
                for module, name, own in _lent if _depth else ():
                    setattr(module, name, own)
                _lent.clear()


def _replaceable_names(replacements: dict[Any, Any]) -> list[tuple[types.ModuleType, str, Any]]:
    """(module, name, what it holds) for every name under torch.nn that holds something to replace."""
    modules = [torch.nn]
    modules += [module for name, module in sorted(sys.modules.items()) if name.startswith("torch.nn.")]
    return [
        (module, name, value)
        for module in dict.fromkeys(modules)
        for name, value in vars(module).items()
        if isinstance(value, KINDS) and value in replacements
    ]


class _Later(AroundImport):
    """Replaces the names of a submodule of torch.nn that is first imported while pynn is installed."""

    def wants(self, fullname: str) -> bool:
        package, _, name = fullname.rpartition(".")
        own_package = f"pynn{package.removeprefix('torch.nn')}"
        is_own = getattr(sys.modules.get(own_package), "__name__", None) == own_package
        return package.startswith("torch.nn") and is_own and name in written_submodules(own_package)

    def around(self, module: types.ModuleType, run: Callable[[], None]) -> None:
        run()
        own = importlib.import_module(f"pynn{module.__name__.removeprefix('torch.nn')}")
        replacements = pairs_of(module, own)
        for name, value in list(vars(module).items()):
            if isinstance(value, KINDS) and value in replacements:
                _originals.append((module, name, value))
                setattr(module, name, replacements[value])


_LATER = _Later()


def _reduce(layer: torch.nn.Module) -> tuple[Callable, tuple[str, str], Any]:
    """Pickle a layer of torch's own class, whose name pynn's class has meanwhile."""
    cls = type(layer)
    return _built_before, (cls.__module__, cls.__qualname__), layer.__reduce_ex__(2)[2]


def _built_before(module: str, name: str) -> torch.nn.Module:
    (cls,) = (cls for cls in class_pairs() if (cls.__module__, cls.__qualname__) == (module, name))
    return cls.__new__(cls)
