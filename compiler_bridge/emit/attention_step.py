"""Attention, forward and backward, as a step of the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy

from compiler_bridge import program as p
from compiler_bridge.cpu.attention_plan import TensorLayout, plan_attention_backward, plan_attention_forward
from compiler_bridge.emit.gemm_step import evaluate
from compiler_bridge.errors import UnsupportedOp
from compiler_bridge.ir import BufferView, Scheduled
from compiler_bridge.ops import DTYPES

FORWARD_ROLES = ("q", "k", "v", "mask", "seed", "dropout", "causal", "scale", "gqa")
BACKWARD_ROLES = ("grad_out", "q", "k", "v", "mask", "seed", "out", "logsumexp", "dropout", "causal", "scale", "gqa",
                  "mask_grad")  # fmt: skip


def attention_step(
    node: Scheduled, views: dict[str, BufferView], dtypes: Mapping[str, str], resolve: Callable[[str], str]
) -> p.DynamicStep:
    """views: the whole view of every buffer of the graph (for the outputs)."""
    backward = "backward" in str(node.target)
    roles: dict[str, Any] = dict(zip(BACKWARD_ROLES if backward else FORWARD_ROLES, node.args))
    results = ("dq", "dk", "dv", "dmask") if backward else ("out", "logsumexp")
    for role, name in zip(results, node.outputs):
        roles[role] = None if name is None else views[name]
    tensors = {role: view for role, view in roles.items() if isinstance(view, BufferView)}
    if isinstance(roles["scale"], sympy.Expr) or len(tensors["q"].shape) != 4:
        raise UnsupportedOp(node.origin.op, f"query of shape {tensors['q'].shape}, scale {roles['scale']}")

    def plan(symbols: Mapping[sympy.Symbol, int], threads: int) -> p.DynamicPlan:
        def layout(role: str) -> TensorLayout:
            view = tensors[role]
            shape = tuple(evaluate(s, symbols) for s in view.shape)
            strides = tuple(evaluate(s, symbols) for s in view.strides)
            if role == "mask":  # broadcast over leading dimensions it lacks
                shape, strides = (1,) * (4 - len(shape)) + shape, (0,) * (4 - len(strides)) + strides
            return TensorLayout(shape, strides, DTYPES[dtypes[view.buffer]])

        causal, scale, dropout = bool(roles["causal"]), float(roles["scale"]), float(roles["dropout"])
        q, k, v, out = layout("q"), layout("k"), layout("v"), layout("out")
        mask = layout("mask") if "mask" in tensors else None
        if backward:
            attention = plan_attention_backward(
                layout("grad_out"), q, k, v, mask, out, layout("dq"), layout("dk"), layout("dv"),
                bool(roles["mask_grad"]), causal, scale, dropout, threads,
            )  # fmt: skip
        else:
            attention = plan_attention_forward(q, k, v, mask, out, causal, scale, dropout, threads)
        return bind(attention, tensors, symbols, resolve)

    buffers = list(dict.fromkeys(resolve(view.buffer) for view in tensors.values()))
    text = f"{node.origin.op} query {tensors['q'].shape} key {tensors['k'].shape}"
    return p.DynamicStep(plan, buffers, description=text)


def bind(
    attention: p.DynamicPlan,
    tensors: dict[str, BufferView],
    symbols: Mapping[sympy.Symbol, int],
    resolve: Callable[[str], str],
) -> p.DynamicPlan:
    """The plan with roles replaced by buffers of the graph."""

    def argument(old: p.Argument) -> p.Argument:
        if isinstance(old, p.PointerArgument):
            view = tensors[old.buffer_name]
            return p.PointerArgument(resolve(view.buffer), evaluate(view.offset, symbols))
        return old

    steps = [
        p.KernelStep(s.kernel, [argument(a) for a in s.arguments], s.length, s.grain, s.description)
        for s in attention.steps
    ]
    return p.DynamicPlan(steps, attention.workspace_bytes)
