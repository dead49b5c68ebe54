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
