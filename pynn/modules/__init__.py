"""torch.nn.modules, family by family: the file here if there is one, else torch's own.

A new family file is found by itself: it lists its functions and classes in `__all__`. A class that replaces
one of torch's keeps its name; classes and functions that torch lacks become public under their own.
"""

import importlib
import inspect
import sys

import torch.nn.modules as _torch_modules

from pynn.definitions import PUBLIC
from pynn.sharing import share_helpers, share_names, share_submodules, written_submodules

share_submodules(__name__, _torch_modules)

_new_classes = []
for _family in written_submodules(__name__):
    _module = importlib.import_module(f"{__name__}.{_family}")
    for _name in getattr(_module, "__all__", ()):
        _value = getattr(_module, _name)
        if _name in _torch_modules.__all__:
            globals()[_name] = _value
        elif _value.__module__ != _module.__name__:
            continue  # shared with torch's family
        elif inspect.isclass(_value):
            globals()[_name] = _value
            _new_classes.append(_name)
        else:
            PUBLIC.setdefault(_name, _value)

_torch_names = share_names(__name__, _torch_modules)
__all__ = [*_torch_names, *_new_classes]

# A class that lives in a file of its own is found in its torch family as well, and a family that has
# definitions for a part of its names only is completed by torch's.
for _name in _torch_names:
    _family = getattr(_torch_modules, _name).__module__.removeprefix(_torch_modules.__name__ + ".")
    _module = sys.modules.get(f"{__name__}.{_family}")
    if _module is not None and _name not in vars(_module):
        setattr(_module, _name, globals()[_name])

for _family in written_submodules(__name__):
    if hasattr(_torch_modules, _family):
        share_helpers(f"{__name__}.{_family}", getattr(_torch_modules, _family))
