"""The loop IR: its whole grammar, on one page.

    Program  = buffers, nodes in order, outputs
    Node     = Map | Reduce | Contract | Scan | Scatter | Scheduled | Extern
    Expr     = Constant | IndexValue | Load | Apply
    Index    = const + sum(coefficient * axis) + sum(coefficient * Value(expr))

A buffer is flat memory with a dtype. Every access is an affine `Index` in the loop axes of its node, so a
view (permute, slice, expand, reshape without a copy ...) is nothing but other coefficients, and no division
or modulo exists. `Value` makes an index depend on data (embedding, gather). Sizes are ints, or sympy
expressions of torch's symbolic sizes.

`interpret.py` says what each node means; `verify.py` says which programs are well formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Union

import sympy

Size = Union[int, sympy.Expr]


def size_equal(a: Size, b: Size) -> bool:
    """Whether two sizes are equal for every value of their symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return sympy.expand(sympy.sympify(a) - sympy.sympify(b)) == 0


def size_product(sizes: Any) -> Size:
    result: Size = 1
    for size in sizes:
        result = result * size
    return result


def exact_quotient(a: Size, b: Size) -> Size | None:
    """a / b when b divides a for every value of the symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    numerator, denominator = sympy.fraction(quotient)
    if denominator != 1:
        return None
    return int(numerator) if numerator.is_Integer else numerator


@dataclass(frozen=True)
class Axis:
    """A loop variable running over 0 .. extent - 1."""

    name: str
    extent: Size


# ---------------------------------------------------------------- expressions


@dataclass(frozen=True)
class Expr:
    """A scalar value at one point of the loops. dtype: torch's name, "float32", "int64", "bool" ..."""

    dtype: str

    def hash_once(self, *fields: Any) -> int:
        """The hash, remembered: passes keep expressions in tables, each lookup would go through all below it."""
        known = self.__dict__.get("_hash")
        if known is None:
            known = self.__dict__["_hash"] = hash(fields)
        return known

    def __getstate__(self) -> dict[str, Any]:  # strings have another hash in another process
        return {name: value for name, value in self.__dict__.items() if name not in ("_hash", "_loads")}


@dataclass(frozen=True)
class Constant(Expr):
    value: Any  # a Python number; a sympy expression for a size


@dataclass(frozen=True)
class IndexValue(Expr):
    """The value of an index, as an int64."""

    index: Index


@dataclass(frozen=True)
class Load(Expr):
    """buffer[index]; 0 where `mask` is false (the index may then be out of range).

    shifts: (axis, offset, extent) triples already contained in `index` as coefficient * (axis - offset), where
    the mask admits 0 <= axis - offset < extent; they tell which axis a constant belongs to when a masked load
    is inlined (cat, pad).
    """

    buffer: str
    index: Index
    mask: Expr | None = None
    shifts: tuple[tuple[str, Size, Size], ...] = ()

    def __hash__(self) -> int:
        return self.hash_once(self.dtype, self.buffer, self.index, self.mask, self.shifts)


@dataclass(frozen=True)
class Apply(Expr):
    """A scalar operation of `ops.py`."""

    op: str
    args: tuple[Expr, ...]

    def __hash__(self) -> int:
        return self.hash_once(self.dtype, self.op, self.args)


@dataclass(frozen=True)
class Value:
    """An atom of an index that is data."""

    expr: Expr


Atom = Union[str, Value]


@dataclass(frozen=True)
class Index:
    terms: tuple[tuple[Atom, Size], ...] = ()
    const: Size = 0

    @staticmethod
    def of(terms: Mapping[Atom, Size], const: Size = 0) -> Index:
        kept = [(atom, coefficient) for atom, coefficient in terms.items() if coefficient != 0]
        kept.sort(key=lambda term: repr(term[0]) if isinstance(term[0], Value) else term[0])
        return Index(tuple(kept), const)

    def coefficient(self, axis: str) -> Size:
        return next((c for atom, c in self.terms if atom == axis), 0)

    def axes(self) -> dict[str, Size]:
        return {atom: c for atom, c in self.terms if isinstance(atom, str)}

    def values(self) -> list[tuple[Value, Size]]:
        return [(atom, c) for atom, c in self.terms if isinstance(atom, Value)]

    def __add__(self, other: Index | Size) -> Index:
        if not isinstance(other, Index):
            return Index(self.terms, self.const + other)
        terms: dict[Atom, Size] = dict(self.terms)
        for atom, coefficient in other.terms:
            terms[atom] = terms.get(atom, 0) + coefficient
        return Index.of(terms, self.const + other.const)

    def scaled(self, factor: Size) -> Index:
        return Index.of({atom: c * factor for atom, c in self.terms}, self.const * factor)


def axis_index(name: str) -> Index:
    return Index(((name, 1),), 0)


def strided_index(axes: Any, strides: Any, offset: Size = 0) -> Index:
    """offset + sum(stride * axis); axes of extent 1 are left out."""
    terms: dict[Atom, Size] = {}
    for axis, stride in zip(axes, strides):
        if axis.extent != 1 and stride != 0:
            terms[axis.name] = stride
    return Index.of(terms, offset)


# ---------------------------------------------------------------- nodes


@dataclass(frozen=True)
class Buffer:
    """kind: input | output | temporary | constant. strides in elements."""

    name: str
    dtype: str
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    kind: str = "temporary"

    def numel(self) -> Size:
        """Elements spanned in memory (1 + the largest offset), 0 when empty."""
        if any(size == 0 for size in self.shape):
            return 0
        span: Size = 1
        for size, stride in zip(self.shape, self.strides):
            span = span + (size - 1) * stride
        return span


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: FX node names, ATen operation, layer and the user's source line."""

    names: tuple[str, ...] = ()
    op: str = ""
    layer: str = ""
    source: str = ""


@dataclass(frozen=True)
class Node:
    output: str
    origin: Origin = field(compare=False)


@dataclass(frozen=True)
class Map(Node):
    """for axes: output[store] = value"""

    axes: tuple[Axis, ...]
    store: Index
    value: Expr


@dataclass(frozen=True)
class Reduce(Node):
    """for axes: output[store] = op over reduce_axes of value.  op: sum prod max min any argmax argmin"""

    axes: tuple[Axis, ...]
    reduce_axes: tuple[Axis, ...]
    store: Index
    value: Expr
    op: str


@dataclass(frozen=True)
class Contract(Node):
    """for axes: output[store] = sum over reduce_axes of lhs * rhs"""

    axes: tuple[Axis, ...]
    reduce_axes: tuple[Axis, ...]
    store: Index
    lhs: Expr
    rhs: Expr


@dataclass(frozen=True)
class Scan(Node):
    """for axes: total = identity; for scan_axes, in order: total = op(total, value); output[store] = total

    op: sum prod max min. The running total has the dtype of `value`, float64 where float32 is stored.
    """

    axes: tuple[Axis, ...]
    scan_axes: tuple[Axis, ...]
    store: Index
    value: Expr
    op: str


@dataclass(frozen=True)
class Scatter(Node):
    """output = base (or 0); for axes, in order: output[store] op= value.  op: add | set | max | min

    `store` holds the data-dependent atoms. base: a buffer of the same layout that is copied first.
    """

    axes: tuple[Axis, ...]
    store: Index
    value: Expr
    op: str
    base: str | None = None


@dataclass(frozen=True)
class BufferView:
    """A strided view of a buffer, as an argument of Scheduled, Extern or as a graph output."""

    buffer: str
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    offset: Size = 0


@dataclass(frozen=True)
class Scheduled(Node):
    """A hand-scheduled kernel (attention ...) with several outputs; `target` is its pynn definition."""

    target: Any
    args: tuple[Any, ...]  # BufferView, numbers, None
    outputs: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Extern(Node):
    """An ATen call that has no lowering; counted and shown. outputs: its results in order."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(compare=False)
    outputs: tuple[str | None, ...] = ()
    reason: str = ""


Loop = Union[Map, Reduce, Contract, Scan, Scatter]


@dataclass
class Graph:
    """One lowered FX graph."""

    buffers: dict[str, Buffer]
    nodes: list[Node]
    inputs: list[Any]  # buffer name, or the sympy symbol of a size input, or None
    outputs: list[Any]  # BufferView | Size | None | ("input", position)
    constants: dict[str, Any] = field(default_factory=dict)  # buffer -> tensor
    checks: list[str] = field(default_factory=list)  # bool flags: true when an index was out of range
    symbol_hints: dict[sympy.Symbol, int] = field(default_factory=dict)


# ---------------------------------------------------------------- walking and rewriting


def children(expr: Expr) -> Iterator[Expr]:
    if isinstance(expr, Apply):
        yield from expr.args
    elif isinstance(expr, Load):
        for value, _ in expr.index.values():
            yield value.expr
        if expr.mask is not None:
            yield expr.mask
    elif isinstance(expr, IndexValue):
        for value, _ in expr.index.values():
            yield value.expr


def walk(expr: Expr) -> Iterator[Expr]:
    """The expression and all below it, each object once: values are shared, a tree of them can be huge."""
    seen: set[int] = set()
    waiting = [expr]
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += list(children(part))[::-1]


def node_exprs(node: Node) -> list[Expr]:
    if isinstance(node, (Map, Reduce, Scan)):
        return [node.value]
    if isinstance(node, Contract):
        return [node.lhs, node.rhs]
    if isinstance(node, Scatter):
        return [node.value, *(value.expr for value, _ in node.store.values())]
    return []


def node_loads(node: Node) -> list[Load]:
    return [load for expr in node_exprs(node) for load in expr_loads(expr)]


def expr_loads(expr: Expr) -> tuple[Load, ...]:
    """The loads of an expression, remembered in it: every pass asks for them."""
    known = expr.__dict__.get("_loads")
    if known is None:
        known = expr.__dict__["_loads"] = tuple(e for e in walk(expr) if isinstance(e, Load))
    return known


def node_outputs(node: Node) -> list[str]:
    if isinstance(node, (Scheduled, Extern)):
        return [name for name in node.outputs if name is not None]
    return [node.output]


def argument_views(args: Any) -> Iterator[BufferView]:
    if isinstance(args, BufferView):
        yield args
    elif isinstance(args, (tuple, list)):
        for item in args:
            yield from argument_views(item)
    elif isinstance(args, dict):
        yield from argument_views(list(args.values()))


def node_reads(node: Node) -> set[str]:
    """Names of the buffers a node reads."""
    if isinstance(node, Scheduled):
        return {view.buffer for view in argument_views(node.args)}
    if isinstance(node, Extern):
        return {view.buffer for view in argument_views([node.args, node.kwargs])}
    reads = {load.buffer for load in node_loads(node)}
    if isinstance(node, Scatter) and node.base is not None:
        reads.add(node.base)
    return reads


def map_expr(
    expr: Expr,
    index: Callable[[Index], Index],
    load: Callable[[Load], Expr],
    apply: Callable[[Apply], Expr] | None = None,
) -> Expr:
    """Rebuild an expression bottom-up: `index` rewrites every index, `load` and `apply` what was rebuilt."""
    cache: dict[Expr, Expr] = {}

    def rewrite_index(old: Index) -> Index:
        if old.values():
            terms = [(Value(go(a.expr)) if isinstance(a, Value) else a, c) for a, c in old.terms]
            old = Index(tuple(terms), old.const)
        return index(old)

    def go(old: Expr) -> Expr:
        if old in cache:
            return cache[old]
        if isinstance(old, Apply):
            rebuilt = replace(old, args=tuple(go(a) for a in old.args))
            new: Expr = rebuilt if apply is None else apply(rebuilt)
        elif isinstance(old, Load):
            mask = None if old.mask is None else go(old.mask)
            new = load(replace(old, index=rewrite_index(old.index), mask=mask))
        elif isinstance(old, IndexValue):
            new = replace(old, index=rewrite_index(old.index))
        else:
            new = old
        cache[old] = new
        return new

    return go(expr)


def substitute_index(index: Index, values: Mapping[str, Index]) -> Index:
    """Replace axes by indices."""
    if not any(isinstance(atom, str) and atom in values for atom, _ in index.terms):
        return index
    result = Index((), index.const)
    for atom, coefficient in index.terms:
        if isinstance(atom, str) and atom in values:
            result = result + values[atom].scaled(coefficient)
        else:
            result = result + Index(((atom, coefficient),), 0)
    return result


def substitute(expr: Expr, values: Mapping[str, Index]) -> Expr:
    def load(new: Load) -> Load:
        if new.shifts and any(axis in values for axis, _, _ in new.shifts):
            return replace(new, shifts=shift_axes(new.shifts, values))
        return new

    return map_expr(expr, lambda index: substitute_index(index, values), load)


def shift_axes(
    shifts: tuple[tuple[str, Size, Size], ...], values: Mapping[str, Index]
) -> tuple[tuple[str, Size, Size], ...]:
    """Rename shifted axes; one that becomes anything but another axis is marked unknown."""
    renamed = []
    for axis, offset, extent in shifts:
        target = values.get(axis, axis_index(axis))
        bare = len(target.terms) == 1 and target.const == 0 and target.terms[0][1] == 1
        # no axis any more: inlining of this load will be declined
        renamed.append((target.terms[0][0] if bare else "?", offset, extent))
    return tuple(renamed)


def substitute_node(
    node: Any, values: Mapping[str, Index], axes: tuple[Axis, ...], inner_axes: Any = None
) -> Any:
    """The node with other loop axes; inner_axes: those reduced or scanned."""
    changes: dict[str, Any] = {"axes": axes, "store": substitute_store(node.store, values)}
    name = inner_axes_name(node)
    if name and inner_axes is not None:
        changes[name] = inner_axes
    if isinstance(node, Contract):
        changes["lhs"] = substitute(node.lhs, values)
        changes["rhs"] = substitute(node.rhs, values)
    else:
        changes["value"] = substitute(node.value, values)
    return replace(node, **changes)


def substitute_store(index: Index, values: Mapping[str, Index]) -> Index:
    terms = [(Value(substitute(a.expr, values)) if isinstance(a, Value) else a, c) for a, c in index.terms]
    return substitute_index(Index(tuple(terms), index.const), values)


def split_axis(node: Any, name: str, inner: Size, outer: Size) -> Any:
    """Axis `name` becomes (name_o, name_i) with name = name_o * inner + name_i."""
    high, low = Axis(f"{name}o", outer), Axis(f"{name}i", inner)
    values = {name: Index.of({high.name: inner, low.name: 1})}

    def expand(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(new for axis in axes for new in ((high, low) if axis.name == name else (axis,)))

    return substitute_node(node, values, expand(node.axes), expand(inner_axes(node)))


def inner_axes_name(node: Any) -> str:
    """The field with the axes that a node reduces or scans along, "" when it has none."""
    return {Reduce: "reduce_axes", Contract: "reduce_axes", Scan: "scan_axes"}.get(type(node), "")


def inner_axes(node: Any) -> tuple[Axis, ...]:
    name = inner_axes_name(node)
    return getattr(node, name) if name else ()


def all_axes(node: Any) -> tuple[Axis, ...]:
    return (*node.axes, *inner_axes(node))


def expr_axes(expr: Expr) -> set[str]:
    """The axes an expression varies along."""
    found: set[str] = set()
    for part in walk(expr):
        if isinstance(part, (Load, IndexValue)):
            found |= set(part.index.axes())
    return found
