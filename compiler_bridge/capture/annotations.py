"""Calls without Dynamo's note for the profiler.

Dynamo writes two calls into what it compiles, before and after it gathers a graph's inputs, so that a profile can
show how long that took ("Pregraph bytecode"). Each goes through several Python functions at every call, about 2 us
together, whether a profiler runs or not. Whether they are written is a setting read while a frame is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._dynamo import config

from compiler_bridge.capture.fixed_shapes import CompileWith, context_of

SETTING = "record_runtime_overhead"


def without_annotations(compiled: Any) -> Any:
    """`compiled`, what torch.compile returned, without the notes. Where this torch is built differently: as it is."""
    callback: Any = getattr(context_of(compiled), "callback", None)
    convert = getattr(callback, "_torchdynamo_orig_backend", None)
    if hasattr(convert, "_torchdynamo_orig_backend") and hasattr(config, SETTING):
        callback._torchdynamo_orig_backend = CompileWith(convert, switch_off)
    return compiled


def switch_off() -> Callable[[], None]:
    """Make the setting; what is returned takes it back."""
    patch = config.patch({SETTING: False})
    patch.__enter__()

    def take_back() -> None:
        patch.__exit__(None, None, None)

    return take_back
