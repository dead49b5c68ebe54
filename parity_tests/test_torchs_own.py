"""What torch's own test files (test_nn.py, nn/test_*.py) found with pynn installed; each test names its origin."""

import contextlib
import subprocess
import sys

import pytest
import torch
from functorch.compile import aot_function, nop
from torch._dispatch.python import enable_python_dispatcher
from torch.autograd import forward_ad, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import pynn
import pynn.functional as F

C = torch.nn.functional


def both(function):
    """What function(functions) gives with torch's functions and with pynn's."""
    return [function(functions) for functions in (C, F)]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolution_of_an_empty_batch_has_batched_second_derivatives(dims):
    """TestNN.test_Conv1d_zero_batch and its sisters."""
    sizes = {"x": (0, 2, *[5] * dims), "weight": (3, 2, *[3] * dims), "bias": (3,)}
    tensors = [torch.randn(size, dtype=torch.double, requires_grad=True) for size in sizes.values()]
    assert gradgradcheck(getattr(F, f"conv{dims}d"), tensors, check_batched_grad=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolution_without_channels(dims):
    """test_conv_empty_channel of nn/test_convolution.py."""
    x, weight = torch.randn(2, 0, *[9] * dims), torch.randn(5, 0, *[3] * dims, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    cpp, own = both(lambda functions: getattr(functions, f"conv{dims}d")(x, weight, bias))
    assert own.shape == cpp.shape
    own.sum().backward()
    assert not weight.grad.any() and not bias.grad.any() and bias.grad.shape == bias.shape


def test_convolution_of_what_is_no_tensor():
    """test_Conv2d_missing_argument of nn/test_convolution.py."""
    x = torch.ones(1, 1, 3)
    with pytest.raises(TypeError):
        C.conv1d(None, x)
    with pytest.raises(TypeError, match="must be Tensor, not NoneType"):
        F.conv1d(None, x)
    for functions in (C, F):
        with pytest.raises(TypeError, match=r"conv1d\(\) received an invalid combination of arguments - got"):
            functions.conv1d(x, None)


@pytest.mark.parametrize("var", [1, None, [1.0]])
def test_gaussian_nll_loss_of_a_variance_that_is_no_tensor(var):
    """Not an AttributeError, which it was."""
    x = torch.randn(3)
    with pytest.raises((TypeError, AttributeError)):
        C.gaussian_nll_loss(x, x, var)
    with pytest.raises(TypeError, match="must be Tensor or float, not"):
        F.gaussian_nll_loss(x, x, var)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 2, 1), (2, 3, 1, 4), (1, 3, 2, 4)])
def test_batch_norm_of_permuted_images_keeps_their_format(training, shape):
    """test_batchnorm_non_contig of test_nn.py."""
    x = torch.randn(shape).permute(0, 2, 1, 3)
    mean, variance = torch.zeros(x.size(1)), torch.ones(x.size(1))
    cpp, own = both(
        lambda functions: functions.batch_norm(x, mean, variance, training=training, momentum=0.0)
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        assert own.is_contiguous(memory_format=layout) == cpp.is_contiguous(memory_format=layout)


def test_batch_norm_refuses_tangents_of_running_statistics():
    """test_batchnorm_raises_error_if_running_var_or_running_mean_have_forward_grad of test_nn.py."""
    x, mean, variance = torch.randn(3, 2, 5), torch.randn(2), torch.rand(2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(mean, torch.ones(2))
        F.batch_norm(x, dual, variance)
        with pytest.raises(RuntimeError, match="not differentiable wrt running_mean and running_var"):
            F.batch_norm(forward_ad.make_dual(x, x), dual, variance)


def test_instance_norm_takes_an_eps_of_0():
    """test_InstanceNorm1d_general of test_nn.py."""
    x = torch.randn(2, 3, 7)
    cpp, own = both(lambda functions: functions.instance_norm(x, eps=0))
    torch.testing.assert_close(own, cpp)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_average_of_whole_images_has_torchs_strides(layout):
    """test_adaptive_avg_pool2d_output_size_one of nn/test_pooling.py."""
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=layout)
    cpp, own = both(lambda functions: functions.adaptive_avg_pool2d(x, 1))
    assert own.stride() == cpp.stride()


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_no_windows_have_no_gradient(kind, dims):
    """test_adaptive_pooling_empty_output_size of nn/test_pooling.py."""
    messages = []
    for functions in (C, F):
        x = torch.randn(2, 3, *[4] * dims, requires_grad=True)
        out = getattr(functions, f"adaptive_{kind}_pool{dims}d")(x, 0)
        with pytest.raises(RuntimeError) as caught:
            out.sum().backward()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_threshold_compares_with_the_number_itself(dtype):
    """test_activations_bfloat16_half_cpu of test_nn.py."""
    x = torch.tensor([0.1], dtype=dtype)
    cpp, own = both(lambda functions: functions.threshold(x, 0.1, 20))
    assert torch.equal(own, cpp)


def test_16_bit_linear_rounds_once():
    """test_weight_norm of test_nn.py, whose weights are C++'s to the bit."""
    x, weight, bias = (torch.randn(size).bfloat16() for size in ((64, 32), (48, 32), (48,)))
    exact = x.double() @ weight.double().t() + bias.double()
    cpp, own = both(lambda functions: (functions.linear(x, weight, bias).double() - exact).abs().sum())
    assert own <= cpp * 1.01


@pytest.mark.parametrize("bias_dtype", [torch.float16, torch.float64, torch.complex64], ids=str)
def test_linear_with_a_bias_of_another_dtype(bias_dtype):
    """test_multihead_attn_fast_path_query_and_bias_have_different_dtypes of nn/test_multihead_attention.py.

    ATen adds it to the product where the input's rows do not follow each other, and refuses it elsewhere.
    """
    weight, bias = torch.randn(5, 4), torch.randn(5).to(bias_dtype)
    for x in (torch.randn(2, 3, 4), torch.randn(3, 2, 4).transpose(0, 1), torch.randn(4, 3).t()):
        outcomes = []
        for functions in (C, F):
            try:
                outcomes.append(functions.linear(x, weight, bias))
            except RuntimeError as error:
                outcomes.append(str(error))
        if isinstance(outcomes[0], str):
            assert outcomes[0] == outcomes[1]
        else:
            torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("name, arguments", [("elu_", (-2,)), ("celu_", (-2,)), ("leaky_relu_", (-2,))])
def test_in_place_activations_with_a_negative_slope_have_no_gradient(name, arguments):
    """test_elu_inplace_with_neg_alpha, test_leaky_relu_inplace_with_neg_slope of test_nn.py."""
    out = getattr(F, name)(torch.tensor([-1.0, 1.0], requires_grad=True).clone(), *arguments)
    with pytest.raises(RuntimeError, match="call out-of-place version"):
        out.sum().backward()


def test_threshold_in_place_of_an_expanded_tensor():
    """test_threshold_inplace_overlap of test_nn.py."""
    x = torch.randn(1, 6)
    expected = C.threshold(x, 0.5, 0.25)
    F.threshold_(x.expand(6, 6), 0.5, 0.25)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("name", ["logsigmoid", "softplus", "softshrink", "hardshrink", "gelu"])
def test_results_are_written_into_out(name):
    """test_logsigmoid_out, test_softplus_inplace_overlap of test_nn.py."""
    x, out = torch.randn(2, 3), torch.empty(0)
    function = getattr(F, name)
    assert function(x, out=out) is out and torch.equal(out, function(x))
    overlapping = torch.randn(1, 3).expand(2, 3)
    with pytest.raises(RuntimeError, match="unsupported operation"):
        function(overlapping, out=overlapping)


def test_linear_writes_into_out():
    x, weight, out = torch.randn(2, 3), torch.randn(4, 3), torch.empty(2, 4)
    assert F.linear(x, weight, out=out) is out and torch.equal(out, F.linear(x, weight))


def refusals() -> dict:
    empty = torch.randn(0, 1, 10)
    return {
        "fold": lambda nn: nn.functional.fold(torch.randn(1, 12, 12), (4, 5), 2, dilation=8),
        "interpolate": lambda nn: nn.functional.interpolate(torch.ones(1, 1, 3, 3), scale_factor=1e20),
        "pack": lambda nn: nn.utils.rnn.pack_padded_sequence(empty, torch.ones(2, 2), True),
    }


@pytest.mark.parametrize("name", refusals())
def test_refusals(name):
    """test_fold_invalid_arg, test_interpolate_undefined_behavior_casting, test_pack_padded_sequence."""
    messages = []
    for nn in (torch.nn, pynn):
        with pytest.raises(RuntimeError) as caught:
            refusals()[name](nn)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_margin_loss_of_nothing():
    """test_MarginLoss_empty of test_nn.py."""
    x = torch.randn(0, 10, requires_grad=True)
    F.multi_margin_loss(x, torch.ones(0).long(), reduction="sum").backward()
    assert x.grad.shape == (0, 10)


def test_16_bit_sparse_gradient_of_an_embedding_bag():
    """test_embedding_bag_device of nn/test_embedding.py: rows of one index are added in float32."""
    weight, indices = torch.randn(3, 4).bfloat16().requires_grad_(), torch.randint(3, (2, 512))
    F.embedding_bag(indices, weight, mode="sum", sparse=True).sum().backward()
    counts = indices.flatten().bincount(minlength=3).bfloat16().unsqueeze(1).expand(3, 4)
    assert torch.equal(weight.grad.to_dense(), counts)


def installed(program: str) -> str:
    setup = "import torch, pynn; pynn.install(); import torch.nn.functional as F\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # a process of its own
def test_per_sample_gradients_while_installed():
    """test_expanded_weights.py."""
    installed(
        """
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
for layer, x in ((torch.nn.Conv1d(2, 3, 2), torch.randn(4, 2, 5)),
                 (torch.nn.GRU(5, 3, batch_first=True), torch.randn(4, 2, 5)),
                 (torch.nn.Embedding(9, 3), torch.randint(9, (4, 2)))):
    out = call_for_per_sample_grads(layer)(x)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    for weight in layer.parameters():
        assert weight.grad_sample.shape == (4, *weight.shape)
"""
    )


@pytest.mark.slow  # a process of its own
def test_attention_biases_while_installed():
    """TestAttnBias of test_transformers.py."""
    installed(
        """
from torch.nn.attention.bias import causal_upper_left
q = torch.randn(1, 2, 4, 8)
torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q, causal_upper_left(4, 4)),
                           F.scaled_dot_product_attention(q, q, q, is_causal=True))
"""
    )


@pytest.mark.slow  # a process of its own
def test_attention_layers_can_be_scripted_while_installed():
    """test_script_mha_in_proj_weight_none of test_transformers.py."""
    installed("torch.jit.script(torch.nn.MultiheadAttention(8, 2, kdim=4, vdim=4).eval())")


@pytest.mark.slow
def test_attention_biases_are_compiled_while_installed():
    """test_causal_variants_compile of test_transformers.py: one graph, which holds attention itself."""
    installed(
        """
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 6, 8)
for bias in (causal_upper_left(4, 6), causal_lower_right(4, 6)):
    attend = lambda q, k: F.scaled_dot_product_attention(q, k, k, attn_mask=bias)
    out = torch.compile(attend, backend=backend, fullgraph=True, dynamic=False)(q, k)
    torch.testing.assert_close(out, attend(q, k))
assert all("scaled_dot_product_attention" in graph.code for graph in graphs) and len(graphs) == 2
"""
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_subclasses_can_be_scripted_while_installed():
    """test_transformerencoderlayer_subclass of test_transformers.py: of a layer's methods, torch's are compiled."""
    with pynn.install():

        class Encoder(torch.nn.TransformerEncoderLayer):
            pass

        class Shifted(torch.nn.Conv2d):
            def forward(self, x):
                return self._conv_forward(x, self.weight, self.bias) + 1

        encoder, shifted = Encoder(8, 2, batch_first=True).eval(), Shifted(2, 3, 2)
        for model, x in ((encoder, torch.randn(2, 3, 8)), (shifted, torch.randn(1, 2, 4, 4))):
            classes = [type(layer) for layer in model.modules()]
            torch.testing.assert_close(torch.jit.script(model)(x), model(x))
            assert [type(layer) for layer in model.modules()] == classes
            assert classes[0].__mro__[1].__module__.startswith("pynn.")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_complex_convolution_of_half_precision(name, dims):
    """test_forward_nn_ConvTranspose1d_cpu_complex32 of test_modules.py."""
    sizes = (2, 4, *[5] * dims), (4, 4, *[3] * dims), (4,)
    tensors = [torch.randn(size, dtype=torch.complex64).to(torch.complex32) for size in sizes]
    exact = getattr(C, f"{name}{dims}d")(*[x.to(torch.complex128) for x in tensors])
    cpp, own = both(lambda functions: getattr(functions, f"{name}{dims}d")(*tensors))
    errors = [(x.to(torch.complex128) - exact).abs().max() for x in (own, cpp)]
    assert own.dtype == cpp.dtype == torch.complex32 and errors[0] <= errors[1]


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("is_plain", [True, False])
def test_gradients_of_padding_have_torchs_strides(mode, dims, is_plain):
    """test_memory_format_nn_ConstantPad2d of test_modules.py; derivatives further on are torch's, too."""
    layout = torch.contiguous_format if is_plain else (torch.channels_last, torch.channels_last_3d)[dims - 2]
    x = torch.randn(2, 3, *[4] * dims).contiguous(memory_format=layout).requires_grad_()
    found = []
    for functions in (C, F):
        out = functions.pad(x, [1] * (2 * dims), mode)
        (grad,) = torch.autograd.grad(out.square(), x, torch.ones_like(out), create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), x)
        tangent = torch.func.jvp(lambda x: functions.pad(x, [1] * (2 * dims), mode), (x,), (x,))[1]  # noqa: B023
        found.append((grad, second, tangent))
    assert found[0][0].stride() == found[1][0].stride()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("with_indices", [True, False])
def test_pooling_keeps_an_unbatched_channels_last_volume(with_indices):
    """test_max_pool3d_ndhwc of nn/test_pooling.py; images without a batch come out plainly."""
    volume = torch.randn(1, 8, 5, 6, 7).contiguous(memory_format=torch.channels_last_3d).squeeze(0)
    image = torch.randn(1, 8, 6, 7).contiguous(memory_format=torch.channels_last).squeeze(0)
    for dims, x in ((3, volume), (2, image)):
        for leaf in (x, x.clone().requires_grad_()):
            cpp, own = both(
                lambda f, x=leaf, dims=dims: getattr(f, f"max_pool{dims}d")(x, 2, return_indices=with_indices)
            )
            pairs = zip(cpp, own) if with_indices else [(cpp, own)]
            assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


class Seen(TorchDispatchMode):
    """Notes which operations are called."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["gelu", "hardswish", "glu", "hardtanh"])
def test_with_pythons_dispatcher_torchs_operations_are_called(name):
    """test_comprehensive_nn_functional_gelu of test_decomp.py: tracers run a function so before they record it."""
    x = torch.randn(4)
    with Seen() as seen:
        getattr(F, name)(x)
    assert getattr(torch.ops.aten, name).default not in seen.operations  # a mode alone sees the definition
    with Seen() as seen, enable_python_dispatcher():
        getattr(F, name)(x)
    assert seen.operations == [getattr(torch.ops.aten, name).default]


def test_aot_autograd_runs_what_it_records():
    """Its first run, which learns about outputs and their gradients, was of the definition, the second of torch's."""
    runs = []

    def function(x):
        with Seen() as seen:
            out = F.gelu(x)
        runs.append(seen.operations)
        return out

    aot_function(function, nop)(torch.randn(3, requires_grad=True))
    assert len(runs) > 1 and all(run == runs[0] for run in runs)


@pytest.mark.parametrize("is_installed", [True, False])
def test_passes_of_fx_that_look_for_exact_classes(is_installed):
    """test_fetch of test_fx_experimental.py, and its like: what a pass finds, and whose layers it leaves."""
    from torch.fx.experimental.graph_gradual_typechecker import GraphTypeChecker, Refine
    from torch.fx.experimental.optimization import fuse, optimize_for_inference
    from torch.fx.passes.param_fetch import lift_lowering_attrs_to_nodes
    from torch.fx.tensor_type import Dyn, TensorType

    def found(nn):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU()).eval()
        graph = torch.fx.symbolic_trace(model)
        classes = [type(layer) for layer in graph.modules()]
        lift_lowering_attrs_to_nodes(graph)
        lifted = [node.attrs_for_lowering["name"] for node in graph.graph.nodes if node.op == "call_module"]
        next(iter(graph.graph.nodes)).type = TensorType((1, 3, 8, Dyn))
        GraphTypeChecker({}, graph).type_check()
        Refine(graph).refine()
        types = [str(node.type) for node in graph.graph.nodes]
        assert [type(layer) for layer in graph.modules()] == classes
        fused, optimised = fuse(model), optimize_for_inference(model)
        assert {type(layer) for layer in list(fused.modules())[1:]} == {nn.Conv2d, nn.ReLU}
        return lifted, types, [type(layer).__name__ for layer in optimised.modules()]

    expected = found(torch.nn)
    with pynn.install() if is_installed else contextlib.nullcontext():
        assert found(torch.nn if is_installed else pynn) == expected


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [[], ["-p", "parity_tests.installed"]], ids=["torch", "pynn"])
def test_files_of_tests_run_with_pynn_in_place_of_torch(plugin, tmp_path):
    """The README's command for torch's own files."""
    answer = tmp_path / "answer"
    (tmp_path / "test_theirs.py").write_text(f"""
from torch import nn
from torch.nn.functional import gelu

def test_names():
    open({str(answer)!r}, "w").write(nn.Linear.__module__ + " " + gelu.__module__)
""")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, "test_theirs.py"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    layer, function = answer.read_text().split()
    assert (layer.partition(".")[0] == "pynn") == (function.partition(".")[0] == "pynn") == bool(plugin)
