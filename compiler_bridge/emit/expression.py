"""Expressions to lines of the kernel language.

Lines go to the scope they depend on: the row (outside of the inner loops), a line of it (outside of the vector
loop) or the loop. Within a scope every distinct expression is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from compiler_bridge.emit.names import Names, constant_text
from compiler_bridge.ir import Apply, Constant, Expr, Index, IndexValue, Load, Value
from compiler_bridge.ops import OPS, dtype_kind

OPERATORS = ("{0} + {1}", "{0} - {1}", "{0} * {1}", "{0} / {1}")

PAIRS = {
    "float32": (
        "int64",
        ('bitcast(cast({0}, "int32"), "float32")', 'bitcast(cast({0} >> 32, "int32"), "float32")'),
    ),
    "bfloat16": ("int32", ('bitcast({0} << 16, "float32")', 'bitcast({0} & -65536, "float32")')),
}
"""dtype -> (the integer that holds two elements, its lower and its upper half as a value)"""


@dataclass
class Scope:
    """Lines being written and the names of what they have computed."""

    lines: list[str] = field(default_factory=list)
    known: dict[Any, Term] = field(default_factory=dict)


@dataclass(frozen=True)
class Term:
    """A computed value: its text, whether it is a vector, whether it belongs to the loop scope."""

    text: str
    vector: bool
    loop: bool
    dtype: str


class ExpressionWriter:
    """Writes expressions for one kernel at its current place.

    vector: name of the axis along the lanes; loop_axes: axes that vary inside the row (incl. the vector
    axis when it is an inner one); count: text of the number of valid lanes, None when all are.
    locals: buffers made by this kernel, whose value is already in a Term.
    """

    def __init__(
        self, names: Names, dtypes: dict[str, str], vector: str | None, lanes: int, loop_axes: set[str]
    ) -> None:
        self.names = names
        self.dtypes = dtypes
        self.vector = vector
        self.lanes = lanes
        self.loop_axes = loop_axes
        self.count: str | None = None
        self.row = Scope()
        # inside the inner axes, before the loop along the lanes; None: no such place
        self.line: Scope | None = None
        self.loop = Scope()
        self.values: dict[str, Term | Callable[[], Term]] = {}  # of local buffers
        self.even: frozenset[str] = frozenset()  # buffers that pairs of elements fill

    # ------------------------------------------------------------ scopes

    def scope(self, vector: bool, loop: bool) -> Scope:
        if not loop:
            return self.row
        return self.line if self.line is not None and not vector else self.loop

    def define(self, key: Any, text: str, vector: bool, loop: bool, dtype: str) -> Term:
        """A temporary holding `text`, shared by equal keys of the scope."""
        scope = self.scope(vector, loop)
        known = scope.known.get(key)
        if known is not None:
            return known
        name = self.names.fresh("v" if vector else "s")
        scope.lines.append(f"{name} = {text}")
        term = Term(name, vector, loop, dtype)
        scope.known[key] = term
        return term

    # ------------------------------------------------------------ indices

    def depends(self, index: Index) -> tuple[bool, bool]:
        """(varies along the lanes, varies inside the row)"""
        axes = index.axes()
        return self.vector in axes, any(a in self.loop_axes for a in axes)

    def offset_text(self, index: Index, skip_vector: bool = True) -> str:
        """The index at lane 0, as text; data atoms must be scalars."""
        parts = []
        for atom, coefficient in index.terms:
            if isinstance(atom, Value):
                text = self.write(atom.expr).text
            else:
                text = atom
            if coefficient == 1:
                parts.append(text)
            elif coefficient == -1:
                parts.append(f"-{text}")
            else:
                parts.append(f"{text} * {self.names.size(coefficient)}")
        if index.const != 0 or not parts:
            parts.append(
                self.names.size(index.const) if not isinstance(index.const, int) else str(index.const)
            )
        return " + ".join(parts).replace("+ -", "- ")

    def index_vector(self, index: Index) -> Term:
        """The index of every lane as an int64 vector."""
        stride = index.coefficient(self.vector) if self.vector else 0
        scalar_terms, vectors = [], []
        loop = self.depends(index)[1]
        for atom, coefficient in index.terms:
            if isinstance(atom, Value):
                term = self.write(atom.expr)
                loop = loop or term.loop
                if term.vector:
                    factor = "" if coefficient == 1 else f" * {self.names.size(coefficient)}"
                    vectors.append(f"{term.text}{factor}")
                    continue
            scalar_terms.append((atom, coefficient))
        base = self.offset_text(Index(tuple(scalar_terms), index.const))
        text = " + ".join(vectors)
        if stride != 0:
            step = f'iota({self.lanes}, "int64")'
            step = step if stride == 1 else f"{step} * {self.names.size(stride)}"
            text = f"{text} + {step}" if text else step
        text = f"{text} + i64({base})" if text else f"splat(i64({base}), {self.lanes})"
        return self.define(("index", index, self.count), text, True, loop, "int64")

    # ------------------------------------------------------------ expressions

    def write(self, expr: Expr) -> Term:
        if isinstance(expr, Load) and expr.buffer in self.values and expr.mask is None:
            value = self.values[expr.buffer]
            return value() if callable(value) else value
        key = (expr, self.count)
        for scope in (self.row, self.line, self.loop):
            if scope is not None and key in scope.known:
                return scope.known[key]
        if isinstance(expr, Constant):
            return Term(constant_text(expr.value, expr.dtype, self.names), False, False, expr.dtype)
        if isinstance(expr, IndexValue):
            return self.write_index(expr, key)
        if isinstance(expr, Load):
            return self.write_load(expr, key)
        assert isinstance(expr, Apply)
        return self.write_apply(expr, key)

    def write_index(self, expr: IndexValue, key: Any) -> Term:
        vector, loop = self.depends(expr.index)
        terms = [self.write(v.expr) for v, _ in expr.index.values()]
        if vector or any(t.vector for t in terms):
            return self.index_vector(expr.index)
        loop = loop or any(t.loop for t in terms)
        return self.define(key, f"i64({self.offset_text(expr.index)})", False, loop, "int64")

    def write_load(self, expr: Load, key: Any) -> Term:
        pointer = self.names.pointer(expr.buffer, self.dtypes[expr.buffer])
        vector, loop = self.depends(expr.index)
        data = [self.write(v.expr) for v, _ in expr.index.values()]
        mask = None if expr.mask is None else self.write(expr.mask)
        loop = loop or any(t.loop for t in data) or (mask is not None and mask.loop)
        lanes = vector or any(t.vector for t in data) or (mask is not None and mask.vector)
        if not lanes:
            offset = self.offset_text(expr.index)
            text = f"load({pointer}, {offset})"
            if mask is not None:
                text = f"load_if({pointer}, {offset}, {mask.text})"
        else:
            pairs = None if any(t.vector for t in data) else self.pair_load(expr, mask, loop)
            text = pairs or self.vector_load(pointer, expr.index, data, mask)
        return self.define(key, text, lanes, loop, expr.dtype)

    def vector_load(self, pointer: str, index: Index, data: list[Term], mask: Term | None) -> str:
        stride = index.coefficient(self.vector) if self.vector else 0
        valid = self.valid_mask(mask)
        if any(t.vector for t in data) or (stride != 1 and mask is not None) or stride == 0:
            near = self.near_gather(pointer, index)
            if near is not None:
                return f"gather({near}{f', {valid}' if valid else ''})"
            where = self.index_vector(index).text
            return f"gather({pointer}, {where}{f', {valid}' if valid else ''})"
        offset = self.offset_text(index)
        if stride == 1 and mask is not None:
            return f"load_masked({pointer}, {offset}, {self.lanes}, {valid})"
        count = "" if self.count is None else f", {self.count}"
        if stride == 1:
            return f"load({pointer}, {offset}, {self.lanes}{count})"
        return f"load_strided({pointer}, {offset}, {self.names.size(stride)}, {self.lanes}{count})"

    def pair_load(self, expr: Load, mask: Term | None, loop: bool) -> str | None:
        """Every second element: whole pairs side by side, of which one half is kept; a gather takes many times longer.

        None unless every pair begins at an even place of a buffer that holds nothing but whole pairs.
        """
        index, dtype = expr.index, self.dtypes[expr.buffer]
        steps = [coefficient for _, coefficient in index.terms]
        even = all(isinstance(step, int) and step % 2 == 0 for step in steps) and isinstance(index.const, int)
        if not even or index.coefficient(self.vector or "") != 2 or expr.buffer not in self.even:
            return None
        if dtype not in PAIRS:
            return None
        pair, halves = PAIRS[dtype]
        pointer = self.names.pair_pointer(expr.buffer, dtype, pair)
        terms = tuple((atom, step // 2) for atom, step in index.terms)  # pyright: ignore
        place = Index(terms, index.const // 2)  # pyright: ignore
        valid = self.valid_mask(mask)
        if mask is not None:
            text = f"load_masked({pointer}, {self.offset_text(place)}, {self.lanes}, {valid})"
        else:
            count = "" if self.count is None else f", {self.count}"
            text = f"load({pointer}, {self.offset_text(place)}, {self.lanes}{count})"
        both = self.define(("pairs", expr.buffer, place, mask, self.count), text, True, loop, pair)
        return halves[index.const % 2].format(both.text)  # pyright: ignore

    def near_gather(self, pointer: str, index: Index) -> str | None:
        """Pointer and int32 index of a gather by int32 data from a place known for all lanes: half as many registers
        as with int64. None where the index is of another kind."""
        narrow = [
            atom.expr.args[0]
            for atom, coefficient in index.values()
            if coefficient == 1
            and isinstance(atom.expr, Apply)
            and atom.expr.op == "cast"
            and atom.expr.args[0].dtype == "int32"
            and self.write(atom.expr.args[0]).vector
        ]
        if len(narrow) != 1 or (self.vector is not None and index.coefficient(self.vector) != 0):
            return None
        rest = Index(tuple(t for t in index.terms if not is_cast_of(t[0], narrow[0])), index.const)
        if any(self.write(value.expr).vector for value, _ in rest.values()):
            return None
        return f"offset_pointer({pointer}, {self.offset_text(rest)}), {self.write(narrow[0]).text}"

    def valid_mask(self, mask: Term | None) -> str | None:
        """Text of the mask of lanes that may be touched."""
        parts = []
        if mask is not None:
            parts.append(mask.text if mask.vector else f"splat({mask.text}, {self.lanes})")
        if self.count is not None:
            parts.append(f"lane_mask({self.count}, {self.lanes})")
        return " & ".join(parts) or None

    def as_vector(self, term: Term) -> str:
        return term.text if term.vector else f"splat({term.text}, {self.lanes})"

    def philox_word(self, index: Expr) -> str:
        """The word for these elements: lanes side by side share the counter's blocks, a quarter of the work."""
        if not isinstance(index, IndexValue) or index.index.values() or self.vector is None or self.lanes < 8:
            return "philox_uniform"
        beside = index.index.coefficient(self.vector) == 1
        return "philox_uniform_consecutive" if beside else "philox_uniform"

    def write_apply(self, expr: Apply, key: Any) -> Term:
        args = [self.write(a) for a in expr.args]
        vector = any(a.vector for a in args)
        loop = any(a.loop for a in args)
        if expr.op == "cast":
            return self.define(key, f'cast({args[0].text}, "{expr.dtype}")', vector, loop, expr.dtype)
        if expr.op == "philox_uniform":
            word = self.philox_word(expr.args[1]) if vector else "philox_uniform_scalar"
            return self.define(key, f"{word}({args[0].text}, {args[1].text})", vector, loop, expr.dtype)
        code = OPS[expr.op].code
        if expr.op == "reciprocal":
            one = constant_text(1.0, expr.dtype, self.names)
            code = f"{one} / {{0}}"
        if expr.op in ("logical_not", "bitwise_not") and not vector and args[0].dtype == "bool":
            code = "not {0}"
        if expr.op == "where" and not vector:
            code = "where({0}, {1}, {2})"
        plain = code in OPERATORS or dtype_kind(expr.dtype) == "bool"
        texts = [a.text if plain or not vector else self.as_vector(a) for a in args]
        if plain and vector and not args[0].vector:  # a vector first: scalar operators stay scalar's own
            texts[0] = self.as_vector(args[0])
        return self.define(key, code.format(*texts), vector, loop, expr.dtype)


def is_cast_of(atom: Any, expr: Expr) -> bool:
    """Whether an atom of an index is the data `expr`, widened."""
    return isinstance(atom, Value) and isinstance(atom.expr, Apply) and atom.expr.args == (expr,)
