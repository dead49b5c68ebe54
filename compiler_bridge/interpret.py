"""What the loop IR means: every node executed over its whole iteration space with torch's elementary ops.

    interpret(lower_graph(fx_graph), inputs) == fx_graph(*inputs)

An axis is an arange that broadcasts against the others, an index an int64 tensor, a buffer flat memory, and a
scalar operation the `reference` of its row in `ops.py`. With `float64=True` everything floating is computed
and stored in float64: the oracle that both torch and the generated kernels are measured against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import sympy
import torch
from torch import Tensor

from compiler_bridge import ir
from compiler_bridge.errors import UnknownSymbol
from compiler_bridge.ops import DTYPES, OPS, REDUCTIONS, SCANS, dtype_kind, reduce_identity

Scope = Mapping[str, Tensor]  # axis name -> its values, shaped to broadcast


def interpret(graph: ir.Graph, inputs: Sequence[Any], float64: bool = False) -> list[Any]:
    """Run a graph on actual inputs.

    Args:    graph: lowered or fused loop IR
             inputs: what the FX graph takes, in order (tensors, integers)
             float64: compute and store everything floating in float64
    Returns: the outputs in order; an output that is a view of an input aliases it (unless float64)
    """
    return Interpreter(graph, inputs, float64).run()


class Memory:
    """The flat elements of a buffer; element 0 of the buffer is `flat[base]`."""

    def __init__(self, flat: Tensor, base: int = 0) -> None:
        self.flat = flat
        self.base = base


class Interpreter:
    def __init__(self, graph: ir.Graph, inputs: Sequence[Any], float64: bool) -> None:
        self.graph = graph
        self.inputs = inputs
        self.float64 = float64
        self.symbols = bind_symbols(graph, inputs)
        self.memory: dict[str, Memory] = {}
        for spec, value in zip(graph.inputs, inputs):
            if isinstance(spec, str):
                self.memory[spec] = self.memory_of(value)
        for name, value in graph.constants.items():
            self.memory[name] = self.memory_of(value)

    def run(self) -> list[Any]:
        for node in self.graph.nodes:
            self.run_node(node)
        return [self.output(output) for output in self.graph.outputs]

    def run_node(self, node: ir.Node) -> None:
        if isinstance(node, ir.Map):
            self.run_map(node)
        elif isinstance(node, ir.Reduce):
            self.run_reduce(node)
        elif isinstance(node, ir.Contract):
            self.run_contract(node)
        elif isinstance(node, ir.Scan):
            self.run_scan(node)
        elif isinstance(node, ir.Scatter):
            self.run_scatter(node)
        elif isinstance(node, (ir.Extern, ir.Scheduled)):
            self.run_call(node)
        else:
            raise TypeError(f"{type(node).__name__} is not a node of the loop IR")

    # ------------------------------------------------------------ sizes and memory

    def size(self, size: ir.Size) -> int:
        if isinstance(size, int):
            return size
        value = size.subs(list(self.symbols.items()))
        if not value.is_Integer:
            raise UnknownSymbol(size, self.symbols)
        return int(value)

    def dtype(self, name: str) -> torch.dtype:
        if self.float64 and dtype_kind(name) == "float":
            return torch.float64
        return DTYPES.get(name) or getattr(torch, name)

    def memory_of(self, tensor: Tensor) -> Memory:
        """The storage of a tensor that came from outside."""
        tensor = tensor.detach()
        if tensor.is_neg() or tensor.is_conj():
            tensor = tensor.resolve_neg().resolve_conj()
        length = tensor.untyped_storage().nbytes() // tensor.dtype.itemsize
        flat = torch.as_strided(tensor, (length,), (1,), 0)
        return Memory(
            flat.to(torch.float64) if self.float64 and flat.is_floating_point() else flat,
            int(tensor.storage_offset()),
        )

    def allocate(self, name: str) -> Tensor:
        buffer = self.graph.buffers[name]
        flat = torch.zeros(self.size(buffer.numel()), dtype=self.dtype(buffer.dtype))
        self.memory[name] = Memory(flat)
        return flat

    def view(self, view: ir.BufferView) -> Tensor:
        memory = self.memory[view.buffer]
        shape = [self.size(s) for s in view.shape]
        strides = [self.size(s) for s in view.strides]
        offset = self.size(view.offset) + memory.base
        return torch.as_strided(memory.flat, shape, strides, 0 if 0 in shape else offset)

    def output(self, output: Any) -> Any:
        if isinstance(output, ir.BufferView):
            return self.view(output)
        if isinstance(output, tuple):
            value = self.inputs[output[1]]
            return value.to(torch.float64) if self.float64 and is_floating(value) else value
        return None if output is None else self.size(output)

    # ------------------------------------------------------------ expressions

    def scope(self, axes: Sequence[ir.Axis]) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for position, axis in enumerate(axes):
            shape = [1] * len(axes)
            shape[position] = -1
            result[axis.name] = torch.arange(self.size(axis.extent)).reshape(shape)
        return result

    def index(self, index: ir.Index, scope: Scope) -> Tensor:
        result = torch.tensor(self.size(index.const))
        for atom, coefficient in index.terms:
            value = scope[atom] if isinstance(atom, str) else self.value(atom.expr, scope)
            result = result + value * self.size(coefficient)
        return result

    def value(self, expr: ir.Expr, scope: Scope) -> Tensor:
        """The values of an expression at every point of the loops (a tensor that broadcasts to them)."""
        return self.cached(expr, scope, {})

    def cached(self, expr: ir.Expr, scope: Scope, cache: dict[ir.Expr, Tensor]) -> Tensor:
        if expr not in cache:
            cache[expr] = self.evaluate(expr, scope, cache)
        return cache[expr]

    def evaluate(self, expr: ir.Expr, scope: Scope, cache: dict[ir.Expr, Tensor]) -> Tensor:
        dtype = self.dtype(expr.dtype)
        if isinstance(expr, ir.Constant):
            value = self.size(expr.value) if isinstance(expr.value, sympy.Expr) else expr.value
            return torch.tensor(value, dtype=dtype)
        if isinstance(expr, ir.IndexValue):
            return self.index(expr.index, scope).to(dtype)
        if isinstance(expr, ir.Load):
            return self.load(expr, scope).to(dtype)
        assert isinstance(expr, ir.Apply)
        args = [self.cached(arg, scope, cache) for arg in expr.args]
        if expr.op == "cast":
            return args[0].to(dtype)
        return OPS[expr.op].reference(*args).to(dtype)

    def load(self, load: ir.Load, scope: Scope) -> Tensor:
        memory = self.memory[load.buffer]
        index = self.index(load.index, scope) + memory.base
        if load.mask is None:
            return memory.flat[index]
        mask = self.value(load.mask, scope)
        if memory.flat.numel() == 0:
            return torch.zeros(torch.broadcast_shapes(index.shape, mask.shape), dtype=memory.flat.dtype)
        value = memory.flat[torch.where(mask, index, 0)]
        return torch.where(mask, value, torch.zeros((), dtype=value.dtype))

    # ------------------------------------------------------------ nodes

    def extents(self, axes: Sequence[ir.Axis]) -> list[int]:
        return [self.size(axis.extent) for axis in axes]

    def store(self, output: str, index: ir.Index, scope: Scope, value: Tensor) -> None:
        flat = self.allocate(output)
        place, value = torch.broadcast_tensors(self.index(index, scope), value)
        flat[place.reshape(-1)] = value.reshape(-1).to(flat.dtype)

    def run_map(self, node: ir.Map) -> None:
        scope = self.scope(node.axes)
        value = self.value(node.value, scope).expand(self.extents(node.axes))
        self.store(node.output, node.store, scope, value)

    def run_reduce(self, node: ir.Reduce) -> None:
        axes = ir.all_axes(node)
        value = self.value(node.value, self.scope(axes)).expand(self.extents(axes))
        kept = self.extents(node.axes)
        rows = value.reshape(*kept, -1) if value.numel() else value.new_empty(*kept, 0)
        dtype = self.dtype(node.value.dtype)
        if rows.shape[-1] == 0:
            result = torch.full(kept, reduce_identity(node.op, node.value.dtype), dtype=dtype)
        else:
            result = REDUCTIONS[node.op].reference(rows, -1).to(dtype)
        self.store(node.output, node.store, self.scope(node.axes), result)

    def run_contract(self, node: ir.Contract) -> None:
        axes = ir.all_axes(node)
        scope, extents = self.scope(axes), self.extents(axes)
        operands: list[Any] = []
        covered: set[int] = set()
        for expr in (node.lhs, node.rhs):
            value = self.value(expr, scope)
            value = value.reshape([1] * (len(axes) - value.dim()) + list(value.shape))
            used = [k for k in range(len(axes)) if value.shape[k] != 1 or extents[k] == 1]
            operands += [value.reshape([extents[k] for k in used]), used]
            covered.update(used)
        missing = [k for k in range(len(axes)) if k not in covered]
        operands += [torch.ones([extents[k] for k in missing], dtype=operands[0].dtype), missing]
        result = torch.einsum(*operands, list(range(len(node.axes))))
        self.store(node.output, node.store, self.scope(node.axes), result)

    def run_scan(self, node: ir.Scan) -> None:
        axes = ir.all_axes(node)
        extents = self.extents(axes)
        scope = self.scope(axes)
        value = self.value(node.value, scope).expand(extents)
        rows = value.reshape(*self.extents(node.axes), -1) if value.numel() else value
        totals = SCANS[node.op](rows, -1).to(value.dtype).reshape(extents)
        self.store(node.output, node.store, scope, totals)

    def run_scatter(self, node: ir.Scatter) -> None:
        flat = self.allocate(node.output)
        if node.base is not None:
            base = self.memory[node.base]
            flat.copy_(base.flat[base.base : base.base + flat.numel()])
        scope = self.scope(node.axes)
        shape = self.extents(node.axes)
        value, kept = node.value, torch.tensor(True)
        while isinstance(value, ir.Apply) and value.op == "guard":
            kept = kept & self.value(value.args[0], scope)
            value = value.args[1]
        kept = kept.expand(shape).reshape(-1)
        place = self.index(node.store, scope).expand(shape).reshape(-1)[kept]
        values = self.value(value, scope).expand(shape).reshape(-1)[kept].to(flat.dtype)
        if node.op == "add":
            flat.index_put_((place,), values, accumulate=True)
        elif node.op in ("max", "min"):
            flat.scatter_reduce_(0, place, values, f"a{node.op}")
        else:  # duplicates: the last one wins, as numpy has it
            last = numpy.full(flat.numel(), -1)
            last[place.numpy()] = numpy.arange(place.numel())
            written = torch.from_numpy(last)
            flat.copy_(
                torch.where(written >= 0, values[written.clamp(min=0)] if place.numel() else flat, flat)
            )

    def run_call(self, node: ir.Extern | ir.Scheduled) -> None:
        kwargs = node.kwargs if isinstance(node, ir.Extern) else {}
        results = node.target(*self.argument(node.args), **self.argument(kwargs))
        results = results if isinstance(results, (tuple, list)) else [results]
        for name, result in zip(node.outputs, results):
            if name is None:
                continue
            buffer = self.graph.buffers[name]
            flat = self.allocate(name)
            whole = self.view(ir.BufferView(name, buffer.shape, buffer.strides))
            if flat.numel():
                whole.copy_(result)

    def argument(self, arg: Any) -> Any:
        if isinstance(arg, ir.BufferView):
            return self.view(arg)
        if isinstance(arg, (tuple, list)):
            return (
                type(arg)(self.argument(a) for a in arg)
                if type(arg) in (tuple, list)
                else [self.argument(a) for a in arg]
            )
        if isinstance(arg, dict):
            return {key: self.argument(value) for key, value in arg.items()}
        if isinstance(arg, sympy.Expr):
            return self.size(arg)
        if isinstance(arg, torch.dtype) and arg.is_floating_point and self.float64:
            return torch.float64
        return arg


def is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def bind_symbols(graph: ir.Graph, inputs: Sequence[Any]) -> dict[sympy.Symbol, int]:
    """The value of every symbol that an integer input, a size or a stride carries bare."""
    found: dict[sympy.Symbol, int] = {}

    def bind(size: Any, value: int) -> None:
        if isinstance(size, sympy.Symbol):
            found.setdefault(size, value)

    for spec, value in zip(graph.inputs, inputs):
        if isinstance(spec, sympy.Expr):
            bind(spec, int(value))
        elif isinstance(spec, str):
            buffer = graph.buffers[spec]
            for size, actual in zip(buffer.shape + buffer.strides, (*value.shape, *value.stride())):
                bind(size, int(actual))
    return found
