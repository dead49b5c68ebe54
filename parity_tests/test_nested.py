"""Sequences of unequal lengths: what torch's fast path of evaluation gives, pynn's layers give too."""

import pytest
import torch

import pynn

WIDTH, HEADS = 8, 2
LENGTHS = (3, 5, 1)
PADDING = torch.arange(5) >= torch.tensor(LENGTHS).unsqueeze(-1)
HOLE = PADDING.clone()
HOLE[1, 2] = True
pytestmark = pytest.mark.filterwarnings("ignore")


def encoders(norm=True, **options):
    built = []
    for nn in (torch.nn, pynn):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
        built.append(nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH) if norm else None, **options))
        torch.nn.init.normal_(built[-1].layers[0].norm2.bias)
    return [encoder.eval() for encoder in built]


def layers():
    built = []
    for nn in (torch.nn, pynn):
        torch.manual_seed(0)
        built.append(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval())
    return built


def nested():
    return torch.nested.nested_tensor([torch.randn(length, WIDTH) for length in LENGTHS])


@pytest.mark.parametrize("options", [{}, {"mask_check": False}, {"enable_nested_tensor": False}], ids=str)
@pytest.mark.parametrize("padding", [PADDING, PADDING[:1].expand(3, 5), HOLE], ids=["left", "short", "hole"])
@pytest.mark.parametrize("mask", [None, torch.ones(5, 5).triu(1).bool()], ids=["", "causal"])
@pytest.mark.parametrize("gradients", [True, False])
def test_padded_positions_hold_what_torch_gives(options, padding, mask, gradients):
    if padding is HOLE and "mask_check" in options:
        pytest.skip("unchecked, torch takes the first tokens of each sequence whatever the mask says")
    x = torch.randn(3, 5, WIDTH)
    theirs, own = encoders(norm=gradients is False, **options)
    with torch.set_grad_enabled(gradients):
        results = [encoder(x, mask, src_key_padding_mask=padding) for encoder in (theirs, own)]
    torch.testing.assert_close(results[1], results[0])


def test_zeros_only_without_the_fast_path_switched_off():
    x, (theirs, own) = torch.randn(3, 5, WIDTH), encoders()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            results = [encoder(x, src_key_padding_mask=PADDING) for encoder in (theirs, own)]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(results[1], results[0])


def test_encoder_of_a_nested_tensor():
    x, (theirs, own) = nested(), encoders()
    with torch.no_grad():
        results = [[encoder(x), encoder.layers[0](x)] for encoder in (theirs, own)]
    for value, cpp in zip(results[1], results[0], strict=True):
        assert value.is_nested and value.layout == cpp.layout
        for one, other in zip(value.unbind(), cpp.unbind(), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_of_nested_tensors(need_weights, average):
    x, built = nested(), layers()
    options = {"need_weights": need_weights, "average_attn_weights": average}
    with torch.no_grad():
        (cpp, their_weights), (value, weights) = (layer(x, x, x, **options) for layer in built)
    for one, other in zip(value.unbind(), cpp.unbind(), strict=True):
        torch.testing.assert_close(one, other)
    assert (weights is None) == (their_weights is None)
    if weights is not None:
        for row, length in enumerate(LENGTHS):  # torch leaves values at padded positions that mean nothing
            part = (row, ..., slice(length), slice(length))
            torch.testing.assert_close(weights[part], their_weights[part])
        assert weights.shape == their_weights.shape


@pytest.mark.parametrize("mode", ["gradients", "training", "float64"])
def test_nested_tensors_outside_the_fast_path_are_refused(mode):
    """test_multihead_attn_nested_tensor_outside_fast_path of torch's test_multihead_attention.py."""
    messages = []
    for layer in layers():
        layer.train(mode == "training")
        x = nested().double() if mode == "float64" else nested()
        with torch.set_grad_enabled(mode == "gradients"), pytest.raises(AssertionError) as caught:
            layer(x, x, x)
        messages.append(str(caught.value).partition(" don't match")[0].partition(" (")[0])
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "masks",
    [{"attn_mask": torch.zeros(3, 3).bool()}, {"key_padding_mask": PADDING}],
    ids=["attn_mask", "padding"],
)
def test_masks_with_nested_tensors_are_refused(masks):
    x = nested()
    for layer in layers():
        with torch.no_grad(), pytest.raises(AssertionError, match="does not support NestedTensor"):
            layer(x, x, x, **masks)


# ---- functions, as test_nestedtensor.py asks for them ----------------------------------------------------

C = torch.nn.functional
TABLE, BIAS, WEIGHT = torch.randn(9, WIDTH), torch.randn(6), torch.randn(6, WIDTH)
KEYS = torch.nested.nested_tensor([torch.randn(length, WIDTH) for length in (2, 4, 4)])
INDICES = torch.nested.nested_tensor([torch.randint(9, (length,)) for length in LENGTHS])
EMPTY = torch.nested.nested_tensor([])


def transposed(x):
    return x.transpose(1, 2)


FUNCTIONS = {
    "relu": lambda f, x: f.relu(x),
    "relu_": lambda f, x: f.relu_(x.clone()),
    "gelu": lambda f, x: f.gelu(x),
    "gelu tanh": lambda f, x: f.gelu(x, approximate="tanh"),
    "silu": lambda f, x: f.silu(x),
    "silu in place": lambda f, x: f.silu(x.clone(), inplace=True),
    "softsign": lambda f, x: f.softsign(x),
    "tanh": lambda f, x: f.tanh(x),
    "tanhshrink": lambda f, x: f.tanhshrink(x),
    "dropout": lambda f, x: f.dropout(x, 0.3),
    "dropout, nothing": lambda f, x: f.dropout(x, 0.3, training=False),
    "dropout, transposed": lambda f, x: f.dropout(transposed(x.detach()), 0.3),
    "softmax": lambda f, x: f.softmax(x, -1),
    "softmax along sequences": lambda f, x: f.softmax(x, 1, dtype=torch.float64),
    "softmax, transposed": lambda f, x: f.softmax(transposed(x.detach()), 1),
    "softmin": lambda f, x: f.softmin(x, 2),
    "linear": lambda f, x: f.linear(x, WEIGHT, BIAS),
    "linear without bias": lambda f, x: f.linear(x, WEIGHT),
    "layer_norm": lambda f, x: f.layer_norm(x, [WIDTH], TABLE[0], TABLE[1]),
    "embedding": lambda f, x: f.embedding(INDICES, TABLE, 1),
    "attention": lambda f, x: f.scaled_dot_product_attention(x, KEYS, KEYS, scale=0.5),
    "nothing: relu": lambda f, x: f.relu(EMPTY),
    "nothing: softmax": lambda f, x: f.softmax(EMPTY, 1),
    "nothing: dropout": lambda f, x: f.dropout(EMPTY),
    "one after another": lambda f, x: f.relu(f.silu(f.gelu(x)), inplace=True),
}
GRADIENT_IS_OURS_ALONE = ("tanh", "tanhshrink")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_nested_tensors(name):
    """Values, and the gradient if x has one."""
    results, parts = [], [torch.randn(length, WIDTH) for length in LENGTHS]
    for functions in (C, pynn.functional):
        torch.manual_seed(0)
        x = torch.nested.nested_tensor(parts, requires_grad=name not in GRADIENT_IS_OURS_ALONE)
        out = FUNCTIONS[name](functions, x)
        assert out.is_nested and out.layout == torch.strided
        results.append([out, *(torch.autograd.grad(out, x, out.detach()) if out.requires_grad else ())])
    assert len(results[0]) == len(results[1])
    for cpp, own in zip(*results, strict=True):
        assert cpp.size(0) == own.size(0)
        for one, other in zip(own.unbind(), cpp.unbind(), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", GRADIENT_IS_OURS_ALONE)
def test_gradients_that_torch_lacks(name):
    parts = [torch.randn(length, WIDTH, requires_grad=True) for length in LENGTHS]
    out = getattr(pynn.functional, name)(torch.nested.as_nested_tensor(parts))
    found = torch.autograd.grad(out, parts, torch.ones_like(out))
    expected = [torch.autograd.grad(getattr(C, name)(part).sum(), part)[0] for part in parts]
    torch.testing.assert_close(list(found), expected)


def test_parameters_have_gradients_beside_nested_tensors():
    """test_nested_tensor_linear_backward; of an embedding torch has none."""
    weight, table = WEIGHT.clone().requires_grad_(), TABLE.clone().requires_grad_()
    out = pynn.functional.linear(pynn.functional.embedding(INDICES, table), weight)
    grads = torch.autograd.grad(out, (weight, table), torch.ones_like(out))
    rows = torch.cat(INDICES.unbind())
    dense = C.linear(C.embedding(rows, table), weight)
    torch.testing.assert_close(grads, torch.autograd.grad(dense.sum(), (weight, table)))


REFUSED = {
    "relu": lambda f, x: f.relu(transposed(x)),
    "softmax": lambda f, x: f.softmax(x, -3),
    "softmax by default": lambda f, x: f.softmax(x),
    "softmax out of range": lambda f, x: f.softmax(x, 3),
    "linear of vectors": lambda f, x: f.linear(INDICES, WEIGHT),
    "linear, transposed": lambda f, x: f.linear(transposed(x), WEIGHT),
    "linear, wider": lambda f, x: f.linear(x, WEIGHT[:, 1:]),
    "linear, unequal": lambda f, x: f.linear(transposed(x).contiguous(), WEIGHT),
    "linear, nested weight": lambda f, x: f.linear(x, x),
    "layer_norm": lambda f, x: f.layer_norm(x, [WIDTH + 1], torch.ones(WIDTH + 1), torch.ones(WIDTH + 1)),
    "layer_norm, irregular": lambda f, x: f.layer_norm(
        x, [5, WIDTH], torch.ones(5, WIDTH), torch.ones(5, WIDTH)
    ),
    "attention, causal": lambda f, x: f.scaled_dot_product_attention(x, x, x, is_causal=True),
    "attention, mask": lambda f, x: f.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(5, 5)),
    "attention, transposed": lambda f, x: f.scaled_dot_product_attention(*[transposed(x)] * 3),
    "attention, dense": lambda f, x: f.scaled_dot_product_attention(x, *[torch.randn(3, 5, WIDTH)] * 2),
    "dropout": lambda f, x: f.dropout(x, 1.1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nested_tensors_are_refused_in_torchs_words(name):
    errors = []
    for functions in (C, pynn.functional):
        with pytest.raises((RuntimeError, IndexError, ValueError)) as caught:
            REFUSED[name](functions, nested())
        errors.append((caught.type, str(caught.value).partition("instead last dimension equals")[0]))
    assert errors[0] == errors[1]
