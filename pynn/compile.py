"""The way into the compiler; compiler_bridge (and Numba with it) is loaded at the first call."""

from typing import Any


def compile(
    model_or_fn: Any,
    *,
    strict: bool = False,
    eager_random: bool = False,
    freeze: bool = False,
    dynamic: bool | None = None,
    **options: Any,
) -> Any:
    """torch.compile(model_or_fn, backend="pynn"): its graphs become Numba kernels.

    Args:    strict: raise where a graph cannot be compiled, in place of a warning and ATen
             eager_random: draw exactly torch's eager random numbers
             freeze: in inference, compute once what depends on parameters alone: batch norm goes into the weights
                 of the layer before it, weights are packed. A changed parameter is noticed, except through what
                 torch doesn't count as a change either: `p.data.copy_(...)` and numpy arrays over its memory
                 (`compiler_bridge.backend.compile` says more)
             dynamic, options: as torch.compile's
    """
    from compiler_bridge import backend

    return backend.compile(
        model_or_fn, strict=strict, eager_random=eager_random, freeze=freeze, dynamic=dynamic, **options
    )


def explain(model_or_fn: Any, *inputs: Any, **options: Any) -> Any:
    """Compile for these inputs and show every stage as Python: see compiler_bridge.explain."""
    from compiler_bridge import explain as stages

    return stages.explain(model_or_fn, *inputs, **options)
