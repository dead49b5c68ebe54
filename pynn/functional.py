"""torch.nn.functional: every function defined here, and torch's own for the names with no definition yet.

The functions live in `pynn/modules/<family>.py`; decorating one with `traced_as` enters it here, and so does
the family's `__all__` for a function that torch lacks.
"""

import types
from typing import Any

import torch.nn.functional as _torch_functional

# importing these fills DEFINITIONS and PUBLIC
from pynn import arithmetic as _arithmetic  # noqa: F401
from pynn import grad as grad  # torch.nn.functional has it as well
from pynn import modules as _modules  # noqa: F401
from pynn.definitions import PUBLIC as _PUBLIC

globals().update(_PUBLIC)

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """torch's own function for a name with no definition here, and its helpers (_Reduction.get_enum)."""
    value = getattr(_torch_functional, name)
    is_imported = isinstance(value, types.ModuleType) and not name.startswith("_")
    if name.startswith("__") or is_imported:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})
