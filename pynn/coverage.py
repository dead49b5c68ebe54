"""Which names of torch.nn run as Python here, and which still are C++."""

import inspect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn
import torch.nn.attention
import torch.nn.utils.rnn

import pynn

PYTHON = "Python"
SHARED = "shared with torch (already Python)"
CPP = "torch C++ (no definition yet)"

# What torch wrote in Python around a C++ leaf, outside nn.functional.
CALLS_CPP = {
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "remove_weight_norm",
    "weight_norm",
}
# torch.nn names that are Python throughout although no file here re-exports their module.
SHARED_NAMES = {"DataParallel", "factory_kwargs"}


@dataclass(frozen=True)
class Entry:
    """One public name of torch.nn: where it stands and where its definition is to be read."""

    name: str
    kind: str
    status: str
    location: str = ""


def coverage(*, show: bool = True) -> list[Entry]:
    """Every public name of torch.nn, nn.functional, nn.init, nn.utils and nn.attention with its status.

    Args:    show: also print the table
    Returns: one Entry a name; status is PYTHON (location says where), SHARED or CPP. A module counts as
             Python when the forward it runs is pynn's
    """
    entries = [_entry(f"nn.{name}", "module", getattr(pynn, name)) for name in torch.nn.modules.__all__]
    others = sorted(set(_public_names(torch.nn)) - set(torch.nn.modules.__all__))
    for name in others:
        if not inspect.ismodule(getattr(torch.nn, name)):
            entries.append(_entry(f"nn.{name}", "name", getattr(pynn, name)))
    for name in functional_names():
        entries.append(_entry(f"nn.functional.{name}", "function", getattr(pynn.functional, name)))
    for module in (torch.nn.init, torch.nn.utils, torch.nn.utils.rnn, torch.nn.attention):
        path = module.__name__.removeprefix("torch.")
        for name in _public_names(module):
            value = getattr(module, name)
            if callable(value) and value.__module__.startswith("torch"):
                entries.append(_entry(f"{path}.{name}", path.split(".")[1], value))
    if show:
        _print_table(entries)
    return entries


def functional_names() -> list[str]:
    """The public functions of torch.nn.functional, which has no __all__: those it defines or documents."""
    return sorted(
        name
        for name, value in vars(torch.nn.functional).items()
        if not name.startswith("_") and _is_function_of_torch(name, value)
    )


def _is_function_of_torch(name: str, value: Any) -> bool:
    own_modules = ("torch.nn.functional", "torch._jit_internal")
    is_function = inspect.isfunction(value) and value.__module__ in own_modules
    return (is_function or inspect.isbuiltin(value)) and name not in NOT_OPERATIONS


# Imported or helper functions that live in torch.nn.functional under a public name.
NOT_OPERATIONS = {
    "assert_int_or_pair",
    "boolean_dispatch",
    "has_torch_function",
    "has_torch_function_unary",
    "has_torch_function_variadic",
}


def _public_names(module: ModuleType) -> list[str]:
    return list(getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")])


def _entry(name: str, kind: str, value: Any) -> Entry:
    body = _body(value)
    if getattr(body, "__module__", "").startswith("pynn."):
        return Entry(name, kind, PYTHON, location_of(value))
    last_name = name.rpartition(".")[2]
    if kind == "function" or last_name in CALLS_CPP:
        return Entry(name, kind, CPP)
    if kind == "module" and not _is_shared_module(value):
        return Entry(name, kind, CPP)
    return Entry(name, kind, SHARED)


def _body(value: Any) -> Any:
    """What runs: of a layer its forward, of a decorated function the innermost one."""
    is_layer = isinstance(value, type) and issubclass(value, torch.nn.Module)
    return inspect.unwrap(value.forward if is_layer else value)


def _is_shared_module(cls: type) -> bool:
    """The containers, and what is no layer (LinearCrossEntropyOptions)."""
    is_layer = issubclass(cls, torch.nn.Module)
    return not is_layer or cls.__module__ in ("torch.nn.modules.module", "torch.nn.modules.container")


def location_of(value: Any) -> str:
    """pynn/modules/linear.py:19"""
    value = inspect.unwrap(value)
    root = Path(pynn.__file__).parent.parent
    file = Path(inspect.getsourcefile(value)).relative_to(root)
    return f"{file}:{inspect.getsourcelines(value)[1]}"


def _print_table(entries: list[Entry]) -> None:
    from rich.console import Console  # loaded when a table is printed
    from rich.table import Table

    short = {PYTHON: "Python", SHARED: "shared", CPP: "C++"}
    style = {PYTHON: "green", SHARED: "", CPP: "yellow"}
    counts = Counter(entry.status for entry in entries)
    table = Table(title=", ".join(f"{counts[status]} {status}" for status in short))
    for column in ("name", "kind", "status", "definition"):
        table.add_column(column, no_wrap=True)
    for entry in entries:
        table.add_row(
            entry.name, entry.kind, short[entry.status], entry.location, style=style[entry.status]
        )
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
