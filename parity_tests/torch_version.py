"""What the tests ask where the installed torch is older than the one that requirements.txt pins.

pynn has the names, arguments and words of the pinned torch; an older one may have fewer, and other words.
"""

import inspect
from typing import Any

import torch

IS_OLDER = torch.__version__ < (2, 13)


def words(error: Exception) -> str:
    """The error's message; on an older torch nothing, so that its type alone counts."""
    return "" if IS_OLDER else str(error)


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults; annotations may say the same in other words."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def assert_torchs_parameters(own: Any, theirs: Any) -> None:
    """The same parameters in the same order; on an older torch others besides, which have defaults."""
    found, expected = parameters(own), parameters(theirs)
    if IS_OLDER:
        names = [name for name, *_ in expected]
        added = [p for p in found if p[0] not in names]
        assert all(default is not inspect.Parameter.empty for _, _, default in added), added
        found = [p for p in found if p not in added]
    assert found == expected


def shown(layer: torch.nn.Module) -> str:
    """repr; without what normalisations say of their bias where torch does not say it."""
    text = repr(layer)
    return text.replace(", bias=True", "").replace(", bias=False", "") if IS_OLDER else text
