"""Convolutions, fold and pynn.grad against torch: formats, messages, lazy layers, transforms."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import pynn

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_results_and_gradients_have_the_strides_of_cpp(name: str, dims: int, groups: int, dtype: torch.dtype):
    """A padded convolution's input gradient was a view of the padded one; none was channels-last."""
    function = f"{name}{dims}d"
    for is_last in ((False, False), (True, False), (False, True), (True, True)):
        found = []
        for functional in (F, pynn.functional):
            x, weight = torch.randn(2, 4, *[5] * dims), torch.randn(4, 4 // groups, *[3] * dims)
            leaves = [
                t.to(
                    dtype, memory_format=CHANNELS_LAST[dims] if last else torch.contiguous_format
                ).requires_grad_()
                for t, last in zip((x, weight), is_last)
            ]
            out = getattr(functional, function)(*leaves, stride=2, padding=1, groups=groups)
            gradients = torch.autograd.grad(out, leaves, torch.ones_like(out))
            found.append([t.stride() for t in (out, *gradients)])
        assert found[0] == found[1], is_last


def message_of(call) -> tuple[type, str]:
    with pytest.raises((RuntimeError, NotImplementedError)) as raised:
        call()
    return raised.type, str(raised.value).split("\n")[0]


@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize(
    "input, weight",
    [("float32", "float64"), ("bfloat16", "float32"), ("float64", "float32"), ("int64", "float32"),
     ("int32", "int32"), ("bool", "bool"), ("complex64", "float32")],
)  # fmt: skip
def test_dtypes_are_refused_in_the_words_of_cpp(function: str, input: str, weight: str):
    """Large enough for oneDNN: below a size of its choosing ATen takes other kernels, with other words."""
    x = torch.ones(2, 16, 16, 16).to(getattr(torch, input))
    kernel = torch.ones(16, 16, 3, 3).to(getattr(torch, weight))
    if (function, input, weight) == ("conv2d", "int32", "int32"):
        assert torch.equal(pynn.functional.conv2d(x, kernel), F.conv2d(x, kernel))
        return
    theirs, ours = (
        message_of(functools.partial(getattr(f, function), x, kernel)) for f in (F, pynn.functional)
    )
    assert ours == theirs


def test_sizes_are_refused_in_the_words_of_cpp():
    x, weight = torch.ones(2, 4, 7, 7), torch.ones(6, 4, 3, 3)
    for args in ((x, weight[0]), (x[:, :, :0], weight)):
        theirs, ours = (message_of(functools.partial(f.conv2d, *args)) for f in (F, pynn.functional))
        assert ours == theirs


def test_columns_of_windows_of_one_element_are_a_copy():
    """They were a view: writing to them wrote to the image, and raised where it requires a gradient."""
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    columns = pynn.functional.unfold(x, 1)
    columns.add_(1)
    assert not x.any() and columns.all()


def test_gradients_refuse_sizes_of_another_convolution():
    """pynn.grad took any size, and left what the gradient does not reach 0."""
    x, weight, grad = torch.ones(2, 4, 7, 7), torch.ones(6, 4, 3, 3), torch.ones(2, 6, 5, 5)
    for wrong in ((2, 4, 8, 7), (2, 3, 7, 7), (4, 7, 7)):
        for namespace in (torch.nn.grad, pynn.grad):
            with pytest.raises(RuntimeError):
                namespace.conv2d_input(wrong, weight, grad)
    for namespace in (torch.nn.grad, pynn.grad):
        with pytest.raises(RuntimeError):
            namespace.conv2d_weight(x, (6, 4, 3, 4), grad)


def test_gradients_are_traced_as_the_operation_of_aten():
    seen = []

    def backend(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes)
        return graph

    x, grad = torch.randn(2, 4, 7, 7), torch.randn(2, 6, 5, 5)
    traced = torch.compile(
        lambda x, g: pynn.grad.conv2d_weight(x, (6, 4, 3, 3), g), backend=backend, fullgraph=True
    )
    torch.testing.assert_close(traced(x, grad), torch.nn.grad.conv2d_weight(x, (6, 4, 3, 3), grad))
    assert torch.ops.aten.convolution_backward.default in seen


def test_gradients_are_differentiable_and_mapped():
    x, weight, grad = torch.randn(2, 4, 5), torch.randn(6, 2, 3), torch.randn(2, 6, 3)
    x, weight, grad = (t.double().requires_grad_() for t in (x, weight, grad))
    of_input = lambda w, g: pynn.grad.conv1d_input(x.shape, w, g, groups=2)  # noqa: E731
    of_weight = lambda x, g: pynn.grad.conv1d_weight(x, weight.shape, g, groups=2)  # noqa: E731
    for function, first in ((of_input, weight), (of_weight, x)):
        assert torch.autograd.gradcheck(function, (first, grad), check_forward_ad=True)
        mapped = torch.func.vmap(function)(torch.stack([first, 2 * first]), torch.stack([grad, grad]))
        torch.testing.assert_close(mapped, torch.stack([function(first, grad), function(2 * first, grad)]))


LAZY = [f"Lazy{kind}{dims}d" for kind in ("Conv", "ConvTranspose") for dims in (1, 2, 3)]


@pytest.mark.parametrize("name", LAZY)
def test_lazy_layers_are_copied_saved_and_become_plain(name: str):
    dims = int(name[-2])
    x, y = torch.randn(2, 4, *[5] * dims), {}
    for nn in (torch.nn, pynn):
        lazy = getattr(nn, name)(6, 3)
        for layer in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
            assert type(layer) is type(lazy) and layer.has_uninitialized_params()
            assert list(layer.state_dict()) == list(lazy.state_dict())
            torch.manual_seed(0)
            y.setdefault(nn, []).append(layer(x))
            assert type(layer) is getattr(nn, name.removeprefix("Lazy")) and layer.in_channels == 4
            assert type(pickle.loads(pickle.dumps(layer))) is type(layer)
        fresh = getattr(nn, name)(6, 3)
        fresh.load_state_dict(layer.state_dict())
        torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close(y[pynn], y[torch.nn])


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_gradient_of_every_sample(name: str, groups: int):
    """The weight's gradient, one a sample, by vmap over grad; and vmap over the weights themselves."""
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    weight = torch.randn(4, 4 // groups, 3, 2, dtype=torch.float64)

    def loss(functional, weight, sample):
        return getattr(functional, name)(sample.unsqueeze(0), weight, groups=groups, stride=2).pow(2).sum()

    ours = torch.func.vmap(torch.func.grad(lambda w, s: loss(pynn.functional, w, s)), (None, 0))(weight, x)
    wanted = [torch.func.grad(lambda w: loss(F, w, sample))(weight) for sample in x]  # noqa: B023
    torch.testing.assert_close(ours, torch.stack(wanted))
    weights = torch.stack([weight, 2 * weight])
    mapped = torch.func.vmap(lambda w: getattr(pynn.functional, name)(x, w, groups=groups))(weights)
    torch.testing.assert_close(mapped, torch.stack([getattr(F, name)(x, w, groups=groups) for w in weights]))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "ConvTranspose2d", "Conv3d"])
def test_operations_are_counted_as_those_of_aten(name: str, groups: int):
    """Products of matrices were counted in their place, and nothing for a depthwise convolution."""
    x = torch.randn(2, 4, *[6] * int(name[-2]))
    counts = []
    for nn in (torch.nn, pynn):
        layer = getattr(nn, name)(4, 4, 3, stride=2, groups=groups)
        with FlopCounterMode(display=False) as outer, FlopCounterMode(display=False) as inner:
            layer(x).sum().backward()
        assert outer.get_flop_counts() == inner.get_flop_counts()
        counts.append(inner.get_flop_counts())
    assert counts[0] == counts[1] and len(counts[1]["Global"]) == 2
