"""Activations, softmax, normalisation over rows, dropout, attention, embeddings and what has no torch row."""

import math
from collections.abc import Callable

import torch

from parity_tests.cases import Row, Sample
from parity_tests.cases_own.builders import built, function, in_place, module, strided, tensor
from parity_tests.cases_torch import SKIPPED_CHECKS

ACTIVATIONS = [
    "relu", "relu6", "elu", "selu", "celu", "leaky_relu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "hardshrink", "softshrink", "tanhshrink", "softsign", "softplus", "logsigmoid", "sigmoid",
    "tanh",
]  # fmt: skip

IN_PLACE = {
    "relu_": (), "elu_": (0.7,), "selu_": (), "celu_": (1.3,), "leaky_relu_": (0.1,),
    "hardtanh_": (-0.5, 0.8), "threshold_": (0.1, -20.0),
}  # fmt: skip


AT_INFINITIES = {"gradgrad": "not at infinities", "forward_ad": "not at infinities"}
IN_PLACE_SKIPS = {"celu_": {"float64": "C++ rounds 1 / alpha to float32: its float64 results are 2e-8 off"}}


def extremes() -> Sample:
    """Every binade's ends, halves, the neighbourhood of every kink, NaN and infinities."""
    powers = 2.0 ** torch.arange(-126, 127, 3)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 0.5, 1.0, 3.0, 6.0, 20.0, 88.0, 104.0])
    line = torch.linspace(-110, 110, 2001)
    near = torch.linspace(-7, 7, 2001)
    return Sample((torch.cat([powers, -powers, special, -special, line, near]),))


def attention_sample(batch, heads, kv_heads, seq, keys, head_dim, **kwargs) -> Callable[[], Sample]:
    def draw() -> Sample:
        q = tensor(batch, heads, seq, head_dim)
        k, v = (tensor(batch, kv_heads, keys, head_dim) for _ in range(2))
        drawn = {name: value() if callable(value) else value for name, value in kwargs.items()}
        return Sample((q, k, v), drawn)

    return draw


def token_sample(vocab: int, dim: int, *shape: int, **kwargs) -> Callable[[], Sample]:
    return lambda: Sample((torch.randint(vocab, shape), tensor(vocab, dim)), kwargs)


def class_sample(rows: int, vocab: int, **kwargs) -> Callable[[], Sample]:
    return lambda: Sample((tensor(rows, vocab, low=-8, high=8), torch.randint(vocab, (rows,))), kwargs)


def function_table() -> list[Row]:
    rows = [
        function(f"{name}.extremes", extremes, pointwise=True, dtypes=(torch.float32, torch.bfloat16),
                 skip=AT_INFINITIES | SKIPPED_CHECKS.get(name, {}))
        for name in ACTIVATIONS
    ]  # fmt: skip
    rows += [
        function(f"{name}.strided", lambda: Sample((strided(3, 5, 7),)), lambda: Sample((strided(0, 4),)),
                 lambda: Sample((strided(1, 1),)), pointwise=True, skip=SKIPPED_CHECKS.get(name, {}))
        for name in ACTIVATIONS
    ]  # fmt: skip
    rows += [
        function(
            name,
            lambda args=args: Sample((tensor(4, 9), *args)),
            call=in_place,
            pointwise=True,
            skip=IN_PLACE_SKIPS.get(name, {}),
        )
        for name, args in IN_PLACE.items()
    ]
    rows += [
        function("softmax.rows", lambda: Sample((tensor(33, 257, low=-30, high=30), -1)),
                 lambda: Sample((tensor(5, 6, 7), 1)), lambda: Sample((tensor(0, 3), 1)),
                 lambda: Sample((strided(4, 6, 8), 0))),
        function("log_softmax.rows", lambda: Sample((tensor(33, 257, low=-30, high=30), -1)),
                 lambda: Sample((tensor(5, 6, 7), 1)), lambda: Sample((strided(4, 6, 8), 0))),
        function("layer_norm.rows", lambda: Sample((tensor(17, 768), (768,), tensor(768), tensor(768))),
                 lambda: Sample((tensor(3, 4, 5) + 100.0, (4, 5))),
                 lambda: Sample((strided(6, 10), (10,), tensor(10), None))),
        function("rms_norm.rows", lambda: Sample((tensor(17, 768), (768,), tensor(768))),
                 lambda: Sample((strided(6, 10), (10,)))),
        function("gumbel_softmax", lambda: Sample((tensor(6, 11),), {"tau": 0.7}),
                 lambda: Sample((tensor(6, 11),), {"hard": True, "dim": 0}), random=True,
                 skip={"forward_ad": "hard=True hands on another function's gradient",
                       "gradgrad": "hard=True hands on another function's gradient"}),
        function("dropout1d", lambda: Sample((tensor(3, 4, 5), 0.4)), lambda: Sample((tensor(4, 5), 0.4)),
                 random=True),
        function("cross_entropy.rows", class_sample(19, 4000), class_sample(7, 1000, label_smoothing=0.1),
                 class_sample(7, 50, reduction="sum"), class_sample(7, 50, ignore_index=3)),
        function("embedding.tokens", token_sample(50, 16, 3, 7), token_sample(50, 16, 9, padding_idx=2),
                 token_sample(50, 16, 200, scale_grad_by_freq=True), token_sample(10, 4, 0)),
        function("one_hot.classes", lambda: Sample((torch.randint(7, (3, 5)), 7)),
                 lambda: Sample((torch.randint(4, ()), 9)), lambda: Sample((torch.randint(4, (0, 2)), 4)),
                 dtypes=(torch.float32,)),
        function("linear.shapes", *(lambda s=s: Sample((tensor(*s, 24), tensor(40, 24), tensor(40)))
                                    for s in [(), (1,), (0,), (7,), (2, 3), (130,)])),
        function("scaled_dot_product_attention.heads",
                 attention_sample(2, 4, 4, 33, 33, 32),
                 attention_sample(1, 3, 3, 65, 65, 64, is_causal=True),
                 attention_sample(2, 4, 2, 17, 17, 16, enable_gqa=True),
                 attention_sample(2, 2, 2, 9, 21, 8, attn_mask=lambda: torch.rand(9, 21) > 0.2),
                 attention_sample(2, 2, 2, 9, 21, 8, attn_mask=lambda: torch.randn(2, 1, 9, 21)),
                 attention_sample(1, 1, 1, 1, 5, 4, scale=0.3)),
        function("normalize.rows", lambda: Sample((tensor(5, 40),)),
                 lambda: Sample((tensor(5, 6, 7),), {"p": 1.0, "dim": 0})),
        function("kl_div.log_target",
                 lambda: Sample((tensor(6, 9, low=-5, high=-1), tensor(6, 9, low=-5, high=-1)),
                                {"log_target": True, "reduction": "batchmean"})),
    ]  # fmt: skip
    return rows


def transformer_decoder_layer() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True)


def module_table() -> list[Row]:
    def images() -> tuple:
        return (tensor(2, 8, 4, 6),)

    def unwatched() -> tuple:
        """For in-place modules: a leaf that requires grad may not be written."""
        return (tensor(3, 5, 4, 2, grad=False),)

    rows = [
        module(name, built(0.3, inputs=images), built(0.0, inputs=images), built(1.0, inputs=images),
               built(0.3, inputs=images, training=False), built(0.3, True, inputs=unwatched), random=True)
        for name in ["Dropout", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout"]
    ]  # fmt: skip
    rows += [
        module("Dropout1d", built(0.3, inputs=lambda: (tensor(2, 8, 4),)), random=True),
        module("Dropout3d", built(0.3, inputs=lambda: (tensor(2, 8, 4, 3, 2),)), random=True),
        module("RReLU", built(inputs=images), built(0.1, 0.4, inputs=images, training=False), random=True),
        module("Hardsigmoid", built(inputs=images), built(True, inputs=unwatched), pointwise=True),
        module("Identity", built(1, unused=2, inputs=images)),
        module("Flatten", built(inputs=images), built(0, 2, inputs=images)),
        module("Unflatten", built(1, (2, 4), inputs=images), built(-1, (3, -1), inputs=images)),
        module("PixelShuffle", built(2, inputs=images)),
        module("PixelUnshuffle", built(2, inputs=images)),
        module("ChannelShuffle", built(4, inputs=images)),
        module("CosineSimilarity", built(inputs=lambda: (tensor(3, 8), tensor(3, 8))),
               built(2, 1e-3, inputs=lambda: (tensor(3, 4, 8), tensor(1, 4, 8)))),
        module("TransformerDecoder", lambda: Sample((tensor(2, 5, 16), tensor(2, 7, 16)), {},
                                                    ((transformer_decoder_layer(), 2), {}))),
    ]  # fmt: skip
    return rows


ROWS = [*function_table(), *module_table()]
