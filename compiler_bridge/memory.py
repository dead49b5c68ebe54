"""Where temporaries live: offsets within one arena by lifetime, and the arenas themselves.

All graphs of a process share the pool of arenas: a graph holds one only while it runs, so that forward,
backward and the next graph work in the same, warm memory. Two calls at the same time hold two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

ALIGNMENT = 64  # a cache line, and the widest vector


@dataclass(frozen=True)
class Lifetime:
    """A temporary of `nbytes`, in use from step `first` to step `last`, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class ArenaPlan:
    """Byte offset of each temporary, and the size of the arena."""

    offsets: dict[str, int]
    nbytes: int


def align(nbytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def plan_arena(lifetimes: Sequence[Lifetime]) -> ArenaPlan:
    """Greedy best fit: largest first, each into the tightest gap between those it meets in time.

    Offsets are multiples of 64; temporaries that are in use at the same step don't overlap.
    """
    placed: list[tuple[int, int, Lifetime]] = []  # (begin, end, temporary)
    offsets: dict[str, int] = {}
    for item in sorted(lifetimes, key=lambda item: (-item.nbytes, item.first, item.name)):
        size = align(item.nbytes)
        taken = sorted((begin, end) for begin, end, other in placed if item.meets(other))
        offset = _best_gap(taken, size)
        placed.append((offset, offset + size, item))
        offsets[item.name] = offset
    return ArenaPlan(offsets, max((end for _, end, _ in placed), default=0))


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Begin of the smallest gap of at least `size` between the taken ranges, else the end of the last."""
    best: tuple[int, int] | None = None
    free_from = 0
    for begin, end in taken:
        gap = begin - free_from
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, free_from)
        free_from = max(free_from, end)
    return free_from if best is None else best[1]


class ArenaPool:
    """Arenas nobody uses at the moment. `list.pop` and `list.append` are atomic, so that no lock can be held
    by another thread while a process forks."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []

    def take(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor of at least `nbytes`, aligned to 64 bytes; its content is arbitrary."""
        try:
            arena = self._free.pop()
        except IndexError:
            arena = None
        if arena is None or arena.numel() < nbytes:
            arena = torch.empty(max(nbytes, ALIGNMENT), dtype=torch.uint8)  # the smaller one is freed
        return arena

    def give_back(self, arena: torch.Tensor) -> None:
        self._free.append(arena)

    def clear(self) -> None:
        """Free the memory of every arena not in use."""
        self._free.clear()


ARENAS = ArenaPool()
