"""torch.ao.quantization on models of pynn's layers does what it does on the same models of torch's."""

from __future__ import annotations

import copy
import functools
import itertools
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.nn.quantized as nnq
from torch import Tensor
from torch.ao import quantization as ao
from torch.ao.pruning import WeightNormSparsifier
from torch.ao.pruning._experimental.data_sparsifier import DataNormSparsifier
from torch.ao.pruning._experimental.data_sparsifier.quantization_utils import post_training_sparse_quantize
from torch.ao.pruning._experimental.pruner import SaliencyPruner
from torch.ao.quantization import quantize_fx
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig

import pynn
from parity_tests.quantization_cases import (
    AWARE,
    DYNAMIC,
    DYNAMIC_FLOWS,
    FLOWS,
    GRAPH,
    MODELS,
    STATIC,
    aware,
    graph,
    image,
    static,
)
from pynn.counterparts import class_pairs, torchs_objects
from pynn.install import torchs_names
from pynn.lending import MARK, translated

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

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


class Computed(NamedTuple):
    values: Any
    step: float


def largest_step(model: torch.nn.Module) -> float:
    """What quantised numbers of a model differ by at least; 0 if it has none.

    Layers left in floating point may differ from C++ by a rounding, and then a number between two steps becomes the
    other one.
    """
    scales = [value for key, value in model.state_dict().items() if "scale" in key.rpartition(".")[2]]
    return max((float(scale.max()) for scale in scales), default=0.0)


def outcome(flow: Callable[..., Any], model: torch.nn.Module, x: Any, *arguments: Any) -> list[Any]:
    """Of every model that is made: its classes, its state and what it computes; at last the error, if one ends it."""
    stages: list[Any] = []
    try:
        for stage in flow(model, x, *arguments):
            stages.append((types_in(stage), list(stage.state_dict())))
            torch.manual_seed(0)
            with torch.no_grad():
                stages.append(Computed(stage(x), largest_step(stage)))
    except Exception as error:
        stages.append(type(error))
    return stages


def flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for own, other in zip(found, expected, strict=True):
        step = 0.0
        if isinstance(other, Computed):
            (own, step), (other, expected_step) = own, other
            assert step == pytest.approx(expected_step, rel=1e-6)
        for one, another in zip(flat(own), flat(other), strict=True):
            if isinstance(another, Tensor):
                torch.testing.assert_close(one, another, rtol=1.3e-6, atol=1e-5 + step)
            else:
                assert one == another


@functools.cache
def torchs_outcome(name: str, flow: Callable[..., Any]) -> list[Any]:
    build, draw, fused = MODELS[name]
    return outcome(flow, built("torch", build), draw(), fused)


def name_of(value: Any) -> str:
    return getattr(value, "__name__", value)


ROWS = [(*row, "imported") for row in itertools.product(MODELS, FLOWS)]
ROWS += [(*row, "installed") for row in itertools.product(MODELS, (static, aware, graph))]
ROWS += [("conv-bn-relu", flow, "converted") for flow in FLOWS]


@pytest.mark.parametrize(("name", "flow", "way"), ROWS, ids=name_of)
def test_layers_are_replaced_as_torchs_are(name: str, flow: Callable[..., Any], way: str) -> None:
    build, draw, fused = MODELS[name]
    expected = torchs_outcome(name, flow)
    with installed(way):
        assert_same(outcome(flow, built(way, build), draw(), fused), expected)


@pytest.mark.parametrize("way", ["imported", "installed"])
@pytest.mark.parametrize("flow", DYNAMIC_FLOWS, ids=name_of)
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


@pytest.mark.slow  # a process of its own
def test_names_may_be_imported_before_pynn_and_modules_after() -> None:
    program = """
import torch
from torch.ao.quantization import convert, default_qconfig, fuse_modules, get_default_qconfig_mapping, prepare
import pynn

def model():
    made = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU()).eval()
    made.qconfig = default_qconfig
    return made

with pynn.install():
    prepared = prepare(fuse_modules(model(), ["0", "1"]))
    assert type(prepared[0][0]) is pynn.Conv2d
    x = torch.randn(1, 3, 2, 2)
    prepared(x)
    fused = type(convert(prepared)[0])
    assert fused is torch.ao.nn.intrinsic.quantized.ConvReLU2d, fused
    from torch.ao.quantization import quantize_fx
    prepared = quantize_fx.prepare_fx(model(), get_default_qconfig_mapping(), (x,))
    prepared(x)
    assert type(getattr(quantize_fx.convert_fx(prepared), "0")) is fused
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


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


@pytest.mark.parametrize("way", WAYS)
def test_layers_are_pruned_as_torchs_are(way: str) -> None:
    def pruned(model: Any) -> list[Any]:
        sparse, structured = copy.deepcopy(model), SaliencyPruner({})
        sparsifier = WeightNormSparsifier(sparsity_level=0.5)
        sparsifier.prepare(sparse, config=None)
        sparsifier.step()
        sparsifier.squash_mask()
        structured.prepare(model, [{"tensor_fqn": "0.weight", "sparsity_level": 0.5}])
        structured.enable_mask_update = True
        structured.step()
        smaller = structured.prune()
        return [classes_and_hooks(sparse), types_in(smaller), smaller(image(2, 8))]

    def build(nn: Any) -> Any:
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    expected = pruned(built("torch", build))
    with installed(way):
        assert_same(pruned(built(way, build)), expected)


@pytest.mark.parametrize("way", WAYS)
def test_embeddings_are_sparsified_as_torchs_are(way: str) -> None:
    """test_data_sparsifier.py, test_data_scheduler.py."""

    def sparsified(model: Any) -> list[Any]:
        config = {"sparsity_level": 0.5, "sparse_block_shape": (1, 4), "zeros_per_block": 4}
        sparsifier = DataNormSparsifier(**config)
        for name, layer in model.named_children():
            sparsifier.add_data(name=name, data=layer)
        sparsifier.step()
        masks = [sparsifier.get_mask(name) for name, _ in model.named_children()]
        post_training_sparse_quantize(model, DataNormSparsifier, sparsify_first=True, **config)
        return [*masks, types_in(model)]

    def build(nn: Any) -> Any:
        return nn.Sequential(nn.Embedding(8, 4), nn.EmbeddingBag(8, 4))

    expected = sparsified(built("torch", build))
    with installed(way):
        assert_same(sparsified(built(way, build)), expected)


GETTERS = [
    ao.get_default_static_quant_module_mappings,
    ao.get_default_dynamic_quant_module_mappings,
    ao.get_default_qat_module_mappings,
    ao.get_default_qconfig_propagation_list,
    ao.get_default_custom_config_dict,
]


@pytest.mark.parametrize("getter", GETTERS, ids=name_of)
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
