"""FX graph of ATen operations -> loop IR."""

from compiler_bridge.lower import (  # noqa: F401  (each registers its lowerings)
    contractions,
    creation,
    indexing,
    pointwise,
    reductions,
    views,
)
from compiler_bridge.lower.graph import lower_graph

__all__ = ["lower_graph"]
