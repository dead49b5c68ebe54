"""The gradient of a convolution's weight."""

from __future__ import annotations

import torch

from compiler_bridge.ir import Axis, BufferView, Expr
from compiler_bridge.lower.contractions import contract, contract_into
from compiler_bridge.lower.input_gradient import in_groups
from compiler_bridge.lower.lowering import Lowering, axes_of, dtype_name, real_axes, sizes
from compiler_bridge.lower.window import Window, input_places, padded, window_load
from compiler_bridge.ops import compute_dtype


def convolution_weight_gradient(
    lowering: Lowering, val: torch.Tensor, grad: BufferView, x: BufferView, window: Window, groups: int = 1
) -> BufferView:
    """dw[g, o, c, d] = sum over n, y of grad[n, g, o, y] * input[n, g, c, y * stride + d * dilation - padding]

    Made as [g, o, d, c], so that the channels, which lie side by side in a channels-last input, do so in the product.
    """
    grad, x = in_groups(grad, 1, groups), in_groups(x, 1, groups)
    group, out = Axis("g", groups), Axis("o", grad.shape[2])
    channel, *taps = axes_of(sizes(val.shape[1:]), "w")
    batch = Axis("n", grad.shape[0])
    places = [Axis(f"y{k}", extent) for k, extent in enumerate(grad.shape[3:])]
    left = lowering.load_view(grad, [batch, group, out, *places])
    right = window_load(
        lowering, x, [batch, group, channel], input_places(window, places, taps), padded(window)
    )
    if groups == 1 and (x.strides[2] != 1 or not real_axes(taps)):
        return contract(lowering, val, (out, channel, *taps), (batch, *places), left, right)
    kept = (group, out, *taps, channel)
    buffer = lowering.new_buffer([axis.extent for axis in kept], compute_dtype(dtype_name(val.dtype)))
    contract_into(lowering, buffer, kept, (batch, *places), left, right)
    outputs = BufferView(buffer.name, (sizes(val.shape)[0], *buffer.shape[2:]), buffer.strides[1:], 0)

    def value(axes: tuple[Axis, ...]) -> Expr:
        return lowering.load_view(outputs, (axes[0], *axes[2:], axes[1]))

    return lowering.map(val, value)
