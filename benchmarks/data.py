"""Real English text that every Python ships: the language reference behind `help("topics")`."""

from collections.abc import Iterator

import torch
from torch import Tensor


def english_bytes() -> Tensor:
    """Return CPython's `pydoc_data.topics` as bytes, int64, about 460,000 of them."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def batches(text: Tensor, batch: int, seq: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw (tokens, targets) windows for ever; the same seed draws the same windows."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        start = torch.randint(len(text) - seq - 1, (batch,), generator=generator)
        window = text[start[:, None] + torch.arange(seq + 1)]  # [batch, seq + 1]
        yield window[:, :-1].contiguous(), window[:, 1:].contiguous()
