"""Every public name of torch.nn: which run as Python here, which are torch's own Python, and what else."""

import importlib
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch.nn

import pynn
from pynn.definitions import PUBLIC

PYTHON = "Python"
SHARED = "shared with torch (already Python)"
QUANTISED = "torch.ao's"
CPP = "torch C++"

NAMESPACES = (
    "init", "parameter", "grad", "utils", "utils.parametrizations", "utils.parametrize", "utils.prune",
    "utils.rnn", "utils.stateless", "attention", "attention.bias", "attention.flex_attention",
    "attention.varlen", "parallel",
)  # fmt: skip
QUANTISED_NAMESPACES = ("quantized", "quantized.dynamic", "quantizable", "qat", "qat.dynamic", "intrinsic")
QUANTISED_REASON = "quantised arithmetic: this path is torch's deprecated alias of torch.ao"
# Imported or helper functions that live in torch.nn.functional under a public name.
NOT_OPERATIONS = {
    "assert_int_or_pair",
    "boolean_dispatch",
    "has_torch_function",
    "has_torch_function_unary",
    "has_torch_function_variadic",
}
# What leads from a Python function of torch into C++ that computes a layer (torch._C._nn._parse_to only reads).
CPP_DOORS = {"_VF", "_weight_norm", "_nn"}


@dataclass(frozen=True)
class Entry:
    """One public name of torch.nn (or of pynn alone): where it stands and where it is to be read.

    location: file:line of the definition, or of torch's Python
    reason:   why it is neither Python here nor Python in torch
    """

    name: str
    kind: str
    status: str
    location: str = ""
    reason: str = ""


def coverage(*, show: bool = True) -> list[Entry]:
    """Every public name of torch.nn and its submodules with its status, and what pynn adds.

    Args:    show: also print the table
    Returns: one Entry a name. PYTHON: defined in pynn (a module when the forward it runs is pynn's); SHARED:
             torch's own, which is Python throughout; QUANTISED and CPP: with the reason
    """
    entries = [*_layers(), *_functions()]
    for namespace in NAMESPACES:
        entries += _names_of(namespace)
    for namespace in QUANTISED_NAMESPACES:
        for name, value in _public(importlib.import_module(f"torch.nn.{namespace}")):
            location = _location(value)
            entries.append(Entry(f"nn.{namespace}.{name}", namespace, QUANTISED, location, QUANTISED_REASON))
    if show:
        _print_table(entries)
    return entries


def _layers() -> Iterator[Entry]:
    names = dict.fromkeys([*torch.nn.modules.__all__, *pynn.modules.__all__])
    for name in names:
        yield _entry(f"nn.{name}", "module", getattr(pynn, name))
    for name, value in vars(torch.nn).items():
        is_name = not name.startswith("_") and not inspect.ismodule(value)
        if is_name and name not in names:
            yield _entry(f"nn.{name}", "name", getattr(pynn, name))


def _functions() -> Iterator[Entry]:
    for name in dict.fromkeys([*functional_names(), *sorted(PUBLIC)]):
        yield _entry(f"nn.functional.{name}", "function", getattr(pynn.functional, name))


def _names_of(namespace: str) -> Iterator[Entry]:
    own = importlib.import_module(f"pynn.{namespace}")
    for name, value in _public(importlib.import_module(f"torch.nn.{namespace}")):
        yield _entry(f"nn.{namespace}.{name}", namespace, getattr(own, name, value))


def functional_names() -> list[str]:
    """The public functions of torch.nn.functional, which has no __all__: those it defines or documents."""
    return sorted(
        name
        for name, value in vars(torch.nn.functional).items()
        if not name.startswith("_") and _is_function_of_torch(name, value)
    )


def _is_function_of_torch(name: str, value: Any) -> bool:
    own_modules = ("torch.nn.functional", "torch._jit_internal")
    module = getattr(value, "__module__", "") or ""
    is_own = inspect.isfunction(value) and (module in own_modules or module.startswith("pynn."))
    return (is_own or inspect.isbuiltin(value)) and name not in NOT_OPERATIONS


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions and classes a module lists in __all__, or defines."""
    names = getattr(module, "__all__", None)
    for name in names or [n for n in vars(module) if not n.startswith("_")]:
        value = getattr(module, name, None)
        is_own = names is not None or getattr(value, "__module__", "") == module.__name__
        if is_own and callable(value):
            yield name, value


def _entry(name: str, kind: str, value: Any) -> Entry:
    if getattr(_body(value), "__module__", "").startswith("pynn."):
        return Entry(name, kind, PYTHON, location_of(value))
    if kind == "module" and _has_no_forward(value):
        return Entry(name, kind, SHARED, _location(value))
    if kind == "function" or (kind == "module" and not _is_shared_module(value)):
        return Entry(name, kind, CPP, reason="no definition yet")
    names = _names_in(value)
    if doors := names & (CPP_DOORS - {"_nn"} if "_parse_to" in names else CPP_DOORS):
        return Entry(name, kind, CPP, _location(value), f"calls {', '.join(sorted(doors))}")
    return Entry(name, kind, SHARED, _location(value))


def _body(value: Any) -> Any:
    """What runs: of a layer its forward, of a decorated function the innermost one."""
    is_layer = isinstance(value, type) and issubclass(value, torch.nn.Module)
    return inspect.unwrap(value.forward if is_layer else value)


def _has_no_forward(cls: type) -> bool:
    """A base of layers (RNNBase): parameters and checks, which torch keeps in Python."""
    return issubclass(cls, torch.nn.Module) and cls.forward is torch.nn.Module.forward


def _is_shared_module(cls: type) -> bool:
    """The containers, and what is no layer (LinearCrossEntropyOptions)."""
    is_layer = issubclass(cls, torch.nn.Module)
    return not is_layer or cls.__module__ in ("torch.nn.modules.module", "torch.nn.modules.container")


def _names_in(value: Any) -> set[str]:
    """Every name mentioned by a function or a class's methods, and by what they call in their own file."""
    found: set[str] = set()
    waiting, done = [value], []
    while waiting:
        part = waiting.pop()
        done.append(part)
        functions = vars(part).values() if inspect.isclass(part) else [part]
        functions = [getattr(f, "__func__", f) for f in functions]  # static and class methods
        for function in filter(inspect.isfunction, map(inspect.unwrap, filter(callable, functions))):
            names = set(_names_of_code(function.__code__))
            found |= names
            called = [function.__globals__.get(name) for name in names]
            same_file = [c for c in called if getattr(c, "__module__", "") == part.__module__]
            waiting += [c for c in same_file if callable(c) and c not in done and c not in waiting]
    return found


def _names_of_code(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of_code(constant)


def location_of(value: Any) -> str:
    """pynn/modules/linear.py:19, or torch/nn/init.py:70

    Raises:  TypeError, OSError when there is no Python source
    """
    value = inspect.unwrap(value)
    file = Path(inspect.getsourcefile(value) or "")
    for package in (torch, pynn):  # torch may be installed below the folder of pynn
        root = Path(package.__file__).parent.parent
        if file.is_relative_to(root):
            return f"{file.relative_to(root)}:{inspect.getsourcelines(value)[1]}"
    return str(file)


def _location(value: Any) -> str:
    try:
        return location_of(value)
    except (TypeError, OSError):
        return getattr(value, "__module__", None) or ""


def _print_table(entries: list[Entry]) -> None:
    from rich.console import Console  # loaded when a table is printed
    from rich.table import Table

    style = {PYTHON: "green", CPP: "yellow"}
    counts = Counter(entry.status for entry in entries)
    table = Table(title=", ".join(f"{count} {status}" for status, count in counts.items()))
    for column in ("name", "kind", "status", "where it is to be read", "reason"):
        table.add_column(column, no_wrap=column != "reason")
    for entry in entries:
        style_of_row = style.get(entry.status, "")
        table.add_row(entry.name, entry.kind, entry.status, entry.location, entry.reason, style=style_of_row)
    console = Console()
    needed = console.measure(table, options=console.options.update(width=1000)).maximum
    console.width = max(console.width, needed)  # else columns are cut short, and the reasons drop out
    console.print(table)
