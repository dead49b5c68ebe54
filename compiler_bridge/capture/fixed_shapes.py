"""`dynamic=False` without its cost at every call.

torch.compile(dynamic=False) switches Dynamo's settings around every call of the compiled function (about 4 us),
though only the compilation of a frame reads them. Here they are switched around that alone.
"""

from __future__ import annotations

from typing import Any

from torch._dynamo import eval_frame


def set_only_while_compiling(compiled: Any) -> Any:
    """`compiled`, what torch.compile(dynamic=False) returned, its settings made while it compiles and only then.

    Where this version of torch is built differently nothing changes.
    """
    context = context_of(compiled)
    hooks = getattr(context, "enter_exit_hooks", None)
    callback: Any = getattr(context, "callback", None)
    convert = getattr(callback, "_torchdynamo_orig_backend", None)
    if not hooks or convert is None or getattr(context, "_dynamic", None) is not False:
        return compiled
    if not hasattr(convert, "_torchdynamo_orig_backend") or not hasattr(eval_frame, "_stance"):
        return compiled
    setting, *others = hooks  # the first is made of `dynamic`
    callback._torchdynamo_orig_backend = CompileWith(convert, setting)
    context.enter_exit_hooks = [under_a_stance(setting), *others]
    return compiled


def under_a_stance(setting: Any) -> Any:
    """torch.compiler.set_stance puts another compiler in place of ours: then the setting is made as before."""

    def enter() -> Any:
        stance = eval_frame._stance
        return nothing if stance.stance == "default" and stance.backend is None else setting()

    enter.has_work_in_default_stance = False  # type: ignore[attr-defined]
    return enter


def has_work_in_default_stance(hook: Any) -> bool:
    """Whether what Dynamo calls on entering a compiled function does anything in the default stance."""
    return getattr(hook, "has_work_in_default_stance", True)


def nothing() -> None:
    pass


def context_of(compiled: Any) -> Any:
    """Dynamo's context behind a compiled module or function, or None."""
    context = getattr(compiled, "dynamo_ctx", None)
    if context is not None:
        return context
    names: Any = getattr(getattr(compiled, "__code__", None), "co_freevars", ())
    cells: dict[str, Any] = dict(zip(names, getattr(compiled, "__closure__", None) or ()))
    return cells["self"].cell_contents if "self" in cells else None


class CompileWith:
    """Dynamo's compiler of frames, with a setting made while it works.

    convert: the compiler, called with a frame
    setting: makes the setting and returns what takes it back
    """

    def __init__(self, convert: Any, setting: Any):
        self._torchdynamo_orig_backend = (
            convert._torchdynamo_orig_backend
        )  # Dynamo counts the links of this chain
        self._convert = convert
        self._setting = setting

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        take_back = self._setting()
        try:
            return self._convert(*arguments, **options)
        finally:
            take_back()

    def _clone_with_backend(self, backend: Any) -> CompileWith:
        return CompileWith(self._convert._clone_with_backend(backend), self._setting)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_convert":
            raise AttributeError(name)
        return getattr(self._convert, name)
