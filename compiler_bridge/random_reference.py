"""Philox4x32-10 once more, in numpy over uint64: what `philox_uniform` means (the interpreter's reference).

Source:  Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011), figure 3
"""

from __future__ import annotations

import numpy
import torch

WORD = numpy.uint64(0xFFFFFFFF)
HALF = numpy.uint64(32)
MULTIPLIERS = numpy.uint64(0xD2511F53), numpy.uint64(0xCD9E8D57)
KEY_STEPS = 0x9E3779B9, 0xBB67AE85


def philox_block(seed: int, block: numpy.ndarray) -> list[numpy.ndarray]:
    """The four 32-bit words of every block, as uint64."""
    counter = [block & WORD, block >> HALF, numpy.zeros_like(block), numpy.zeros_like(block)]
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    for _ in range(10):
        product_0, product_1 = counter[0] * MULTIPLIERS[0], counter[2] * MULTIPLIERS[1]
        counter = [
            (product_1 >> HALF) ^ counter[1] ^ numpy.uint64(key[0]),
            product_1 & WORD,
            (product_0 >> HALF) ^ counter[3] ^ numpy.uint64(key[1]),
            product_0 & WORD,
        ]
        key = [(word + step) & 0xFFFFFFFF for word, step in zip(key, KEY_STEPS)]
    return counter


def philox_uniform(seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 1): the upper 24 bits of word `position mod 4` of block `position // 4`, times 2^-24"""
    index = position.numpy().astype(numpy.uint64)
    words = philox_block(int(seed.item()), index >> numpy.uint64(2))
    word = numpy.choose((index & numpy.uint64(3)).astype(numpy.int64), words)
    return torch.from_numpy(
        numpy.asarray((word >> numpy.uint64(8)).astype(numpy.float32) * numpy.float32(2**-24))
    )
