"""Compiled convolutional networks work channels-last inside, and nobody can tell (`capture/layout.py`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pynn
from compiler_bridge import settings
from compiler_bridge.backend import boxed
from compiler_bridge.capture import capture as stages

LAST = torch.channels_last
Graphs = dict[str, torch.fx.GraphModule]


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch) -> None:
    """The loop IR is interpreted: what is tested here is older than kernels."""
    monkeypatch.setattr(settings, "INTERPRET_IR", True)
    torch._dynamo.reset()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steps_of(tensor: Tensor) -> list[int]:
    """The strides that lead anywhere."""
    return [stride for stride, extent in zip(tensor.stride(), tensor.shape) if extent != 1]


def tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def run(model: nn.Module, inputs: Tensor, call: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """Outputs, buffers, and gradients of the input and of the parameters."""
    inputs = inputs.detach().requires_grad_()
    outputs = [y for y in tensors(call(inputs)) if y.requires_grad]
    cotangents = [draw(*y.shape, seed=i, dtype=y.dtype) for i, y in enumerate(outputs)]
    named = {"input": inputs, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(outputs, list(named.values()), cotangents, allow_unused=True)
    found = {f"output {i}": y for i, y in enumerate(outputs)}
    found |= {f"gradient of {name}": g for name, g in zip(named, gradients) if g is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def check(model: nn.Module, inputs: Tensor) -> None:
    """Values as float64's, strides as eager's, of outputs, gradients and running statistics."""
    wide, eager, ours = copy.deepcopy(model).double(), copy.deepcopy(model), copy.deepcopy(model)
    exact = run(wide, inputs.double(), wide)
    compiled = pynn.compile(ours, strict=True)
    expected = run(eager, inputs, eager)
    found = run(ours, inputs, compiled)
    assert found.keys() == expected.keys() == exact.keys()
    parameters = dict(ours.named_parameters())
    for name, value in found.items():
        cpp = expected[name]
        assert value.dtype == cpp.dtype and value.shape == cpp.shape
        # autograd accumulates a parameter's gradient in the parameter's strides: there it is made in them
        like = parameters.get(name.removeprefix("gradient of "), cpp)
        assert steps_of(value) == steps_of(like), name
        scale = exact[name].double().abs().max().item()
        allowed = 4 * (cpp.double() - exact[name]).abs().max().item() + 1e-5 * max(scale, 1e-3)
        assert (value.double() - exact[name]).abs().max().item() <= allowed, name


def traced(model: Callable[..., Any], inputs: Tensor, **options: Any) -> Graphs:
    """The graphs of ATen operations; they run as they are."""
    graphs: Graphs = {}

    def keep(graph: Any, _: Any, kind: str, __: Any) -> Any:
        graphs[kind] = graph
        return boxed(graph)

    def compile(gm: Any, example_inputs: Any) -> Any:
        return stages.capture(gm, example_inputs, stages.Options(**options), keep)

    call: Any = torch.compile(model, backend=compile, fullgraph=True)
    outputs = [y for y in tensors(call(inputs)) if y.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones(y.shape) for y in outputs])
    return graphs


def layouts(graphs: Graphs) -> list[bool]:
    """For every convolution of the forward graph, whether its result is channels-last."""
    graph = graphs.get("forward") or graphs["inference"]
    nodes = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution.default)
    return [node.meta["val"].stride(1) == 1 for node in nodes]


def copies(graph: torch.fx.GraphModule) -> int:
    return len(graph.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default))


class Net(nn.Module):
    """Layers, and a function of them and the input."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, **dict(self.layers.items()))  # torch 2.11's Dynamo takes no other mapping


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def two(**more: nn.Module) -> dict[str, nn.Module]:
    return {"a": conv(3, 6), "b": conv(6, 4), **more}


def intermediate(x: Tensor, a: Any, b: Any) -> Any:
    y = a(x)
    return b(y.relu()), y


def inplace(x: Tensor, a: Any, b: Any) -> Any:
    return b(F.relu_(a(x))).tanh()


def residual(x: Tensor, a: Any, b: Any, norm: Any) -> Any:
    y = norm(a(x))
    y += a(x).relu()
    return b(y)


def written_view(x: Tensor, a: Any, b: Any) -> Any:
    """A flattened tensor is written into: eager's is a view."""
    y = a(x)
    y.view(y.shape[0], -1).mul_(2)
    return b(y)


def base_written_after(x: Tensor, a: Any, b: Any) -> Any:
    y = a(x)
    rows = y.flatten(1)
    y.mul_(2)
    return b(y), rows


def copy_written(x: Tensor, a: Any, b: Any) -> Any:
    """contiguous() copies in eager; channels-last, there is nothing to copy."""
    y = a(x)
    rows = y.permute(0, 2, 3, 1).contiguous()
    rows.mul_(2)
    return b(y), rows


def both_views(x: Tensor, a: Any, b: Any) -> Any:
    y = a(x)
    return y, y.view(y.shape[0], -1), b(y)


def seen_strides(x: Tensor, a: Any, b: Any) -> Any:
    y = a(x)
    return b(y), torch.as_strided(y, (2, 5), (1, 3)) * 2


NETS: dict[str, tuple[Net, tuple[int, ...]]] = {
    "two": (Net(lambda x, a, b: b(a(x)), **two()), (2, 3, 6, 5)),
    "norm": (Net(lambda x, a, b, norm: b(norm(a(x)).relu()), **two(norm=nn.BatchNorm2d(6))), (2, 3, 6, 5)),
    "view": (Net(lambda x, a, b: b(a(x)).view(x.shape[0], -1).tanh(), **two()), (2, 3, 6, 5)),
    "view between": (
        Net(lambda x, a, b: b(a(x).view(2, 6, 15, 2).sin()), **two()),
        (2, 3, 6, 5),
    ),
    "rows returned": (Net(lambda x, a, b: b(a(x)).flatten(2).transpose(1, 2), **two()), (2, 3, 6, 5)),
    "permuted": (Net(lambda x, a, b: b(a(x)).permute(0, 2, 3, 1), **two()), (2, 3, 6, 5)),
    "in place": (Net(inplace, **two()), (2, 3, 6, 5)),
    "residual": (Net(residual, **two(norm=nn.BatchNorm2d(6))), (2, 3, 6, 5)),
    "intermediate": (Net(intermediate, **two()), (2, 3, 6, 5)),
    "one channel": (Net(lambda x, a, b: b(a(x)).relu(), a=conv(1, 4), b=conv(4, 1)), (2, 1, 6, 5)),
    "one place": (Net(lambda x, a, b: b(a(x)), a=conv(3, 4, 1), b=nn.ConvTranspose2d(4, 3, 3)), (2, 3, 1, 1)),
    "one image": (Net(lambda x, a, b: b(a(x)), **two()), (1, 3, 6, 5)),
    "squeezed": (
        Net(lambda x, a, b, s: b(y := a(x)) * s(y.mean((2, 3), keepdim=True)), **two(s=conv(6, 4, 1))),
        (2, 3, 6, 5),
    ),
    "pooled": (Net(lambda x, a, b: b(F.max_pool2d(a(x), 2)).mean((2, 3)), **two()), (2, 3, 6, 6)),
    "averaged": (
        Net(
            lambda x, a, b, pool, s: s(pool(b(a(x)))).flatten(1),
            **two(pool=nn.AdaptiveAvgPool2d(1), s=conv(4, 3, 1)),
        ),
        (2, 3, 6, 6),
    ),
    "depthwise": (Net(lambda x, a, b: b(a(x)), a=conv(4, 4, groups=4), b=conv(4, 6, groups=2)), (2, 4, 6, 5)),
    "1d": (
        Net(lambda x, a, b: b(a(x).relu()), a=nn.Conv1d(3, 4, 3, 2, 1), b=nn.Conv1d(4, 5, 3, padding="same")),
        (2, 3, 9),
    ),
    "transposed 1d": (Net(lambda x, a: a(x), a=nn.ConvTranspose1d(3, 4, 3, 2, 1, 1)), (2, 3, 5)),
    "3d": (
        Net(lambda x, a, b: b(a(x).relu()), a=nn.Conv3d(2, 3, 2), b=nn.Conv3d(3, 2, 2)),
        (2, 2, 4, 3, 5),
    ),
    "unbatched": (Net(lambda x, a, b: b(a(x)), **two()), (3, 6, 5)),
    "written view": (Net(written_view, **two()), (2, 3, 6, 5)),
    "base written after": (Net(base_written_after, **two()), (2, 3, 6, 5)),
    "copy written": (Net(copy_written, **two()), (2, 3, 6, 5)),
    "both views": (Net(both_views, **two()), (2, 3, 6, 5)),
    "seen strides": (Net(seen_strides, **two()), (2, 3, 6, 5)),
}
KEPT = {"unbatched", "written view", "base written after", "copy written", "both views", "seen strides"}
"""Nets whose convolutions stay in the user's layout."""


@pytest.mark.parametrize("name", NETS)
def test_contiguous(name: str, graphs: list[tuple[str, torch.fx.GraphModule]]):
    """Inside, convolutions are channels-last or they are kept; outside, all is as in eager."""
    net, shape = NETS[name]
    check(net, draw(*shape))
    inside = layouts(dict(graphs))
    assert inside and all(last is (name not in KEPT) for last in inside)


@pytest.mark.parametrize("name", [name for name, (_, shape) in NETS.items() if len(shape) == 4])
@pytest.mark.parametrize(
    "weights", [pytest.param(torch.contiguous_format, marks=pytest.mark.slow), LAST], ids=str
)
def test_channels_last_input(name: str, weights: torch.memory_format):
    net, shape = NETS[name]
    if "view" in name or name in KEPT:
        pytest.skip("eager refuses the view, or another layout means another result")
    check(copy.deepcopy(net).to(memory_format=weights), draw(*shape).contiguous(memory_format=LAST))


@pytest.mark.slow
def test_copies_of_a_chain():
    """One of the image, one of the result; parameters' gradients are written where they belong."""
    net, shape = NETS["norm"]
    graphs = traced(copy.deepcopy(net), draw(*shape))
    assert copies(graphs["forward"]) == 2
    assert copies(graphs["backward"]) == 1  # the incoming gradient
    graphs = traced(copy.deepcopy(net), draw(*shape).contiguous(memory_format=LAST))
    assert copies(graphs["forward"]) == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_parameters_have_their_strides(
    autocast: bool, graphs: list[tuple[str, torch.fx.GraphModule]]
):
    """Exactly: torch's optimizers take a slower way for 1x1 kernels with strides of another order. Without a copy."""
    net = Net(lambda x, a, b: b(a(x)).mean(), a=conv(3, 6, 1), b=conv(6, 4, 3))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = pynn.compile(net, strict=True)(draw(2, 3, 6, 5))
    loss.backward()
    for parameter in net.parameters():
        assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
    assert copies(dict(graphs)["backward"]) == 1  # the incoming gradient


@pytest.mark.slow
def test_dynamic_shapes():
    net, _ = NETS["view"]
    compiled = pynn.compile(net, strict=True, dynamic=True)
    for shape in ((2, 3, 6, 5), (3, 3, 4, 7), (2, 3, 9, 9)):
        x = draw(*shape)
        torch.testing.assert_close(compiled(x), net(x))
    net, _ = NETS["norm"]
    net = copy.deepcopy(net).eval()
    compiled = pynn.compile(net, strict=True, dynamic=True)
    for shape in ((2, 3, 6, 5), (3, 3, 4, 7)):
        x = draw(*shape)
        assert compiled(x).stride() == net(x).stride()
        torch.testing.assert_close(compiled(x), net(x))
        last = x.contiguous(memory_format=LAST)
        assert compiled(last).stride() == net(last).stride()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(mode: Any):
    net = copy.deepcopy(NETS["norm"][0]).eval()
    x = draw(2, 3, 6, 5)
    with mode():
        assert layouts(traced(net, x)) == [True, True]
        torch._dynamo.reset()
        compiled = pynn.compile(net, strict=True)
        torch.testing.assert_close(compiled(x), net(x))
        assert compiled(x).stride() == net(x).stride()


def test_autocast():
    net, x = copy.deepcopy(NETS["two"][0]), draw(2, 3, 6, 5)

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    assert layouts(traced(call, x)) == [True, True]
    assert not torch.is_autocast_enabled("cpu")
    torch._dynamo.reset()
    found = pynn.compile(call, strict=True)(x)
    assert found.dtype == torch.bfloat16 and found.stride() == call(x).stride()
    torch.testing.assert_close(found, call(x), rtol=0.02, atol=0.02)


def test_random_numbers_in_the_order_of_memory():
    """Dropout draws in the order of memory: with torch's own random numbers the layout stays."""
    net = Net(lambda x, a, b: b(F.dropout(a(x))), **two())
    assert layouts(traced(copy.deepcopy(net), draw(2, 3, 6, 5))) == [True, True]
    torch._dynamo.reset()
    assert layouts(traced(copy.deepcopy(net), draw(2, 3, 6, 5), eager_random=True)) == [False, False]


def test_other_graphs_are_not_touched():
    def product(x: Tensor) -> Tensor:
        return (x @ x.transpose(-1, -2)).relu()

    graphs = traced(product, draw(2, 3, 4, 5))
    assert copies(graphs["inference"]) == 0
