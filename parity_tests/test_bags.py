"""Bags of embeddings and CTC where the table of rows can't look: sparse gradients, max_norm, what torch lacks."""

import pytest
import torch
import torch.nn.functional as F

import pynn

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
