"""The package as a whole: pynn offers every name of torch.nn and behaves as torch.nn does.

Every case comes from a table: the public names of torch.nn, and CONSTRUCTORS for the layers that need
arguments (a layer with neither a default nor a row makes test_every_layer_has_a_constructor_row fail).
"""

import copy
import functools
import importlib
import inspect
import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parametrizations, parametrize

import pynn
from parity_tests.torch_version import IS_OLDER, assert_torchs_parameters, shown
from pynn.counterparts import class_pairs, function_pairs

PAIRS = {original.__name__: (original, own) for original, own in class_pairs().items()}

# name -> arguments of the constructor; layers not named here are built without arguments
CONSTRUCTORS = {
    "AdaptiveAvgPool1d": (2,),
    "AdaptiveAvgPool2d": (2,),
    "AdaptiveAvgPool3d": (2,),
    "AdaptiveLogSoftmaxWithLoss": (8, 20, [5, 10]),
    "AdaptiveMaxPool1d": (2,),
    "AdaptiveMaxPool2d": (2,),
    "AdaptiveMaxPool3d": (2,),
    "AlphaDropout": (0.3,),
    "AvgPool1d": (2,),
    "AvgPool2d": (2,),
    "AvgPool3d": (2,),
    "BatchNorm1d": (4,),
    "BatchNorm2d": (4,),
    "BatchNorm3d": (4,),
    "Bilinear": (3, 4, 5),
    "ChannelShuffle": (2,),
    "CircularPad1d": (1,),
    "CircularPad2d": (1,),
    "CircularPad3d": (1,),
    "ConstantPad1d": (1, 0.5),
    "ConstantPad2d": (1, 0.5),
    "ConstantPad3d": (1, 0.5),
    "Conv1d": (2, 4, 3),
    "Conv2d": (2, 4, 3),
    "Conv3d": (2, 4, 3),
    "ConvTranspose1d": (2, 4, 3),
    "ConvTranspose2d": (2, 4, 3),
    "ConvTranspose3d": (2, 4, 3),
    "CrossMapLRN2d": (3,),
    "Embedding": (7, 3),
    "EmbeddingBag": (7, 3),
    "Fold": ((4, 5), (2, 3)),
    "FractionalMaxPool2d": (2, 3),
    "FractionalMaxPool3d": (2, 3),
    "GroupNorm": (2, 6),
    "GRU": (3, 4),
    "GRUCell": (3, 4),
    "InstanceNorm1d": (4,),
    "InstanceNorm2d": (4,),
    "InstanceNorm3d": (4,),
    "LayerNorm": (6,),
    "LazyConv1d": (4, 3),
    "LazyConv2d": (4, 3),
    "LazyConv3d": (4, 3),
    "LazyConvTranspose1d": (4, 3),
    "LazyConvTranspose2d": (4, 3),
    "LazyConvTranspose3d": (4, 3),
    "LazyLinear": (4,),
    "Linear": (3, 4),
    "LocalResponseNorm": (2,),
    "LPPool1d": (2.0, 2),
    "LPPool2d": (2.0, 2),
    "LPPool3d": (2.0, 2),
    "LSTM": (3, 4),
    "LSTMCell": (3, 4),
    "MaxPool1d": (2,),
    "MaxPool2d": (2,),
    "MaxPool3d": (2,),
    "MaxUnpool1d": (2,),
    "MaxUnpool2d": (2,),
    "LinearCrossEntropyLoss": (5, 4),
    "MaxUnpool3d": (2,),
    "MultiheadAttention": (8, 2),
    "NonDynamicallyQuantizableLinear": (3, 4),
    "PixelShuffle": (2,),
    "PixelUnshuffle": (2,),
    "ReflectionPad1d": (1,),
    "ReflectionPad2d": (1,),
    "ReflectionPad3d": (1,),
    "ReplicationPad1d": (1,),
    "ReplicationPad2d": (1,),
    "ReplicationPad3d": (1,),
    "RMSNorm": (6,),
    "RNN": (3, 4),
    "RNNBase": ("LSTM", 3, 4),
    "RNNCell": (3, 4),
    "RNNCellBase": (3, 4, True, 4),
    "SyncBatchNorm": (4,),
    "Threshold": (0.1, 2.0),
    "Transformer": (8, 2, 1, 1, 12),
    "TransformerDecoderLayer": (8, 2, 12),
    "TransformerEncoderLayer": (8, 2, 12),
    "Unflatten": (1, (2, 3)),
    "Unfold": (2,),
    "ZeroPad1d": (1,),
    "ZeroPad2d": (1,),
    "ZeroPad3d": (1,),
    "_BatchNorm": (4,),
    "_InstanceNorm": (4,),
    "_NormBase": (4,),
}
STACKS = {"TransformerEncoder": "TransformerEncoderLayer", "TransformerDecoder": "TransformerDecoderLayer"}


def build(name, own):
    """The layer `name` of pynn or of torch, from seed 0."""
    torch.manual_seed(0)
    cls = PAIRS[name][own]
    if name in STACKS:
        return cls(PAIRS[STACKS[name]][own](8, 2, 12, batch_first=True), 2)
    return cls(*CONSTRUCTORS.get(name, ()))


def needs_arguments(cls):
    arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
    fixed = [p for p in arguments if p.kind is not p.VAR_POSITIONAL and p.kind is not p.VAR_KEYWORD]
    return any(p.default is p.empty for p in fixed)


def test_every_layer_has_a_constructor_row():
    missing = [n for n, (_, own) in PAIRS.items() if needs_arguments(own) and n not in CONSTRUCTORS | STACKS]
    assert missing == []


# ---- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", torch.nn.modules.__all__)
def test_module_name_resolves(name):
    original = getattr(torch.nn, name)
    assert getattr(pynn, name) is getattr(pynn.modules, name) is PAIRS.get(name, (0, original))[1]
    family = original.__module__.removeprefix("torch.nn.modules.")
    assert getattr(importlib.import_module(f"pynn.modules.{family}"), name) is getattr(pynn, name)


@pytest.mark.parametrize("name", [n for n in dir(torch.nn) if not n.startswith("_")])
def test_torch_nn_name_resolves(name):
    assert hasattr(pynn, name) and name in pynn.__all__


@pytest.mark.parametrize("name", pynn.coverage.__globals__["functional_names"]())
def test_functional_name_resolves(name):
    assert callable(getattr(pynn.functional, name))


@pytest.mark.parametrize("namespace", pynn.coverage.__globals__["NAMESPACES"])
def test_names_of_submodules_resolve(namespace):
    """Bug: pynn.utils.weight_norm was the submodule, not the function that hides it in torch."""
    original, own = (importlib.import_module(f"{package}.{namespace}") for package in ("torch.nn", "pynn"))
    for name in getattr(original, "__all__", ()):
        value = getattr(own, name)
        assert inspect.ismodule(value) == inspect.ismodule(getattr(original, name)), name
        names = [getattr(v, "__name__", "").rpartition(".")[2] for v in (value, getattr(original, name))]
        assert names[0] == names[1], name


def test_what_torch_keeps_in_python_is_shared():
    assert pynn.Module is torch.nn.Module and pynn.Sequential is torch.nn.Sequential
    assert pynn.Parameter is torch.nn.Parameter and pynn.init.normal_ is torch.nn.init.normal_
    assert (
        pynn.utils.rnn.PackedSequence is torch.nn.utils.rnn.PackedSequence
        and pynn.parallel is torch.nn.parallel
    )
    shared = importlib.import_module("pynn.parallel.distributed")
    assert shared is torch.nn.parallel.distributed


@functools.cache
def coverage():
    return pynn.coverage(show=False)


def test_no_cpp_leaf_is_left():
    """A name that torch adds fails here, and says which."""
    left = {e.name: e.reason for e in coverage() if e.status == "torch C++"}
    assert left == {}


def test_coverage_prints_whole_words_and_the_reasons(capsys):
    """At 180 columns the reasons had none left, and long names ended in dots."""
    pynn.coverage()
    printed = capsys.readouterr().out
    assert "…" not in printed
    for text in {entry.reason for entry in coverage()} | {entry.location for entry in coverage()}:
        assert text in printed


def test_coverage_lists_exactly_torchs_names():
    entries = {entry.name: entry for entry in coverage()}
    modules = {name for name, entry in entries.items() if entry.kind == "module"}
    assert modules == {f"nn.{name}" for name in torch.nn.modules.__all__} and (
        len(modules) == 163 or IS_OLDER
    )
    functions = {name for name, entry in entries.items() if entry.kind == "function"}
    assert len(functions) == 132 or IS_OLDER
    for name, (original, own) in PAIRS.items():
        if original is getattr(torch.nn, name, None):
            runs_python = inspect.unwrap(own.forward).__module__.startswith("pynn.")
            assert (entries[f"nn.{name}"].status == "Python") == runs_python
    for entry in entries.values():
        assert entry.location or entry.reason
        assert bool(entry.reason) == (entry.status not in ("Python", "shared with torch (already Python)"))


# ---- layers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_layer_is_torchs_subclass_with_the_same_signatures(name):
    original, own = PAIRS[name]
    assert issubclass(own, original) and own.__name__ == original.__name__
    assert_torchs_parameters(own.__init__, original.__init__)
    assert_torchs_parameters(own.forward, original.forward)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_layer_equals_torchs_once_built(name):
    original, own = build(name, 0), build(name, 1)
    assert shown(own) == shown(original)
    if "Lazy" in name:
        return
    state, own_state = original.state_dict(), own.state_dict()
    assert list(state) == list(own_state)
    assert all(torch.equal(state[key], own_state[key]) for key in state)  # same seed, same bits
    own.load_state_dict(state)
    original.load_state_dict(own_state)
    assert {k for k in vars(original) if not k.startswith("_")} == {
        k for k in vars(own) if not k.startswith("_")
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_layer_survives_deepcopy_and_pickle(name):
    layer = build(name, 1)
    twins = [pickle.loads(pickle.dumps(layer))]
    if not has_uninitialised_buffers(layer):
        twins.append(copy.deepcopy(layer))
    for twin in twins:
        assert type(twin) is type(layer) and repr(twin) == repr(layer)


def has_uninitialised_buffers(layer):
    """torch's UninitializedBuffer can't be deep-copied, its own lazy normalisations therefore not either."""
    return any(isinstance(buffer, torch.nn.UninitializedBuffer) for buffer in layer.buffers())


# ---- convert ---------------------------------------------------------------------------------------------


class OwnForward(torch.nn.Linear):
    def forward(self, input):
        return super().forward(input) + 1


class InheritedForward(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 3)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.own = OwnForward(3, 3)
        self.inherited = InheritedForward()
        self.parametrized = parametrizations.spectral_norm(torch.nn.Linear(3, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.normed = torch.nn.utils.weight_norm(torch.nn.Linear(3, 3))
        self.tied = self.first

    def forward(self, x):
        return self.tied(self.normed(self.parametrized(self.inherited(self.own(self.first(x))))))


def test_convert_swaps_classes_and_keeps_everything_else():
    model = Model().eval()
    calls = []
    model.first.register_forward_hook(lambda *_: calls.append(1))
    before = dict(model.named_parameters())
    x = torch.randn(2, 3)
    expected = model(x)
    assert pynn.convert(model) is model
    assert type(model.first) is pynn.Linear and type(model.normed) is pynn.Linear
    assert type(model.own) is OwnForward
    assert isinstance(model.inherited, InheritedForward) and isinstance(model.inherited, pynn.Linear)
    assert isinstance(model.parametrized, pynn.Linear) and parametrize.is_parametrized(model.parametrized)
    assert all(model.get_parameter(name) is parameter for name, parameter in before.items())
    torch.testing.assert_close(model(x), expected)
    assert len(calls) == 4  # the tied layer runs twice a pass


def test_convert_runs_the_definition():
    model = pynn.convert(Model().eval())
    layers = (model.first, model.inherited, model.parametrized)
    assert all(type(layer).forward is pynn.Linear.forward for layer in layers)


def test_convert_is_idempotent_and_has_an_inverse():
    model = Model().eval()
    classes = [type(module) for module in model.modules()]
    pynn.convert(pynn.convert(model))
    pynn.convert(model, inverse=True)
    returned = [type(module) for module in model.modules()]
    for cls, back in zip(classes, returned):
        assert cls is back or (cls.__name__.startswith("Parametrized") and cls.__bases__ == back.__bases__)


def test_converted_model_survives_deepcopy_and_pickle():
    model = pynn.convert(torch.nn.Sequential(InheritedForward(), torch.nn.GELU()))
    x = torch.randn(2, 3)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is type(model[0]) and torch.equal(twin(x), model(x))


def test_parametrization_can_be_removed_after_convert():
    layer = pynn.convert(parametrizations.spectral_norm(torch.nn.Linear(3, 3)))
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is pynn.Linear


def test_convert_replaces_the_activation_function_of_a_transformer():
    model = torch.nn.Transformer(8, 2, 1, 1, 12)
    assert model.encoder.layers[0].activation is F.relu
    pynn.convert(model)
    assert model.encoder.layers[0].activation is pynn.functional.relu
    assert all(type(module) not in class_pairs() for module in model.modules())
    pynn.convert(model, inverse=True)
    assert model.encoder.layers[0].activation is F.relu and type(model) is torch.nn.Transformer


# ---- install ---------------------------------------------------------------------------------------------


def names_under_torch_nn():
    modules = {torch.nn, F, torch.nn.modules, torch.nn.modules.linear, torch.nn.modules.transformer}
    return {(module.__name__, name): value for module in modules for name, value in vars(module).items()}


def test_install_replaces_every_pair_and_uninstall_restores_exactly():
    before = names_under_torch_nn()
    functions = {original.__name__: own for original, own in function_pairs().items()}
    with pynn.install():
        assert torch.nn.Linear is pynn.Linear is torch.nn.modules.linear.Linear is torch.nn.modules.Linear
        assert torch.nn.modules.activation.MultiheadAttention is pynn.MultiheadAttention
        assert all(getattr(F, name) is own for name, own in functions.items() if hasattr(F, name))
        built = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())
    after = names_under_torch_nn()
    assert before.keys() == after.keys() and all(before[key] is after[key] for key in before)
    assert type(built[0]) is pynn.Linear and type(built[1]) is pynn.GELU


def test_install_nests():
    original = torch.nn.Linear
    with pynn.install():
        with pynn.install():
            pass
        assert torch.nn.Linear is pynn.Linear
    assert torch.nn.Linear is original
    with pytest.raises(RuntimeError, match="not installed"):
        pynn.uninstall()


@pytest.mark.filterwarnings("ignore")
def test_installed_functions_and_layers_compute_what_torchs_do():
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True, dtype=torch.float64)
    expected, expected_gelu = model(x), F.gelu(x)
    with pynn.install():
        torch.manual_seed(0)
        own = torch.nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True, dtype=torch.float64)
        torch.testing.assert_close(own(x), expected, rtol=0, atol=1e-13)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-13)  # torch's layer, pynn's functions
        torch.testing.assert_close(F.gelu(x), expected_gelu, rtol=0, atol=1e-13)


# ---- source ----------------------------------------------------------------------------------------------


def test_source_shows_the_mathematics_and_what_it_replaces():
    text = pynn.source("layer_norm", show=False)
    assert "def layer_norm(" in text and "pynn/modules/normalization.py:" in text
    assert "defines aten.native_layer_norm.default" in text
    assert "replaces torch.nn.functional.layer_norm" in text
    assert "class LayerNorm" in pynn.source("LayerNorm", show=False)
    with pytest.raises(ValueError, match="no pynn definition"):
        pynn.source("DataParallel")


def test_source_knows_every_name_that_coverage_calls_python():
    """weight_norm, pack_padded_sequence, conv2d_input ... had no definition; NLLLoss2d raised AttributeError."""
    for entry in coverage():
        if entry.status == "Python":
            assert pynn.source(entry.name, show=False).startswith(f"# {entry.location}"), entry.name
    assert "def pack_padded_sequence" in pynn.source("pack_padded_sequence", show=False)


def test_source_shows_the_mathematics_before_what_it_checks():
    text = pynn.source("ctc_loss", show=False)
    assert text.index("def forward_variables(") < text.index("def check_log_probs(")


@pytest.mark.parametrize(
    ("name", "operation", "helper"),
    [
        ("gelu", "gelu", "_gelu_tanh_argument"),  # through differentiable(...), in a table
        ("relu", "relu", "threshold_backward"),
        ("avg_pool2d", "avg_pool2d", "sum_along"),  # through a module, made for each dims
        ("max_pool2d", "max_pool2d_with_indices", "sliding_boxes"),
        ("pad", "reflection_pad2d", "mirrored"),
        ("interpolate", "upsample_bilinear2d", "keys_cubic"),
    ],
)
def test_source_goes_on_to_the_definition_of_the_operation(name, operation, helper):
    """Bug: of most activations, of pooling and resizing only the public function was shown."""
    text = pynn.source(name, show=False)
    assert re.search(rf"^#.*\baten\.{operation}\.default", text, re.M) and f"def {helper}(" in text
    assert max(map(len, text.splitlines())) <= 120


def test_source_follows_what_a_layer_derives_from():
    assert pynn.source("lstm", show=False) == pynn.source("LSTM", show=False)
    assert "def lstm_step(" in pynn.source("LSTM", show=False)
