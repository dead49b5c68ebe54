"""Swap the torch.nn layers of a built model for pynn's, in place, sharing every parameter.

A pynn class derives from the torch class it replaces and keeps its attributes, so a layer changes sides by
changing its class: parameters, buffers, hooks, names and training mode stay untouched.
"""

import functools
import types

from torch.nn import Module
from torch.nn.utils.parametrize import is_parametrized

from pynn.counterparts import class_pairs, function_pairs, torchs_objects


def convert(model: Module, *, inverse: bool = False) -> Module:
    """Make every torch.nn layer in the model (itself included) the pynn layer of the same name.

    Args:    inverse: the other way, back to torch.nn
    Returns: the same model. Left alone are layers without a pynn definition, and subclasses of a layer with
             a forward of their own. A subclass that inherits its layer's forward gets the pynn layer beneath
             it; parametrized layers stay parametrized
    Thread:  do not run the model meanwhile
    """
    for module in model.modules():
        convert_layer(module, inverse=inverse)
    return model


def convert_layer(layer: Module, *, inverse: bool = False) -> bool:
    """The same for one layer, without those inside it; whether anything was changed."""
    parametrized = is_parametrized(layer)
    cls = type(layer).__bases__[0] if parametrized else type(layer)
    new_class = counterpart(cls, inverse)
    if new_class is None:
        return False
    layer.__class__ = with_new_bases(type(layer), (new_class,)) if parametrized else new_class
    functions = torchs_objects() if inverse else function_pairs()
    for name, value in vars(layer).items():  # TransformerEncoderLayer keeps its activation function
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
            vars(layer)[name] = functions.get(value, value)
    return True


@functools.cache
def counterpart(cls: type[Module], inverse: bool) -> type[Module] | None:
    """The class to change to, or None to leave the module as it is."""
    pairs = class_pairs()
    if inverse:
        if "_pynn_original" in vars(cls):
            return cls._pynn_original
        pairs = {own: original for original, own in pairs.items()}
        return pairs.get(cls)
    layer = inherited_layer(cls, pairs)
    if layer is None:
        return None
    return pairs[layer] if layer is cls else with_layer_beneath(cls, pairs[layer])


def inherited_layer(cls: type[Module], pairs: dict[type[Module], type[Module]]) -> type[Module] | None:
    """The torch layer that cls takes its forward from, if it has a pynn definition."""
    replacements = set(pairs.values())
    for base in cls.__mro__:
        if base in pairs:
            return base
        if base in replacements or "forward" in vars(base):
            return None
    return None


def with_layer_beneath(cls: type[Module], layer: type[Module]) -> type[Module]:
    """A subclass of cls of the same name, whose inherited methods come from the pynn layer.

    The method resolution order is cls, layer, torch's layer: what cls overrides stays overridden.
    """

    def reduce_ex(self, protocol):
        return restore, (cls,), super(replacement, self).__reduce_ex__(protocol)[2]

    attributes = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": reduce_ex,
        "_pynn_original": cls,
    }
    replacement = type(cls.__name__, (cls, layer), attributes)
    return replacement


def restore(cls: type[Module]) -> Module:
    """An empty instance for pickle and copy: the class made by with_layer_beneath has no importable name."""
    new_class = counterpart(cls, False)
    return new_class.__new__(new_class)


def with_new_bases(cls: type, bases: tuple[type, ...]) -> type:
    """A class of the same text over others, such as the one torch.nn.utils.parametrize made for a single module."""
    attributes = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, bases, attributes)
