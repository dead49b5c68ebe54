"""Run attention's plans on tensors, without a compiled graph: for tests and benchmarks."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from compiler_bridge.capture.attention import attention_backward_meta, attention_meta
from compiler_bridge.cpu.attention_plan import TensorLayout, plan_attention_forward
from compiler_bridge.program import DynamicPlan, PointerArgument, SizeArgument


def run_plan_on(plan: DynamicPlan, tensors: dict[str, Tensor], threads: int) -> None:
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


def attention_forward(q, k, v, mask=None, seed=None, dropout=0.0, causal=False, scale=None, threads=1):
    out, logsumexp = attention_meta(q, v)
    lay = TensorLayout.of
    plan = plan_attention_forward(lay(q), lay(k), lay(v), None if mask is None else lay(mask), lay(out), causal,
                                  q.shape[-1] ** -0.5 if scale is None else scale, dropout, threads)
    tensors = dict(q=q, k=k, v=v, out=out, logsumexp=logsumexp)
    if mask is not None:
        tensors["mask"] = mask
    run_plan_on(plan, tensors, threads)
    return out, logsumexp
