"""Bags of embeddings and CTC where the table of rows can't look: sparse gradients, max_norm, what torch lacks."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

import pynn
from compiler_bridge.errors import FallbackWarning
from parity_tests.executors import in_executor_process, prepare
from parity_tests.externs import computing_externs, record_graphs
from parity_tests.tolerances import compare

INDICES, OFFSETS = torch.tensor([1, 2, 4, 2, 1, 1, 3]), torch.tensor([0, 3, 3, 5])


def table() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_sparse_gradients_are_torchs(mode, padding_idx):
    options = {"mode": mode, "sparse": True, "padding_idx": padding_idx}
    found = []
    for function in (pynn.functional.embedding_bag, F.embedding_bag):
        weight = table()
        function(INDICES, weight, OFFSETS, **options).square().sum().backward()
        found.append(weight.grad)
    ours, theirs = found
    assert ours.is_sparse and torch.equal(ours._indices(), theirs._indices())
    torch.testing.assert_close(ours._values(), theirs._values())


BAG_NUMBERS = torch.linspace(-1, 2, len(INDICES))
SPARSE = {
    "embedding": lambda w: F.embedding(INDICES, w, sparse=True),
    "embedding of int32": lambda w: F.embedding(INDICES.int(), w, sparse=True),
    "embedding of a matrix": lambda w: F.embedding(INDICES[:6].view(2, 3), w, sparse=True),
    "embedding padding": lambda w: F.embedding(INDICES, w, sparse=True, padding_idx=2),
    "embedding all padding": lambda w: F.embedding(INDICES[1:2], w, sparse=True, padding_idx=2),
    "sum": lambda w: F.embedding_bag(INDICES, w, OFFSETS, mode="sum", sparse=True),
    "mean padding": lambda w: F.embedding_bag(INDICES, w, OFFSETS, mode="mean", sparse=True, padding_idx=2),
    "samples": lambda w: F.embedding_bag(
        INDICES, w, OFFSETS, mode="sum", sparse=True, per_sample_weights=BAG_NUMBERS.to(w.dtype)
    ),
    "beside a dense gradient": lambda w: F.embedding(INDICES, w.sin(), sparse=True) @ w.square().T,
}
"""Functions of a table whose gradients are sparse, or made of sparse ones."""


def run_sparse_row(name: str, executor: str, dtype: torch.dtype) -> None:
    """The value and the gradient: the rows that C++ lists, in its order, no less accurate."""
    function = SPARSE[name]
    found = []
    for run, kind in ((prepare(executor, function), dtype), (function, dtype), (function, torch.float64)):
        weight = table().detach().to(dtype).to(kind).requires_grad_()
        value = run(weight)
        value.backward(torch.linspace(-1, 1, value.numel()).view(value.shape).to(dtype).to(kind))
        found.append((value.detach(), weight.grad))
    for value, cpp, exact in zip(*found, strict=True):
        assert value.layout == cpp.layout and value.dtype == cpp.dtype
        if value.is_sparse:
            assert dtype == torch.bfloat16 or torch.equal(value._indices(), cpp._indices())
            value, cpp, exact = (x.to_dense() for x in (value, cpp, exact))
        comparison = compare(value, cpp, exact, False)
        assert comparison.passed, str(comparison)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("executor", ["ir", "python", "numba"])
@pytest.mark.parametrize("name", [n for n in SPARSE if not n.startswith("beside")])
def test_compiled_sparse_gradients_are_cpps(name, executor, dtype):
    with record_graphs() as graphs:
        in_executor_process(executor, run_sparse_row, name, executor, dtype)
    assert not computing_externs(graphs)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["ir", "python", "numba"])
def test_operations_on_sparse_gradients_are_atens_and_say_so(executor):
    with (
        pytest.warns(FallbackWarning, match="on sparse tensors run through ATen.*aten.add")
        if (executor != "python")
        else nullcontext()
    ):
        in_executor_process(executor, run_sparse_row, "beside a dense gradient", executor, torch.float32)


@pytest.mark.slow
def test_compiled_sparse_gradients_at_sizes_known_at_run_time():
    def bags(w, indices):
        return F.embedding_bag(indices, w, OFFSETS, sparse=True, padding_idx=2)

    compiled = pynn.compile(bags, strict=True, dynamic=True)
    for count, rows in ((7, 6), (5, 9), (12, 8)):
        indices = torch.arange(count) % rows
        found = []
        for function in (compiled, bags):
            weight = torch.ones(rows, 3, requires_grad=True)
            function(weight, indices).sum().backward()
            found.append(weight.grad)
        assert torch.equal(found[0]._indices(), found[1]._indices())
        torch.testing.assert_close(found[0].to_dense(), found[1].to_dense())


def test_a_compiled_table_learns_by_sparse_gradients():
    torch.manual_seed(0)
    ours = torch.nn.EmbeddingBag(20, 4, sparse=True, padding_idx=3)
    theirs = torch.nn.EmbeddingBag(20, 4, sparse=True, padding_idx=3)
    theirs.load_state_dict(ours.state_dict())
    compiled = pynn.compile(ours, strict=True)
    optimizers = [torch.optim.SparseAdam(m.parameters()) for m in (ours, theirs)]
    for _ in range(3):
        indices = torch.randint(20, (5, 4))
        for model, optimizer in zip((compiled, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(indices).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_sparse_gradients_can_not_be_scaled():
    for function in (pynn.functional.embedding_bag, F.embedding_bag):
        out = function(INDICES, table(), OFFSETS, sparse=True, scale_grad_by_freq=True)
        with pytest.raises(RuntimeError, match="scale_grad_by_freq not supported with sparse gradients"):
            out.sum().backward()


@pytest.mark.parametrize("norm_type", [1.0, 2.0, torch.inf])
def test_max_norm_rescales_the_rows_in_use(norm_type):
    found = []
    for function in (pynn.functional.embedding_bag, F.embedding_bag):
        weight = table().detach()
        out = function(INDICES, weight, OFFSETS, max_norm=0.7, norm_type=norm_type)
        found.append((out, weight))
    torch.testing.assert_close(found[0], found[1])


def test_scale_grad_by_freq_divides_by_the_rows_own_count():
    """ATen's CPU kernel takes the count of another index where indices repeat; embedding's gradient is right."""
    found = []
    for function in (pynn.functional.embedding, lambda *args, **kwargs: F.embedding(*args, **kwargs)):
        weight = table()
        function(INDICES, weight, scale_grad_by_freq=True).sum().backward()
        found.append(weight.grad)
    weight = table()
    offsets = torch.arange(len(INDICES))
    pynn.functional.embedding_bag(
        INDICES, weight, offsets, mode="sum", scale_grad_by_freq=True
    ).sum().backward()
    torch.testing.assert_close(weight.grad, found[0])
    torch.testing.assert_close(weight.grad, found[1])


def test_max_counts_nan_where_it_comes_first():
    nan = torch.nan
    weight = torch.tensor([[1.0, nan, -torch.inf], [nan, 2.0, nan], [3.0, nan, 1.0], [3.0, 1.0, nan]])
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 0, 2], [0, 3, 2, 2], [0], [1]):
        arguments = torch.tensor(order), weight, torch.tensor([0])
        theirs, ours = (f(*arguments, mode="max") for f in (F.embedding_bag, pynn.functional.embedding_bag))
        assert torch.equal(ours.nan_to_num(99.0), theirs.nan_to_num(99.0)), order


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_last_bag_goes_on_to_the_end(mode):
    """pytorch/pytorch#89677: so do ATen's kernels for padding, for max and for float64."""
    options = {"mode": mode, "padding_idx": 5, "include_last_offset": True}
    for last in (3, len(INDICES)):
        arguments = INDICES, table(), torch.tensor([0, 3, last])
        ours, theirs = (f(*arguments, **options) for f in (pynn.functional.embedding_bag, F.embedding_bag))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_double_backward_of_bags_where_torch_has_none(mode):
    def second_gradient(function):
        weight = table()
        bags = function(INDICES, weight, OFFSETS, mode=mode)
        (gradient,) = torch.autograd.grad(bags.pow(3).sum(), weight, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), weight)

    with pytest.raises(RuntimeError):
        second_gradient(F.embedding_bag)
    assert second_gradient(pynn.functional.embedding_bag)[0].abs().sum() > 0


def test_ctc_has_a_second_derivative_and_forward_mode_where_torch_has_none():
    torch.manual_seed(0)
    logits = torch.randn(6, 2, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 1], [3, 2]])

    def loss(function, x):
        return function(x.log_softmax(2), labels, (6, 5), (2, 2))

    def second_gradient(function):
        (gradient,) = torch.autograd.grad(loss(function, logits), logits, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), logits)

    def derivative(function):
        return torch.func.jvp(lambda x: loss(function, x), (logits,), (torch.ones_like(logits),))

    with pytest.raises(RuntimeError, match="not implemented"):
        second_gradient(F.ctc_loss)
    with pytest.raises(NotImplementedError, match="forward AD"):
        derivative(F.ctc_loss)
    assert second_gradient(pynn.functional.ctc_loss)[0].abs().sum() > 0
    # a shift of all logits changes no probability
    torch.testing.assert_close(derivative(pynn.functional.ctc_loss)[1], torch.zeros((), dtype=torch.float64))


def test_pdist_in_float32_has_the_derivatives_of_float64():
    """Its Euclidean gradient is written as a product there alone, where gradcheck does not look."""
    torch.manual_seed(0)
    rows, cotangent = torch.randn(7, 4), torch.randn(21)
    for dtype in (torch.float32, torch.float64):
        x = rows.to(dtype).requires_grad_()

        def gradient(x, cotangent=cotangent.to(dtype)):
            return torch.func.vjp(pynn.functional.pdist, x)[1](cotangent)[0]

        (first,) = torch.autograd.grad(pynn.functional.pdist(x), x, cotangent.to(dtype), create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        mapped = torch.func.vmap(gradient)(torch.stack([x, x * 2]))
        forward = torch.func.jvp(gradient, (x,), (2 * first.detach(),))[1]
        found = [t.detach().double() for t in (first, second, *mapped, forward)]
        if dtype is torch.float32:
            narrow = found
    torch.testing.assert_close(narrow, found, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[-1], found[1], rtol=1e-10, atol=1e-12)  # the Hessian is symmetric


def test_ctc_refuses_labels_that_are_no_class():
    """ATen reads past the log-probabilities."""
    x, labels = torch.randn(5, 1, 4).log_softmax(2), torch.tensor([[1, 9]])
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        pynn.functional.ctc_loss(x, labels, (5,), (2,))


def deterministic_calls():
    x, i = torch.randn(6, 4, requires_grad=True), torch.tensor([1, 0, 3])
    image = torch.randn(1, 2, 4, 4, requires_grad=True)
    yield "embedding", lambda f: f(INDICES, x)
    for mode in ("sum", "mean", "max"):
        yield "embedding_bag", lambda f, mode=mode: f(INDICES, x, OFFSETS, mode=mode)
    yield "nll_loss", lambda f: f(x[:3], i)
    yield "cross_entropy", lambda f: f(x[:3], i)
    yield "nll_loss", lambda f: f(image, torch.zeros(1, 4, 4, dtype=torch.int64))
    yield "ctc_loss", lambda f: f(x[:, None], torch.tensor([[1, 2]]), (6,), (2,))
    for mode in ("reflect", "replicate", "circular", "constant"):
        yield "pad", lambda f, mode=mode: f(image, (1, 1, 2, 0), mode=mode)
    yield "pdist", lambda f: f(x)
    yield "multi_margin_loss", lambda f: f(x[:3], i)
    yield "multilabel_margin_loss", lambda f: f(x[:3], torch.tensor([[1, -1, 0, 0]]).expand(3, 4))


def test_deterministic_mode_refuses_no_more_than_torch():
    torch.use_deterministic_algorithms(True)
    try:
        for name, call in deterministic_calls():
            for namespace in (F, pynn.functional):
                call(getattr(namespace, name)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("mode", ["embedding", "sum", "mean", "max"])
def test_real_indices_of_a_meta_weight(mode):
    """test_embedding_bag_meta of test_fake_tensor.py: C++ gives the shape, and that of the gradient."""
    weight = table().detach().to("meta").requires_grad_()
    for functions in (F, pynn.functional):
        if mode == "embedding":
            out = functions.embedding(INDICES, weight)
        else:
            factors = torch.ones(len(INDICES), dtype=torch.float64) if mode == "sum" else None
            out = functions.embedding_bag(INDICES, weight, OFFSETS, mode=mode, per_sample_weights=factors)
        (grad,) = torch.autograd.grad(out.sum(), weight)
        assert out.is_meta and out.shape == (len(INDICES if mode == "embedding" else OFFSETS), 4)
        assert grad.is_meta and grad.shape == weight.shape


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_with_max_norm_is_used_twice(mode: str) -> None:
    """The second use scales the weights in place; the first one's backward had kept them, and raised."""
    gradients = []
    for nn in (torch.nn, pynn):
        torch.manual_seed(0)
        layer = nn.EmbeddingBag(5, 3, max_norm=0.1, mode=mode)
        indices = torch.tensor([[1, 2], [3, 3]])
        (layer(indices) + layer(indices + 1)).square().sum().backward()
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
