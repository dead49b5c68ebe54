"""The way in: `torch.compile(model, backend="pynn")`, and `compile(model)`, the same with options by name."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import fx

from compiler_bridge import settings
from compiler_bridge.ahead import likely_kernels
from compiler_bridge.capture.annotations import without_annotations
from compiler_bridge.capture.capture import BoxedCall, Kind, Options, boxed, capture
from compiler_bridge.capture.fixed_shapes import set_only_while_compiling
from compiler_bridge.compile_pool import compile_ahead
from compiler_bridge.errors import BridgeError, FallbackWarning

_warned: set[str] = set()


def pynn_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """A Dynamo backend (`torch.compile(..., backend="pynn")`): the graph as Numba kernels.

    Args:    mode: accepted for torch.compile's sake; "default" is the only one
             options: any of strict, eager_random, freeze (see `capture.Options`)
    Raises:  ValueError for another mode or option; with strict=True whatever keeps a graph from compiling
    """
    if mode not in (None, "default"):
        raise ValueError(f'mode={mode!r}; required: None or "default"')
    chosen = make_options(options or {})
    compile_ahead(lambda: likely_kernels(gm, example_inputs))
    with collection_postponed():
        return capture(gm, example_inputs, chosen, compile_or_fall_back)


@contextmanager
def collection_postponed() -> Generator[None, None, None]:
    """Without garbage collection: tracing and compiling make many objects that stay, and each full collection
    looks at all of them and at torch's (0.2 s a time)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_options(chosen: Mapping[str, Any]) -> Options:
    """Options by name; PYNN_EAGER_RANDOM gives the default of eager_random.

    Raises:  ValueError for an unknown name
    """
    known = [field.name for field in fields(Options)]
    for name in chosen:
        if name not in known:
            raise ValueError(f"option {name!r}; required: one of {', '.join(known)}")
    return Options(**{"eager_random": settings.EAGER_RANDOM, **chosen})


def compile(
    model: Any,
    *,
    strict: bool = False,
    eager_random: bool = False,
    freeze: bool = False,
    dynamic: bool | None = None,
    **torch_compile_arguments: Any,
) -> Any:
    """torch.compile(model) with this backend.

    Args:  strict: raise where a graph can't be compiled (default: one warning, ATen runs it)
           eager_random: draw exactly torch's eager random numbers, for comparison with eager runs
           freeze: in inference, compute once what depends on parameters and buffers alone: batch norm goes into
               the weights, weights are packed. Every call looks whether one has changed, and then does it again:
               after optimizer steps (also torch's fused ones), load_state_dict, in-place operations, assignment of
               a parameter or to its `.data`, C++'s batch norm in training mode. Not noticed are writes that torch
               doesn't count, `p.data.copy_(...)` or through a numpy array: follow them with
               `with torch.no_grad(): p.mul_(1)`. Takes memory for the packed weights beside the model's own.
               Graphs that need gradients are compiled as without it.
           dynamic, torch_compile_arguments: as in torch.compile (fullgraph, ...)
    """
    chosen: dict[str, Any] = {
        "strict": strict,
        "eager_random": eager_random or settings.EAGER_RANDOM,
        "freeze": freeze,
    }
    torch_compile: Any = torch.compile
    compiled = torch_compile(
        model, backend=pynn_backend, options=chosen, dynamic=dynamic, **torch_compile_arguments
    )
    compiled = set_only_while_compiling(compiled) if dynamic is False else compiled
    compiled = without_annotations(compiled)
    try:
        from compiler_bridge.capture.lean_entry import with_lean_entry
    except (ImportError, AttributeError):  # a torch that is built differently
        return compiled
    return with_lean_entry(compiled)


def compile_or_fall_back(
    gm: fx.GraphModule, example_inputs: Sequence[Any], kind: Kind, options: Options
) -> BoxedCall:
    """The graph as kernels; if that fails and strictness isn't asked for, as ATen calls with one warning."""
    try:
        from compiler_bridge.pipeline import compile_graph

        with collection_postponed():
            return boxed(compile_graph(gm, example_inputs, kind, options))
    except Exception as error:
        if options.strict:
            raise
        if settings.DEBUG >= 2 and not isinstance(error, BridgeError):
            raise
        _warn_of_fallback(kind, error)
        return boxed(gm)


def _warn_of_fallback(kind: Kind, error: Exception) -> None:
    reason = str(error) if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"
    if reason not in _warned:  # forward and backward may fail for one reason
        _warned.add(reason)
        message = f"pynn: the {kind} graph runs through ATen, not through kernels: {reason}"
        warnings.warn(message, FallbackWarning, stacklevel=2)
