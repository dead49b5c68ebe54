"""pynn in the hands of code that knows torch.nn only: subclasses of tensors and layers, tracers, pickles."""

import io
import pickle
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.utils import source_matcher_utils
from torch.overrides import TorchFunctionMode
from torch.package import PackageExporter, PackageImporter
from torch.testing._internal.common_modules import module_db

import pynn
from parity_tests.torch_version import IS_OLDER
from pynn.counterparts import class_pairs, object_pairs, twin_modules

LAYERS = [info for info in module_db if info.module_cls in class_pairs()]


def network(nn):
    torch.manual_seed(0)
    layers = [
        nn.Conv1d(2, 3, 2),
        nn.BatchNorm1d(3),
        nn.MaxPool1d(2),
        nn.Linear(2, 4),
        nn.GELU(),
        nn.LayerNorm(4),
    ]
    return torch.nn.Sequential(*layers).eval()


class Recorder(torch.Tensor):
    """Notes which functions it is told of."""

    told: list = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.told.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


# ---- __torch_function__ ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gelu", "softmax", "relu", "layer_norm"])
def test_a_tensor_subclass_is_told_torchs_function(name):
    Recorder.told.clear()
    x = torch.randn(3, 4)
    arguments = {"softmax": (-1,), "layer_norm": ((4,),)}.get(name, ())
    result = getattr(pynn.functional, name)(x.as_subclass(Recorder), *arguments)
    assert type(result) is Recorder and getattr(F, name) in Recorder.told
    torch.testing.assert_close(result.as_subclass(torch.Tensor), getattr(F, name)(x, *arguments))


def test_an_object_without_data_can_answer():
    class Duck:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function, kwargs

    assert pynn.functional.gelu(Duck(), approximate="tanh") == (F.gelu, {"approximate": "tanh"})
    assert pynn.functional.gelu(input=Duck())[0] is F.gelu
    with pynn.install():
        assert F.gelu(Duck())[0] is F.gelu  # compared by name where the name is used


def test_a_mode_sees_the_call_once():
    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            told.append(function)
            return function(*args, **(kwargs or {}))

    told = []
    x = torch.randn(3)
    with Mode():
        pynn.functional.softmax(x, dim=0)
    assert told[0] is F.softmax and told.count(F.softmax) == 1


# ---- tracers -----------------------------------------------------------------------------------------------


def test_fx_keeps_layers_whole_and_calls_torchs_functions():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network(pynn)

        def forward(self, x):
            return pynn.functional.softmax(pynn.functional.relu(self.layers(x)), dim=-1)

    graph = torch.fx.symbolic_trace(Model())
    calls = [node for node in graph.graph.nodes if node.op.startswith("call")]
    assert [node.op for node in calls] == ["call_module"] * 6 + ["call_function"] * 2
    assert [node.target for node in calls[6:]] == [F.relu, F.softmax]
    x = torch.randn(2, 2, 5)
    torch.testing.assert_close(graph(x), F.softmax(F.relu(network(torch.nn)(x)), dim=-1))


@pytest.mark.filterwarnings("ignore")
def test_a_trace_holds_torchs_operations_and_can_be_saved(tmp_path):
    x = torch.randn(2, 2, 5)
    traced = torch.jit.trace(network(pynn), x)
    assert "aten::layer_norm" in str(traced.inlined_graph)
    traced.save(str(tmp_path / "model.pt"))
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "model.pt"))(x), network(torch.nn)(x))


def first_sample(info):
    samples = info.module_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
    )
    return samples[0].constructor_input


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("info", LAYERS, ids=lambda info: info.module_cls.__name__)
def test_torchscript_compiles_what_it_compiles_of_torch(info):
    sample = first_sample(info)
    original = info.module_cls(*sample.args, **sample.kwargs)
    try:
        expected = torch.jit.script(original)
    except Exception:
        pytest.skip("TorchScript refuses torch's layer")
    own = class_pairs()[info.module_cls](*sample.args, **sample.kwargs)
    scripted = torch.jit.script(own)
    assert type(own) is class_pairs()[info.module_cls]  # as before
    assert scripted._c._method_names() == expected._c._method_names()
    if (
        "forward" in expected._c._method_names()
    ):  # not of RNNs: they have one for packed and one for padded input
        assert scripted.code == expected.code


@pytest.mark.filterwarnings("ignore")
def test_torchscript_compiles_functions_of_several_signatures():
    """test_trace_script of jit/test_tracer.py: interpolate could not be compiled."""

    def resized(x):
        return pynn.functional.interpolate(x, [4, 6], mode="bilinear")

    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(torch.jit.script(resized)(x), F.interpolate(x, [4, 6], mode="bilinear"))


def test_torchscript_says_that_init_was_not_called():
    """test_init_error of jit/test_recursive_script.py: it was an AttributeError."""

    class Bare(torch.nn.Module):
        def __init__(self):
            self.x = 2

    with pytest.raises(RuntimeError, match="has not been initialized"):
        torch.jit.script(Bare())


@pytest.mark.parametrize("name", ["adaptive_max_pool2d", "relu", "triplet_margin_with_distance_loss"])
def test_fx_traces_a_function_as_torchs(name):
    """TestFunctionalTracing of test_fx.py: the text that torch.fx takes apart is that of torch's function."""
    results = []
    for functions in (F, pynn.functional):
        try:
            results.append(torch.fx.symbolic_trace(getattr(functions, name)).code)
        except (torch.fx.proxy.TraceError, TypeError, ValueError) as error:
            results.append((type(error), str(error)))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["upsample", "upsample_bilinear", "relu"])
def test_fx_traces_what_a_function_calls_as_torchs(name, monkeypatch):
    """The same tests, which look into functions that torch.fx would take as a whole."""
    for question in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
        monkeypatch.setattr(F, question, lambda *_: False)

    def traced():
        try:
            return torch.fx.symbolic_trace(getattr(F, name)).code
        except (torch.fx.proxy.TraceError, TypeError, ValueError) as error:
            return type(error), str(error)

    expected = traced()
    with pynn.install():
        assert traced() == expected


MADE_IN_COMPILED_FUNCTIONS = {
    "ReLU": (),
    "Threshold": (0.5, 2.0),
    "Hardtanh": (),
    "Dropout": (),
    "Softmax": (-1,),
    "Flatten": (),
    "Unflatten": (1, (2, 2)),
    "PixelShuffle": (2,),
    "PixelUnshuffle": (2,),
    "ChannelShuffle": (2,),
    "ZeroPad2d": (1,),
    "ReflectionPad2d": (1,),
    "LocalResponseNorm": (2,),
    "PairwiseDistance": (),
    "MSELoss": (),
}


@pytest.mark.parametrize("name", MADE_IN_COMPILED_FUNCTIONS)
def test_layers_made_in_a_compiled_function(name):
    """test_hf_classinstantier of dynamo/test_repros.py: Dynamo goes to Module.__init__ through super() alone."""
    torch._dynamo.reset()
    x = torch.linspace(-1, 1, 64).view(1, 4, 4, 4)
    inputs = (x, x * 2) if name in ("MSELoss", "PairwiseDistance") else (x,)

    def made(nn, *inputs):
        return getattr(nn, name)(*MADE_IN_COMPILED_FUNCTIONS[name]).eval()(*inputs)

    compiled = torch.compile(made, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pynn, *inputs), made(torch.nn, *inputs))


def test_dynamo_stops_at_the_parameters_of_a_layer():
    """In torch's Linear and in pynn's: not before, at Module.__init__."""

    def stop(nn):
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
            torch.compile(lambda x: nn.Linear(3, 3)(x), backend="eager", fullgraph=True)(torch.ones(3))
        return caught.value.msg

    assert stop(pynn) == stop(torch.nn)


@pytest.mark.parametrize("name", ["Linear", "BatchNorm1d", "Embedding"])
def test_layers_made_next_to_a_compiled_function(name):
    """test_generation_tag of dynamo/test_modules.py: Dynamo sees a frame of the layer's constructor, not a call."""
    torch._dynamo.reset()
    compiled = CompileCounter()
    arguments = (3,) if name == "BatchNorm1d" else (3, 3)
    with torch._dynamo.config.patch(raise_on_ctx_manager_usage=False):
        with torch._dynamo.optimize_assert(compiled):
            getattr(pynn, name)(*arguments)
    assert compiled.frame_count == 0


@pytest.mark.parametrize("has_layer", [False, True])
def test_dynamo_compiles_no_function_of_pynns_by_itself(has_layer):
    """test_maml_no_item_capture of dynamo/test_repros.py: a break in a loop leaves the caller to Python."""

    def frames(nn):
        torch._dynamo.reset()
        compiled, layer = CompileCounter(), nn.Linear(3, 3)

        @torch.compile(backend=compiled)
        def called(x):
            for _ in range(2):
                torch._dynamo.graph_break()
                x = layer(x) if has_layer else nn.functional.softmax(x, -1)
            return x

        called(torch.ones(3))
        return compiled.frame_count

    assert frames(pynn) == frames(torch.nn)


@pytest.mark.parametrize("name", ["Linear", "LSTM"])
def test_dynamo_compiles_a_layer_whose_hooks_break_the_graph(name):
    def frames(nn):
        torch._dynamo.reset()
        compiled, layer = CompileCounter(), getattr(nn, name)(3, 3)
        layer.register_forward_hook(lambda *_: torch._dynamo.graph_break())
        torch.compile(lambda x: layer(x), backend=compiled)(torch.ones(3, 3))
        return compiled.frame_count

    assert frames(pynn) == frames(torch.nn)


def test_a_layer_that_is_compiled_by_itself_is_one_graph():
    """No frame of pynn's is compiled that was not asked for: these are."""
    x = torch.linspace(-1, 1, 6).view(2, 3)
    for function in (pynn.Linear(3, 3), pynn.functional.gelu, pynn.functional.softmin):
        torch._dynamo.reset()
        compiled = CompileCounter()
        arguments = (x, -1) if function is pynn.functional.softmin else (x,)
        result = torch.compile(function, backend=compiled, fullgraph=True)(*arguments)
        assert compiled.frame_count == 1 and compiled.op_count > 0
        torch.testing.assert_close(result, function(*arguments))


class Tag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tag = "made"


@pytest.mark.parametrize("name", ["Linear", "ReLU", "CircularPad1d"])
def test_a_further_base_of_a_users_layer_is_initialised(name):
    """super().__init__() in torch's layers goes on to it."""
    arguments = {"Linear": (2, 2), "ReLU": (), "CircularPad1d": (1,)}[name]
    tagged = type("Tagged", (getattr(pynn, name), Tag), {})(*arguments)
    assert tagged.tag == type("Tagged", (getattr(torch.nn, name), Tag), {})(*arguments).tag


@pytest.mark.parametrize("name", ["Bilinear", "ReLU", "Dropout", "MSELoss"])
def test_classes_made_before_install_call_a_constructor_by_name(name):
    arguments = (2, 2, 2) if name == "Bilinear" else ()

    def init(self):
        getattr(torch.nn, name).__init__(self, *arguments)

    own = type("Own", (getattr(torch.nn, name),), {"__init__": init})
    expected = repr(own())
    with pynn.install():
        assert repr(own()) == expected


def test_fx_refuses_a_function_of_cpp_while_it_has_torchs_name():
    with pynn.install(), pytest.raises(AssertionError):
        torch.fx.symbolic_trace(F.conv2d)
    assert "conv2d" in torch.fx.symbolic_trace(pynn.functional.conv2d).code


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("has_gradient", [False, True])
def test_make_fx_records_the_operations_of_torchs_layers(has_gradient, pre_dispatch):
    """test_make_fx_model_double_param and test_decomposition_interpreter of test_proxy_tensor.py,
    test_aot_export_predispatch_composite_implicit_linear of test_aotdispatch.py.
    """
    graphs = []
    for nn in (torch.nn, pynn):
        model = network(nn).requires_grad_(has_gradient)
        graphs.append(make_fx(model, pre_dispatch=pre_dispatch)(torch.randn(2, 2, 6)))
    with pynn.install():  # the functions' names are pynn's then
        graphs.append(make_fx(model, pre_dispatch=pre_dispatch)(torch.randn(2, 2, 6)))
    targets = [[node.target for node in graph.graph.nodes] for graph in graphs]
    assert targets[0] == targets[1] == targets[2]


def test_modes_are_told_poolings_arguments_as_they_are():
    """test_variatic_arg_matching of fx/test_matcher_utils.py: pooling under a mode met a tuple in the input's place."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    x = torch.randn(1, 2, 6, 6)
    for indices in (False, True):
        with Mode():
            found = pynn.functional.max_pool2d(x, 2, return_indices=indices)
        torch.testing.assert_close(found, F.max_pool2d(x, 2, return_indices=indices))


def test_torchscript_compiles_functions():
    def plain(x: torch.Tensor):
        return pynn.functional.softmax(pynn.functional.gelu(x), dim=-1)

    def pooled(x: torch.Tensor):
        return pynn.functional.max_pool2d(x, 2)

    x = torch.randn(1, 4, 4)
    torch.testing.assert_close(torch.jit.script(plain)(x), F.softmax(F.gelu(x), dim=-1))
    torch.testing.assert_close(torch.jit.script(pooled)(x), F.max_pool2d(x, 2))


class Sourced(torch.nn.Module):
    def __init__(self, nn):
        super().__init__()
        self.nn, self.linear, self.relu, self.conv = nn, nn.Linear(3, 3), nn.ReLU(), nn.Conv1d(2, 2, 1)

    def forward(self, x):
        x = self.conv(self.relu(self.linear(x)))
        return self.nn.functional.relu(self.nn.functional.linear(x, self.linear.weight))


def nodes_by_source(strict, made_of, asked_of):
    graph = torch.export.export(Sourced(made_of), (torch.randn(2, 2, 3),), strict=strict).module().graph
    functional = asked_of.functional
    sources = [asked_of.Linear, asked_of.ReLU, asked_of.Conv1d, functional.linear, functional.relu]
    before = [dict(node.meta) for node in graph.nodes]
    found = source_matcher_utils.get_source_partitions(graph, sources)
    assert [node.meta for node in graph.nodes] == before
    assert all(part.source is source for source, parts in found.items() for part in parts)
    parts = [found.get(source, []) for source in sources]
    return [[n.name for part in each for n in part.nodes if n.op == "call_function"] for each in parts]


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_nodes_are_found_by_the_layer_or_function_that_made_them(strict, installed):
    expected = nodes_by_source(strict, torch.nn, torch.nn)
    assert all(expected) if strict else any(expected) or IS_OLDER  # whose graphs don't say
    with pynn.install() if installed else nullcontext():
        for made_of in (torch.nn, pynn):
            for asked_of in (torch.nn, pynn):
                torch._dynamo.reset()
                assert nodes_by_source(strict, made_of, asked_of) == expected


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "AvgPool2d", "LayerNorm", "GELU"])
def test_gradients_in_batches(name):
    """torch.autograd.grad(is_grads_batched=True) knows few operations: the convolutions failed."""
    arguments = {"Conv2d": (2, 4, 3), "ConvTranspose2d": (2, 4, 3), "AvgPool2d": (2,), "LayerNorm": (4,)}.get(
        name, ()
    )
    layer = getattr(pynn, name)(*arguments).double()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    result = layer(x)
    grads = torch.randn(5, *result.shape, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    found = torch.autograd.grad(result, inputs, grads, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(result, inputs, grad, retain_graph=True) for grad in grads]
    for one, several in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(several))


# ---- install -----------------------------------------------------------------------------------------------


def test_every_submodule_is_covered():
    pairs = object_pairs()
    packed, normed = torch.nn.utils.rnn.pack_sequence, torch.nn.utils.weight_norm
    assert pairs[packed] is pynn.utils.rnn.pack_sequence
    with pynn.install():
        assert torch.nn.utils.rnn.pack_sequence is pynn.utils.rnn.pack_sequence
        assert torch.nn.utils.weight_norm is pynn.utils.weight_norm
        held = [v for module, _ in twin_modules() for v in vars(module).values()]
        assert not [value for value in held if any(value is original for original in pairs)]
    assert torch.nn.utils.rnn.pack_sequence is packed and torch.nn.utils.weight_norm is normed


@pytest.mark.slow  # a process of its own
def test_submodules_imported_later_are_covered():
    program = """
import sys, pynn
name = "torch.nn.attention.varlen"
assert name not in sys.modules
with pynn.install():
    from torch.nn.attention.varlen import varlen_attn
    assert varlen_attn.__module__ == "pynn.attention.varlen"
assert sys.modules[name].varlen_attn.__module__ == name
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("built_with", [torch.nn, pynn])
def test_layers_are_pickled_while_installed(built_with):
    model = network(built_with)
    with pynn.install():
        again = pickle.loads(pickle.dumps(model))
    assert [type(layer) for layer in again] == [type(layer) for layer in model]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert [type(layer) for layer in pickle.loads(pickle.dumps(model))] == [type(layer) for layer in model]


def test_a_subclass_written_while_installed():
    with pynn.install():

        class Scaled(torch.nn.Linear):
            def __init__(self, size):
                torch.nn.Linear.__init__(self, size, size)

            def forward(self, input):
                return 2 * super().forward(input)

        layer = Scaled(3)
        assert isinstance(layer, torch.nn.Linear)
    x = torch.randn(2, 3)
    assert isinstance(layer, torch.nn.Linear) and isinstance(layer, pynn.Linear)
    torch.testing.assert_close(layer(x), 2 * F.linear(x, layer.weight, layer.bias))


def test_a_warning_names_the_callers_line():
    with pytest.warns(UserWarning, match="Implicit dimension choice for softmax") as expected:
        F.softmax(torch.randn(3))
    with pytest.warns(UserWarning, match="Implicit dimension choice for softmax") as found:
        pynn.functional.softmax(torch.randn(3))
    assert [(w.category, str(w.message), w.filename) for w in found] == [
        (w.category, str(w.message), w.filename) for w in expected
    ]


@pytest.mark.parametrize("take", [lambda model: model, torch.fx.symbolic_trace])
def test_packages_need_no_word_about_pynn(take):
    """torch.package saves a model of torch.nn's layers without being told of torch."""
    with pynn.install():
        model = take(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()))
        file = io.BytesIO()
        with PackageExporter(file) as exporter:
            exporter.save_pickle("model", "model.pkl", model)
        file.seek(0)
        again = PackageImporter(file).load_pickle("model", "model.pkl")
    assert [type(layer) for layer in list(again.modules())[1:]] == [pynn.Linear, pynn.ReLU]
    x = torch.randn(4, 3)
    assert torch.equal(again(x), model(x))


def test_dynamo_notes_the_lines_that_call_layers():
    """test_compile_with_functionalization of dynamo/test_subclasses.py, whose text shows where lines change."""
    noted = []
    for nn in (torch.nn, pynn):
        graphs = []
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())

        def step(x, nn=nn, model=model):
            y = x.add_(1.0) + nn.functional.relu_(x)
            return model(nn.functional.softmax(y, -1))

        def backend(graph, inputs, graphs=graphs):
            graphs.append(graph)
            return graph.forward

        torch.compile(step, backend=backend, fullgraph=True)(torch.randn(2, 3))
        noted.append([node.stack_trace for node in graphs[0].graph.nodes if node.op != "output"])
    assert noted[0] == noted[1]
