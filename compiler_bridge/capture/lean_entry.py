"""Entering a compiled function or module without what has nothing to do.

torch.compile returns a wrapper that, at every call, saves and restores all that compiling or a torch.compiler stance
may change, and for a module goes through Module.__call__ besides: some 7 us of Python, twice what a small kernel
takes. In the state programs are nearly always in (the default stance, no tracing or exporting, no functorch
transform, no hooks) there is nothing to save; here that state is looked at, and Dynamo's frame evaluation switched
on and off. In any other state, and with `fullgraph=True`, the wrapper runs.

Source:  compile_wrapper and OptimizedModule in torch/_dynamo/eval_frame.py, whose behaviour it keeps
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import _guards, compiler
from torch._dynamo import eval_frame
from torch.compiler import is_dynamo_compiling
from torch.fx import _symbolic_trace
from torch.nn.modules.module import _has_any_global_hook

from compiler_bridge.capture.fixed_shapes import context_of, has_work_in_default_stance


def with_lean_entry(compiled: Any) -> Any:
    """`compiled`, what torch.compile returned, entered the short way; as it was where this torch is otherwise."""
    context = context_of(compiled)
    if not is_known(context):
        return compiled
    if type(compiled) is eval_frame.OptimizedModule:
        compiled.__class__ = OptimizedModule
        compiled._enter_lean()
        return compiled
    if isinstance(compiled, torch.nn.Module):
        return compiled
    return lean_call(compiled, context, compiled)


def is_known(context: Any) -> bool:
    """Whether Dynamo's context of a compiled function, and Dynamo itself, are what this file was written for."""
    return (
        callable(getattr(context, "callback", None))
        and hasattr(context, "enter_exit_hooks")
        and not getattr(context, "fullgraph", True)
        and getattr(context, "error_on_graph_break", None) is None
        and not getattr(context, "export", True)
        and all(hasattr(eval_frame, name) for name in ("_stance", "_in_optimized_module", "skip_code"))
        and hasattr(compiler, "_is_exporting_flag")
        and hasattr(_symbolic_trace, "is_fx_symbolic_tracing")
        and hasattr(_guards, "_TLS")
        and is_default_stance(eval_frame._stance)
    )


def is_default_stance(stance: Any) -> bool:
    return (
        stance.stance == "default"
        and stance.backend is None
        and not getattr(stance, "skip_guard_eval_unsafe", False)
    )


def lean_call(wrapper: Callable[..., Any], context: Any, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """The same as `wrapper`, which torch.compile made of a function; `otherwise` is called in any unusual state."""
    function: Any = wrapper._torchdynamo_orig_callable  # type: ignore[attr-defined]
    callback = context.callback
    hooks = [hook for hook in context.enter_exit_hooks if has_work_in_default_stance(hook)]
    default_stance = eval_frame._stance
    tracing = _guards._TLS
    is_jit_tracing, in_transform = torch._C._is_tracing, torch._C._are_functorch_transforms_active
    is_fx_tracing = _symbolic_trace.is_fx_symbolic_tracing
    is_eager_when_nested = getattr(eval_frame, "_is_eager_on_nested_compile", None)  # from torch 2.14 on
    set_eval_frame = eval_frame.set_eval_frame
    set_region = getattr(eval_frame, "set_eval_frame_isolate_recompiles_id", nothing_to_set)
    region = getattr(context, "_isolate_recompiles_id", -1)

    @functools.wraps(wrapper)
    def call(*args: Any, **kwargs: Any) -> Any:
        if (
            eval_frame._stance is not default_stance
            or compiler._is_exporting_flag
            or is_fx_tracing()
            or is_jit_tracing()
            or in_transform()
            or getattr(tracing, "tracing_context", None) is not None
            or (is_eager_when_nested is not None and is_eager_when_nested())
        ):
            return otherwise(*args, **kwargs)
        prior = set_eval_frame(None)
        try:
            take_back = [enter() for enter in hooks]
            prior_region = set_region(region)
            try:
                set_eval_frame(callback)
                return function(*args, **kwargs)
            except BaseException as error:
                set_eval_frame(None)
                torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(0)  # pyright: ignore
                if isinstance(error, OF_DYNAMO):
                    raise_shortened(error)
                raise
            finally:
                set_eval_frame(None)
                set_region(prior_region)
                for undo in take_back:
                    undo()
        finally:
            set_eval_frame(prior)

    call._torchdynamo_wrapper_id = id(call)  # type: ignore[attr-defined]
    call.dynamo_ctx = context  # type: ignore[attr-defined]
    eval_frame.skip_code(call.__code__)  # pyright: ignore
    return call


def nothing_to_set(region: int) -> int:
    """Older versions of torch (2.11) have no regions."""
    return region


OF_DYNAMO = (
    eval_frame.ShortenTraceback,
    eval_frame.Unsupported,
    eval_frame.UncapturedHigherOrderOpError,
    eval_frame.UserError,
)


def raise_shortened(error: Exception) -> None:
    """Raise what went wrong in compiling as torch.compile would, without Dynamo's own frames; not where it doesn't."""
    if isinstance(error, eval_frame.ShortenTraceback):
        raise error.remove_dynamo_frames() from None
    if eval_frame.config.verbose:
        return
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause.__cause__.with_traceback(None)
        cause = cause.__cause__
    raise error.with_traceback(None) from error.__cause__


class OptimizedModule(eval_frame.OptimizedModule):
    """What torch.compile makes of a module, entered the short way where it has no hooks of its own."""

    def _initialize(self) -> None:
        super()._initialize()
        self._enter_lean()

    def _enter_lean(self) -> None:
        own, call = self.__dict__, None
        if is_known(self.dynamo_ctx) and hasattr(own["forward"], "_torchdynamo_orig_callable"):
            otherwise = functools.partial(eval_frame.OptimizedModule.__call__, self)
            call = lean_call(own["forward"], self.dynamo_ctx, otherwise)
        own["_lean"] = (own["forward"], call)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_lean", None)
        return state

    def __bool__(self) -> bool:
        """As the module's; by torch's it is len(), which most modules haven't (Dynamo asks in torch 2.11)."""
        return bool(self._modules["_orig_mod"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():  # a part of a larger function, which is compiled as a whole
            return self._modules["_orig_mod"](*args, **kwargs)  # type: ignore[misc]
        own = self.__dict__
        forward, call = own["_lean"]
        if (
            call is None
            or own["forward"] is not forward
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or _has_any_global_hook()
        ):
            return super().__call__(*args, **kwargs)
        outer = eval_frame._in_optimized_module
        eval_frame._in_optimized_module = True
        try:
            return call(*args, **kwargs)
        finally:
            eval_frame._in_optimized_module = outer


eval_frame.skip_code(OptimizedModule.__call__.__code__)
