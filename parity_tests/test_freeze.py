"""freeze=True: parameters are folded into inference graphs once, and again whenever one of them changes."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref

import pytest
import torch
from torch import nn

import parity_tests.elementary
import pynn
from compiler_bridge import backend, pipeline
from compiler_bridge.capture import refold
from compiler_bridge.program import DynamicStep
from parity_tests.tolerances import compare


@pytest.fixture(autouse=True)
def forget_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch):
    """(kind, graph module) of every graph compiled in the test."""
    seen = []
    compile_graph = pipeline.compile_graph

    def record(gm, example_inputs, kind, options):
        seen.append((kind, gm))
        return compile_graph(gm, example_inputs, kind, options)

    monkeypatch.setattr(pipeline, "compile_graph", record)
    return seen


@pytest.fixture
def folds(monkeypatch):
    """Counts how often parameters were folded."""
    made = []

    class Counted(refold.Folded):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(refold, "Folded", Counted)
    return made


def randomize(model, seed=0):
    """Running statistics and affine parameters that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5)
                if name.endswith("running_var"):
                    tensor.add_(1)
    return model.eval()


def small_network():
    """Convolution and linear layer, each followed by a batch norm."""
    return randomize(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 36, 5, bias=False), nn.BatchNorm1d(5),
        )
    )  # fmt: skip


def images(*shape):
    return torch.randn(*(shape or (2, 3, 6, 6)), generator=torch.Generator().manual_seed(1))


def frozen(model, **options):
    return backend.compile(model, freeze=True, strict=True, **options)


def assert_same(compiled, model, *inputs):
    """The compiled model gives what the model as it is now gives, without gradients."""
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def targets(gm):
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


def arithmetic(gm):
    """What a graph computes, without views, copies and products."""
    moves = ("aten.view", "aten._unsafe_view", "aten.permute", "aten.clone", "aten.scalar_tensor")
    products = ("aten.convolution", "aten.mm", "aten.addmm")
    return [target for target in targets(gm) if not target.startswith(moves + products)]


# ---------------------------------------------------------------- what is folded


def test_no_batch_norm_arithmetic_is_left(graphs):
    model = small_network()
    assert_same(frozen(model), model, images())
    ((kind, main),) = graphs
    assert kind == "inference"
    # relu, and the second batch norm's shift, which is the product's bias
    assert arithmetic(main) == ["aten.lt.Scalar", "aten.where.self", "aten.add.Tensor"]
    assert "rsqrt" in main.meta["folding"] and "rsqrt" not in str(main.graph)


def test_kernels_show_no_batch_norm(tmp_path):
    model = small_network()
    plain = pynn.explain(model, images(), file="/dev/null")
    torch._dynamo.reset()
    with torch.no_grad():
        explanation = pynn.explain(model, images(), file=tmp_path / "frozen.txt", freeze=True)
    assert "computed once, of parameters" in (tmp_path / "frozen.txt").read_text()
    assert not any("rsqrt" in record.program.source for record in explanation.records)
    assert any("rsqrt" in record.program.source for record in plain.records)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)),
    lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)),
    lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)),
    lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, affine=False)),
], ids=["plain", "grouped", "transposed", "transposed and grouped", "depthwise"])  # fmt: skip
def test_folding_is_as_accurate_as_cpp(make, dtype):
    """The one tolerance of the parity tests, with variances over four orders of magnitude."""
    model = randomize(make()).to(dtype)
    norm = model[1]
    norm.running_var.copy_(torch.logspace(-3, 1, norm.num_features))
    x = images(2, 4, 9, 9).to(dtype)
    with torch.no_grad():
        cpp, found = model(x), backend.compile(model, freeze=True)(x)
        exact = copy.deepcopy(model).double()(x.double()) if dtype == torch.float32 else None
    outcome = compare(found, cpp, exact, each=False)
    assert outcome.passed, str(outcome)


def test_sixteen_bits_keep_the_scale_out_of_the_weight(graphs):
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))).bfloat16()
    x = images().bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(frozen(model)(x), model(x), rtol=2e-2, atol=2e-2)
    assert "aten.mul.Tensor" in targets(graphs[0][1]) and "rsqrt" not in str(graphs[0][1].graph)


def test_a_scale_is_not_folded_where_something_else_reads_the_product(graphs):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y.relu()

    model = randomize(Both())
    assert_same(frozen(model), model, images())
    assert "aten.mul.Tensor" in targets(graphs[0][1])


def test_a_vector_of_another_axis_is_not_a_scale_of_channels():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.conv = nn.Linear(6, 6), nn.Conv2d(6, 6, 1)
            self.scale = nn.Parameter(torch.arange(6.0))

        def forward(self, x):
            by_row = self.linear(x) * self.scale[:, None]
            by_column = self.conv(x[None, :, :, None].expand(1, 6, 6, 6)) * self.scale
            return by_row, by_column

    model = Rows().eval()
    with torch.no_grad():
        for found, expected in zip(frozen(model)(images(6, 6)), model(images(6, 6))):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layer_scale_behind_views_is_folded(graphs):
    """ConvNeXt: a linear layer, a permutation, then one factor a channel."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(4, 6), nn.Parameter(torch.rand(6, 1, 1))

        def forward(self, x):
            return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * self.scale

    model = Scaled().eval()
    assert_same(frozen(model), model, images(2, 4, 5, 5))
    assert "aten.mul.Tensor" not in targets(graphs[0][1])


def test_values_made_of_buffers_alone_are_folded(graphs):
    """Swin: a bias gathered from a table by an index that is a buffer."""

    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(9, 2))
            self.register_buffer("index", torch.arange(16).remainder(9).view(4, 4))

        def forward(self, x):
            return x.softmax(-1) + self.table[self.index].permute(2, 0, 1)

    model = Bias().eval()
    compiled = frozen(model)
    assert_same(compiled, model, images(2, 4, 4))
    with torch.no_grad():
        model.index.add_(1).remainder_(9)
    assert_same(compiled, model, images(2, 4, 4))
    assert "aten.index.Tensor" in graphs[0][1].meta["folding"].replace("torch.ops.", "")
    assert "aten.index.Tensor" not in targets(graphs[0][1])


def test_only_elementary_operations_run_once(graphs):
    """A convolution of parameters alone is compiled; what has no kernel is shown as an ATen call."""

    class Filters(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters, self.kernel = nn.Parameter(images(4, 2, 9, 9)), nn.Parameter(images(3, 4, 3, 3))

        def forward(self, x):
            weight = torch.conv2d(self.kernel.mT, self.filters[:, :1].expand(4, 4, 9, 9)[..., :3, :3]) * 2
            return x + weight.sum() + torch.sort(self.kernel.flatten() * 3).values[:6]

    model = Filters()
    assert_same(frozen(model), model, images())
    (_, main), elementary = graphs[0], parity_tests.elementary.ELEMENTARY
    once = set(re.findall(r"torch.ops.aten.(\w+)", main.meta["folding"]))
    assert once and once <= elementary and "sort" not in once
    assert {"aten.convolution.default", "aten.sort.default"} <= set(targets(main))


def test_results_are_the_callers_own():
    """A result made of parameters alone is a new tensor in every call."""

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            doubled = self.weight * 2
            return x + doubled.exp(), doubled, doubled.view(3, 1)

    model = Doubled()
    compiled = frozen(model)
    with torch.no_grad():
        for _ in range(3):
            _, doubled, column = compiled(torch.ones(3))
            assert torch.equal(doubled, torch.full((3,), 2.0)) and torch.equal(column[:, 0], doubled)
            doubled.zero_()
            column.zero_()


# ---------------------------------------------------------------- changes that are noticed


def in_place(model):
    with torch.no_grad():
        model[0].weight.mul_(2)


def copy_to_detached(model):
    model[0].weight.detach().copy_(images(8, 3, 3, 3))


def load(model):
    model.load_state_dict(randomize(small_network(), seed=5).state_dict())


def load_assigned(model):
    model.load_state_dict(randomize(small_network(), seed=5).state_dict(), assign=True)


def assign_data(model):
    model[1].weight.data = images(8)


def assign_data_and_keep_the_old(model):
    model.kept = model[1].weight.data
    model[1].weight.data = images(8)


def assign_data_twice(model):
    """The second value may lie where the first one was."""
    model[1].weight.data = images(8)
    model[1].weight.data = images(8) * 3


def replace_parameter(model):
    model[0].weight = nn.Parameter(images(8, 3, 3, 3))


def replace_sharing_memory(model):
    """Another parameter over the same memory, its own version as high as the old one's."""
    old = model[0].weight
    new = nn.Parameter(old.data)
    while new._version < old._version:
        new.data = new.data
        with torch.no_grad():
            new.mul_(1.5)
    model[0].weight = new
    model.kept = old


def replace_buffer(model):
    model[1].running_var = model[1].running_var * 4


def initialize(model):
    nn.init.normal_(model[4].weight)


def step(optimizer):
    def change(model):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer(model.parameters()).step()

    change.__name__ = getattr(optimizer, "__name__", "step")
    return change


def fused_step(parameters):
    """Writes without being counted by `_version`."""
    return torch.optim.AdamW(parameters, lr=0.1, fused=True)


class WritesData(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad.data)


def train_one_step(model):
    """Running statistics change, parameters don't."""
    model.train()
    model(images(4, 3, 6, 6))
    model.eval()


def in_inference_mode(model):
    with torch.inference_mode():
        model[0].weight.mul_(2)


@pytest.mark.parametrize("change", [
    in_place, copy_to_detached, load, load_assigned, assign_data, assign_data_and_keep_the_old, assign_data_twice,
    replace_parameter, replace_sharing_memory, replace_buffer, initialize, step(torch.optim.SGD),
    step(fused_step), step(WritesData), train_one_step, in_inference_mode,
], ids=lambda change: change.__name__)  # fmt: skip
def test_a_change_is_noticed(change, folds):
    model = small_network()
    compiled = frozen(model)
    x = images()
    assert_same(compiled, model, x)
    with torch.no_grad():
        before = model(x)
    for _ in range(2):
        change(model)
        made = len(folds)
        assert_same(compiled, model, x)
        assert len(folds) == made + 1
        assert_same(compiled, model, x)
        assert len(folds) == made + 1
    with torch.no_grad():
        assert not torch.allclose(before, model(x))


def write_data(model):
    model[0].weight.data.mul_(2)


def write_numpy(model):
    model[0].weight.detach().numpy()[...] *= 2


@pytest.mark.parametrize("change", [write_data, write_numpy], ids=lambda change: change.__name__)
def test_what_torch_does_not_count_is_seen_after_the_next_counted_write(change):
    """As compile's docstring says."""
    model = small_network()
    compiled = frozen(model)
    x = images()
    with torch.no_grad():
        before = compiled(x)
        change(model)
        assert torch.equal(compiled(x), before)
        model[0].weight.mul_(1)
    assert_same(compiled, model, x)


def test_unchanged_parameters_are_folded_once(folds):
    model = small_network()
    compiled = frozen(model)
    for size in (2, 3, 2):
        assert_same(compiled, model, images(size, 3, 6, 6))
    first = len(folds)
    for _ in range(3):
        assert_same(compiled, model, images())
    model.requires_grad_(False)
    assert_same(compiled, model, images())  # Dynamo may compile again: requires_grad is guarded
    model.requires_grad_(True)
    assert_same(compiled, model, images())
    assert len(folds) <= first + 2


def test_an_optimizer_of_another_model_changes_nothing(folds):
    model, other = small_network(), nn.Linear(3, 3)
    compiled = frozen(model)
    assert_same(compiled, model, images())
    other.weight.grad = torch.ones(3, 3)
    torch.optim.SGD(other.parameters()).step()
    assert_same(compiled, model, images())
    assert len(folds) == 1


def test_compiled_optimizer_step():
    """The hook that notices steps doesn't get in Dynamo's way, nor does what Dynamo compiles go unnoticed."""
    model = small_network()
    compiled = frozen(model)
    assert_same(compiled, model, images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.compile(optimizer.step, backend="aot_eager")()
    assert_same(compiled, model, images())


# ---------------------------------------------------------------- modes, models, sizes


def test_training_is_as_without_freezing(graphs):
    model = small_network().train()
    other = copy.deepcopy(model)
    compiled = frozen(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other)]
    for _ in range(3):
        for network, optimizer in zip((compiled, other), optimizers):
            optimizer.zero_grad()
            network(images(4, 3, 6, 6)).square().mean().backward()
            optimizer.step()
        model.eval(), other.eval()
        assert_same(compiled, other, images())
        model.train(), other.train()
    assert [kind for kind, _ in graphs].count("inference") == 1


def test_evaluation_with_gradients_is_not_frozen(graphs, folds):
    model = small_network()
    frozen(model)(images()).sum().backward()
    assert [kind for kind, _ in graphs] == ["forward", "backward"] and not folds
    assert model[0].weight.grad is not None


def test_batch_statistics_without_gradients(graphs):
    """In training mode running statistics change in every call: they aren't folded."""
    model, other = small_network().train(), small_network().train()
    compiled = frozen(model)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(images(4, 3, 6, 6)), other(images(4, 3, 6, 6)), rtol=1e-4, atol=1e-5
            )
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-5)


def test_shared_parameters(folds):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.second.weight = self.first.weight
            self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x):
            return self.norms[1](self.second(self.norms[0](self.first(x)).relu()))

    model = randomize(Tied())
    compiled = frozen(model)
    assert_same(compiled, model, images())
    with torch.no_grad():
        model.first.weight.mul_(2)
    assert_same(compiled, model, images())
    assert len(folds) == 2


def test_two_models_of_the_same_code_in_turns(folds):
    models = [small_network(), randomize(small_network(), seed=7)]
    compiled = [frozen(model) for model in models]
    for _ in range(3):
        for one, model in zip(compiled, models):
            assert_same(one, model, images())
    assert len(folds) == 2


def test_dynamic_batch(graphs, folds):
    model = small_network()
    compiled = frozen(model, dynamic=True)
    for size in (2, 5, 3):
        assert_same(compiled, model, images(size, 3, 6, 6))
    assert len(graphs) == len(folds) == 1
    in_place(model)
    assert_same(compiled, model, images(4, 3, 6, 6))


def test_parameters_made_in_inference_mode():
    """They have no version: folded in every call, so that every change is seen."""
    with torch.inference_mode():
        model = small_network()
        compiled = frozen(model)
        for _ in range(2):
            torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-5)
            model[0].weight.data.mul_(2)


def test_parameters_as_arguments():
    """Whichever is given; a tensor that is no parameter isn't folded."""
    compiled = backend.compile(lambda x, w: x @ (w * 2), freeze=True, strict=True)
    with torch.no_grad():
        for scale in (1, 2):
            w = nn.Parameter(torch.full((3, 3), float(scale)))
            torch.testing.assert_close(compiled(torch.eye(3), w), w * 2)
            torch.testing.assert_close(compiled(torch.eye(3), w.data), w * 2)


def test_options_by_name_and_nothing_to_fold():
    for model in (nn.Linear(3, 2), nn.ReLU()):
        compiled = torch.compile(
            model, backend=backend.pynn_backend, options={"freeze": True, "strict": True}
        )
        assert_same(compiled, model, images(4, 3))


def test_parametrized_weight(folds):
    """weight_norm's weight is computed once."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).eval()
    compiled = frozen(model)
    for _ in range(2):
        assert_same(compiled, model, images(4, 3))
    assert len(folds) == 1
    with torch.no_grad():
        model.parametrizations.weight.original0.mul_(2)
    assert_same(compiled, model, images(4, 3))
    assert len(folds) == 2


def test_autocast():
    """The cast of a weight is folded; what autocast does to a graph isn't done to its folding."""
    model = small_network()
    compiled = frozen(model)
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # which caches casts while it lasts
            torch.testing.assert_close(compiled(images()), model(images()), rtol=5e-2, atol=5e-2)
        in_place(model)


# ---------------------------------------------------------------- packed weights


def kernels_of(program):
    """Names of the kernels a program runs, those of its products included."""
    found = []
    for step in program.steps:
        steps = step.plan({}, 1).steps if isinstance(step, DynamicStep) else [step]
        found += [getattr(one.kernel, "name", one.kernel) for one in steps]
    return found


def convolution(*arguments, **options):
    return nn.Conv2d(*arguments, **options).to(memory_format=torch.channels_last)


def rows(count, columns=40):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(2))


def channels_last(*shape):
    return images(*shape).to(memory_format=torch.channels_last)


PACKED = {
    "linear": (lambda: nn.Linear(40, 72), lambda: rows(200)),
    "few rows": (lambda: nn.Linear(40, 72), lambda: rows(17)),
    "two layers": (lambda: nn.Sequential(nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 7)), lambda: rows(64)),
    "batch of matrices": (lambda: nn.Linear(40, 33), lambda: rows(60).view(3, 20, 40)),
    "convolution": (lambda: convolution(16, 24, 3, padding=1), lambda: channels_last(2, 16, 9, 9)),
    "weight in torch's layout": (lambda: nn.Conv2d(16, 24, 3), lambda: channels_last(1, 16, 9, 9)),
    "stride": (lambda: convolution(16, 40, 3, stride=2, padding=1), lambda: channels_last(2, 16, 30, 30)),
    "1x1": (lambda: convolution(16, 24, 1), lambda: channels_last(2, 16, 9, 9)),
    "image": (lambda: convolution(3, 16, 7, stride=2, padding=3), lambda: channels_last(1, 3, 32, 32)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PACKED)
def test_weights_are_packed_once(name, dtype):
    make, inputs = PACKED[name]
    model, x = randomize(make()).to(dtype), inputs().to(dtype)
    compiled = frozen(model)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x), **tolerance)
            torch.testing.assert_close(compiled(x), model(x), **tolerance)
            next(model.parameters()).mul_(-0.5)
    program = pipeline.records[-1].program
    assert any("pack" in kernel for kernel in kernels_of(program.once.program))
    assert not any("pack" in kernel for kernel in kernels_of(program))


def test_packed_weights_serve_any_number_of_threads(monkeypatch):
    """Dynamo compiles again where the number changes; the kernels need not."""
    calls, compile_graph = [], pipeline.compile_graph

    def spying(*arguments):
        graph = compile_graph(*arguments)

        def run(*inputs):
            calls.append((graph, inputs))
            return graph(*inputs)

        run.once = graph.once
        return run

    monkeypatch.setattr(pipeline, "compile_graph", spying)
    model = randomize(nn.Sequential(convolution(16, 72, 3, padding=1), nn.Flatten(2), nn.Linear(100, 70)))
    x = channels_last(3, 16, 10, 10)
    assert_same(frozen(model), model, x)
    (graph, inputs), threads = calls[-1], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.testing.assert_close(graph(*inputs)[0], model(x), rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_packed_weights_serve_any_number_of_rows(graphs, folds):
    """Few rows read the weight where it lies."""
    model = randomize(nn.Linear(40, 72))
    compiled = frozen(model, dynamic=True)
    for count in (64, 300, 5, 2, 64):
        assert_same(compiled, model, rows(count))
    assert len(graphs) == len(folds) == 1


def test_a_folded_weight_is_not_kept_beside_the_packed_one(folds):
    model = randomize(nn.Sequential(convolution(16, 24, 3, bias=False), nn.BatchNorm2d(24)))
    compiled = frozen(model)
    assert_same(compiled, model, channels_last(2, 16, 9, 9))
    (folded,) = folds
    sizes = [value.numel() for value in folded().values if value is not None]
    weight = 16 * 24 * 9
    assert len(folded().values) > len(sizes) and sum(weight <= size < 2 * weight for size in sizes) == 1


def test_an_index_out_of_range_is_torchs_own_error():
    """ATen then runs the graph, with the inputs it was traced for."""
    model = randomize(nn.Sequential(nn.Embedding(9, 40), nn.Linear(40, 72)))
    compiled = frozen(model)
    tokens = torch.arange(64).remainder(9)
    assert_same(compiled, model, tokens)
    with torch.no_grad(), pytest.raises(IndexError, match="out of range"):
        compiled(tokens + 1)
    assert_same(compiled, model, tokens)


def test_matrices_that_are_no_weights_are_not_packed():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(40, 40))

        def forward(self, x, y):
            return x @ y, self.weight @ x.mT, x @ (self.weight * y)

    model = Products()
    x, y = rows(64), rows(40)
    with torch.no_grad():
        for found, expected in zip(frozen(model)(x, y), model(x, y)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- what stays of it


def test_folded_values_go_with_the_model(folds):
    model = small_network()
    compiled = frozen(model)
    assert_same(compiled, model, images())
    (folded,) = folds
    assert folded() is not None
    weight, dead = weakref.ref(folded().values[0]), weakref.ref(model)
    del model, compiled
    gc.collect()
    assert dead() is None and folded() is None and weight() is None


def test_values_of_replaced_parameters_go(folds):
    model = small_network()
    compiled = frozen(model)
    for seed in range(4):
        model.load_state_dict(randomize(small_network(), seed).state_dict(), assign=True)
        assert_same(compiled, model, images())
    gc.collect()
    assert [folded() is None for folded in folds] == [True] * 3 + [False]


def test_copies_and_pickles_hold_nothing_folded():
    sizes, attributes = [], []
    for compiled in (backend.compile(small_network()), frozen(model := small_network())):
        assert_same(compiled, compiled._orig_mod, images())
        sizes.append(len(pickle.dumps(compiled._orig_mod)))
        attributes.append([vars(parameter) for parameter in compiled.parameters()])
    assert sizes[0] == sizes[1] and attributes[0] == attributes[1]
    twin = copy.deepcopy(model)
    in_place(twin)
    assert_same(compiled, model, images())
    assert_same(frozen(twin), twin, images())


def test_called_by_several_threads():
    from concurrent.futures import ThreadPoolExecutor

    model = small_network()
    compiled = frozen(model)
    assert_same(compiled, model, images())
    with torch.no_grad():
        expected = model(images())

    def call(_):
        with torch.no_grad():
            return compiled(images())

    in_place(model)
    in_place(model)
    with torch.no_grad():
        expected = model(images())
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(call, range(16)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
