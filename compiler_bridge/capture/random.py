"""Random numbers that need not be stored: a seed drawn once, and a pure function of seed and position.

    seed()              an int64 drawn from torch's CPU generator
    uniform(seed, size) element i (row-major) is word i % 4 of Philox4x32-10(key = seed, counter = i // 4),
                        its upper 24 bits over 2^24: in [0, 1)

A dropout mask is `uniform(seed, size) >= p`; the backward pass computes it again from the seed. `seed` is
marked nondeterministic, so that no pass merges, moves or repeats its calls; `uniform` is pure.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). `cpu/philox.py` is the same
function for kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["philox_words", "random_uniform"]

LOW_32 = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

LIBRARY = torch.library.Library("pynn", "FRAGMENT")
LIBRARY.define("seed() -> Tensor", tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag))
LIBRARY.define("uniform(Tensor seed, SymInt[] size) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def philox_words(seed: Tensor, counter: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four independent 32-bit numbers for each counter, as int64.

    Shape: seed: [] int64   counter: [*] int64   returns: four of [*]
    """
    c0, c1 = counter & LOW_32, (counter >> 32) & LOW_32
    c2 = c3 = torch.zeros_like(counter)
    k0, k1 = seed & LOW_32, (seed >> 32) & LOW_32
    for _ in range(ROUNDS):
        # The 64-bit product wraps around, but its bit pattern is the unsigned one.
        product_0, product_1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high_0, high_1 = (product_0 >> 32) & LOW_32, (product_1 >> 32) & LOW_32
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, product_1 & LOW_32, high_0 ^ c3 ^ k1, product_0 & LOW_32
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW_32, (k1 + KEY_STEPS[1]) & LOW_32
    return c0, c1, c2, c3


def random_uniform(seed: Tensor, size: Sequence[int]) -> Tensor:
    """float32 numbers in [0, 1), a function of the seed and the position only.

    Shape: seed: [] int64   returns: size
    """
    count = math.prod(size)
    counters = torch.arange((count + 3) // 4, dtype=torch.int64, device=seed.device)
    words = torch.stack(philox_words(seed, counters), -1).flatten()[:count]
    return ((words >> 8).to(torch.float32) * 2.0**-24).reshape(list(size))


def draw_seed() -> Tensor:
    """A seed from torch's default CPU generator, so that torch.manual_seed rules it."""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)


LIBRARY.impl("seed", draw_seed, "CompositeExplicitAutograd")
LIBRARY.impl("uniform", random_uniform, "CompositeExplicitAutograd")


@torch.library.register_fake("pynn::seed", lib=LIBRARY)
def _seed_fake():
    return torch.empty((), dtype=torch.int64)


@torch.library.register_fake("pynn::uniform", lib=LIBRARY)
def _uniform_fake(seed, size):
    return seed.new_empty(size, dtype=torch.float32)


# ---- what random ATen operations become in a traced graph ----

aten = torch.ops.aten


def uniform_like(x: Tensor) -> Tensor:
    """Fresh uniform numbers of x's shape; only the seed is drawn now."""
    return torch.ops.pynn.uniform(torch.ops.pynn.seed(), x.shape)


def bernoulli_p(x: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """1 with probability p, as x's dtype."""
    return NotImplemented if generator is not None else (uniform_like(x) < p).to(x.dtype)


def bernoulli(x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """1 with probability x."""
    return NotImplemented if generator is not None else (uniform_like(x) < x).to(x.dtype)


def rand_like(x: Tensor, *, dtype: torch.dtype | None = None, **options: object) -> Tensor:
    dtype = dtype or x.dtype
    return NotImplemented if dtype == torch.float64 else uniform_like(x).to(dtype)


def rand(size: Sequence[int], *, dtype: torch.dtype | None = None, **options: object) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    if dtype == torch.float64:  # 24 random bits are too few
        return NotImplemented
    return torch.ops.pynn.uniform(torch.ops.pynn.seed(), size).to(dtype)


def native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """(x * mask / (1 - p), mask)"""
    if train is False or p == 0.0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = uniform_like(x) >= p
    scale = 0.0 if p == 1.0 else 1.0 / (1.0 - p)
    return mask * x * scale, mask


DECOMPOSITIONS = {
    aten.bernoulli.p: bernoulli_p,
    aten.bernoulli.default: bernoulli,
    aten.rand_like.default: rand_like,
    aten.rand.default: rand,
    aten.native_dropout.default: native_dropout,
}
"""ATen operation -> the same distribution from (seed, element number), so that a mask need not be stored."""


def rrelu_with_noise(
    x: Tensor,
    noise: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition; in training nothing: ATen draws for the elements <= 0 alone, so its call has to stay."""
    from pynn.definitions import DEFINITIONS

    if training:
        return NotImplemented
    return DEFINITIONS[aten.rrelu_with_noise_functional.default](x, noise, lower, upper)


EAGER_DECOMPOSITIONS = {aten.rrelu_with_noise_functional.default: rrelu_with_noise}
"""What takes the place of a definition that draws, where torch's own random numbers are asked for."""
