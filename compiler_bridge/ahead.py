"""Which library kernels a graph will probably need, seen before it is traced.

They take longest to compile, and which they are depends on the operations and dtypes alone. A wrong guess costs
a worker's time once per machine, never correctness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from compiler_bridge.compile_pool import LibraryKernel
from compiler_bridge.cpu.gemm_kernels import gemm_kernel
from compiler_bridge.cpu.gemm_plan import DTYPES, compute_dtype
from compiler_bridge.cpu.kernels import LazyKernel
from compiler_bridge.ops import DTYPE_NAMES

PRODUCTS = {
    F.linear,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
}
CONVOLUTIONS = {
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
}
PRODUCT_METHODS = {"matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm"}


def likely_kernels(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> list[LibraryKernel]:
    """The GEMM and attention kernels for the floating-point dtypes among the inputs, the slowest to compile
    first."""
    tensors = [x for x in example_inputs if isinstance(x, torch.Tensor)]
    names = {DTYPE_NAMES.get(x.dtype) for x in tensors if x.is_floating_point()}
    dtypes = [name for name in DTYPES if name in names]
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    calls = {node.target for node in gm.graph.nodes if node.op == "call_function"}
    methods = {node.target for node in gm.graph.nodes if node.op == "call_method"}
    kernels: list[Any] = []
    if (
        calls & PRODUCTS
        or methods & PRODUCT_METHODS
        or "matmul" in {getattr(c, "__name__", "") for c in calls}
    ):
        kernels += [gemm_kernel("multiply", dtype) for dtype in dtypes]
    if calls & CONVOLUTIONS:
        wide = dict.fromkeys(compute_dtype(dtype) for dtype in dtypes)  # 16-bit operands are widened first
        kernels += [gemm_kernel("indirect", dtype) for dtype in wide]
        if trains:  # the gradient of a weight is a long sum
            kernels += [gemm_kernel(name, dtype) for name in ("multiply", "sum_parts") for dtype in dtypes]
    if F.scaled_dot_product_attention in calls or F.multi_head_attention_forward in calls:
        kernels += [
            LazyKernel("attention_forward", "forward_kernel", (dtype, None, False)) for dtype in dtypes
        ]
        if trains:
            kernels += [
                LazyKernel("attention_backward", "backward_kernel", (dtype, None, False, False))
                for dtype in dtypes
            ]
    return [LibraryKernel(kernel) for kernel in dict.fromkeys(kernels)]
