"""How pynn's functions show themselves to what takes functions apart: tensor subclasses, torch.fx and TorchScript.

Each of these knows torch's functions by name or identity, and treats pynn's as the ones they replace.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._jit_internal import boolean_dispatched
from torch.jit import _builtins


def has_override(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an argument's __torch_function__, or a TorchFunctionMode, takes over the call."""
    has_torch_function = torch._C._has_torch_function  # type: ignore[attr-defined]
    return has_torch_function(args) or (bool(kwargs) and has_torch_function(tuple(kwargs.values())))


def is_taken_over(tensors: Sequence[Any]) -> bool:
    """Whether one of these is of a tensor subclass that answers calls itself (modes do not count)."""
    own = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    silent = torch._C._disabled_torch_function_impl  # type: ignore[attr-defined]
    return any(
        isinstance(x, torch.Tensor) and type(x) not in own and type(x).__torch_function__ is not silent
        for x in tensors
    )


def call_override(function: Callable, torch_function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Let __torch_function__ answer a call of a pynn function.

    It is told torch's function, that tables are keyed by. While pynn is installed the name torch.nn.functional.f
    holds the pynn function, and it is told that one; except torch's own subclasses (torch.fx.Proxy, nested and
    distributed tensors), which were written against torch's. Those in torch.nn see the name changed, too.
    """
    if inspect.isfunction(torch_function):
        args, kwargs = as_torch_passes_on(torch_function, args, kwargs)
    relevant = (*args, *kwargs.values())
    overloaded = torch.overrides._get_overloaded_args(relevant)
    if any(type(x).__module__.startswith("torch.") and not _is_of_nn(x) for x in overloaded):
        told = torch_function
    else:
        told = function if is_installed(function) else torch_function
    return torch.overrides.handle_torch_function(told, relevant, *args, **kwargs)


def _is_of_nn(x: Any) -> bool:
    return type(x).__module__.startswith("torch.nn.")


def as_torch_passes_on(
    torch_function: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Arguments as torch's Python functions hand them to __torch_function__.

    What has a default is a keyword argument and always there, the rest is positional, however it was called.
    Of pooling, one of two functions as return_indices says, the signature says nothing.
    """
    if torch_function in boolean_dispatched:
        return args, kwargs
    bound = _signature(torch_function).bind(*args, **kwargs)
    bound.apply_defaults()
    optional = {
        name
        for name, parameter in _signature(torch_function).parameters.items()
        if parameter.default is not inspect._empty
    }
    passed = bound.arguments
    return (
        tuple(value for name, value in passed.items() if name not in optional),
        {name: value for name, value in passed.items() if name in optional},
    )


_signature = functools.cache(inspect.signature)


def is_installed(function: Callable) -> bool:
    """Whether torch.nn.functional itself holds this pynn function."""
    return vars(torch.nn.functional).get(function.__name__) is function


def scripts_as(function: Callable, torch_function: Callable) -> None:
    """TorchScript compiles torch's function wherever it meets this one."""
    if torch_function in boolean_dispatched:  # pooling: one of two functions, as return_indices says
        boolean_dispatched[function] = boolean_dispatched[torch_function]
    elif (operation := _builtins._find_builtin(torch_function)) is not None:
        _builtins._register_builtin(function, operation)
    elif inspect.isfunction(torch_function):
        function.__prepare_scriptable__ = lambda: torch_function  # type: ignore[attr-defined]
