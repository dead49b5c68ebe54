"""torch.ao.quantization on models of pynn's layers does what it does on the same models of torch's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.nn.quantized as nnq
from torch import Tensor
from torch.ao import quantization as ao
from torch.ao.quantization import quantize_fx
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig

import pynn
from pynn.counterparts import class_pairs, torchs_objects
from pynn.install import torchs_names
from pynn.lending import MARK, translated

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


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
# ---- how pynn's layers come into a model -----------------------------------------------------------------------

WAYS: dict[str, Callable[[Callable[[Any], torch.nn.Module]], torch.nn.Module]] = {
    "imported": lambda build: build(pynn),
    "converted": lambda build: pynn.convert(build(torch.nn)),
    "installed": lambda build: build(torch.nn),
}


def installed(way: str) -> Any:
    return pynn.install() if way == "installed" else nullcontext()


def built(way: str, build: Callable[[Any], torch.nn.Module]) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(torch.nn) if way == "torch" else WAYS[way](build)


def types_in(model: torch.nn.Module) -> list[tuple[str, str]]:
    """Names and classes of all layers, pynn's under torch's name."""
    classes = {name: type(layer) for name, layer in model.named_modules()}
    return [(name, torchs_objects().get(cls, cls).__qualname__) for name, cls in classes.items()]


def outcome(flow: Callable[..., Any], model: torch.nn.Module, x: Any, *arguments: Any) -> list[Any]:
    """Of every model that is made: its classes, its state and what it computes; at last the error, if one ends it."""
    stages: list[Any] = []
    try:
        for stage in flow(model, x, *arguments):
            stages.append((types_in(stage), list(stage.state_dict())))
            torch.manual_seed(0)
            with torch.no_grad():
                stages.append(stage(x))
    except Exception as error:
        stages.append(type(error))
    return stages


def flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for own, other in zip(flat(found), flat(expected), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(own, other)
        else:
            assert own == other


@functools.cache
def torchs_outcome(name: str, flow: Callable[..., Any]) -> list[Any]:
    build, draw, fused = MODELS[name]
    return outcome(flow, built("torch", build), draw(), fused)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_layers_are_replaced_as_torchs_are(name: str, flow: Callable[..., Any], way: str) -> None:
    build, draw, fused = MODELS[name]
    expected = torchs_outcome(name, flow)
    with installed(way):
        assert_same(outcome(flow, built(way, build), draw(), fused), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flow", DYNAMIC_FLOWS, ids=lambda flow: flow.__name__)
@pytest.mark.parametrize("name", DYNAMIC)
def test_weights_are_quantised_as_torchs_are(name: str, flow: Callable[..., Any], way: str) -> None:
    build, draw = DYNAMIC[name]
    expected = outcome(flow, built("torch", build), draw(), torch.nn)
    with installed(way):
        nn = torch.nn if way == "installed" else pynn
        assert_same(outcome(flow, built(way, build), draw(), nn), expected)


# ---- whose layers they are afterwards --------------------------------------------------------------------------


def own_classes(model: torch.nn.Module) -> dict[str, type]:
    return {name: type(layer) for name, layer in model.named_modules()}


def test_the_model_keeps_its_layers_and_what_stays_float_is_pynns() -> None:
    build, draw, fused = MODELS["conv-bn-relu"]
    model = built("imported", build).eval()
    model.qconfig = STATIC
    before, keys = own_classes(model), [set(vars(layer)) for layer in model.modules()]
    fused_model = ao.fuse_modules(model, fused)
    prepared = ao.prepare(fused_model)
    prepared(draw())
    converted = ao.convert(prepared)
    assert own_classes(model) == before
    assert [set(vars(layer)) for layer in model.modules()] == keys
    assert type(prepared.conv) is nni.ConvReLU2d and type(prepared.conv[0]) is pynn.Conv2d
    assert type(converted.conv) is torch.ao.nn.intrinsic.quantized.ConvReLU2d
    assert type(converted.bn) is pynn.Identity
    for made in (fused_model, prepared, converted):
        assert not set(own_classes(made).values()) & set(class_pairs())
        assert not any(MARK in vars(layer) for layer in made.modules())


def test_layers_of_both_kinds_stay_what_they_are() -> None:
    model = torch.nn.Sequential(pynn.Linear(4, 4), torch.nn.Linear(4, 4), pynn.Dropout(), torch.nn.Dropout())
    model[0].qconfig = model[1].qconfig = STATIC
    assert [type(layer) for layer in ao.prepare(model)[:4]] == [type(layer) for layer in model]


def test_a_model_of_torch_stays_torchs() -> None:
    model = built("torch", MODELS["conv-bn-relu"][0]).eval()
    model.qconfig = STATIC
    assert type(ao.prepare(model).bn) is torch.nn.BatchNorm2d


def test_layers_are_given_back_after_an_error() -> None:
    model = pynn.Sequential(pynn.Linear(4, 4), pynn.LSTM(4, 4))
    with pytest.raises(AssertionError, match="did not find fuser method"):
        ao.fuse_modules(model, ["0", "1"])
    assert [type(layer) for layer in model] == [pynn.Linear, pynn.LSTM]


def test_calibration_sees_pynns_layers_and_names() -> None:
    seen = []

    def calibrate(model: torch.nn.Module, x: Tensor) -> None:
        seen.append((type(model.module[0]), torch.nn.Linear))
        model(x)

    with pynn.install():
        model = ao.QuantWrapper(torch.nn.Sequential(torch.nn.Linear(4, 4)))
        model.qconfig = STATIC
        quantised = ao.quantize(model, calibrate, (image(2, 4),))
        assert type(quantised.module[0]) is nnq.Linear
    assert seen == [(pynn.Linear, pynn.Linear)]


@pytest.mark.parametrize("nested", [False, True])
def test_names_are_pynns_again_after_a_call(nested: bool) -> None:
    with pynn.install():
        with torchs_names() if nested else nullcontext():
            ao.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(4, 4)))
            assert torch.nn.Linear is (torchs_objects()[pynn.Linear] if nested else pynn.Linear)
        assert torch.nn.Linear is pynn.Linear
    assert torch.nn.Linear is torchs_objects()[pynn.Linear]


def test_a_parametrized_layer_is_quantised_and_stays_parametrized() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    def quantised(nn: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = ao.QuantWrapper(nn.Sequential(nn.Linear(4, 3)))
        torch.nn.utils.parametrize.register_parametrization(model.module[0], "weight", Doubled())
        model.qconfig = STATIC
        prepared = ao.prepare(model)
        prepared(image(2, 4))
        return model.module[0], ao.convert(prepared)

    layer, own = quantised(pynn)
    assert isinstance(layer, pynn.Linear) and torch.nn.utils.parametrize.is_parametrized(layer)
    assert type(own.module[0]) is nnq.Linear
    assert torch.equal(own(image(2, 4)), quantised(torch.nn)[1](image(2, 4)))


# ---- classes named in arguments --------------------------------------------------------------------------------


class Observed(torch.nn.Module):
    """A user's layer for linear ones."""

    def __init__(self, linear: torch.nn.Module):
        super().__init__()
        self.linear = linear

    @classmethod
    def from_float(cls, linear: torch.nn.Module) -> Observed:
        made = cls(linear)
        made.qconfig = linear.qconfig
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def small(nn: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Linear(8, 5)).eval()
    model.qconfig = STATIC
    return model


ARGUMENTS: dict[str, Callable[[Any, Any], torch.nn.Module]] = {
    "allow list": lambda nn, model: ao.prepare(model, allow_list={nn.Linear}),
    "mapping": lambda nn, model: ao.convert(
        ao.prepare(model), mapping=ao.get_default_static_quant_module_mappings() | {nn.Linear: Observed}
    ),
    "custom": lambda nn, model: ao.prepare(
        model, prepare_custom_config_dict={"float_to_observed_custom_module_class": {nn.Linear: Observed}}
    ),
    "custom in a graph": lambda nn, model: quantize_fx.prepare_fx(
        model, GRAPH, (image(),), PrepareCustomConfig().set_float_to_observed_mapping(nn.Linear, Observed)
    ),
    "skipped in a graph": lambda nn, model: quantize_fx.prepare_fx(
        model, GRAPH, (image(),), PrepareCustomConfig().set_non_traceable_module_classes([nn.Linear])
    ),
    "none of a class": lambda nn, model: quantize_fx.prepare_fx(
        model, copy.deepcopy(GRAPH).set_object_type(nn.Linear, None), (image(),)
    ),
    "fuser": lambda nn, model: ao.fuse_modules(
        model,
        ["0", "1"],
        fuse_custom_config_dict={
            "additional_fuser_method_mapping": {
                (nn.Conv2d, nn.Hardswish): lambda is_qat, conv, _: nni.ConvReLU2d(conv, nn.ReLU())
            }
        },
    ),
    "propagated": lambda nn, model: ao.propagate_qconfig_(model, {nn.Linear: None}) or model,
    "constructed": lambda nn, model: nni.ConvReLU2d(model[0], nn.ReLU()),
    "from_float": lambda nn, model: torch.ao.nn.qat.Conv2d.from_float(_with_qconfig(model[0], AWARE)),
    "to_float": lambda nn, model: torch.ao.nn.qat.Linear.from_float(
        _with_qconfig(model[2], AWARE)
    ).to_float(),
}


def _with_qconfig(layer: Any, qconfig: Any) -> Any:
    layer.qconfig = qconfig
    return layer


def classes_and_hooks(model: torch.nn.Module) -> list[Any]:
    qconfigs = [getattr(layer, "qconfig", None) is not None for layer in model.modules()]
    return [types_in(model), qconfigs, list(model.state_dict().items())]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_classes_in_arguments_are_understood(name: str, way: str) -> None:
    expected = classes_and_hooks(ARGUMENTS[name](torch.nn, small(torch.nn)))
    with installed(way):
        nn = torch.nn if way == "installed" else pynn
        assert_same(classes_and_hooks(ARGUMENTS[name](nn, built(way, small))), expected)


GETTERS = [
    ao.get_default_static_quant_module_mappings,
    ao.get_default_dynamic_quant_module_mappings,
    ao.get_default_qat_module_mappings,
    ao.get_default_qconfig_propagation_list,
    ao.get_default_custom_config_dict,
]


@pytest.mark.parametrize("getter", GETTERS, ids=lambda getter: getter.__name__)
def test_tables_hold_what_the_names_of_torch_nn_hold(getter: Callable[[], Any]) -> None:
    expected = getter()
    with pynn.install():
        found = getter()
    assert found != expected and translated(found, torchs_objects()) == expected
    assert getter() == expected


# ---- quantised tensors -----------------------------------------------------------------------------------------

ON_QUANTISED: dict[str, tuple[Any, ...]] = {
    "ReLU": (),
    "ReLU6": (),
    "Hardtanh": (),
    "Hardsigmoid": (),
    "Sigmoid": (),
    "LeakyReLU": (),
    "Threshold": (0.1, 0.0),
    "ELU": (),
    "GELU": (),
    "MaxPool2d": (2,),
    "AvgPool2d": (2,),
    "AdaptiveAvgPool2d": (2,),
    "Upsample": (None, 2),
    "UpsamplingBilinear2d": (None, 2),
    "PixelShuffle": (2,),
    "ChannelShuffle": (2,),
    "ReflectionPad2d": (1,),
    "ConstantPad2d": (1, 0.0),
    "Flatten": (),
    "Dropout": (),
    "BatchNorm2d": (4,),
    "Softmax": (-1,),
    "Linear": (8, 3),
}


@pytest.mark.parametrize("name", ON_QUANTISED)
def test_quantised_tensors_are_torchs_own_arithmetic(name: str) -> None:
    x = torch.quantize_per_tensor(image(2, 4, 8, 8), 0.05, 128, torch.quint8)

    def result(nn: Any) -> Any:
        try:
            return getattr(nn, name)(*ON_QUANTISED[name]).eval()(x)
        except (RuntimeError, NotImplementedError) as error:
            return type(error), str(error)

    own, expected = result(pynn), result(torch.nn)
    if isinstance(expected, Tensor):
        assert own.is_quantized and torch.equal(own, expected)
    else:
        assert own == expected
