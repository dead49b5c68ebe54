"""torch.nn.modules, family by family: the file here if there is one, else torch's own.

A new family file is found by itself: it lists its functions and classes in `__all__`, and each class keeps
the name of the torch class it replaces.
"""

import importlib
import sys

import torch.nn.modules as _torch_modules

from pynn.sharing import share_names, share_submodules, written_submodules

share_submodules(__name__, _torch_modules)

for _family in written_submodules(__name__):
    _module = importlib.import_module(f"{__name__}.{_family}")
    for _name in getattr(_module, "__all__", ()):
        if _name in _torch_modules.__all__:
            globals()[_name] = getattr(_module, _name)

__all__ = share_names(__name__, _torch_modules)

# A class that lives in a file of its own is found in its torch family as well, and a family that has
# definitions for a part of its names only is completed by torch's.
for _name in __all__:
    _family = getattr(_torch_modules, _name).__module__.removeprefix(_torch_modules.__name__ + ".")
    _module = sys.modules.get(f"{__name__}.{_family}")
    if _module is not None and _name not in vars(_module):
        setattr(_module, _name, globals()[_name])
