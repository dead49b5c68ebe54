"""Convolution and its two gradients: one Contract each, whose access is affine; no im2col buffer exists."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import (
    Axis,
    BufferView,
    Expr,
)
from compiler_bridge.lower.contractions import contract, contract_wide, sizes_of
from compiler_bridge.lower.input_gradient import convolution_input_gradient
from compiler_bridge.lower.lowering import (
    Lowering,
    apply,
    axes_of,
    dtype_name,
    lowers,
)
from compiler_bridge.lower.narrow_convolutions import (
    Rows,
    is_narrow,
    narrow_input,
    narrow_weight,
    narrow_weight_gradient,
)
from compiler_bridge.lower.reductions import reduce_value
from compiler_bridge.lower.weight_gradient import convolution_weight_gradient
from compiler_bridge.lower.window import input_places, padded, window_load, window_of
from compiler_bridge.ops import compute_dtype


@lowers("aten.convolution")
def lower_convolution(lowering: Lowering, node: fx.Node) -> Any:
    """out[n, o, y] = bias[o] + sum over c, d of input[n, c, y * stride + d * dilation - padding] * weight[o, c, d]

    where y and d stand for all spatial dimensions.
    """
    source, weight, bias, *steps, transposed, _, groups = node.args
    if transposed or groups != 1:
        from compiler_bridge.lower.grouped_convolutions import lower_grouped_convolution

        return lower_grouped_convolution(lowering, node)
    x, w = lowering.view(source), lowering.view(weight)
    val = node.meta["val"]
    window = window_of(lowering, steps, len(x.shape) - 2)
    batch, out, *places = axes_of(sizes_of(node))
    channel = Axis("c", x.shape[1])
    taps = [Axis(f"w{k}", extent) for k, extent in enumerate(w.shape[2:])]
    if is_narrow(x, w, window):
        rows = Rows.of(taps, x.shape[1])
        left = narrow_input(lowering, x, window, batch, places, rows)
        right, summed = narrow_weight(lowering, w, out, rows), (*rows.leading, rows.run)
    else:
        left = window_load(lowering, x, [batch, channel], input_places(window, places, taps), padded(window))
        right, summed = lowering.load_view(w, [out, channel, *taps]), (channel, *taps)
    product = contract_wide if bias is not None else contract
    result = product(lowering, val, (batch, out, *places), summed, left, right)
    return result if bias is None else add_bias(lowering, val, result, bias)


@lowers("aten.convolution_backward")
def lower_convolution_backward(lowering: Lowering, node: fx.Node) -> Any:
    gradient, source, weight, _, *steps, transposed, _, groups, wanted = node.args
    if transposed or groups != 1:
        from compiler_bridge.lower.grouped_convolutions import lower_grouped_convolution_backward

        return lower_grouped_convolution_backward(lowering, node)
    grad, x, w = (lowering.view(arg) for arg in (gradient, source, weight))
    window = window_of(lowering, steps, len(x.shape) - 2)
    vals, flags = node.meta["val"], list(wanted)  # pyright: ignore
    input_gradient = convolution_input_gradient(lowering, vals[0], grad, w, window) if flags[0] else None
    of_weight = narrow_weight_gradient if is_narrow(x, w, window) else convolution_weight_gradient
    weight_gradient = of_weight(lowering, vals[1], grad, x, window) if flags[1] else None
    of_bias = bias_gradient(lowering, vals[2], grad) if flags[2] else None
    return input_gradient, weight_gradient, of_bias


def add_bias(lowering: Lowering, val: torch.Tensor, result: BufferView, bias: Any) -> BufferView:
    """result[n, o, y] + bias[o]"""
    dtype = compute_dtype(dtype_name(val.dtype))

    def value(axes: tuple[Axis, ...]) -> Expr:
        return apply("add", lowering.load_view(result, axes), lowering.operand(bias, (axes[1],), dtype))

    return lowering.map(val, value)


def bias_gradient(lowering: Lowering, val: torch.Tensor, grad: BufferView) -> BufferView:
    """db[o] = sum over n, y of grad[n, o, y]"""
    dims = [k for k in range(len(grad.shape)) if k != 1]
    return reduce_value(lowering, val, grad, dims, False, "sum", lambda axes: lowering.load_view(grad, axes))
