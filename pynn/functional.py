"""torch.nn.functional: every function defined here, and torch's own for the names with no definition yet.

The functions live in `pynn/modules/<family>.py`; decorating one with `traced_as` enters it here.
"""

import types
from typing import Any

import torch.nn.functional as _torch_functional

# importing these fills DEFINITIONS and PUBLIC
from pynn import arithmetic as _arithmetic  # noqa: F401
from pynn import modules as _modules  # noqa: F401
from pynn.definitions import PUBLIC as _PUBLIC

DEFINED: set[str] = {name for name in _PUBLIC if hasattr(_torch_functional, name)}
"""The names of torch.nn.functional that run as Python from pynn's definitions."""

globals().update({name: _PUBLIC[name] for name in DEFINED})

__all__ = sorted(DEFINED)


def __getattr__(name: str) -> Any:
    """torch's own function for a name with no definition here."""
    value = getattr(_torch_functional, name)
    if name.startswith("__") or isinstance(value, types.ModuleType):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})
