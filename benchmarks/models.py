"""The models that must run unmodified: builders shared by the tests (small) and the benchmarks (larger).

Each builder returns a `Workload`: a torch.nn model with random weights, a loss of the model and a batch, and
a way to draw batches of any size. Nothing here knows of pynn; what compiles is torch's and transformers' own
code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpt import GPTConfig, build_gpt

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """A model, how to draw a batch for it, its loss, and its inference output.

    loss:    (model, batch) -> scalar
    infer:   (model, batch) -> logits or features
    """

    name: str
    model: torch.nn.Module
    draw: Callable[[int, int, int], Batch]
    loss: Callable[[torch.nn.Module, Batch], Tensor]
    infer: Callable[[torch.nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Size:
    """Sizes shared by all models; `kv_heads` for Llama's grouped heads, `image` for ViT."""

    vocab: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    image: int = 32


SMALL = Size(vocab=100, layers=2, heads=4, kv_heads=2, dim=32)
BENCH = Size(vocab=8192, layers=4, heads=4, kv_heads=2, dim=256, image=96)


def tokens(vocab: int, batch: int, seq: int, seed: int) -> Tensor:
    return torch.randint(1, vocab, (batch, seq), generator=torch.Generator().manual_seed(seed))


def features(batch: int, seq: int, dim: int, seed: int) -> Tensor:
    return torch.randn(batch, seq, dim, generator=torch.Generator().manual_seed(seed))


def demo_gpt(size: Size, nn=torch.nn) -> Workload:
    config = GPTConfig(layers=size.layers, heads=size.heads, dim=size.dim, seq=256)

    def draw(batch: int, seq: int, seed: int) -> Batch:
        drawn = tokens(256, batch, seq + 1, seed)
        return {"x": drawn[:, :-1].contiguous(), "y": drawn[:, 1:].contiguous()}

    def loss(model, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten())

    return Workload("demo_gpt", build_gpt(nn, config), draw, loss, lambda model, batch: model(batch["x"]))


def transformer_encoder(size: Size) -> Workload:
    layer = torch.nn.TransformerEncoderLayer(
        size.dim, size.heads, 4 * size.dim, dropout=0.0, activation="gelu", batch_first=True
    )
    model = torch.nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)

    def draw(batch: int, seq: int, seed: int) -> Batch:
        x = features(batch, seq, size.dim, seed)
        return {"x": x, "target": features(batch, seq, size.dim, seed + 1)}

    def loss(model, batch: Batch) -> Tensor:
        return torch.nn.functional.mse_loss(model(batch["x"]), batch["target"])

    return Workload("transformer_encoder", model, draw, loss, lambda model, batch: model(batch["x"]))


def transformer(size: Size) -> Workload:
    model = torch.nn.Transformer(
        size.dim, size.heads, size.layers, size.layers, 4 * size.dim, dropout=0.0, batch_first=True
    )

    def draw(batch: int, seq: int, seed: int) -> Batch:
        return {
            "source": features(batch, seq, size.dim, seed),
            "x": features(batch, seq + 3, size.dim, seed + 1),
            "target": features(batch, seq + 3, size.dim, seed + 2),
        }

    def infer(model, batch: Batch) -> Tensor:
        seq = batch["x"].shape[1]
        causal = torch.full((seq, seq), float("-inf"), dtype=batch["x"].dtype).triu(1)
        return model(batch["source"], batch["x"], tgt_mask=causal, tgt_is_causal=True)

    def loss(model, batch: Batch) -> Tensor:
        return torch.nn.functional.mse_loss(infer(model, batch), batch["target"])

    return Workload("transformer", model, draw, loss, infer)


def token_draw(size: Size) -> Callable[[int, int, int], Batch]:
    def draw(batch: int, seq: int, seed: int) -> Batch:
        drawn = tokens(size.vocab, batch, seq, seed)
        return {"input_ids": drawn, "labels": drawn.clone()}

    return draw


def model_loss(model, batch: Batch) -> Tensor:
    """The loss that a transformers model computes itself, given labels."""
    return model(**batch).loss


def without_labels(model, batch: Batch) -> Tensor:
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def gpt2(size: Size) -> Workload:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size.vocab, n_positions=512, n_embd=size.dim, n_layer=size.layers, n_head=size.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Workload("gpt2", GPT2LMHeadModel(config), token_draw(size), model_loss, without_labels)


def bert(size: Size) -> Workload:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=size.vocab, hidden_size=size.dim, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=4 * size.dim, max_position_embeddings=512,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Workload("bert", BertForMaskedLM(config), token_draw(size), model_loss, without_labels)


def llama(size: Size) -> Workload:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size.vocab, hidden_size=size.dim, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, intermediate_size=3 * size.dim,
        max_position_embeddings=512, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Workload("llama", LlamaForCausalLM(config), token_draw(size), model_loss, without_labels)


def vit(size: Size) -> Workload:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=size.image, patch_size=8, num_channels=3, hidden_size=size.dim,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, intermediate_size=4 * size.dim,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=10,
    )  # fmt: skip

    def draw(batch: int, seq: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(batch, 3, size.image, size.image, generator=generator)
        return {"pixel_values": pixels, "labels": torch.randint(10, (batch,), generator=generator)}

    return Workload("vit", ViTForImageClassification(config), draw, model_loss, without_labels)


def t5(size: Size) -> Workload:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=size.vocab, d_model=size.dim, d_kv=size.dim // size.heads, d_ff=4 * size.dim,
        num_layers=size.layers, num_heads=size.heads, dropout_rate=0.0, use_cache=False,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip

    def draw(batch: int, seq: int, seed: int) -> Batch:
        labels = tokens(size.vocab, batch, seq + 2, seed + 1)
        # Given, not shifted inside the model: its check that no label is -100 breaks the graph.
        start = torch.zeros(batch, 1, dtype=torch.int64)
        decoder = torch.cat([start, labels[:, :-1]], dim=1)
        source = tokens(size.vocab, batch, seq, seed)
        return {"input_ids": source, "decoder_input_ids": decoder, "labels": labels}

    return Workload("t5", T5ForConditionalGeneration(config), draw, model_loss, without_labels)


BUILDERS: dict[str, Callable[[Size], Workload]] = {
    builder.__name__: builder
    for builder in (demo_gpt, transformer_encoder, transformer, gpt2, bert, llama, vit, t5)
}


def build(name: str, size: Size, seed: int = 0) -> Workload:
    """Build a workload with seeded weights.

    Raises:  KeyError for a name not in BUILDERS
    """
    torch.manual_seed(seed)
    return BUILDERS[name](size)
