"""FX graph of ATen operations -> loop IR."""

# pyright: reportUnusedImport=false

from compiler_bridge.lower import (  # noqa: F401  (each registers its lowerings)
    arithmetic,
    assertions,
    average_pooling,
    concatenation,
    contractions,
    convolutions,
    creation,
    fold,
    gathers,
    interpolation,
    max_pooling,
    padding,
    placement,
    pointwise,
    reductions,
    scans,
    scatters,
    views,
)
from compiler_bridge.lower.graph import lower_graph

__all__ = ["lower_graph"]
