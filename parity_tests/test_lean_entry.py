"""A compiled function or module is entered the short way, and nobody can tell (`capture/lean_entry.py`).

Every row does the same with what `torch.compile(..., backend="pynn")` returns, which torch's own wrapper enters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import eval_frame
from torch.nn.modules import module as torch_module

import pynn
from compiler_bridge.backend import pynn_backend
from compiler_bridge.capture import lean_entry


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        y = self.linear(x).tanh()
        return y * 2 if twice else y


class Raises(Small):
    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        y = super().forward(x)
        torch._dynamo.graph_break()
        if twice:
            raise KeyError("twice")
        return y


def function(x: Tensor, twice: bool = False) -> Tensor:
    return x.sin() * 2 if twice else x.sin()


def by_torch(model: Any) -> Any:
    return torch.compile(model, backend=pynn_backend)


def by_pynn(model: Any) -> Any:
    return pynn.compile(model)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


X = torch.linspace(-1, 1, 12).reshape(2, 6)


# ------------------------------------------------------------------- what is done with the compiled and the original
def call(compiled: Any, model: Any) -> Any:
    return [compiled(X), compiled(X), compiled(X, twice=True), compiled(torch.ones(5, 6))]


def train(compiled: Any, model: Any) -> Any:
    gradients = []
    for _ in range(3):
        x = X.clone().requires_grad_()
        compiled(x).sum().backward()
        gradients.append(x.grad)
    return gradients


def wrong_argument(compiled: Any, model: Any) -> Any:
    compiled(X)
    with pytest.raises(TypeError) as info:
        compiled(X, thrice=True)
    return type(info.value), str(info.value)


def wrong_shape(compiled: Any, model: Any) -> Any:
    compiled(X)
    results = []
    for wrong in (torch.ones(2, 6, dtype=torch.int32), "text", None):
        try:
            results.append(compiled(wrong))
        except Exception as error:  # the kind is what is compared
            results.append((type(error), error.__cause__ is None))
    return results


def user_error(compiled: Any, model: Any) -> Any:
    compiled(X)
    try:
        return compiled(X, twice=True)
    except KeyError as error:
        return str(error), torch._C._functorch.get_dynamic_layer_stack_depth(), compiled(X)


def in_a_larger_one(compiled: Any, model: Any) -> Any:
    outer = torch.compile(lambda x: compiled(x) + compiled(x * 2), backend="eager", fullgraph=True)
    return [outer(X), outer(X)]


def after_a_graph_break(compiled: Any, model: Any) -> Any:
    def outer(x: Tensor) -> Tensor:
        y = x.cos()
        torch._dynamo.graph_break()
        return compiled(y)

    both = torch.compile(outer, backend="eager")
    return [both(X), both(X), compiled(X)]


def exported(compiled: Any, model: Any) -> Any:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = compiled if isinstance(compiled, nn.Module) else None

        def forward(self, x: Tensor) -> Tensor:
            return compiled(x) if self.inner is None else self.inner(x)

    compiled(X)
    return [torch.export.export(Outer(), (X,), strict=strict).module()(X) for strict in (False, True)]


def copied(compiled: Any, model: Any) -> Any:
    compiled(X)
    twin = copy.deepcopy(compiled)
    return [type(twin) is type(compiled), twin(X), twin(X)]


def by_name(compiled: Any, model: Any) -> Any:
    names = ("__name__", "_is_torch_compile")
    return (
        [getattr(compiled, name, None) for name in names],
        compiled.get_compiler_config(),
        type(compiled).__name__,
    )


def compiled_again(compiled: Any, model: Any) -> Any:
    compiled(X)
    again = torch.compile(compiled, backend="eager")
    return again(X), again(X)


def under_vmap(compiled: Any, model: Any) -> Any:
    compiled(X)
    return torch.func.vmap(compiled)(torch.stack([X, X + 1]))


def jit_traced(compiled: Any, model: Any) -> Any:
    compiled(X)
    with pytest.raises(RuntimeError) as info:
        torch.jit.trace(lambda x: compiled(x), (X,))
    return str(info.value)


def fx_traced(compiled: Any, model: Any) -> Any:
    compiled(X)
    with pytest.raises(Exception) as info:
        torch.fx.symbolic_trace(lambda x: compiled(x))
    return type(info.value), str(info.value)


def disabled(compiled: Any, model: Any) -> Any:
    compiled(X)
    return torch.compiler.disable(compiled)(X), torch.compile(lambda x: x + 1, disable=True)(X)


def stance(name: str) -> Callable[[Any, Any], Any]:
    def work(compiled: Any, model: Any) -> Any:
        first = compiled(X)
        with torch.compiler.set_stance(name):
            results = [compiled(X)]
            try:
                results.append(compiled(X.double() if isinstance(compiled, type(function)) else X[:1]))
            except RuntimeError as error:
                results.append(type(error).__name__)
        return first, results, compiled(X)

    return work


EVERYTHING = {
    "call": call,
    "train": train,
    "wrong argument": wrong_argument,
    "wrong shape": wrong_shape,
    "user's error": user_error,
    "in a larger one": in_a_larger_one,
    "after a graph break": after_a_graph_break,
    "exported": exported,
    "copied": copied,
    "by name": by_name,
    "compiled again": compiled_again,
    "under vmap": under_vmap,
    "jit traced": jit_traced,
    "fx traced": fx_traced,
    "disabled": disabled,
    "force_eager": stance("force_eager"),
    "eager_on_recompile": stance("eager_on_recompile"),
    "fail_on_recompile": stance("fail_on_recompile"),
}


# ------------------------------------------------------------------------------------------------ modules alone
@contextmanager
def removed(handle: Any):
    try:
        yield
    finally:
        handle.remove()


def hooks(register: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def work(compiled: Any, model: Any) -> Any:
        seen: list[Any] = []
        first = compiled(X)
        with removed(register(compiled, lambda *arguments: seen.append(len(arguments)))):
            for _ in range(2):
                x = X.clone().requires_grad_()
                compiled(x).sum().backward()
        return first, seen, compiled(X)

    return work


def assigned_forward(compiled: Any, model: Any) -> Any:
    first = compiled(X)
    compiled.forward = lambda x: x * 3
    return first, compiled(X)


def eval_and_train(compiled: Any, model: Any) -> Any:
    compiled(X)
    compiled.eval()
    return model.training, compiled.training, compiled(X), compiled.train().training


def state_dict(compiled: Any, model: Any) -> Any:
    return (
        list(compiled.state_dict()),
        repr(compiled),
        compiled._orig_mod is model,
        isinstance(compiled, nn.Module),
    )


def flag_of_dynamo(compiled: Any, model: Any) -> Any:
    seen = []
    model.register_forward_hook(lambda *_: seen.append(eval_frame._is_in_optimized_module()))
    compiled(X)
    compiled(X)
    return seen, eval_frame._is_in_optimized_module()


OF_MODULES = {
    "forward hook": hooks(lambda module, hook: module.register_forward_hook(hook)),
    "forward pre-hook": hooks(lambda module, hook: module.register_forward_pre_hook(hook)),
    "backward hook": hooks(lambda module, hook: module.register_full_backward_hook(hook)),
    "backward pre-hook": hooks(lambda module, hook: module.register_full_backward_pre_hook(hook)),
    "global hook": hooks(lambda module, hook: torch_module.register_module_forward_hook(hook)),
    "assigned forward": assigned_forward,
    "eval and train": eval_and_train,
    "state_dict": state_dict,
    "flag of Dynamo": flag_of_dynamo,
}

ROWS = [("function", name) for name in EVERYTHING if name != "copied"]
ROWS += [("module", name) for name in (*EVERYTHING, *OF_MODULES)]
ROWS += [("raises", "user's error"), ("layer", "call"), ("layer", "train"), ("layer", "in a larger one")]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind,name", ROWS, ids=lambda value: value.replace(" ", "_"))
def test_as_torch_compile(kind: str, name: str):
    work = (EVERYTHING | OF_MODULES)[name]
    results = []
    for compile in (by_torch, by_pynn):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model: Any = {"function": lambda: function, "module": Small, "raises": Raises, "layer": Tanh}[kind]()
        results.append(work(compile(model), model))
    assert_same(results[1], results[0])


class Tanh(pynn.Tanh):
    """A layer whose call takes what Small's takes."""

    def forward(self, input: Tensor, twice: bool = False) -> Tensor:
        return super().forward(input) * (2 if twice else 1)


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("make", [lambda: function, Small, pynn.Tanh], ids=["function", "module", "layer"])
@torch.no_grad()
def test_the_wrapper_is_left_out(make: Callable[[], Any], monkeypatch):
    """Of torch's wrapper nothing runs once a call is compiled; with fullgraph=True and in other stances it does."""
    entered = []
    ask = eval_frame._callback_from_stance

    def record(callback: Any) -> Any:  # every call of the wrapper comes here
        if callback is not None:
            entered.append(callback)
        return ask(callback)

    monkeypatch.setattr(eval_frame, "_callback_from_stance", record)
    compiled, whole = pynn.compile(make()), pynn.compile(make(), fullgraph=True)
    compiled(X), whole(X)
    entered.clear()
    compiled(X)
    assert not entered
    with torch.compiler.set_stance("eager_on_recompile"):
        compiled(X)
    whole(X)
    assert len(entered) == 2


@pytest.mark.parametrize("name", ["_stance", "_in_optimized_module", "skip_code"])
def test_dynamo_built_differently(monkeypatch, name: str):
    context = lean_entry.context_of(by_torch(Small()))
    assert lean_entry.is_known(context)
    monkeypatch.delattr(eval_frame, name)
    assert not lean_entry.is_known(context)
