"""Plans for attention's kernels: which kernels, with which arguments, for given shapes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compiler_bridge.cpu.attention_slots import SLOT, SLOT_COUNT, TENSOR_SLOTS
from compiler_bridge.cpu.host import NATIVE_LANES
from compiler_bridge.cpu.kernels import LazyKernel
from compiler_bridge.program import (
    Argument,
    DynamicPlan,
    KernelStep,
    PointerArgument,
    SizeArgument,
    WorkspaceArgument,
)

TILE = max(16, 2 * NATIVE_LANES)  # as attention_blocks has it, which imports the kernel language
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


@dataclass(frozen=True)
class AttentionSizes:
    """What both directions derive from the shapes."""

    q: TensorLayout
    k: TensorLayout
    v: TensorLayout
    query_block: int
    key_block: int
    head_cols: int
    value_cols: int

    @staticmethod
    def of(q: TensorLayout, k: TensorLayout, v: TensorLayout) -> AttentionSizes:
        query_block = min(QUERY_BLOCK, round_up(max(q.shape[2], 1), TILE))
        key_block = max(1, min(KEY_BLOCK, k.shape[2]))
        return AttentionSizes(
            q, k, v, query_block, key_block, round_up(q.shape[3], TILE), round_up(v.shape[3], TILE)
        )

    @property
    def query_blocks(self) -> int:
        return -(-self.q.shape[2] // self.query_block)

    def areas(self, dropout: float) -> dict[str, int]:
        """float32 elements of each block in a thread's scratch; 8 rows more than keys, for whole squares."""
        scores = (self.key_block + 8) * self.query_block
        areas = {
            "query_columns": self.head_cols * self.query_block,
            "scores": scores,
            "block_out": self.query_block * max(self.head_cols, self.value_cols),
            "largest": self.query_block,
            "total": self.query_block,
            "shrink": self.query_block,
            "packed_keys": self.key_block * self.head_cols,
            "packed_values": self.key_block * self.value_cols,
        }
        return areas | {"factors": scores, "square": 64} if dropout > 0.0 else areas

    def backward_areas(self) -> dict[str, int]:
        """What the backward kernel has besides."""
        return {
            "grad_columns": self.value_cols * self.query_block,
            "dscores": (self.key_block + 8) * self.query_block,
            "delta": self.query_block,
            "packed_queries": self.query_block * self.head_cols,
            "packed_grads": self.query_block * self.value_cols,
        }

    def fill_table(self, table: ArgumentTable, causal: bool, scale: float, dropout: float) -> None:
        batch, heads, seq, head_dim = self.q.shape
        for name, layout in (("q", self.q), ("k", self.k), ("v", self.v)):
            table.tensor(name, layout.strides)
        table.tensor("logsumexp", (heads * seq, seq, 1, 0))
        if dropout > 0.0:
            table.tensor("seed", (0, 0, 0, 0))
        table.sizes(
            batch=batch, heads=heads, group=max(1, heads // max(1, self.k.shape[1])), seq=seq,
            kv_seq=self.k.shape[2], head_dim=head_dim, value_dim=self.v.shape[3],
            scale_bits=float_bits(scale), causal=int(causal), query_block=self.query_block,
            key_block=self.key_block, query_blocks=self.query_blocks, head_cols=self.head_cols,
            value_cols=self.value_cols, dropout_bits=float_bits(dropout),
            kept_factor_bits=float_bits(1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0),
        )  # fmt: skip


def lay_out_scratch(table: ArgumentTable, areas: dict[str, int], threads: int) -> int:
    """Give each area (float32 elements) its place in a thread's scratch; returns bytes for all threads."""
    first = 0
    for name, floats in areas.items():
        table.sizes(**{name: first})
        first += round_up(floats, 16)
    table.sizes(scratch_bytes=4 * first)
    table.workspace("scratch", 0)
    return 4 * first * threads


def dtype_name(layout: TensorLayout) -> str:
    """The kernel language's name of a dtype.

    Raises:  ValueError when there is no attention kernel for it
    """
    if layout.dtype not in DTYPE_NAMES:
        wanted = ", ".join(str(dtype) for dtype in DTYPE_NAMES)
        raise ValueError(f"no attention kernel for {layout.dtype}: expected one of {wanted}")
    return DTYPE_NAMES[layout.dtype]


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
    sizes = AttentionSizes.of(q, k, v)
    table = ArgumentTable()
    sizes.fill_table(table, causal, scale, dropout)
    table.tensor("out", out.strides)
    if mask is not None:
        table.tensor("mask", mask.broadcast_strides())
    table.sizes(pack_keys=int(needs_packing(k, 1)), pack_values=int(needs_packing(v, TILE)))
    workspace = lay_out_scratch(table, sizes.areas(dropout), threads)
    mask_dtype = None if mask is None else dtype_name(mask)
    kernel = LazyKernel("attention_forward", "forward_kernel", (dtype_name(q), mask_dtype, dropout > 0.0))
    length = q.shape[0] * q.shape[1] * sizes.query_blocks
    return DynamicPlan([KernelStep(kernel, table.arguments, length, 1, "attention forward")], workspace)


def plan_attention_backward(
    grad_out: TensorLayout,
    q: TensorLayout,
    k: TensorLayout,
    v: TensorLayout,
    mask: TensorLayout | None,
    out: TensorLayout,
    dq: TensorLayout,
    dk: TensorLayout,
    dv: TensorLayout,
    mask_grad: bool,
    causal: bool,
    scale: float,
    dropout: float,
    threads: int,
) -> DynamicPlan:
    """Up to four steps: clear dmask; the gradients; their partial sums; dmask.

    Roles: grad_out q k v mask seed out logsumexp dq dk dv dmask (contiguous).
    """
    sizes = AttentionSizes.of(q, k, v)
    batch, kv_heads, kv_seq, _ = k.shape
    mask_grad = mask_grad and mask is not None
    table = ArgumentTable()
    sizes.fill_table(table, causal, scale, dropout)
    for name, layout in (("grad_out", grad_out), ("out", out), ("dq", dq), ("dk", dk), ("dv", dv)):
        table.tensor(name, layout.strides)
    if mask is not None:
        table.tensor("mask", mask.broadcast_strides())
    batch_tasks = 1 if mask_grad and mask is not None and mask.shape[0] == 1 else batch
    head_tasks = 1 if mask_grad and mask is not None and mask.shape[1] == 1 else kv_heads
    chunks = count_chunks(batch_tasks * head_tasks, sizes.query_blocks, threads)
    table.sizes(
        pack_queries=int(needs_packing(q, TILE)), pack_keys=int(needs_packing(k, TILE)),
        pack_values=int(needs_packing(v, 1)), pack_grads=int(needs_packing(grad_out, TILE)),
        chunks=chunks, batch_tasks=batch_tasks, head_tasks=head_tasks,
    )  # fmt: skip
    workspace = lay_out_scratch(table, sizes.areas(dropout) | sizes.backward_areas(), threads)
    after: list[KernelStep] = []
    rows = batch * kv_heads * kv_seq
    for name, layout, width in (("partial_dk", dk, sizes.head_cols), ("partial_dv", dv, sizes.value_cols)):
        if chunks > 1 or needs_packing(layout, TILE):
            table.workspace(name, workspace)
            workspace += round_up(4 * chunks * rows * width, 64)
            finish = LazyKernel("attention_backward", "finish_kernel", (dtype_name(q),))
            after = [KernelStep(finish, table.arguments, rows, 16, "attention: sums")]
    before: list[KernelStep] = []
    if mask is not None and mask_grad:
        workspace = plan_mask_gradient(table, sizes, mask, workspace, before, after)
    mask_dtype = None if mask is None else dtype_name(mask)
    options = (dtype_name(q), mask_dtype, dropout > 0.0, mask_grad)
    kernel = LazyKernel("attention_backward", "backward_kernel", options)
    length = batch_tasks * head_tasks * chunks
    step = KernelStep(kernel, table.arguments, length, description="attention backward")
    return DynamicPlan([*before, step, *after], workspace)


def count_chunks(tasks: int, query_blocks: int, threads: int) -> int:
    """In how many parts the query blocks of each task go, so that `threads` have equal work."""
    for chunks in range(1, threads + 1):
        if tasks * chunks % threads == 0 or tasks * chunks >= 4 * threads:
            return max(1, min(chunks, query_blocks))
    return 1


def plan_mask_gradient(
    table: ArgumentTable,
    sizes: AttentionSizes,
    mask: TensorLayout,
    offset: int,
    before: list[KernelStep],
    after: list[KernelStep],
) -> int:
    """Steps around the main one, and the workspace used so far.

    The sums [mask batch, mask heads, seq, kv_seq] are dmask itself when it is float32 of that shape, else
    they lie in the workspace and a last step makes dmask of them.
    """
    seq, kv_seq = sizes.q.shape[2], sizes.k.shape[2]
    mask_batch, mask_heads, mask_seq, mask_kv_seq = mask.shape
    matrix = seq * kv_seq
    strides = (mask_heads * matrix if mask_batch > 1 else 0, matrix if mask_heads > 1 else 0, kv_seq, 1)
    table.tensor("dmask", (0, 0, 0, 0))
    table.tensor("dmask_sums", strides)
    table.sizes(mask_seq=mask_seq, mask_kv_seq=mask_kv_seq)
    rows = mask_batch * mask_heads
    direct = mask.dtype == torch.float32 and (mask_seq, mask_kv_seq) == (seq, kv_seq)
    if direct:
        table.arguments[SLOT["dmask_sums"]] = PointerArgument("dmask")
    else:
        table.workspace("dmask_sums", offset)
        offset += round_up(4 * rows * matrix, 64)
        finish = LazyKernel("attention_backward", "mask_finish_kernel", (dtype_name(mask),))
        after.append(KernelStep(finish, table.arguments, rows * mask_seq, description="mask gradient"))
    clear = LazyKernel("attention_backward", "attention_mask_clear")
    before.append(KernelStep(clear, table.arguments, rows * seq, 16, "clear mask gradient"))
    return offset
