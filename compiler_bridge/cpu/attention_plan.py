"""Plans for attention's kernels: which kernels, with which arguments, for given shapes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compiler_bridge.cpu.attention_blocks import TILE
from compiler_bridge.cpu.attention_forward import forward_kernel
from compiler_bridge.cpu.attention_slots import SLOT, SLOT_COUNT, TENSOR_SLOTS
from compiler_bridge.program import (
    Argument,
    DynamicPlan,
    KernelStep,
    PointerArgument,
    SizeArgument,
    WorkspaceArgument,
)

QUERY_BLOCK = 64
KEY_BLOCK = 96

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.bool: "bool",
}


@dataclass(frozen=True)
class TensorLayout:
    """A 4-d tensor as a kernel sees it: strides count elements; a size of 1 may broadcast."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(x: torch.Tensor) -> TensorLayout:
        return TensorLayout(tuple(x.shape), tuple(x.stride()), x.dtype)

    def broadcast_strides(self) -> tuple[int, ...]:
        """Strides with 0 where the size is 1."""
        return tuple(0 if size == 1 else stride for size, stride in zip(self.shape, self.strides))


def round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


def float_bits(value: float) -> int:
    """The bits of a float32 as an integer."""
    return struct.unpack("<i", struct.pack("<f", value))[0]


class ArgumentTable:
    """The arguments of an attention kernel, by name."""

    def __init__(self) -> None:
        self.arguments: list[Argument] = [SizeArgument(0)] * SLOT_COUNT

    def tensor(self, name: str, strides: Sequence[int]) -> None:
        """Address and four strides of a tensor; the address is the role `name`, bound by the caller."""
        first = SLOT[name]
        self.arguments[first] = PointerArgument(name)
        self.arguments[first + 1 : first + TENSOR_SLOTS] = [SizeArgument(stride) for stride in strides]

    def sizes(self, **values: int) -> None:
        for name, value in values.items():
            self.arguments[SLOT[name]] = SizeArgument(value)

    def workspace(self, name: str, byte_offset: int) -> None:
        self.arguments[SLOT[name]] = WorkspaceArgument(byte_offset)


def needs_packing(layout: TensorLayout, multiple: int) -> bool:
    """Whether a block must be copied: not float32, columns apart, or not whole vectors wide."""
    return layout.dtype != torch.float32 or layout.strides[-1] != 1 or layout.shape[-1] % multiple != 0


def plan_attention_forward(
    q: TensorLayout,
    k: TensorLayout,
    v: TensorLayout,
    mask: TensorLayout | None,
    out: TensorLayout,
    causal: bool,
    scale: float,
    dropout: float,
    threads: int,
) -> DynamicPlan:
    """One step, parallel over batch * heads * blocks of queries. Roles: q k v mask seed out logsumexp."""
    batch, heads, seq, head_dim = q.shape
    kv_heads, kv_seq, value_dim = k.shape[1], k.shape[2], v.shape[3]
    query_block = min(QUERY_BLOCK, round_up(max(seq, 1), TILE))
    key_block = max(1, min(KEY_BLOCK, kv_seq))
    query_blocks = -(-seq // query_block)
    head_cols, value_cols = round_up(head_dim, 8), round_up(value_dim, TILE)
    floats = query_block * (head_cols + value_cols + 3) + (key_block + 8) * (query_block + head_cols + value_cols)
    scratch_bytes = round_up(4 * floats, 64)
    table = ArgumentTable()
    for name, layout in (("q", q), ("k", k), ("v", v), ("out", out)):
        table.tensor(name, layout.strides)
    table.tensor("logsumexp", (heads * seq, seq, 1, 0))
    if mask is not None:
        table.tensor("mask", mask.broadcast_strides())
    table.sizes(
        batch=batch, heads=heads, group=max(1, heads // max(1, kv_heads)), seq=seq, kv_seq=kv_seq,
        head_dim=head_dim, value_dim=value_dim, scale_bits=float_bits(scale), causal=int(causal),
        query_block=query_block, key_block=key_block, query_blocks=query_blocks,
        head_cols=head_cols, value_cols=value_cols,
        pack_keys=int(k.dtype != torch.float32 or k.strides[-1] != 1),
        pack_values=int(needs_packing(v, TILE)), scratch_bytes=scratch_bytes,
    )  # fmt: skip
    table.workspace("scratch", 0)
    kernel = forward_kernel(DTYPE_NAMES[q.dtype], None if mask is None else DTYPE_NAMES[mask.dtype], dropout > 0)
    length = batch * heads * query_blocks
    step = KernelStep(kernel, table.arguments, length, description="attention forward")
    return DynamicPlan([step], scratch_bytes * threads)
