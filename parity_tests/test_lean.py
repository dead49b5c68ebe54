"""Plain graphs are called without AOTAutograd's runtime, and nobody can tell (`capture/lean.py`)."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compiler_bridge import backend, pipeline
from compiler_bridge.capture import fixed_shapes, lean, lean_calls
from compiler_bridge.capture.fixed_shapes import context_of


def strict(function: Any, **options: Any) -> Any:
    return backend.compile(function, strict=True, **options)


@pytest.fixture
def plain(monkeypatch) -> list[bool]:
    """For every captured graph, whether it was found plain."""
    found: list[bool] = []
    finish = lean.LeanCall.finish

    def record(self, full):
        result = finish(self, full)
        found.append(result is not full)
        return result

    monkeypatch.setattr(lean.LeanCall, "finish", record)
    return found


def is_ours(output: Tensor) -> bool:
    """Whether the autograd node is that of lean_calls.py."""
    node: Any = type(output.grad_fn)
    return getattr(node, "_forward_cls", node).__module__ == lean_calls.__name__


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


# ------------------------------------------------------------------------------------------ a table of programs
def mutates_input(x: Tensor) -> Tensor:
    y = x * 2
    x.detach().add_(1)
    return y


def two_views(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.sin()
    return y[0], y[1]


PLAIN = {
    "pointwise": lambda x: F.relu(x) * 3,
    "matmul": lambda x: F.gelu(x @ x.T).sum(),
    "reshaped": lambda x: (x @ x.T).reshape(2, -1, x.shape[0]),
    "two outputs": lambda x: (x.sin(), x.cos()),
    "one without gradient": lambda x: (x.exp(), x.argmax(1), (x > 0)),
    "detached output": lambda x: (x.exp(), x.detach() * 2),
    "transposed output": lambda x: (x.exp().T * 2).tanh(),
    "nothing saved": lambda x: x + 1,
    "saves its output": lambda x: x.exp(),
    "gradient of zero": lambda x: x * 0,
    "index": lambda x: F.embedding(torch.tensor([[0, 2], [1, 1]]), x),
    "expanded output": lambda x: x.sum(0).expand(3, x.shape[1]) * 1,
}

OTHERS = {
    "view of the input": lambda x: (x.view(-1), x * 2),
    "views of one result": two_views,
    "mutated input": mutates_input,
    "batch norm": nn.BatchNorm1d(6, dtype=torch.float64),
}


def run(function: Any, x: Tensor) -> list[Tensor]:
    """Outputs, x afterwards, and the gradient of a weighted sum of what has one."""
    inputs = x.detach().clone().requires_grad_()
    with torch.set_grad_enabled(True):
        outputs = function(inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    differentiable = [y for y in outputs if y.requires_grad]
    weights = [leaf(*y.shape, seed=i).detach().to(y.dtype) for i, y in enumerate(differentiable)]
    gradients = torch.autograd.grad(differentiable, inputs, weights) if differentiable else ()
    return [*outputs, inputs, *gradients]


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert [y.requires_grad for y in actual] == [y.requires_grad for y in expected]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_programs(plain, name):
    """Three calls: AOTAutograd's, with which the backward is compiled, and two of ours."""
    compiled = strict(PLAIN[name], dynamic=False)
    for seed in range(3):
        x = leaf(4, 6, seed=seed)
        same(run(compiled, x), run(PLAIN[name], x))
    assert plain == [True]
    outputs = compiled(leaf(4, 6))
    assert is_ours(outputs[0] if isinstance(outputs, tuple) else outputs)
    plain.clear()
    with torch.no_grad():
        for seed in range(3):
            x = leaf(4, 6, seed=seed)
            torch.testing.assert_close(compiled(x), PLAIN[name](x))
    assert plain == [True]


@pytest.mark.parametrize("name", OTHERS)
def test_other_programs(plain, name):
    """What needs AOTAutograd's runtime keeps it."""
    compiled = strict(OTHERS[name], dynamic=False)
    for seed in range(3):
        x = leaf(4, 6, seed=seed)
        same(run(compiled, x), run(OTHERS[name], x))
    assert plain == [False]


def test_autocast(plain):
    """Compiled under autocast: AOTAutograd's, which switches it off around the graphs."""

    def function(x):
        return x @ x.T

    x = leaf(4, 6).detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = strict(function, dynamic=False)
        for _ in range(2):
            torch.testing.assert_close(compiled(x), function(x))
    assert plain == [False]


SYMBOLIC = {
    "pointwise": lambda x: x.exp() * x,
    "sum": lambda x: x.exp().sum(),
    "matmul": lambda x: (x @ x.T).reshape(-1),
    "two outputs": lambda x: (x.sin().T, x.detach().sum()),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_sizes(plain, name):
    """Sizes that are symbols are saved and passed to the backward as integers."""
    function = SYMBOLIC[name]
    compiled = strict(function, dynamic=True)
    for rows in (3, 5, 4, 7):
        same(run(compiled, leaf(rows, 6)), run(function, leaf(rows, 6)))
    assert plain == [True]
    outputs = compiled(leaf(4, 6))
    assert is_ours(outputs[0] if isinstance(outputs, tuple) else outputs)
    with torch.no_grad():
        for rows in (3, 5, 4):
            torch.testing.assert_close(compiled(leaf(rows, 6)), function(leaf(rows, 6)))
    assert plain == [True, True]


@pytest.mark.parametrize("gradients", [True, False])
def test_symbolic_sizes_are_passed_on(gradients):
    """Dynamo compiles what takes an output of a dynamic graph for any size at once, as with AOTAutograd's runtime."""
    compiled = strict(lambda x: x.exp(), dynamic=True)
    marks = []
    for _ in range(3):
        y = compiled(leaf(4, 6).requires_grad_(gradients))
        marks.append(y._dynamo_propagated_dynamic_indices)
        if gradients:
            y.sum().backward()
    assert marks == [{0, 1}] * 3


# ---------------------------------------------------------------------------------------- gradients, one by one
def warm(function: Any, *inputs: Tensor) -> Any:
    """Compiled, and through its first backward."""
    compiled = strict(function, dynamic=False)
    compiled(*inputs).sum().backward()
    for value in inputs:
        value.grad = None
    assert is_ours(compiled(*inputs))
    return compiled


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, True), (True, True, True)])
def test_subsets_of_inputs_that_require_gradients(wanted):
    def function(a, b, c):
        return a * b + c.exp()

    inputs = [leaf(3, 4, seed=i).requires_grad_(flag) for i, flag in enumerate(wanted)]
    compiled = warm(function, *inputs)
    compiled(*inputs).square().sum().backward()
    found = [value.grad for value in inputs]
    for value in inputs:
        value.grad = None
    function(*inputs).square().sum().backward()
    for gradient, value in zip(found, inputs):
        assert (gradient is None) == (value.grad is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, value.grad)


def test_an_input_without_gradient_is_not_followed():
    """Backward must not go on into y's graph, which was freed: eager never does (torch issue 97745)."""
    x, w = leaf(3, 4), leaf(3, 4, seed=1)
    compiled = strict(lambda x, y: x * y.detach(), dynamic=False)
    for _ in range(3):
        y = w * 2
        y.sum().backward()
        z = compiled(x, y)
        z.sum().backward()
    assert is_ours(z)
    torch.testing.assert_close(x.grad, 6 * w.detach())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones((), dtype=torch.float64).expand(4, 6),
        lambda: leaf(6, 4).detach().T,
        lambda: leaf(4, 12).detach()[:, ::2],
        lambda: leaf(1, 6).detach().expand(4, 6),
        lambda: leaf(30).detach()[3:27].view(4, 6),
    ],
    ids=["expanded", "transposed", "strided", "row", "offset"],
)
def test_strides_of_incoming_gradients(make):
    x = leaf(4, 6)
    compiled = warm(lambda x: x.sin(), x)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x), x, make()), torch.autograd.grad(x.sin(), x, make())
    )


def test_output_in_other_strides_takes_a_gradient_in_any():
    def function(x):
        return x.T.exp()

    x = leaf(4, 6)
    compiled = warm(function, x)
    for gradient in (leaf(6, 4).detach(), leaf(4, 6).detach().T):
        found = torch.autograd.grad(compiled(x), x, gradient)
        torch.testing.assert_close(found, torch.autograd.grad(function(x), x, gradient))


def test_unused_output():
    x = leaf(4, 6)
    compiled = strict(lambda x: (x.sin(), x.cos()), dynamic=False)
    for _ in range(3):
        first, second = compiled(x)
        (gradient,) = torch.autograd.grad(second.sum(), x)
        torch.testing.assert_close(gradient, -x.detach().sin())
    assert is_ours(first)


def test_retain_graph_and_backward_twice():
    x = leaf(4, 6)
    y = warm(lambda x: x.exp(), x)(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    torch.testing.assert_close(x.grad, 2 * x.detach().exp())
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_double_backward_raises_what_torch_compile_raises():
    x = leaf(4, 6)
    (gradient,) = torch.autograd.grad(warm(lambda x: x.exp(), x)(x).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient.detach(), x.detach().exp())
    assert gradient.requires_grad
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.sum().backward()


def test_saved_tensor_changed_in_place():
    x, w = leaf(4, 6), leaf(4, 6, seed=1)
    y = warm(lambda x, w: x * w, x, w)(x, w)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_saved_output_changed_in_place():
    x = leaf(4, 6)
    y = warm(lambda x: x.exp(), x)(x)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_output_changed_in_place_takes_part():
    """An output that a reshape made is a tensor of its own, not a view an autograd.Function returned."""

    def function(x):
        return (x @ x.T).reshape(2, -1)

    x = leaf(4, 6)
    y = warm(function, x)(x).mul_(2)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(2 * function(x).sum(), x))


def test_hooks():
    x, w = leaf(4, 6), leaf(4, 6, seed=1)
    compiled = warm(lambda x, w: x * w, x, w)
    seen = []
    x.register_hook(lambda g: seen.append("tensor") or g * 2)
    w.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    y = compiled(x, w)
    y.register_hook(lambda g: seen.append("output") or g * 10)
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append("node"))
    y.sum().backward()
    torch.testing.assert_close(x.grad, 20 * w.detach())
    torch.testing.assert_close(w.grad, 10 * x.detach())
    assert sorted(seen) == ["accumulated", "node", "output", "tensor"] and seen[0] == "output"


def test_saved_tensors_hooks_see_what_is_saved():
    x = leaf(4, 6)
    compiled = warm(lambda x: x.exp().sin(), x)
    packed = []

    def pack(value):
        packed.append(value)
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda number: packed[number]):
        y = compiled(x)
    y.sum().backward()
    assert packed
    torch.testing.assert_close(x.grad, x.detach().exp().cos() * x.detach().exp())


@pytest.mark.parametrize("finish", ["backward", "drop"])
def test_what_is_saved_is_freed(finish):
    """After the backward, or with the output, without waiting for the garbage collector."""

    class Box:
        def __init__(self, value):
            self.value = value

    x = leaf(4, 6)
    compiled = warm(lambda x: x.sin(), x)  # a saved output and hooks make a cycle, in eager too
    boxes = []

    def pack(value):
        box = Box(value)
        boxes.append(weakref.ref(box))
        return box

    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.value):
            y = compiled(x)
        assert boxes and all(box() is not None for box in boxes)
        if finish == "backward":
            y.sum().backward()
        else:
            del y
        assert all(box() is None for box in boxes)
    finally:
        gc.enable()


def test_gradients_accumulate():
    """AccumulateGrad may keep our buffer as .grad: the next backward must not write into it."""
    x = leaf(400, 500)  # large enough for a recycled storage
    compiled = warm(lambda x: x.exp(), x)
    for count in range(1, 5):
        compiled(x).sum().backward()
        torch.testing.assert_close(x.grad, count * x.detach().exp())


def test_same_gradient_for_two_inputs():
    a, b = leaf(4, 6), leaf(4, 6, seed=1)
    compiled = warm(lambda a, b: a + b, a, b)
    for _ in range(2):
        compiled(a, b).sum().backward()
    a.grad.add_(1)
    torch.testing.assert_close(b.grad, torch.full_like(b, 2))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_around_a_compiled_block(reentrant):
    """Also when the block becomes ours between a forward and its recomputation."""
    block = strict(lambda x: x.sin().exp(), dynamic=False)
    for _ in range(3):
        x = leaf(4, 6)
        y = checkpoint(block, checkpoint(block, x, use_reentrant=reentrant), use_reentrant=reentrant)
        y.sum().backward()
        z = leaf(4, 6)
        z.sin().exp().sin().exp().sum().backward()
        torch.testing.assert_close(x.grad, z.grad)
    assert is_ours(block(leaf(4, 6)))


def test_gradients_switched_off_and_on_again(plain):
    x = leaf(4, 6)
    compiled = warm(lambda x: x.exp(), x)
    with torch.no_grad():
        y = compiled(x)
    assert not y.requires_grad
    with torch.inference_mode():
        assert compiled(x).is_inference()
    assert is_ours(compiled(x))


def test_gradients_enabled_inside(plain):
    """The graph is a training graph though the caller has gradients off."""

    def function(x):
        with torch.enable_grad():
            y = x.exp()
        return y

    x = leaf(4, 6)
    compiled = strict(function, dynamic=False)
    for _ in range(3):
        with torch.no_grad():
            y = compiled(x)
        assert y.requires_grad
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], x.detach().exp())


def test_deterministic_mode_switched_on_before_backward():
    x = leaf(4, 6)
    y = warm(lambda x: x.exp(), x)(x)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="use_deterministic_algorithms"):
            y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_several_threads():
    x = leaf(64, 64)
    compiled = warm(lambda x, w: (x * w).exp(), x, x.detach().clone().requires_grad_())
    wrong = []

    def work(seed):
        for step in range(20):
            a, b = leaf(64, 64, seed=seed), leaf(64, 64, seed=seed + step)
            compiled(a, b).sum().backward()
            expected = (a.detach() * b.detach()).exp() * b.detach()
            if not torch.allclose(a.grad, expected):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_several_threads_from_the_first_call():
    """The backward is compiled while other threads run forwards."""
    compiled = strict(lambda x: x.exp().sin(), dynamic=False)
    compiled(leaf(8, 8))
    wrong = []

    def work(seed):
        for _ in range(10):
            x = leaf(8, 8, seed=seed)
            compiled(x).sum().backward()
            if not torch.allclose(x.grad, x.detach().exp().cos() * x.detach().exp()):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_backward_inside_a_compiled_step_is_not_traced():
    """Dynamo's frame evaluation is on where .backward() breaks the graph; it must not look into our backward."""
    x = leaf(4, 6)

    def step(x):
        y = x.exp().sum()
        y.backward()
        return x.grad * 2

    compiled = backend.compile(step, dynamic=False)
    for _ in range(3):
        x.grad = None
        torch.testing.assert_close(compiled(x), 2 * x.detach().exp())


def test_compiled_autograd():
    x = leaf(4, 6)
    compiled = warm(lambda x: x.exp(), x)
    for _ in range(2):
        x.grad = None
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            compiled(x).sum().backward()
        torch.testing.assert_close(x.grad, x.detach().exp())
    y = compiled(x).sum()  # ours
    x.grad = None
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        y.backward()
    torch.testing.assert_close(x.grad, x.detach().exp())


def test_functorch_transforms_raise_what_they_raised():
    x = leaf(4, 6)
    y = warm(lambda x: x.exp(), x)(x)

    def gradient(v):
        return torch.autograd.grad(y, x, v, retain_graph=True)[0]

    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(gradient)(torch.ones(2, 4, 6, dtype=torch.float64))


def test_fallback_graphs(monkeypatch):
    """A graph that runs through ATen may return views; they become tensors of their own."""
    from compiler_bridge import pipeline

    def refuse(*arguments):
        raise NotImplementedError("in this test")

    monkeypatch.setattr(pipeline, "compile_graph", refuse)

    def function(x):
        return (x @ x.T).reshape(2, -1)

    compiled = backend.compile(function, dynamic=False)
    with pytest.warns(Warning, match="in this test"):
        for _ in range(3):
            x = leaf(4, 6)
            y = compiled(x).mul_(2)
            expected = torch.autograd.grad(2 * function(x).sum(), x)
            torch.testing.assert_close(torch.autograd.grad(y.sum(), x), expected)
    assert is_ours(compiled(x))


def test_torch_without_the_private_names(monkeypatch, plain):
    """Where a version of torch lacks any of them, everything runs as AOTAutograd runs it."""
    monkeypatch.setattr(lean_calls.Torch, "find", staticmethod(lambda: None))
    compiled = strict(PLAIN["pointwise"], dynamic=False)
    for _ in range(2):
        same(run(compiled, leaf(4, 6)), run(PLAIN["pointwise"], leaf(4, 6)))
    assert plain == [False]


@pytest.mark.parametrize("name", lean.NOTHING)
def test_metadata_that_is_described_differently(monkeypatch, plain, name):
    """A field of another name: AOTAutograd's runtime."""
    monkeypatch.setattr(lean, "NOTHING", (f"no_{name}",))
    compiled = strict(PLAIN["nothing saved"], dynamic=False)
    same(run(compiled, leaf(4, 6)), run(PLAIN["nothing saved"], leaf(4, 6)))
    assert plain == [False]


# ----------------------------------------------------------------------------------------------- dynamic=False
def is_set_only_while_compiling(compiled: Any) -> bool:
    return isinstance(context_of(compiled).callback._torchdynamo_orig_backend, fixed_shapes.CompileWith)


class Doubler(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.mark.parametrize("make", [lambda: lambda x: x * 2, Doubler], ids=["function", "module"])
def test_dynamic_false_compiles_anew_for_each_size(plain, make):
    """... though the setting is no longer made around every call."""
    compiled = strict(make(), dynamic=False)
    assert is_set_only_while_compiling(compiled)
    for rows in (3, 5, 4, 5):
        torch.testing.assert_close(compiled(leaf(rows, 6)), leaf(rows, 6) * 2)
    assert len(plain) == 3
    assert not any(record.program.symbols for record in pipeline.records[-3:])


def test_dynamic_false_sets_nothing_around_a_call():
    seen = []

    @torch._dynamo.disable
    def look():
        seen.append(torch._dynamo.config.automatic_dynamic_shapes)

    def function(x):
        look()
        return x * 2

    compiled = backend.compile(function, dynamic=False)
    for _ in range(2):
        compiled(leaf(3, 6))
    assert seen == [True, True]


def test_dynamic_false_after_a_graph_break(plain):
    def function(x):
        y = x * 2
        torch._dynamo.graph_break()
        return y.exp()

    compiled = backend.compile(function, dynamic=False)
    for rows in (3, 5, 4):
        torch.testing.assert_close(compiled(leaf(rows, 6)), function(leaf(rows, 6)))
    assert len(plain) == 6  # two graphs a size


def test_dynamic_false_under_another_stance(plain):
    """The compiler that a stance of torch.compiler makes from ours keeps the setting."""
    compiled = strict(lambda x: x * 2, dynamic=False)
    with torch.compiler.set_stance("eager_then_compile"):
        for rows in (3, 5, 4, 5, 4):
            torch.testing.assert_close(compiled(leaf(rows, 6)), leaf(rows, 6) * 2)
    assert not any(record.program.symbols for record in pipeline.records[-len(plain) :])


def test_copies_of_a_compiled_module():
    import copy

    compiled = strict(nn.Linear(6, 3, dtype=torch.float64), dynamic=False)
    expected = compiled(leaf(4, 6))
    torch.testing.assert_close(copy.deepcopy(compiled)(leaf(4, 6)), expected)


def test_dynamo_built_differently(monkeypatch):
    """Without a context to be found, dynamic=False is what torch.compile makes of it."""
    monkeypatch.setattr(fixed_shapes, "context_of", lambda compiled: None)
    compiled = strict(lambda x: x * 2, dynamic=False)
    assert not is_set_only_while_compiling(compiled)
    torch.testing.assert_close(compiled(leaf(3, 6)), leaf(3, 6) * 2)
