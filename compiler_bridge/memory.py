"""Where temporaries live: offsets within one arena by lifetime, the arenas themselves, the outputs' storages.

All graphs of a process share the pool of arenas: a graph holds one only while it runs, so that forward,
backward and the next graph work in the same, warm memory. Two calls at the same time hold two.

Memory fresh from the system costs a page fault per 4 KiB at first touch, several times what writing it costs.
Large outputs (activations, gradients) are therefore given storages that earlier outputs had, once nobody
holds these any more.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as remember

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


def _empty_strided(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype)


EMPTY_STRIDED: Callable[[Sequence[int], Sequence[int], torch.dtype], torch.Tensor] = getattr(
    torch._C._dynamo.guards,  # pyright: ignore
    "_empty_strided_cpu",
    _empty_strided,
)
"""torch.empty_strided on the CPU: Inductor's entry, which costs a fraction, where this torch has it."""
RECYCLED_FROM = 128 * 1024  # bytes; smaller tensors come from the heap, where pages tend to stay mapped
PROBES = 16
_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


class _Storage:
    """A storage that was given out, its address then, and a tensor over it that looks like the one given out."""

    __slots__ = ("address", "alias", "handle", "storage")

    def __init__(self, tensor: torch.Tensor):
        self.storage = tensor.untyped_storage()
        self.handle = self.storage._cdata
        self.address = tensor.data_ptr()
        self.alias = tensor.data

    def new_tensor(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Another tensor over the storage; `data` shares nothing else with the alias, and takes an eighth as long as
        `set_`."""
        alias = self.alias
        if (
            alias.dtype != dtype
            or alias.shape != shape
            or alias.stride() != strides
            or alias.is_inference() != torch.is_inference_mode_enabled()
        ):
            alias = torch.empty(0, dtype=dtype).set_(self.storage, 0, shape, strides)  # type: ignore
            self.alias = alias
        return alias.data

    def references(self) -> tuple[int, int]:
        """References to the memory from C++ (tensors, saved activations ...), and from Python to the storage
        object, of which there is one per storage."""
        assert _use_count is not None
        return _use_count(self.handle), sys.getrefcount(self.storage)

    def is_same_memory(self) -> bool:
        """False once it was moved to shared memory, resized or copied on write: each changes the address."""
        return self.storage.data_ptr() == self.address


@remember
def _idle_references() -> tuple[int, int] | None:
    """What `references` says of a storage nobody else holds; None if it can't tell (nothing is reused)."""
    if _use_count is None:
        return None
    tensor = torch.empty(1)
    storage = _Storage(tensor)
    held_by_tensor = storage.references()
    del tensor
    idle = storage.references()
    object_held = storage.storage
    held_by_object = storage.references()
    del object_held
    return idle if idle < held_by_tensor and idle < held_by_object else None


class OutputPool:
    """Gives out tensors over storages that come back by themselves, when their last user lets go of them.

    Correct whatever callers do with an output: every reference to its memory (tensors, views, numpy arrays,
    saved activations, storage objects) is counted by torch or by Python. The tensor itself is new each time:
    its version counter, autograd state and Python object are nobody else's.
    """

    def __init__(self, idle_limit: int):
        self.idle_limit = idle_limit
        self._shelves: dict[int, deque[_Storage]] = {}

    def empty(
        self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, nbytes: int
    ) -> torch.Tensor:
        """As torch.empty_strided; `nbytes` is the size of the storage."""
        shelf = self._shelves.get(nbytes)
        if shelf is None:
            shelf = self._shelves.setdefault(nbytes, deque())
        for _ in range(min(len(shelf), PROBES)):
            try:
                storage = shelf.pop()  # given out last: if it is back, the caches still hold it
            except IndexError:  # another thread took the last one
                break
            if not storage.is_same_memory():
                continue
            tensor = None
            if storage.references() == _idle_references():
                tensor = storage.new_tensor(shape, strides, dtype)
            if tensor is not None:
                shelf.append(storage)  # only now: another thread must find it held
                return tensor
            shelf.appendleft(storage)
        self._limit_idle()
        tensor = EMPTY_STRIDED(shape, strides, dtype)
        if _idle_references() is not None:
            shelf.append(_Storage(tensor))
        return tensor

    def idle_bytes(self) -> int:
        """Memory held for reuse."""
        return sum(
            nbytes * sum(storage.references() == _idle_references() for storage in shelf.copy())
            for nbytes, shelf in list(self._shelves.items())
        )

    def _limit_idle(self) -> None:
        """Free what is idle when it is too much: called when new memory is about to be needed."""
        if self.idle_bytes() > self.idle_limit:
            self.clear()

    def clear(self) -> None:
        """Let go of every storage that is idle, and forget the others."""
        self._shelves = {}


def _quarter_of_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):
        return 1 << 30


OUTPUTS = OutputPool(idle_limit=_quarter_of_memory())
