"""Every environment variable the package reads, in one place.

Values are read once, at import. Tests and `pynn.explain` may assign to the module's attributes.
"""

from __future__ import annotations

import os
from pathlib import Path

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


def _flag(name: str, default: bool) -> bool:
    """A yes/no variable.

    Raises:  ValueError when the value is neither one of 1/true/yes/on nor 0/false/no/off
    """
    text = os.environ.get(name)
    if text is None:
        return default
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{name}={text!r}: expected one of 1/true/yes/on or 0/false/no/off")


def _integer(name: str, default: int) -> int:
    """An integer variable.

    Raises:  ValueError when the value is not an integer
    """
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: expected an integer") from None


def _default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "pynn"


INTERPRET: bool = _flag("PYNN_INTERPRET", False)
"""PYNN_INTERPRET=1: kernels run as plain Python over numpy; nothing is compiled."""

INTERPRET_IR: bool = _flag("PYNN_INTERPRET_IR", False)
"""PYNN_INTERPRET_IR=1: graphs stop at the fused loop IR, which its interpreter runs."""

LANES: int = _integer("PYNN_LANES", 0)
"""PYNN_LANES=4, 8 or 16: float32 lanes of a register, in place of what the processor offers (0)."""

DEBUG: int = _integer("PYNN_DEBUG", 0)
"""PYNN_DEBUG=0..6: checks between stages, and how much of them is printed (see ARCHITECTURE.md)."""

CACHE_DIR: Path = Path(os.environ.get("PYNN_CACHE_DIR") or _default_cache_dir())
"""PYNN_CACHE_DIR: where generated modules and machine code are kept."""

EAGER_RANDOM: bool = _flag("PYNN_EAGER_RANDOM", False)
"""PYNN_EAGER_RANDOM=1: compiled graphs draw exactly the random numbers torch's eager mode would."""
