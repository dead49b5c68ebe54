"""The backend: what torch.compile handles around graphs, it handles with this backend too."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import pynn
from compiler_bridge import backend, pipeline
from compiler_bridge.capture.simplify import remove_detach, simplify_graph
from compiler_bridge.errors import FallbackWarning, UnsupportedOp
from parity_tests.torch_version import IS_OLDER


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def strict(model, **options):
    return backend.compile(model, strict=True, **options)


def targets(gm):
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


def test_forward_and_backward(graphs):
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Softmax(-1))
    x = torch.randn(5, 6)
    compiled = strict(model)
    compiled(x).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for gradient, p in zip(found, model.parameters()):
        close(gradient, p.grad)
    with torch.no_grad():
        close(compiled(x), model(x))
    assert [kind for kind, _ in graphs] == ["forward", "backward", "inference"]


def test_backward_twice_with_retain_graph():
    model = nn.Linear(4, 3)
    y = strict(lambda x: model(x).tanh().sum())(torch.randn(2, 4))
    y.backward(retain_graph=True)
    once = model.weight.grad.clone()
    y.backward()
    close(model.weight.grad, 2 * once)


def test_dropout_saves_its_seed_only(graphs):
    """The mask is computed again in backward: forward hands over its result and one seed."""

    def function(x):
        return nn.functional.dropout(x * 2, 0.3).exp()

    x = torch.randn(64, 64, requires_grad=True)
    y = strict(function)(x)
    y.sum().backward()
    (_, forward), (_, backward_graph) = graphs
    assert targets(forward).count("pynn.seed.default") == 1
    assert "pynn.uniform.default" in targets(backward_graph)
    assert "pynn.seed.default" not in targets(backward_graph)
    outputs = forward.graph.find_nodes(op="output")[0].args[0]
    sizes = sorted(node.meta["val"].numel() for node in set(outputs))
    assert sizes == [1, 64 * 64]  # the result (also what exp's gradient needs) and the seed
    kept = x.grad != 0
    close(x.grad, torch.where(kept, y.detach() * 2 / 0.7, 0.0))
    assert 0.6 < kept.float().mean() < 0.8


def test_two_dropouts_draw_two_seeds(graphs):
    a, b = strict(lambda x: (nn.functional.dropout(x), nn.functional.dropout(x)))(torch.ones(1000))
    assert not torch.equal(a, b)
    assert targets(graphs[0][1]).count("pynn.seed.default") == 2


def test_random_follows_torch_seed():
    compiled = strict(lambda x: nn.functional.dropout(x, 0.5))
    draws = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        draws.append(compiled(torch.ones(100)))
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


def test_eager_random_draws_what_eager_draws():
    """rrelu, whose C++ draws for the elements <= 0 alone, drew other numbers when traced."""

    def function(x):
        return nn.functional.dropout(x, 0.4) + torch.rand_like(x) + nn.functional.rrelu(x, training=True)

    x = torch.randn(50)
    torch.manual_seed(3)
    expected = function(x)
    torch.manual_seed(3)
    close(strict(function, eager_random=True)(x), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_eager_random_attention(graphs, dropout):
    """Without dropout nothing is drawn: the attention kernel serves. With it torch's generator draws."""
    layer = nn.MultiheadAttention(16, 4, dropout=dropout, batch_first=True)

    def function(x):
        drawn = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=dropout)
        return drawn + layer(x, x, x, need_weights=False)[0]

    x = torch.randn(2, 5, 16)
    torch.manual_seed(3)
    expected = function(x)
    torch.manual_seed(3)
    close(strict(function, eager_random=True)(x), expected)
    attentions = [t for t in targets(graphs[0][1]) if t == "pynn.attention.default"]
    assert len(attentions) == (2 if dropout == 0.0 else 0)


def test_mutation_of_inputs():
    def function(x, y):
        x.add_(1)
        y[1:].mul_(2)
        return x * y

    x, y = torch.randn(6), torch.randn(6)
    x_eager, y_eager = x.clone(), y.clone()
    close(strict(function)(x, y), function(x_eager, y_eager))
    close(x, x_eager)
    close(y, y_eager)


def test_mutation_of_buffers_in_training():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            self.mean.mul_(0.9).add_(x.detach().mean(0) * 0.1)
            return x * self.weight + self.mean

    model, reference = Counting(), Counting()
    compiled = strict(model)
    for _ in range(2):
        x = torch.randn(3, 4)
        compiled(x).sum().backward()
        reference(x).sum().backward()
        close(model.mean, reference.mean)
    close(model.weight.grad, reference.weight.grad)


def test_outputs_that_alias():
    """A view of an input stays one; one value returned twice is one tensor."""

    def function(x):
        y = x * 2
        return x.t(), y, y.view(-1), x

    x = torch.randn(2, 3)
    transposed, y, flat, same = strict(function)(x)
    assert transposed.data_ptr() == x.data_ptr() and same is x
    assert flat.data_ptr() == y.data_ptr()
    close(y, x * 2)


def test_noncontiguous_inputs():
    compiled = strict(lambda x: (x + 1).sum(0) * x.amax())
    broadcast = torch.randn(4, 1).expand(4, 6)
    for x in (torch.randn(4, 6).t(), torch.randn(8, 6)[::2], broadcast, torch.randn(4, 6)):
        close(compiled(x), (x + 1).sum(0) * x.amax())


def test_scalars_and_empty_tensors():
    compiled = strict(lambda x, s: (x * s).sum())
    close(compiled(torch.tensor(3.0), torch.tensor(2.0)), torch.tensor(6.0))
    close(compiled(torch.ones(0, 3), torch.tensor(2.0)), torch.tensor(0.0))


def test_changing_sizes(graphs):
    """The second size makes the graph symbolic; no later size compiles anything."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.LayerNorm(7))
    compiled = strict(model)
    for rows in (3, 4, 9, 1, 17, 4):
        x = torch.randn(rows, 5)
        compiled(x).sum().backward()
        with torch.no_grad():
            close(compiled(x), model(x))
    trained = [gm for kind, gm in graphs if kind == "forward"]
    assert len(trained) <= 3  # rows 3; symbolic; rows 1, which torch specializes


def test_dynamic_from_the_start(graphs):
    compiled = strict(lambda x: torch.softmax(x * x.shape[0], -1), dynamic=True)
    for shape in ((3, 5), (6, 2), (4, 9)):
        x = torch.randn(shape)
        close(compiled(x), torch.softmax(x * shape[0], -1))
    assert len(graphs) == 1


def test_graph_break():
    def function(x):
        y = x * 2
        print(end="")
        return y + 1

    x = torch.randn(4)
    close(strict(function)(x), function(x))


def test_integers_and_booleans():
    def function(x, i):
        return x[i], i * 3 // 2, x > 0, (x > 0) & (i.float() > 1)

    x, i = torch.randn(6), torch.tensor([0, 5, 2, 2, 1, 3])
    for actual, expected in zip(strict(function)(x, i), function(x, i)):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)


def test_several_python_threads():
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    compiled = strict(model)
    x = torch.randn(8, 16)
    with torch.no_grad():
        expected = compiled(x)
    wrong = []

    def work():
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(compiled(x), expected):
                    wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_inference_mode_and_autocast():
    model = nn.Linear(8, 8)
    compiled = strict(model)
    x = torch.randn(2, 8)
    with torch.inference_mode():
        close(compiled(x), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = compiled(x), model(x)
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


# ------------------------------------------------------------------------------------------------ bad input
@pytest.fixture
def refusing(monkeypatch):
    """A pipeline that can't compile anything."""

    def refuse(*arguments):
        raise UnsupportedOp("aten.nothing.default", "for the test")

    monkeypatch.setattr(pipeline, "compile_graph", refuse)
    monkeypatch.setattr(backend, "_warned", set())


def test_fallback_warns_once_and_computes(refusing):
    model = nn.Linear(3, 2)
    compiled = backend.compile(model)
    x = torch.randn(4, 3)
    with pytest.warns(FallbackWarning, match=r"aten\.nothing\.default: for the test"):
        close(compiled(x), model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        torch._dynamo.reset()
        close(backend.compile(lambda x: model(x) + 1)(x), model(x) + 1)


@pytest.mark.skipif(IS_OLDER, reason="torch 2.11 leaves the assertions out when it traces")
def test_one_hot_asserts_as_torch_does():
    """Its assertions about the labels were refused. Without num_classes torch breaks the graph there."""
    one_hot = nn.functional.one_hot
    labels = torch.tensor([2, 0, 5])
    given, found = strict(lambda x: one_hot(x, 6) * 2), strict(lambda x: one_hot(x) * 2)
    assert torch.equal(given(labels), one_hot(labels, 6) * 2)
    for shifted in (labels, labels + 1):
        assert torch.equal(found(shifted), one_hot(shifted) * 2)
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        given(labels + 1)
    for compiled in (given, found):
        with pytest.raises(RuntimeError, match="Class values must be non-negative"):
            compiled(labels - 1)


def test_strict_raises(refusing):
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"aten\.nothing\.default"):
        strict(nn.Linear(3, 2))(torch.randn(4, 3))


def test_wrong_shapes_give_torch_errors():
    model = nn.Linear(3, 2)
    with pytest.raises(Exception, match=r"fake tensors|cannot be multiplied"):
        strict(model)(torch.randn(4, 5))


@pytest.mark.parametrize("wrong", [{"mode": "max-autotune"}, {"options": {"speed": 1}}])
def test_unknown_options(wrong):
    with pytest.raises(Exception, match=r"required: (None or|one of)"):
        torch.compile(nn.Linear(3, 2), backend=backend.pynn_backend, **wrong)(torch.randn(4, 3))


def test_detach_is_removed():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.exp.default, (x,))
    z = graph.call_function(torch.ops.aten.detach.default, (y,))
    graph.output((y, z))
    remove_detach(graph)
    assert graph.find_nodes(op="output")[0].args[0] == (y, y)


def test_equal_nodes_are_merged():
    """... unless they draw, or are both handed out."""
    aten, pynn = torch.ops.aten, torch.ops.pynn
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    sums = [(aten.add.Tensor, (x, 1)), (aten.add.Tensor, (x, 1.0))]
    calls = [(aten.exp.default, (x,)), *sums, (pynn.seed.default, ())]
    nodes = [graph.call_function(*call) for call in calls for _ in range(2)]
    results = [graph.call_function(aten.neg.default, (x,)) for _ in range(2)]
    for node in results:
        node.meta["val"] = torch.empty(3)
    graph.output((nodes, results))
    simplify_graph(graph)
    merged, distinct = graph.find_nodes(op="output")[0].args[0]
    assert len(set(merged)) == 5 and len(set(distinct)) == 2


def test_parameter_of_two_layers():
    """A parameter shared by two layers gets the sum of both gradients."""
    first = nn.Linear(4, 4, bias=False)
    second = nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    compiled = strict(lambda x: second(first(x)).sum())
    x: Tensor = torch.randn(3, 4)
    compiled(x).backward()
    found = first.weight.grad.clone()
    first.weight.grad = None
    second(first(x)).sum().backward()
    close(found, first.weight.grad)


@pytest.mark.parametrize("shape", ((4, 64), (5, 7), (3, 33), (2, 3, 130), (1,), (9, 1)))
def test_dropout_masks_are_the_counter_based_numbers(shape: tuple[int, ...]):
    """Whichever way a kernel computes them: lanes side by side share blocks where they begin at one."""
    from compiler_bridge.capture.random import draw_seed, random_uniform

    x = torch.ones(shape)
    compiled = pynn.compile(lambda x: torch.nn.functional.dropout(x, 0.4), dynamic=False, strict=True)
    torch.manual_seed(7)
    out = compiled(x)
    torch.manual_seed(7)
    assert torch.equal(out != 0, random_uniform(draw_seed(), shape) >= 0.4)
