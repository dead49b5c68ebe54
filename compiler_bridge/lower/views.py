"""Views: no loop at all, only other strides over the same buffer.

torch has already computed size, stride and offset of every view (the fake tensor of the FX node), so one
function serves all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler_bridge.ir import BufferView
from compiler_bridge.lower.lowering import Lowering, NoLowering, lowers, sizes, to_size

VIEWS = """alias as_strided detach diagonal expand lift_fresh permute select slice squeeze t transpose unfold
unsqueeze view _unsafe_view _reshape_alias view_as expand_as movedim swapaxes unbind split split_with_sizes
unsafe_split unsafe_split_with_sizes chunk""".split()


@lowers(*(f"aten.{name}" for name in VIEWS))
def lower_view(lowering: Lowering, node: fx.Node) -> Any:
    source = lowering.view(node.args[0])
    val = node.meta["val"]
    if isinstance(val, (tuple, list)):
        return tuple(view_of(lowering, node, source, part) for part in val)
    return view_of(lowering, node, source, val)


def view_of(lowering: Lowering, node: fx.Node, source: BufferView, val: torch.Tensor) -> BufferView:
    meta = lowering.meta(node.args[0])
    if val.dtype != meta.dtype:
        raise NoLowering(f"{meta.dtype} reinterpreted as {val.dtype}")
    if any(a != b for a, b, n in zip(source.strides, sizes(meta.stride()), source.shape) if n != 1):
        raise NoLowering("its source is laid out otherwise than in torch")
    # storage offsets count from the start of torch's storage, ours from the start of the buffer
    moved = to_size(val.storage_offset()) - to_size(meta.storage_offset())
    return BufferView(source.buffer, sizes(val.shape), sizes(val.stride()), source.offset + moved)
