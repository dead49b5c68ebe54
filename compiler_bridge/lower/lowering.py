"""The state of lowering one FX graph, and the helpers every lowering function uses.

A lowering function is registered for an ATen operation with `@lowers("aten.sum")`, is called with the
`Lowering` and the FX node, and returns the node's value: a `BufferView`, a tuple of them, or a size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx

from compiler_bridge.ir import (
    Apply,
    Axis,
    Buffer,
    BufferView,
    Constant,
    Expr,
    Graph,
    Index,
    IndexValue,
    Load,
    Map,
    Node,
    Origin,
    Reduce,
    Size,
    Value,
    expr_axes,
    strided_index,
)
from compiler_bridge.ops import DTYPE_NAMES, DTYPES, OPS, compute_dtype, dtype_kind

LoweringFunction = Callable[["Lowering", fx.Node], Any]
LOWERINGS: dict[str, LoweringFunction] = {}


class NoLowering(Exception):
    """This call has no lowering, for the reason given; it becomes an Extern."""


def lowers(*names: str) -> Callable[[LoweringFunction], LoweringFunction]:
    """Register a lowering for ATen operations, by packet ("aten.sum") or overload ("aten.sum.default")."""

    def register(function: LoweringFunction) -> LoweringFunction:
        for name in names:
            LOWERINGS[name] = function
        return function

    return register


def to_size(value: Any) -> Size:
    """int, SymInt or sympy expression -> int or sympy expression."""
    if isinstance(value, torch.SymInt):
        value = value.node.expr
    if isinstance(value, sympy.Expr):
        return int(value) if value.is_Integer else value
    return int(value)


def sizes(values: Sequence[Any]) -> tuple[Size, ...]:
    return tuple(to_size(v) for v in values)


def dtype_name(dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise NoLowering(f"dtype {dtype} has no kernel; supported are {', '.join(DTYPE_NAMES.values())}")
    return DTYPE_NAMES[dtype]


def compute_dtype_of(node: fx.Node) -> str:
    """The dtype in which an FX node's result is computed."""
    return compute_dtype(dtype_name(node.meta["val"].dtype))


def axes_of(shape: Sequence[Size], prefix: str = "i") -> tuple[Axis, ...]:
    """One axis a dimension (also those of extent 1: callers drop them with `real_axes`)."""
    return tuple(Axis(f"{prefix}{k}", extent) for k, extent in enumerate(shape))


def real_axes(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    return tuple(axis for axis in axes if axis.extent != 1)


def constant(value: Any, dtype: str) -> Constant:
    kind = dtype_kind(dtype)
    if isinstance(value, sympy.Expr) and not value.is_number:
        return Constant(dtype, value)
    return Constant(dtype, bool(value) if kind == "bool" else float(value) if kind == "float" else int(value))


def cast(expr: Expr, dtype: str) -> Expr:
    """Convert between compute dtypes."""
    if expr.dtype == dtype:
        return expr
    if isinstance(expr, Constant) and not isinstance(expr.value, sympy.Expr):
        return constant(expr.value, dtype)
    if dtype == "bool":
        return Apply("bool", "ne", (expr, constant(0, expr.dtype)))
    return Apply(dtype, "cast", (expr,))


def apply(op: str, *args: Expr, dtype: str | None = None) -> Expr:
    """A row of the op table on arguments of one compute dtype."""
    row = OPS[op]
    if dtype is None:
        dtype = "bool" if row.result == "bool" else args[-1].dtype
    return Apply(dtype, op, args)


def source_line(stack_trace: str) -> str:
    """The innermost frame of a stack trace as "model.py:12  x = self.linear(x)"."""
    lines = [line.strip() for line in stack_trace.splitlines()]
    frames = [k for k, line in enumerate(lines) if line.startswith('File "')]
    if not frames:
        return ""
    path, number, *_ = lines[frames[-1]][len('File "') :].split(", ")
    code = lines[frames[-1] + 1] if len(lines) > frames[-1] + 1 else ""
    return f"{path.rstrip(chr(34)).rsplit('/', 1)[-1]}:{number.removeprefix('line ')}  {code}".rstrip()


class Lowering:
    def __init__(self, module: fx.GraphModule, checking: bool = True) -> None:
        self.module = module
        self.checking = checking
        self.graph = Graph({}, [], [], [])
        self.values: dict[fx.Node, Any] = {}
        self.current: fx.Node | None = None
        self.counter = 0

    # ------------------------------------------------------------ buffers and arguments

    def meta(self, node: Any) -> torch.Tensor:
        return node.meta["val"]

    def origin(self) -> Origin:
        node = self.current
        assert node is not None
        stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
        layer = list(stack.values())[-1][0] if stack else ""
        return Origin((node.name,), str(node.target), str(layer), source_line(node.stack_trace or ""))

    def new_buffer(self, shape: Sequence[Any], dtype: str, strides: Sequence[Any] | None = None) -> Buffer:
        name = f"b{self.counter}"
        self.counter += 1
        shape = sizes(shape)
        if strides is None:
            stride: Size = 1
            contiguous: list[Size] = []
            for extent in reversed(shape):
                contiguous.insert(0, stride)
                stride = stride * (1 if extent == 0 else extent)
            strides = contiguous
        buffer = Buffer(name, dtype, shape, sizes(strides))
        self.graph.buffers[name] = buffer
        return buffer

    def buffer_like(self, val: torch.Tensor, dtype: str | None = None) -> Buffer:
        """A new buffer with the shape, strides and (unless given) dtype that torch's own result would have."""
        strides = sizes(val.stride())
        if any(stride == 0 and extent not in (0, 1) for stride, extent in zip(strides, val.shape)):
            raise NoLowering(
                f"{self.current} has overlapping strides {tuple(strides)}; expected a dense result"
            )
        return self.new_buffer(val.shape, dtype or dtype_name(val.dtype), strides)

    def constant_tensor(self, value: torch.Tensor) -> BufferView:
        """A tensor that the lowering has made (a table) as a constant of the graph."""
        buffer = self.new_buffer(value.shape, dtype_name(value.dtype), value.stride())
        self.graph.buffers[buffer.name] = replace(buffer, kind="constant")
        self.graph.constants[buffer.name] = value
        return self.whole(buffer)

    def whole(self, buffer: Buffer) -> BufferView:
        return BufferView(buffer.name, buffer.shape, buffer.strides, 0)

    def view(self, node: Any) -> BufferView:
        value = self.values[node]
        if not isinstance(value, BufferView):
            raise NoLowering(f"{node} is not a tensor here: {value!r}")
        return value

    def size_of(self, value: Any) -> Size:
        if isinstance(value, fx.Node):
            return to_size(self.values[value])
        return to_size(value)

    # ------------------------------------------------------------ expressions

    def load_view(self, view: BufferView, index: Sequence[Index | Axis], **extra: Any) -> Expr:
        """view[index], one Index or Axis a dimension, in its compute dtype."""
        total = Index((), view.offset)
        for extent, stride, position in zip(view.shape, view.strides, index):
            if isinstance(position, Axis):
                if extent == 1 or position.extent == 1:
                    continue  # broadcast
                position = Index(((position.name, 1),), 0)
            total = total + position.scaled(stride)
        stored = self.graph.buffers[view.buffer].dtype
        if stored not in DTYPES:
            raise NoLowering(f"dtype {stored} has no kernel; supported are {', '.join(DTYPES)}")
        dtype = compute_dtype(stored)
        return Load(dtype, view.buffer, total, **extra)

    def operand(self, arg: Any, axes: Sequence[Axis], dtype: str) -> Expr:
        """An argument (tensor broadcast over the trailing axes, Python scalar or size) as `dtype`."""
        if isinstance(arg, fx.Node):
            value = self.values[arg]
            if isinstance(value, BufferView):
                used = axes[len(axes) - len(value.shape) :] if value.shape else ()
                return cast(self.load_view(value, used), dtype)
            arg = value
        if isinstance(arg, (torch.SymInt, sympy.Expr)):
            arg = to_size(arg)
        if isinstance(arg, complex):
            raise NoLowering("complex scalars have no kernel")
        return constant(arg, dtype)

    # ------------------------------------------------------------ emitting nodes

    def map(self, val: torch.Tensor, value: Callable[[tuple[Axis, ...]], Expr]) -> BufferView:
        """A Map over the shape of `val`; `value` gets one axis a dimension."""
        return self.map_into(self.buffer_like(val), value)

    def map_into(self, buffer: Buffer, value: Callable[[tuple[Axis, ...]], Expr]) -> BufferView:
        axes = axes_of(buffer.shape)
        expr = to_storage(value(axes), buffer.dtype)
        store = strided_index(axes, buffer.strides)
        self.append(Map(buffer.name, self.origin(), real_axes(axes), store, expr))
        return self.whole(buffer)

    def check(self, condition: Expr, axes: Sequence[Axis]) -> None:
        """Note a condition that must hold at every point of `axes`; its flag is the negation, reduced to one bool.

        The backward pass needs none: its indices are those of the forward pass.
        """
        if not self.checking:
            return
        used = expr_axes(condition)
        reduced = tuple(axis for axis in real_axes(axes) if axis.name in used)
        buffer = self.new_buffer((), "bool")
        violated = apply("logical_not", condition)
        self.graph.nodes.append(Reduce(buffer.name, self.origin(), (), reduced, Index(), violated, "any"))
        self.graph.checks.append(buffer.name)

    def append(self, node: Node) -> None:
        self.graph.nodes.append(node)

    def checkpoint(self) -> tuple[int, int, int, int]:
        return len(self.graph.nodes), len(self.graph.checks), len(self.graph.buffers), self.counter

    def restore(self, checkpoint: tuple[int, int, int, int]) -> None:
        """Forget what a lowering that gave up has emitted."""
        nodes, checks, buffers, self.counter = checkpoint
        del self.graph.nodes[nodes:]
        del self.graph.checks[checks:]
        for name in list(self.graph.buffers)[buffers:]:
            del self.graph.buffers[name]
            self.graph.constants.pop(name, None)


def to_storage(value: Expr, dtype: str) -> Expr:
    """The value in the compute dtype of a buffer of `dtype`.

    The store rounds 16-bit floats; a consumer that computes with the value instead of reading it back sees
    float32, which is no less accurate. Narrow integers wrap at once: there the difference would be wrong.
    """
    value = cast(value, compute_dtype(dtype))
    narrow = dtype in ("int8", "uint8", "int16") and isinstance(value, Apply)
    return apply(f"to_{dtype}", value) if narrow else value


def data_index(expr: Expr, extent: Size, wrap: bool = True) -> Index:
    """An index that is data: negative values count from the end."""
    expr = cast(expr, "int64")
    if wrap:
        negative = apply("lt", expr, Constant("int64", 0))
        expr = apply("where", negative, apply("add", expr, constant(extent, "int64")), expr)
    return Index(((Value(expr), 1),), 0)


def index_expr(axis: Axis, dtype: str = "int64") -> Expr:
    if axis.extent == 1:
        return constant(0, dtype)
    return cast(IndexValue("int64", Index(((axis.name, 1),), 0)), dtype)


def both(mask: Expr | None, condition: Expr) -> Expr:
    """mask and condition"""
    return condition if mask is None else apply("bitwise_and", mask, condition)
