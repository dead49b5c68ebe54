"""A byte-level GPT, written once and built from either torch.nn or pynn.

`build_gpt(nn)` takes the namespace the layers come from, so that the demo, the benchmarks and the tests
run the very same source on both: `build_gpt(torch.nn)` and `build_gpt(pynn)`. With the same seed the two
start from bit-equal parameters.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class GPTConfig:
    vocab: int = 256
    layers: int = 4
    heads: int = 4
    dim: int = 256
    seq: int = 128
    dropout: float = 0.0


def build_gpt(nn: ModuleType, config: GPTConfig = GPTConfig()):
    """Build a decoder-only transformer with learned positions, pre-norm blocks and tied embeddings.

    Args:    nn: torch.nn or pynn
             config: sizes
    Shape:   forward: tokens [batch, seq] -> logits [batch, seq, vocab]
    Source:  Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"
    """
    F = nn.functional

    class Attention(nn.Module):
        """Causal self-attention: softmax(q k^T / sqrt(head_dim)) v, heads side by side."""

        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(config.dim, 3 * config.dim)
            self.out = nn.Linear(config.dim, config.dim)

        def forward(self, x: Tensor) -> Tensor:
            batch, seq, dim = x.shape
            qkv = self.qkv(x).view(batch, seq, 3, config.heads, dim // config.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [batch, heads, seq, head_dim]
            dropout = config.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
            return self.out(mixed.transpose(1, 2).reshape(batch, seq, dim))

    class Block(nn.Module):
        """x + attention(norm(x)), then x + mlp(norm(x))."""

        def __init__(self):
            super().__init__()
            self.norm1 = nn.LayerNorm(config.dim)
            self.attention = Attention()
            self.norm2 = nn.LayerNorm(config.dim)
            self.mlp = nn.Sequential(
                nn.Linear(config.dim, 4 * config.dim),
                nn.GELU(),
                nn.Linear(4 * config.dim, config.dim),
                nn.Dropout(config.dropout),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(config.vocab, config.dim)
            self.positions = nn.Embedding(config.seq, config.dim)
            self.blocks = nn.Sequential(*[Block() for _ in range(config.layers)])
            self.norm = nn.LayerNorm(config.dim)
            self.head = nn.Linear(config.dim, config.vocab, bias=False)
            self.head.weight = self.tokens.weight
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    # GPT-2's residual scaling: each of the 2 * layers branches adds variance to the stream.
                    branch = name.endswith(("out.weight", "mlp.2.weight"))
                    scale = 0.02 / (2 * config.layers) ** 0.5 if branch else 0.02
                    nn.init.normal_(parameter, std=scale)

        def forward(self, tokens: Tensor) -> Tensor:
            position = torch.arange(tokens.shape[1], device=tokens.device)
            x = self.tokens(tokens) + self.positions(position)
            return self.head(self.norm(self.blocks(x)))

    return GPT()


def gpt_loss(nn: ModuleType, model, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next byte, in nats."""
    logits = model(tokens)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def generate(model, prompt: bytes, length: int, config: GPTConfig = GPTConfig(), seed: int = 0) -> bytes:
    """Sample `length` bytes after `prompt`, at temperature 0.8.

    The window is always config.seq long, padded on the right (causal attention never looks there), so
    that a compiled model sees one shape.
    """
    generator = torch.Generator().manual_seed(seed)
    written = list(prompt)
    for _ in range(length):
        window = written[-config.seq :]
        tokens = torch.tensor([window + [0] * (config.seq - len(window))])
        probability = torch.softmax(model(tokens)[0, len(window) - 1] / 0.8, dim=-1)
        written.append(int(torch.multinomial(probability, 1, generator=generator)))
    return bytes(written)
