"""freeze=True: what inference graphs make of parameters alone is computed once."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import parity_tests.elementary
import pynn
from compiler_bridge import backend
from parity_tests.frozen import assert_same, frozen, images, in_place, randomize, small_network, targets
from parity_tests.tolerances import compare


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


@pytest.mark.slow  # test_no_batch_norm_arithmetic_is_left looks at the same graph
def test_kernels_show_no_batch_norm(tmp_path):
    model = small_network()
    plain = pynn.explain(model, images(), file="/dev/null")
    torch._dynamo.reset()
    with torch.no_grad():
        explanation = pynn.explain(model, images(), file=tmp_path / "frozen.txt", freeze=True)
    assert "computed once, of parameters" in (tmp_path / "frozen.txt").read_text()
    assert not any("rsqrt" in record.program.source for record in explanation.records)
    assert any("rsqrt" in record.program.source for record in plain.records)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str
)
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


# ---------------------------------------------------------------- modes, models, sizes


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_models_of_the_same_code_in_turns(folds):
    models = [small_network(), randomize(small_network(), seed=7)]
    compiled = [frozen(model) for model in models]
    for _ in range(3):
        for one, model in zip(compiled, models):
            assert_same(one, model, images())
    assert len(folds) == 2


@pytest.mark.slow
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
