"""Run attention's plans on tensors, without a compiled graph: for tests and benchmarks."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from compiler_bridge.capture.attention import attention_backward_meta, attention_meta
from compiler_bridge.cpu.attention_plan import TensorLayout, plan_attention_backward, plan_attention_forward
from compiler_bridge.program import DynamicPlan, PointerArgument, SizeArgument


def run_plan_on(plan: DynamicPlan, tensors: dict[str, Tensor | None], threads: int) -> None:
    workspace = torch.empty(plan.workspace_bytes + 64, dtype=torch.uint8)
    base = (workspace.data_ptr() + 63) // 64 * 64
    for step in plan.steps:
        table = np.zeros(len(step.arguments), dtype=np.int64)
        for index, argument in enumerate(step.arguments):
            if isinstance(argument, PointerArgument):
                table[index] = tensors[argument.buffer_name].data_ptr()
            elif isinstance(argument, SizeArgument):
                table[index] = argument.value
            else:
                table[index] = base + argument.byte_offset
        step.kernel.ctypes(table.ctypes.data, 0, step.length, 0)


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    threads: int = 1,
) -> tuple[Tensor, Tensor]:
    """`pynn::attention` by its kernel: (out, logsumexp)."""
    out, logsumexp = attention_meta(q, v)
    layout = TensorLayout.of
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    plan = plan_attention_forward(
        layout(q), layout(k), layout(v), None if mask is None else layout(mask), layout(out), causal, factor,
        dropout, threads,
    )  # fmt: skip
    run_plan_on(plan, dict(q=q, k=k, v=v, mask=mask, seed=seed, out=out, logsumexp=logsumexp), threads)
    return out, logsumexp


def attention_backward(
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
    threads: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`pynn::attention_backward` by its kernels: (dq, dk, dv, dmask)."""
    dq, dk, dv, dmask = attention_backward_meta(q, k, v, mask, mask_grad)
    layout = TensorLayout.of
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    plan = plan_attention_backward(
        layout(grad_out), layout(q), layout(k), layout(v), None if mask is None else layout(mask), layout(out),
        layout(dq), layout(dk), layout(dv), mask_grad, causal, factor, dropout, threads,
    )  # fmt: skip
    tensors = dict(grad_out=grad_out, q=q, k=k, v=v, mask=mask, seed=seed, out=out, logsumexp=logsumexp, dq=dq,
                   dk=dk, dv=dv, dmask=dmask)  # fmt: skip
    run_plan_on(plan, tensors, threads)
    return dq, dk, dv, dmask
