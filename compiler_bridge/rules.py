"""Rewrite rules on scalar expressions: each `before -> after`, and why it holds.

They remove what lowering and inlining leave behind: conditions that are true on the whole loop, indices that
turn out to be affine. Nothing here changes a floating-point result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from compiler_bridge.ir import (
    Apply,
    Constant,
    Contract,
    Expr,
    Index,
    IndexValue,
    Load,
    Map,
    Reduce,
    Scatter,
    Size,
    Value,
    all_axes,
    axis_index,
    expr_axes,
    map_expr,
)
from compiler_bridge.ops import reduce_identity

Extents = Mapping[str, Size]
TRUE, FALSE = Constant("bool", True), Constant("bool", False)


def index_range(index: Index, extents: Extents) -> tuple[int, int] | None:
    """Smallest and largest value of an affine index; None when it depends on data or unknown sizes."""
    if index.values() or not isinstance(index.const, int):
        return None
    low = high = index.const
    for axis, coefficient in index.axes().items():
        extent = extents.get(axis)
        if not isinstance(extent, int) or not isinstance(coefficient, int) or extent < 1:
            return None
        last = coefficient * (extent - 1)
        low, high = low + min(last, 0), high + max(last, 0)
    return low, high


def as_index(expr: Expr) -> Index | None:
    """The expression as an affine index."""
    if isinstance(expr, IndexValue):
        return expr.index
    if isinstance(expr, Constant) and expr.dtype == "int64" and not isinstance(expr.value, float):
        return Index((), expr.value)
    return None


def fold_index_arithmetic(expr: Apply, extents: Extents) -> Expr | None:
    """index + c -> index: sums and products of affine int64 indices are affine (int64 wraps nowhere here)."""
    if expr.dtype != "int64" or expr.op not in ("add", "sub", "mul"):
        return None
    a, b = (as_index(arg) for arg in expr.args)
    if (
        a is None
        or b is None
        or not (isinstance(expr.args[0], IndexValue) or isinstance(expr.args[1], IndexValue))
    ):
        return None
    if expr.op == "mul":
        if not b.terms:
            return IndexValue("int64", a.scaled(b.const))
        return IndexValue("int64", b.scaled(a.const)) if not a.terms else None
    return IndexValue("int64", a + (b if expr.op == "add" else b.scaled(-1)))


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


def fold_floor_division(expr: Apply, extents: Extents) -> Expr | None:
    """7 // 2 -> 3, for int64"""
    if expr.op != "floor_divide" or expr.dtype != "int64":
        return None
    a, b = (as_index(arg) for arg in expr.args)
    if (
        a is None
        or b is None
        or a.terms
        or b.terms
        or not isinstance(a.const, int)
        or not isinstance(b.const, int)
    ):
        return None
    return Constant("int64", a.const // b.const) if b.const else None


def fold_comparison(expr: Apply, extents: Extents) -> Expr | None:
    """index < c -> True or False, when it is the same at every point of the loops."""
    if expr.op not in COMPARE or expr.args[0].dtype != "int64":
        return None
    a, b = (as_index(arg) for arg in expr.args)
    if a is None or b is None:
        return None
    bounds = index_range(a + b.scaled(-1), extents)
    if bounds is None:
        return None
    outcomes = {COMPARE[expr.op](bound, 0) for bound in bounds}
    if len(outcomes) > 1:
        return None
    return TRUE if outcomes.pop() else FALSE


def fold_logic(expr: Apply, extents: Extents) -> Expr | None:
    """True & x -> x;  False & x -> False;  False | x -> x;  where(True, a, b) -> a;  where(c, a, a) -> a"""
    args = expr.args
    if expr.op == "where":
        if args[0] in (TRUE, FALSE):
            return args[1] if args[0] == TRUE else args[2]
        return args[1] if args[1] == args[2] else None
    if expr.dtype != "bool" or expr.op not in ("bitwise_and", "bitwise_or"):
        return None
    neutral, absorbing = (TRUE, FALSE) if expr.op == "bitwise_and" else (FALSE, TRUE)
    for this, other in (args, args[::-1]):
        if this == neutral:
            return other
        if this == absorbing:
            return absorbing
    return args[0] if args[0] == args[1] else None


def fold_not(expr: Apply, extents: Extents) -> Expr | None:
    """not True -> False;  not False -> True"""
    if expr.op != "logical_not" or expr.args[0] not in (TRUE, FALSE):
        return None
    return FALSE if expr.args[0] == TRUE else TRUE


def fold_cast(expr: Apply, extents: Extents) -> Expr | None:
    """cast(x) -> x when x has the dtype already, or had it before it was widened to int64."""
    if expr.op != "cast":
        return None
    inner = expr.args[0]
    if inner.dtype == expr.dtype:
        return inner
    if isinstance(inner, Apply) and inner.op == "cast" and inner.dtype == "int64" and expr.dtype == "int32":
        return inner.args[0] if inner.args[0].dtype == "int32" else None
    return None


RULES = (fold_index_arithmetic, fold_floor_division, fold_comparison, fold_logic, fold_not, fold_cast)


def flatten_index(index: Index) -> Index:
    """Value(affine index) inside an index -> its terms."""
    result = Index((), index.const)
    for atom, coefficient in index.terms:
        inner = as_index(atom.expr) if isinstance(atom, Value) else None
        if inner is not None:
            result = result + inner.scaled(coefficient)
        else:
            result = result + Index(((atom, coefficient),), 0)
    return result


def simplify(expr: Expr, extents: Extents) -> Expr:
    """Apply every rule, innermost expressions first."""

    def load(node: Load) -> Expr:
        if node.mask == TRUE:
            return replace(node, mask=None, shifts=())
        if node.mask == FALSE:
            return Constant(
                node.dtype, False if node.dtype == "bool" else 0.0 if "float" in node.dtype else 0
            )
        return node

    def apply_rules(node: Apply) -> Expr:
        for rule in RULES:
            result = rule(node, extents)
            if result is not None:
                return result
        return node

    return map_expr(expr, flatten_index, load, apply_rules)


def one_hot_choice(op: str, value: Expr) -> tuple[Index, Expr, Expr] | None:
    """(index, position, a) of where(index == position, a, 0) under a sum, else None."""
    if op != "sum" or not isinstance(value, Apply) or value.op != "where":
        return None
    condition, chosen, other = value.args
    if not isinstance(condition, Apply) or condition.op != "eq":
        return None
    if not isinstance(other, Constant) or other.value != 0:
        return None
    for this, position in (condition.args, condition.args[::-1]):
        if isinstance(this, IndexValue) and not this.index.values():
            return this.index, position, chosen
    return None


def choose_one_hot(node: Reduce, value: Expr) -> tuple[Reduce, Expr]:
    """sum over k of where(k == t, a, 0) -> where(0 <= t < extent of k, a, 0), if t and a do not depend on k.

    One term of the sum is a, the others are 0. (A sum of +0 and -0 is +0, its only term -0 stays -0.)
    """
    choice = one_hot_choice(node.op, value)
    if choice is None:
        return node, value
    index, position, chosen = choice
    axis = next((a for a in node.reduce_axes if index == axis_index(a.name)), None)
    if axis is None or axis.name in expr_axes(position) | expr_axes(chosen):
        return node, value
    position = position if position.dtype == "int64" else Apply("int64", "cast", (position,))
    above = Apply("bool", "ge", (position, Constant("int64", 0)))
    below = Apply("bool", "lt", (position, Constant("int64", axis.extent)))
    inside = Apply("bool", "bitwise_and", (above, below))
    value = Apply(
        value.dtype, "where", (inside, chosen, Constant(value.dtype, 0.0 if "float" in value.dtype else 0))
    )
    return replace(node, reduce_axes=tuple(a for a in node.reduce_axes if a is not axis)), value


def simplify_node(node: Any) -> Any:
    """A loop node with simplified expressions."""
    extents = {axis.name: axis.extent for axis in all_axes(node)}
    if isinstance(node, Contract):
        return replace(node, lhs=simplify(node.lhs, extents), rhs=simplify(node.rhs, extents))
    if isinstance(node, Scatter):
        terms = [
            (Value(simplify(a.expr, extents)) if isinstance(a, Value) else a, c) for a, c in node.store.terms
        ]
        return replace(node, value=simplify(node.value, extents), store=Index(tuple(terms), node.store.const))
    value = simplify(node.value, extents)
    if isinstance(node, Reduce):
        node, value = choose_one_hot(node, value)
    if isinstance(node, Reduce) and node.op == "any" and value == FALSE:
        return Map(node.output, node.origin, node.axes, node.store, FALSE)
    if isinstance(node, Reduce) and not node.reduce_axes:  # over dimensions of size 1: the value itself
        return Map(node.output, node.origin, node.axes, node.store, value)
    if isinstance(node, Reduce) and any(axis.extent == 0 for axis in node.reduce_axes):
        identity = Constant(value.dtype, reduce_identity(node.op, value.dtype))
        return Map(node.output, node.origin, node.axes, node.store, identity)
    return replace(node, value=value)
