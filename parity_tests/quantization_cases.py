"""Models of one package's layers, and what torch.ao.quantization is asked to do with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.ao import quantization as ao
from torch.ao.quantization import quantize_fx


class Net(torch.nn.Module):
    """Layers by name, and a function of them and the input, between stubs."""

    def __init__(self, function: Callable[..., Any], **layers: torch.nn.Module):
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def chain(net: Any, x: Tensor) -> Tensor:
    x = net.quant(x)
    for name, layer in list(net.named_children()):
        if name not in ("quant", "dequant"):
            x = layer(x)
    return net.dequant(x)


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return torch.tensor([[1, 2, 4], [4, 3, 2]])


def sequence_first(net: Any, x: Tensor) -> Tensor:
    return net.dequant(net.layer(net.quant(x))[0])


def attention(net: Any, x: Tensor) -> Tensor:
    x = net.quant(x)
    return net.dequant(net.layer(x, x, x)[0])


# Each row: the model of the layers of `nn`, its input, and which layers fuse_modules joins.
MODELS: dict[str, tuple[Callable[[Any], torch.nn.Module], Callable[[], Tensor], list[list[str]]]] = {
    "conv-bn-relu": (
        lambda nn: Net(chain, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), relu=nn.ReLU()),
        image,
        [["conv", "bn", "relu"]],
    ),
    "conv-bn": (
        lambda nn: Net(chain, conv=nn.Conv2d(3, 4, 3, bias=False), bn=nn.BatchNorm2d(4)),
        image,
        [["conv", "bn"]],
    ),
    "conv1d": (
        lambda nn: Net(chain, conv=nn.Conv1d(3, 4, 3), relu=nn.ReLU(), last=nn.Conv1d(4, 2, 1)),
        lambda: image(2, 3, 9),
        [["conv", "relu"]],
    ),
    "conv3d": (
        lambda nn: Net(chain, conv=nn.Conv3d(2, 3, 2), bn=nn.BatchNorm3d(3), relu=nn.ReLU()),
        lambda: image(2, 2, 4, 5, 4),
        [["conv", "bn", "relu"]],
    ),
    "linear-relu": (
        lambda nn: Net(chain, first=nn.Linear(8, 6), relu=nn.ReLU(), last=nn.Linear(6, 3)),
        lambda: image(5, 8),
        [["first", "relu"]],
    ),
    "pooled": (
        lambda nn: Net(
            chain,
            conv=nn.Conv2d(3, 4, 3, padding=1),
            pool=nn.MaxPool2d(2),
            average=nn.AdaptiveAvgPool2d(2),
            up=nn.Upsample(scale_factor=2),
            flat=nn.Flatten(),
            drop=nn.Dropout(0.5),
            fc=nn.Linear(64, 5),
        ),
        image,
        [],
    ),
    "transposed": (
        lambda nn: Net(chain, conv=nn.ConvTranspose2d(3, 4, 2, stride=2), other=nn.ConvTranspose2d(4, 2, 1)),
        image,
        [],
    ),
    "norms": (
        lambda nn: Net(
            chain,
            conv=nn.Conv2d(3, 4, 1),
            group=nn.GroupNorm(2, 4),
            instance=nn.InstanceNorm2d(4, affine=True),
            layer=nn.LayerNorm(8),
        ),
        image,
        [],
    ),
    "activations": (
        lambda nn: Net(
            chain,
            fc=nn.Linear(8, 8),
            elu=nn.ELU(),
            hardswish=nn.Hardswish(),
            leaky=nn.LeakyReLU(0.2),
            sigmoid=nn.Sigmoid(),
            hardsigmoid=nn.Hardsigmoid(),
            tanh=nn.Tanh(),
            softmax=nn.Softmax(-1),
            relu6=nn.ReLU6(),
        ),
        lambda: image(3, 8),
        [],
    ),
    "lstm": (lambda nn: Net(sequence_first, layer=nn.LSTM(4, 5)), lambda: image(3, 2, 4), []),
    "attention": (lambda nn: Net(attention, layer=nn.MultiheadAttention(4, 2)), lambda: image(3, 2, 4), []),
}
DYNAMIC: dict[str, tuple[Callable[[Any], torch.nn.Module], Callable[[], Any]]] = {
    "linear": (lambda nn: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), lambda: image(5, 8)),
    "lstm": (
        lambda nn: nn.Sequential(nn.LSTM(4, 5, num_layers=2, bidirectional=True)),
        lambda: image(3, 2, 4),
    ),
    "gru": (lambda nn: nn.Sequential(nn.GRU(4, 5, batch_first=True)), lambda: image(3, 2, 4)),
    "lstm cell": (lambda nn: nn.Sequential(nn.LSTMCell(4, 5)), lambda: image(2, 4)),
    "gru cell": (lambda nn: nn.Sequential(nn.GRUCell(4, 5)), lambda: image(2, 4)),
    "rnn cell": (lambda nn: nn.Sequential(nn.RNNCell(4, 5, nonlinearity="relu")), lambda: image(2, 4)),
    "transformer": (
        lambda nn: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, activation=nn.functional.gelu), 1, enable_nested_tensor=False
        ),
        lambda: image(3, 2, 8),
    ),
    "embedding": (lambda nn: nn.Sequential(nn.Embedding(6, 16), nn.Linear(16, 4)), tokens),
    "bag": (lambda nn: nn.Sequential(nn.EmbeddingBag(6, 16, mode="sum")), tokens),
}

# ---- what is done with them: each flow yields the models that it makes ------------------------------------------

# observers that are fast; the default one makes histograms
STATIC = ao.QConfig(activation=ao.MinMaxObserver, weight=ao.default_weight_observer)
GRAPH = ao.get_default_qconfig_mapping("x86").set_global(STATIC)
AWARE = ao.get_default_qat_qconfig("x86")
AWARE_GRAPH = ao.get_default_qat_qconfig_mapping("x86")


def static(model: torch.nn.Module, x: Any, fused: list[list[str]]) -> Any:
    model.eval().qconfig = STATIC
    if fused:
        yield (model := ao.fuse_modules(model, fused))
    yield (prepared := ao.prepare(model))
    prepared(x)
    yield ao.convert(prepared)


def reference(model: torch.nn.Module, x: Any, fused: list[list[str]]) -> Any:
    model.eval().qconfig = STATIC
    prepared = ao.prepare(model)
    prepared(x)
    yield ao.convert(prepared, is_reference=True)


def in_place(model: torch.nn.Module, x: Any, fused: list[list[str]]) -> Any:
    model.eval().qconfig = STATIC
    assert ao.prepare(model, inplace=True) is model
    yield model
    model(x)
    assert ao.convert(model, inplace=True) is model
    yield model


def aware(model: torch.nn.Module, x: Any, fused: list[list[str]]) -> Any:
    model.train().qconfig = AWARE
    if fused:
        yield (model := ao.fuse_modules_qat(model, fused))
    yield (prepared := ao.prepare_qat(model))
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    prepared(x).square().mean().backward()
    optimizer.step()
    yield ao.convert(prepared.eval())


def graph(model: torch.nn.Module, x: Any, fused: list[list[str]]) -> Any:
    yield (prepared := quantize_fx.prepare_fx(model.eval(), GRAPH, (x,)))
    prepared(x)
    yield quantize_fx.convert_to_reference_fx(copy.deepcopy(prepared))
    yield quantize_fx.convert_fx(prepared)


def aware_graph(model: torch.nn.Module, x: Any, fused: list[list[str]]) -> Any:
    yield (prepared := quantize_fx.prepare_qat_fx(model.train(), AWARE_GRAPH, (x,)))
    prepared(x)
    yield quantize_fx.convert_fx(prepared.eval())


def graph_fused(model: torch.nn.Module, x: Any, fused: list[list[str]]) -> Any:
    yield quantize_fx.fuse_fx(model.eval())


def dynamic(model: torch.nn.Module, x: Any, nn: Any) -> Any:
    yield ao.quantize_dynamic(model)


def dynamic_of_classes(model: torch.nn.Module, x: Any, nn: Any) -> Any:
    yield ao.quantize_dynamic(model, {nn.Linear, nn.LSTM, nn.GRUCell}, dtype=torch.float16)


def dynamic_by_class(model: torch.nn.Module, x: Any, nn: Any) -> Any:
    yield ao.quantize_dynamic(
        model, {nn.Linear: ao.default_dynamic_qconfig, nn.Embedding: ao.float_qparams_weight_only_qconfig}
    )


def weights_only(model: torch.nn.Module, x: Any, nn: Any) -> Any:
    yield ao.quantize_dynamic(model, dtype=torch.quint8)


def graph_by_class(model: torch.nn.Module, x: Any, nn: Any) -> Any:
    mapping = ao.QConfigMapping().set_object_type(nn.Linear, ao.default_dynamic_qconfig)
    mapping.set_object_type(nn.Embedding, ao.float_qparams_weight_only_qconfig)
    yield (prepared := quantize_fx.prepare_fx(model.eval(), mapping, (x,)))
    yield quantize_fx.convert_fx(prepared)


DYNAMIC_FLOWS = (dynamic, dynamic_of_classes, dynamic_by_class, weights_only, graph_by_class)
FLOWS = (static, reference, in_place, aware, graph, aware_graph, graph_fused)
