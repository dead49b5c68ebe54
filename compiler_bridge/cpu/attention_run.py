"""Run attention's plans on tensors, without a compiled graph: for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler_bridge import settings
from compiler_bridge.capture.attention import attention_backward_meta, attention_meta
from compiler_bridge.cpu import threads as native
from compiler_bridge.cpu.attention_plan import TensorLayout, plan_attention_backward, plan_attention_forward
from compiler_bridge.program import DynamicPlan, PointerArgument, SizeArgument

__all__ = [
    "BoundPlan",
    "attention_backward",
    "attention_forward",
    "bind_attention_backward",
    "bind_attention_forward",
]


class BoundPlan:
    """A plan with its memory: `run()` computes. Keeps the tensors it was made with alive."""

    def __init__(self, plan: DynamicPlan, tensors: dict[str, Tensor | None], threads: int):
        self.plan, self.tensors, self.threads = plan, tensors, threads
        raw = np.zeros(plan.workspace_bytes + 64, dtype=np.uint8)
        self._workspace = raw[-raw.ctypes.data % 64 :]
        values = [[self._value(argument) for argument in step.arguments] for step in plan.steps]
        self._tables = [np.array(row, dtype=np.int64) for row in values]
        if not settings.INTERPRET:
            self._words = self._native_words()
            self._run_plan = native.load_drivers().run_plan

    def _value(self, argument: Any) -> int:
        if isinstance(argument, PointerArgument):
            tensor = self.tensors[argument.buffer_name]
            assert tensor is not None, f"the plan reads {argument.buffer_name}, which is None"
            return tensor.data_ptr() + int(argument.element_offset) * tensor.element_size()
        if isinstance(argument, SizeArgument):
            return int(argument.value)
        return self._workspace.ctypes.data + argument.byte_offset

    def run(self) -> None:
        if settings.INTERPRET:
            self._run_interpreted()
        else:
            self._run_plan(self._words[0].ctypes.data)

    def _run_interpreted(self) -> None:
        """Every thread's share, one after the other."""
        for step, table in zip(self.plan.steps, self._tables):
            for thread in range(self.threads):
                begin, end = (step.length * (thread + n) // self.threads for n in (0, 1))
                kernel: Any = step.kernel
                kernel(table, begin, end, thread)

    def _native_words(self) -> tuple[np.ndarray, ...]:
        """The arrays `threads.run_plan` walks (see there): header, slots, bases, entries, arguments."""
        arguments = np.concatenate(self._tables)
        entries = np.zeros((len(self.plan.steps), native.ENTRY_WORDS), dtype=np.int64)
        first = 0
        for row, step in zip(entries, self.plan.steps):
            kernel: Any = step.kernel
            row[native.ENTRY_KERNEL] = kernel.address
            row[native.ENTRY_ARGUMENTS] = first
            row[native.ENTRY_LENGTH] = step.length
            row[native.ENTRY_PARTS] = self.threads
            row[native.ENTRY_BARRIER] = 1
            first += len(step.arguments)
        entries[-1, native.ENTRY_BARRIER] = 0  # the end of the parallel region is one
        header = np.zeros(native.HEADER_WORDS, dtype=np.int64)
        slots, bases = np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64)
        header[native.HEADER_SLOTS] = slots.ctypes.data
        header[native.HEADER_BASES] = bases.ctypes.data
        header[native.HEADER_ARGUMENTS] = arguments.ctypes.data
        header[native.HEADER_LAST_ENTRY] = len(entries)
        header[native.HEADER_ENTRIES] = entries.ctypes.data
        native.set_team(header, self.threads)
        return header, slots, bases, entries, arguments


def _layout(x: Tensor | None) -> Any:
    return None if x is None else TensorLayout(tuple(x.shape), tuple(x.stride()), x.dtype)


def bind_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    threads: int | None = None,
) -> BoundPlan:
    """Prepare `pynn::attention`; its results are `tensors["out"]` and `tensors["logsumexp"]`."""
    threads = threads or torch.get_num_threads()
    out, logsumexp = attention_meta(q, v)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    plan = plan_attention_forward(
        _layout(q), _layout(k), _layout(v), _layout(mask), _layout(out), causal, factor, dropout, threads
    )
    return BoundPlan(plan, dict(q=q, k=k, v=v, mask=mask, seed=seed, out=out, logsumexp=logsumexp), threads)


def bind_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    mask: Tensor | None = None,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    mask_grad: bool = False,
    threads: int | None = None,
) -> BoundPlan:
    """Prepare `pynn::attention_backward`; its results are the tensors dq, dk, dv, dmask."""
    threads = threads or torch.get_num_threads()
    dq, dk, dv, dmask = attention_backward_meta(q, k, v, mask, mask_grad)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    plan = plan_attention_backward(
        _layout(grad_out), _layout(q), _layout(k), _layout(v), _layout(mask), _layout(out), _layout(dq),
        _layout(dk), _layout(dv), mask_grad, causal, factor, dropout, threads,
    )  # fmt: skip
    tensors = dict(grad_out=grad_out, q=q, k=k, v=v, mask=mask, seed=seed, out=out, logsumexp=logsumexp,
                   dq=dq, dk=dk, dv=dv, dmask=dmask)  # fmt: skip
    return BoundPlan(plan, tensors, threads)


def attention_forward(*tensors: Any, **options: Any) -> tuple[Any, ...]:
    """`pynn::attention` by its kernel: (out, logsumexp); arguments as for `bind_attention_forward`."""
    bound = bind_attention_forward(*tensors, **options)
    bound.run()
    return bound.tensors["out"], bound.tensors["logsumexp"]


def attention_backward(*tensors: Any, **options: Any) -> tuple[Any, ...]:
    """`pynn::attention_backward` by its kernels: (dq, dk, dv, dmask)."""
    bound = bind_attention_backward(*tensors, **options)
    bound.run()
    return tuple(bound.tensors[name] for name in ("dq", "dk", "dv", "dmask"))
