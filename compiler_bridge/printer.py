"""Loop IR as Python-like text: loops, buffers with flat indices, and where each node comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler_bridge import ir
from compiler_bridge.ops import OPS

SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "floor_divide": "//",
    "remainder": "%",
    "bitwise_and": "&",
    "bitwise_or": "|",
    "bitwise_xor": "^",
    "left_shift": "<<",
    "right_shift": ">>",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
}
ASSIGN = {"sum": "{0} += {1}", "prod": "{0} *= {1}", "any": "{0} |= {1}", "all": "{0} &= {1}"}
START = {"sum": "0", "prod": "1", "any": "False", "all": "True", "max": "-inf", "min": "inf"}
INDENT = "    "


def print_graph(graph: ir.Graph) -> str:
    """The whole graph: buffers, nodes in order, outputs."""
    lines: list[str] = []
    for kind in ("input", "constant", "temporary", "output"):
        for buffer in graph.buffers.values():
            if buffer.kind == kind and kind in ("input", "constant"):
                lines.append(f"{print_buffer(buffer)}  # {kind}")
    for node in graph.nodes:
        lines.append("")
        lines += print_node(graph, node)
    lines += ["", f"return {', '.join(print_argument(output) for output in graph.outputs)}"]
    return "\n".join(lines)


def print_buffer(buffer: ir.Buffer) -> str:
    shape = ", ".join(map(str, buffer.shape))
    strides = ", ".join(map(str, buffer.strides))
    return f"{buffer.name}: {buffer.dtype}[{shape}] by [{strides}]"


def print_node(graph: ir.Graph, node: ir.Node) -> list[str]:
    """A comment saying where it comes from, what it makes, and its loops."""
    lines = [f"# {text}" for text in origin_lines(node.origin)]
    lines += [print_buffer(graph.buffers[name]) for name in ir.node_outputs(node) if name in graph.buffers]
    if isinstance(node, ir.Map):
        named, value = print_value(node.value)
        return lines + loops(node.axes, [*named, f"{place(node)} = {value}"])
    if isinstance(node, ir.Reduce):
        return lines + print_reduce(node)
    if isinstance(node, ir.Scan):
        return lines + print_scan(node)
    if isinstance(node, ir.Contract):
        product = f"{place(node)} += {print_expr(node.lhs)} * {print_expr(node.rhs)}"
        inner = [f"{place(node)} = 0", *loops(node.reduce_axes, [product])]
        return lines + loops(node.axes, inner)
    if isinstance(node, ir.Scatter):
        return lines + print_scatter(node)
    return lines + [print_call(node)]


def origin_lines(origin: ir.Origin) -> list[str]:
    parts = [f"{', '.join(origin.names)} = {origin.op}"]
    if origin.layer:
        parts.append(f"in {origin.layer}")
    return [", ".join(parts), *([origin.source] if origin.source else [])]


def loops(axes: Sequence[ir.Axis], body: list[str]) -> list[str]:
    lines: list[str] = []
    for depth, axis in enumerate(axes):
        lines.append(f"{INDENT * depth}for {axis.name} in range({axis.extent}):")
    return lines + [INDENT * len(axes) + line for line in body]


def place(node: Any) -> str:
    return f"{node.output}[{print_index(node.store)}]"


def print_reduce(node: ir.Reduce) -> list[str]:
    target, (named, value) = place(node), print_value(node.value)
    step = ASSIGN.get(node.op, f"{{0}} = {node.op}({{0}}, {{1}})").format(target, value)
    start = f"{target} = {START.get(node.op, '...')}"
    return loops(node.axes, [start, *loops(node.reduce_axes, [*named, step])])


def print_scan(node: ir.Scan) -> list[str]:
    step = ASSIGN.get(node.op, f"{{0}} = {node.op}({{0}}, {{1}})").format("total", print_expr(node.value))
    inner = loops(node.scan_axes, [step, f"{place(node)} = total"])
    return loops(node.axes, [f"total = {START[node.op]}", *inner])


SCATTER_SIGNS = {"set": "=", "add": "+=", "max": "max=", "min": "min="}


def print_scatter(node: ir.Scatter) -> list[str]:
    value, conditions = node.value, []
    while isinstance(value, ir.Apply) and value.op == "guard":
        conditions.append(print_expr(value.args[0]))
        value = value.args[1]
    body = [f"{place(node)} {SCATTER_SIGNS[node.op]} {print_expr(value)}"]
    if conditions:
        body = [f"if {' and '.join(conditions)}:", INDENT + body[0]]
    start = f"{node.output}[:] = {node.base}[:]" if node.base else f"{node.output}[:] = 0"
    return [start, *loops(node.axes, body)]


def print_call(node: Any) -> str:
    arguments = [print_argument(arg) for arg in node.args]
    if isinstance(node, ir.Extern):
        arguments += [f"{name}={print_argument(value)}" for name, value in node.kwargs.items()]
    outputs = ", ".join(name or "_" for name in node.outputs)
    reason = f"  # extern: {node.reason}" if isinstance(node, ir.Extern) else "  # scheduled by hand"
    return f"{outputs} = {node.target}({', '.join(arguments)}){reason}"


def print_argument(arg: Any) -> str:
    if isinstance(arg, ir.BufferView):
        shape, strides = (", ".join(map(str, values)) for values in (arg.shape, arg.strides))
        offset = f" at {arg.offset}" if arg.offset != 0 else ""
        return f"{arg.buffer}([{shape}] by [{strides}]{offset})"
    if isinstance(arg, (list, tuple)) and not (arg and arg[0] == "input"):
        return f"[{', '.join(print_argument(item) for item in arg)}]"
    if isinstance(arg, tuple):
        return f"input {arg[1]}"
    return str(arg)


# ---------------------------------------------------------------- expressions


LONGEST_VALUE = 40  # operations that are written out, those of a shared value each time


def print_value(expr: ir.Expr) -> tuple[list[str], str]:
    """Lines that name what a long expression uses several times (v0 = ...), and the expression."""
    if tree_size(expr, {}) <= LONGEST_VALUE:
        return [], print_expr(expr)
    users: dict[int, int] = {}
    for part in ir.walk(expr):
        for child in ir.children(part):
            users[id(child)] = users.get(id(child), 0) + 1
    lines, names, seen = list[str](), Names(), set[int]()

    def name_shared(part: ir.Expr) -> None:
        if id(part) in seen:
            return
        seen.add(id(part))
        for child in ir.children(part):
            name_shared(child)
        if isinstance(part, ir.Apply) and users.get(id(part), 0) > 1:
            lines.append(f"v{len(lines)} = {print_expr(part, names)}")
            names[id(part)] = f"v{len(lines) - 1}"

    name_shared(expr)
    return lines, print_expr(expr, names)


def tree_size(expr: ir.Expr, known: dict[int, int]) -> int:
    """Operations of an expression that is written out."""
    if id(expr) not in known:
        known[id(expr)] = isinstance(expr, ir.Apply) + sum(tree_size(x, known) for x in ir.children(expr))
    return known[id(expr)]


Names = dict[int, str]  # id of a value -> what it was called


def print_index(index: ir.Index, names: Names | None = None) -> str:
    """2 * i0 + i1 + 7"""
    parts: list[str] = []
    for atom, coefficient in index.terms:
        name = atom if isinstance(atom, str) else print_expr(atom.expr, names)
        if coefficient == 1:
            parts.append(name)
        else:
            factor = coefficient if isinstance(coefficient, int) else f"({coefficient})"
            parts.append(f"{name}*{factor}")
    if index.const != 0 or not parts:
        parts.append(str(index.const))
    return " + ".join(parts).replace("+ -", "- ")


def print_expr(expr: ir.Expr, names: Names | None = None) -> str:
    """An expression as Python: b1[i0*256 + i1] * 2.0 + exp(b2[i1]); values that have names by these."""
    if names and id(expr) in names:
        return names[id(expr)]
    if isinstance(expr, ir.Constant):
        return str(expr.value)
    if isinstance(expr, ir.IndexValue):
        text = print_index(expr.index, names)
        return text if len(expr.index.terms) + (expr.index.const != 0) <= 1 else f"({text})"
    if isinstance(expr, ir.Load):
        load = f"{expr.buffer}[{print_index(expr.index, names)}]"
        return load if expr.mask is None else f"({load} if {print_expr(expr.mask, names)} else 0)"
    assert isinstance(expr, ir.Apply)
    args = [print_expr(arg, names) for arg in expr.args]
    if expr.op == "cast":
        return f"{expr.dtype}({args[0]})"
    if expr.op == "where":
        return f"({args[1]} if {args[0]} else {args[2]})"
    if expr.op == "neg":
        return f"-{args[0]}"
    if expr.op in SYMBOLS:
        return f"({args[0]} {SYMBOLS[expr.op]} {args[1]})"
    name = expr.op if expr.op in OPS or expr.op == "guard" else f"unknown_{expr.op}"
    return f"{name}({', '.join(args)})"
