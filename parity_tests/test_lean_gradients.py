"""Everything autograd promises, of calls without AOTAutograd's runtime (`capture/lean_calls.py`)."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from compiler_bridge import backend
from parity_tests.lean_calls import is_ours, leaf, strict, warm


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


@pytest.mark.parametrize("dynamic", [False, True])
def test_channels_last_output_takes_a_gradient_in_any_strides(dynamic):
    """With known sizes the strides are compared, else the memory format."""

    def function(x):
        return x.exp() * 2

    x = leaf(2, 3, 4, 5, seed=1).detach().to(memory_format=torch.channels_last).requires_grad_()
    compiled = warm(function, x, dynamic=dynamic)
    out = compiled(x)
    assert is_ours(out) and out.is_contiguous(memory_format=torch.channels_last)
    weight = leaf(2, 3, 4, 5, seed=2).detach()
    last = weight.to(memory_format=torch.channels_last)
    for gradient in (
        last,
        weight,
        weight[:1, :1].expand(2, 3, 4, 5),
        last.transpose(0, 1)[:2, :1].expand(2, 3, 4, 5),
    ):
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


def test_gradients_switched_off_and_on_again():
    x = leaf(4, 6)
    compiled = warm(lambda x: x.exp(), x)
    with torch.no_grad():
        y = compiled(x)
    assert not y.requires_grad
    with torch.inference_mode():
        assert compiled(x).is_inference()
    assert is_ours(compiled(x))


def test_gradients_enabled_inside():
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


@pytest.mark.slow
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
