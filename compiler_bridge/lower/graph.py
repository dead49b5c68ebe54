"""Walk an FX graph and lower it node by node."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx

from compiler_bridge.errors import UnsupportedDevice, UnsupportedOp
from compiler_bridge.ir import BufferView, Extern, Graph
from compiler_bridge.lower.lowering import LOWERINGS, Lowering, NoLowering, sizes, to_size


def lower_graph(module: fx.GraphModule, checking: bool = True) -> Graph:
    """The loop IR of an FX graph of ATen operations (its nodes carry fake tensors in meta["val"]).

    checking: whether indices out of range raise a flag (see `Graph.checks`)

    Raises:  UnsupportedDevice for a tensor that is no strided CPU tensor
             UnsupportedOp for what can be neither lowered nor called through ATen
    """
    lowering = Lowering(module, checking)
    for node in module.graph.nodes:
        lowering.current = node
        if node.op == "placeholder":
            lowering.values[node] = lower_placeholder(lowering, node)
        elif node.op == "get_attr":
            lowering.values[node] = lower_attribute(lowering, node)
        elif node.op == "call_function":
            lowering.values[node] = lower_call(lowering, node)
        elif node.op == "output":
            lower_output(lowering, node)
        else:
            raise UnsupportedOp(node.target, f"FX node kind {node.op} in a graph of ATen operations")
    return lowering.graph


def lower_placeholder(lowering: Lowering, node: fx.Node) -> Any:
    val = node.meta.get("val")
    if isinstance(val, torch.Tensor):
        note_hints(lowering, (*val.shape, *val.stride()))
        return outside_tensor(lowering, val, f"input {node.name}", "input")
    note_hints(lowering, (val,))
    size = to_size(val) if isinstance(val, (torch.SymInt, int)) else None
    lowering.graph.inputs.append(size)
    return size


def note_hints(lowering: Lowering, values: Any) -> None:
    """The size each symbol had while tracing."""
    for value in values:
        if isinstance(value, torch.SymInt) and isinstance(value.node.expr, sympy.Symbol):
            if value.node.hint is not None:
                lowering.graph.symbol_hints[value.node.expr] = int(value.node.hint)


def outside_tensor(lowering: Lowering, val: torch.Tensor, where: str, kind: str) -> BufferView:
    """A buffer over a tensor that exists before the graph runs: an input or a constant."""
    if val.device.type != "cpu" or val.layout != torch.strided or val.is_quantized:
        raise UnsupportedDevice(f"{val.device}, layout {val.layout}", where)
    buffer = lowering.new_buffer(val.shape, str(val.dtype)[len("torch.") :], val.stride())
    lowering.graph.buffers[buffer.name] = replace(buffer, kind=kind)
    if kind == "input":
        lowering.graph.inputs.append(buffer.name)
    else:
        lowering.graph.constants[buffer.name] = val
    return lowering.whole(buffer)


def lower_attribute(lowering: Lowering, node: fx.Node) -> Any:
    value = operator.attrgetter(str(node.target))(lowering.module)
    if not isinstance(value, torch.Tensor):
        return value
    node.meta.setdefault("val", value)
    return outside_tensor(lowering, value, f"constant {node.target}", "constant")


def lower_call(lowering: Lowering, node: fx.Node) -> Any:
    target = node.target
    if target is operator.getitem:
        return lowering.values[node.args[0]][node.args[1]]  # pyright: ignore
    val = node.meta.get("val")
    if isinstance(val, (torch.SymInt, int, sympy.Expr)) and not isinstance(val, bool):
        return to_size(val)
    if isinstance(val, torch.SymFloat) and makes_sizes_only(node):
        return None  # the sizes themselves say how they are computed
    if isinstance(target, torch._ops.OpOverload):
        function = lowering_of(target)
        if function is None:
            return lower_extern(lowering, node, "no lowering")
        checkpoint = lowering.checkpoint()
        try:
            return function(lowering, node)
        except NoLowering as error:
            lowering.restore(checkpoint)
            return lower_extern(lowering, node, str(error))
    if isinstance(val, (torch.SymBool, bool, torch.SymFloat, float)):
        raise UnsupportedOp(target, f"it gives a {type(val).__name__}, which graphs of kernels do not carry")
    if str(target) == "with_effects":  # torch's wrapper of calls whose order matters: (token, operation, ...)
        raise UnsupportedOp(
            node.args[1], "its effects are ordered by tokens, which graphs of kernels do not carry"
        )
    raise UnsupportedOp(target, "it is not an ATen operation")


def makes_sizes_only(node: fx.Node) -> bool:
    """Whether a number is only used to compute sizes (of an image that is scaled)."""
    return all(
        isinstance(user.meta.get("val"), torch.SymInt)
        or (isinstance(user.meta.get("val"), torch.SymFloat) and makes_sizes_only(user))
        for user in node.users
    )


def lowering_of(target: torch._ops.OpOverload) -> Any:
    """The lowering registered for an overload, else for its packet."""
    packet = f"{target.namespace}.{target._schema.name.split('::')[1]}"
    return LOWERINGS.get(f"{packet}.{target._overloadname}") or LOWERINGS.get(packet)


def lower_extern(lowering: Lowering, node: fx.Node, reason: str) -> Any:
    """An ATen call: correct, counted and shown."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    if target._schema.is_mutable:
        raise UnsupportedOp(target, f"it mutates its argument and has no lowering ({reason})")

    def template(arg: Any) -> Any:
        return lowering.values[arg]

    val = node.meta.get("val")
    if val is None:
        raise UnsupportedOp(node.target, "its result depends on data: no shape is known while tracing")
    views = [extern_result(lowering, r) for r in (val if isinstance(val, (tuple, list)) else [val])]
    outputs = tuple(None if view is None else view.buffer for view in views)
    if not any(outputs):
        raise UnsupportedOp(target, "it gives no tensor")
    args, kwargs = fx.map_arg(node.args, template), fx.map_arg(node.kwargs, template)
    first = next(name for name in outputs if name)
    lowering.append(
        Extern(first, lowering.origin(), copying(target), tuple(args), dict(kwargs), outputs, reason)
    )
    return tuple(views) if isinstance(val, (tuple, list)) else views[0]


def extern_result(lowering: Lowering, val: Any) -> BufferView | None:
    if not isinstance(val, torch.Tensor):
        return None
    strides = sizes(val.stride())
    overlapping = any(stride == 0 and extent not in (0, 1) for stride, extent in zip(strides, val.shape))
    dtype = str(val.dtype)[len("torch.") :]
    return lowering.whole(lowering.new_buffer(val.shape, dtype, None if overlapping else strides))


def copying(target: torch._ops.OpOverload) -> Any:
    """A view operation -> its copying form, so that the result does not alias a buffer of the arena."""
    if not any(result.alias_info is not None for result in target._schema.returns):
        return target
    packet = getattr(torch.ops.aten, target._schema.name.split("::")[1] + "_copy", None)
    return getattr(packet, target._overloadname, target) if packet is not None else target


def lower_output(lowering: Lowering, node: fx.Node) -> None:
    inputs = [n for n in lowering.module.graph.nodes if n.op == "placeholder"]
    results: Any = node.args[0]
    for arg in results if isinstance(results, (tuple, list)) else [results]:
        if not isinstance(arg, fx.Node):
            lowering.graph.outputs.append(None if arg is None else to_size(arg))
        elif arg.op == "placeholder":
            lowering.graph.outputs.append(("input", inputs.index(arg)))
        else:
            lowering.graph.outputs.append(lowering.values[arg])
