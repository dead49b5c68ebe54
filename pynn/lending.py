"""Code that knows torch.nn's classes only gets a model whose layers have them, for as long as it runs."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch.fx import GraphModule
from torch.nn import Module

from pynn.convert import convert_layer
from pynn.counterparts import KINDS, class_pairs, function_pairs, torchs_objects
from pynn.install import installed

MARK = "_is_pynns"
"""In each layer's __dict__ meanwhile, where copies of the layer keep it: is it pynn's, or was it torch's before?"""


class LentLayers:
    """The layers in the arguments of calls are torch's, until they are given back.

    Each then has its class again, in the model and in copies of it. Layers that the calls made are pynn's if
    pynn is installed or the model had such layers.
    """

    def __init__(self) -> None:
        self.arguments: list[Any] = []
        self.layers: set[Module] = set()
        self.are_pynns = installed()

    def call(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        self.borrow((args, kwargs))
        args, kwargs = translated((args, kwargs), torchs_objects())
        return function(*args, **kwargs)

    def borrow(self, arguments: Any) -> None:
        is_first = not self.arguments
        self.arguments.append(arguments)
        for layer in modules_in(arguments):
            self.layers.add(layer)
            if convert_layer(layer, inverse=True):
                vars(layer)[MARK] = self.are_pynns = True
            elif is_first and type(layer) in class_pairs():
                vars(layer)[MARK] = False
            _rename_functions(layer, torchs_objects())

    def give_back(self, result: Any) -> None:
        for layer in {*self.layers, *modules_in(self.arguments), *modules_in(result)}:
            is_pynns = vars(layer).pop(MARK, self.are_pynns and type(layer) in class_pairs())
            if is_pynns:
                convert_layer(layer)
            if installed():
                _rename_functions(layer, function_pairs())


def _rename_functions(module: Module, names: dict[Any, Any]) -> None:
    """What the graph of a torch.fx.GraphModule calls."""
    if isinstance(module, GraphModule):
        calls = [node for node in module.graph.nodes if node.op == "call_function" and node.target in names]
        for node in calls:
            node.target = names[node.target]
        if calls:
            module.recompile()


def modules_in(value: Any) -> Iterator[Module]:
    """The modules in lists, dictionaries and the objects of torch.ao and of torch.fx's passes.

    None of a model before its __init__ was called.
    """
    if isinstance(value, Module):
        if "_modules" in vars(value):
            yield from value.modules()
    elif isinstance(value, dict):
        for item in value.values():
            yield from modules_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from modules_in(item)
    elif any(
        cls.__module__.startswith(("torch.ao.", "torch.fx.experimental.")) for cls in type(value).__mro__
    ):
        yield from modules_in(getattr(value, "__dict__", {}))


def translated(value: Any, names: dict[Any, Any]) -> Any:
    """The value, or a copy of it in which the classes and functions are those that the table names.

    Classes stand in lists, sets, dictionaries and in the attributes of torch.ao's configurations. Of two keys that
    become the same the later one counts: what was added to a default.
    """
    if isinstance(value, KINDS):
        return names.get(value, value)
    if isinstance(value, dict):
        items = [(translated(key, names), translated(item, names)) for key, item in value.items()]
        if all(a is b and c is d for (a, c), (b, d) in zip(items, value.items())):
            return value
        changed = copy.copy(value)
        changed.clear()
        changed.update(items)
        return changed
    if isinstance(value, list | tuple | set | frozenset):
        elements = [translated(item, names) for item in value]
        if all(a is b for a, b in zip(elements, value)):
            return value
        return type(value)(*elements) if hasattr(value, "_fields") else type(value)(elements)
    if type(value).__module__.startswith("torch.ao.") and "Config" in type(value).__name__:
        attributes = translated(vars(value), names)
        if attributes is not vars(value):
            value = copy.copy(value)
            vars(value).update(attributes)
    return value
