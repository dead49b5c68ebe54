"""Rows of our own, for what torch's tables lack: in-place forms, layers without an entry, values and strides
at the edges. A file here lists its rows in `ROWS` and is found by itself; a layer that torch's tables have needs
none.
"""

import importlib
import pkgutil

from parity_tests.cases import Row


def own_rows() -> list[Row]:
    """The rows of every file of this folder."""
    found = []
    for entry in pkgutil.iter_modules(__path__):
        found += getattr(importlib.import_module(f"{__name__}.{entry.name}"), "ROWS", [])
    return found
