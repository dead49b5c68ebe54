"""Which loop IR is well formed. Run between passes with PYNN_DEBUG >= 1, and by every test of the IR.

every buffer is defined before it is read, and written once
every axis of an index is a loop of its node; loops have different names
dtypes: a Load gives its buffer's compute dtype, an Apply's arguments agree with its row in `ops.py`
no index without a mask leaves its buffer (checked at the sizes seen while tracing)
no two iterations of a Map, Reduce, Contract or Scan store to one place, and every place is stored to
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sympy

from compiler_bridge import ir
from compiler_bridge.errors import VerifyError
from compiler_bridge.ops import OPS, REDUCTIONS, SCANS, SCATTERS, compute_dtype, dtype_kind

INTEGERS = ("int32", "int64")


def verify(graph: ir.Graph, after: str = "lower") -> None:
    """Check a graph.

    Args:    after: the pass that made it, for the message
    Raises:  VerifyError naming the node, the pass, what was found and what is required
    """
    Verifier(graph, after).run()


class Verifier:
    def __init__(self, graph: ir.Graph, after: str) -> None:
        self.graph = graph
        self.after = after
        self.node: Any = "inputs"
        self.defined = {name for name in graph.inputs if isinstance(name, str)}
        self.defined |= graph.constants.keys() & graph.buffers.keys()

    def require(self, condition: bool, received: str, required: str) -> None:
        if not condition:
            where = self.node
            if isinstance(where, ir.Node):
                where = f"{type(where).__name__} of {where.output} ({', '.join(where.origin.names)})"
            raise VerifyError(where, self.after, received, required)

    def run(self) -> None:
        for name in self.defined:
            self.require(name in self.graph.buffers, f"{name} is not declared", "a buffer in graph.buffers")
        for buffer in self.graph.buffers.values():
            ranks = len(buffer.shape), len(buffer.strides)
            self.require(ranks[0] == ranks[1], f"{buffer.name} of ranks {ranks}", "as many strides as sizes")
        for node in self.graph.nodes:
            self.node = node
            self.check_buffers(node)
            if isinstance(node, (ir.Map, ir.Reduce, ir.Contract, ir.Scan, ir.Scatter)):
                self.check_loops(node)
            else:
                views = ir.argument_views([getattr(node, "args", ()), getattr(node, "kwargs", {})])
                self.check_views(views)
        self.node = "outputs"
        self.check_views(output for output in self.graph.outputs if isinstance(output, ir.BufferView))

    def check_buffers(self, node: ir.Node) -> None:
        for name in ir.node_reads(node):
            self.require(name in self.defined, f"reads {name} before it is written", "an earlier definition")
        for name in ir.node_outputs(node):
            self.require(name in self.graph.buffers, f"writes {name}", "a buffer in graph.buffers")
            self.require(name not in self.defined, f"writes {name} again", "one definition of every buffer")
            self.defined.add(name)

    def check_views(self, views: Iterable[ir.BufferView]) -> None:
        for view in views:
            self.require(view.buffer in self.defined, f"takes {view.buffer}", "a buffer defined before")
            axes = [ir.Axis(f"i{k}", extent) for k, extent in enumerate(view.shape)]
            self.check_range(view.buffer, ir.strided_index(axes, view.strides, view.offset), axes)

    # ------------------------------------------------------------ loops

    def check_loops(self, node: Any) -> None:
        axes = ir.all_axes(node)
        names = [axis.name for axis in axes]
        self.require(len(set(names)) == len(names), f"loops {names}", "loops of different names")
        for expr in ir.node_exprs(node):
            for part in ir.walk(expr):
                self.check_expr(part, axes, node)
        stored = axes if isinstance(node, ir.Scan) else node.axes
        self.check_bound(node.store, {axis.name for axis in stored}, "the store")
        dtype = compute_dtype(self.graph.buffers[node.output].dtype)
        if isinstance(node, ir.Scan) and dtype_kind(dtype) == "float" and node.value.dtype == "float64":
            dtype = "float64"  # its running total may be wider than what is stored
        for value in (node.lhs, node.rhs) if isinstance(node, ir.Contract) else (node.value,):
            self.require(value.dtype == dtype, f"value of {value.dtype}", f"{dtype}, as {node.output} holds")
        if isinstance(node, ir.Reduce):
            self.require(node.op in REDUCTIONS, f"reduction {node.op}", f"one of {', '.join(REDUCTIONS)}")
        if isinstance(node, ir.Scan):
            self.require(node.op in SCANS, f"scan {node.op}", f"one of {', '.join(SCANS)}")
        if isinstance(node, ir.Scatter):
            self.check_scatter(node)
        else:
            self.check_range(node.output, node.store, stored)
            self.check_covers(node, stored)

    def check_scatter(self, node: ir.Scatter) -> None:
        self.require(node.op in SCATTERS, f"op {node.op}", f"one of {', '.join(SCATTERS)}")
        if node.base is not None:
            base, buffer = self.graph.buffers[node.base], self.graph.buffers[node.output]
            same = (base.dtype, base.strides, base.shape) == (buffer.dtype, buffer.strides, buffer.shape)
            self.require(same, f"base {base}", f"the layout of {buffer}")

    def check_covers(self, node: Any, axes: Sequence[ir.Axis]) -> None:
        """The store reaches every element of the buffer exactly once."""
        sizes = self.static([axis.extent for axis in axes])
        shape = self.static(self.graph.buffers[node.output].shape)
        steps = self.static([node.store.coefficient(axis.name) for axis in axes])
        if sizes is None or shape is None or steps is None:
            return
        points, elements = ir.size_product(sizes), ir.size_product(shape)
        self.require(
            points == elements, f"stores {points} values", f"{elements}, the elements of {node.output}"
        )
        reach = 0
        for step, size in sorted((abs(step), size) for step, size in zip(steps, sizes) if size != 1):
            self.require(
                step > reach or points == 0, f"store {node.store} repeats a place", "distinct places"
            )
            reach += step * (size - 1)

    # ------------------------------------------------------------ expressions

    def check_expr(self, expr: ir.Expr, axes: tuple[ir.Axis, ...], node: Any) -> None:
        names = {axis.name for axis in axes}
        if isinstance(expr, ir.IndexValue):
            self.check_bound(expr.index, names, "an index value")
            self.require(expr.dtype == "int64", f"index of {expr.dtype}", "int64")
        elif isinstance(expr, ir.Load):
            self.check_load(expr, axes)
        elif isinstance(expr, ir.Apply):
            self.check_apply(expr, node)

    def check_load(self, load: ir.Load, axes: tuple[ir.Axis, ...]) -> None:
        self.check_bound(load.index, {axis.name for axis in axes}, f"the load of {load.buffer}")
        dtype = compute_dtype(self.graph.buffers[load.buffer].dtype)
        self.require(load.dtype == dtype, f"load of {load.buffer} as {load.dtype}", dtype)
        if load.mask is None:
            self.check_range(load.buffer, load.index, axes)
        else:
            self.require(load.mask.dtype == "bool", f"mask of {load.mask.dtype}", "bool")

    def check_apply(self, apply: ir.Apply, node: Any) -> None:
        dtypes = [arg.dtype for arg in apply.args]
        found = f"{apply.op}({', '.join(dtypes)}) -> {apply.dtype}"
        if apply.op == "cast":
            self.require(len(dtypes) == 1, found, "one argument")
        elif apply.op == "guard":
            self.require(isinstance(node, ir.Scatter), found, "guard only as the value of a Scatter")
            self.require(dtypes == ["bool", apply.dtype], found, f"guard(bool, {apply.dtype})")
        elif apply.op == "philox_uniform":
            self.require(
                dtypes == ["int64"] * 2 and apply.dtype == "float32", found, "(int64, int64) -> float32"
            )
        else:
            self.require(apply.op in OPS, found, "a row of ops.py")
            self.check_row(apply, dtypes, found)

    def check_row(self, apply: ir.Apply, dtypes: list[str], found: str) -> None:
        row = OPS[apply.op]
        self.require(len(dtypes) == row.arity, found, f"{row.arity} arguments")
        if apply.op == "where":
            self.require(dtypes[0] == "bool", found, "a bool condition")
            dtypes = dtypes[1:]
        self.require(len(set(dtypes)) == 1, found, "arguments of one dtype")
        self.require(dtypes[0] == compute_dtype(dtypes[0]), found, "a compute dtype")
        result = "bool" if row.result == "bool" else dtypes[0]
        self.require(apply.dtype == result, found, f"the result {result}")

    def check_bound(self, index: ir.Index, names: set[str], what: str) -> None:
        free = set(index.axes()) - names
        self.require(not free, f"{what} uses {sorted(free)}", f"its loops {sorted(names)}")
        for value, _ in index.values():
            self.require(value.expr.dtype in INTEGERS, f"{what} at {value.expr.dtype} data", "int64 data")

    # ------------------------------------------------------------ ranges

    def static(self, sizes: Iterable[ir.Size]) -> list[int] | None:
        """The sizes as numbers (at the hints of their symbols), or None where one is unknown."""
        result = []
        for size in sizes:
            if isinstance(size, sympy.Expr):
                size = size.subs(list(self.graph.symbol_hints.items()))
                if not size.is_Integer:
                    return None
            result.append(int(size))
        return result

    def check_range(self, buffer_name: str, index: ir.Index, axes: Iterable[ir.Axis]) -> None:
        """const + sum(coefficient * axis) lies within the buffer, unless data moves it or nothing runs."""
        extents = {axis.name: axis.extent for axis in axes}
        sizes = self.static(extents.values())
        terms = list(index.axes().items())
        steps = self.static([*(step for _, step in terms), index.const])
        span = self.static([self.graph.buffers[buffer_name].numel()])
        if index.values() or sizes is None or steps is None or span is None or 0 in sizes:
            return
        extent = dict(zip(extents, sizes))
        moves = [step * (extent[name] - 1) for (name, _), step in zip(terms, steps)]
        low = steps[-1] + sum(min(move, 0) for move in moves)
        high = steps[-1] + sum(max(move, 0) for move in moves)
        inside = 0 <= low and high < span[0]
        self.require(inside, f"{buffer_name} at {low} .. {high}", f"0 .. {span[0] - 1}, its elements")
