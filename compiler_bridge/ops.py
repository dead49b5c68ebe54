"""The table of scalar operations: one row each.

A row gives the name used in the IR, how many arguments, the reference (a torch elementary operation: what
the interpreter runs), the result's dtype rule, the expression in the kernel language, a cost in rough
arithmetic operations an element (for fusion decisions) and the ATen operations that are exactly this row.
To add an operation: add a row; its lowering, interpreter, code and tests (`test_ops.py`) come from it.

dtype rules: "same" as the (promoted) arguments; "float": integers become float32; "bool".
domain: the interval its generated test draws from. code: {0} {1} {2} are the arguments, {one} a typed 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from compiler_bridge.random_reference import philox_uniform


@dataclass(frozen=True)
class ScalarOp:
    name: str
    arity: int
    reference: Callable[..., torch.Tensor]
    result: str
    code: str
    cost: int = 1
    aten: tuple[str, ...] = ()
    domain: tuple[float, float] = (-4.0, 4.0)
    kinds: str = "fi"  # argument kinds it takes: f float, i integer, b bool


def unary(name: str, code: str = "", cost: int = 12, result: str = "float", **more: Any) -> ScalarOp:
    reference = more.pop("reference", None) or getattr(torch, name)
    aten = more.pop("aten", (name,))
    more.setdefault("kinds", "f" if result == "float" else "fi")
    return ScalarOp(name, 1, reference, result, code or f"{name}({{0}})", cost, aten, **more)


def binary(name: str, code: str, result: str = "same", cost: int = 1, **more: Any) -> ScalarOp:
    reference = more.pop("reference", None) or getattr(torch, name)
    aten = more.pop("aten", (name,))
    return ScalarOp(name, 2, reference, result, code, cost, aten, **more)


def rounding(name: str, **more: Any) -> ScalarOp:
    return unary(name, cost=1, result="same", kinds="f", **more)


def storage_cast(dtype: torch.dtype, kinds: str) -> ScalarOp:
    """What a value becomes in memory of `dtype`, still held in its compute dtype: rounded or wrapped."""
    name = str(dtype).removeprefix("torch.")

    def reference(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype).to(x.dtype)

    return unary(f"to_{name}", f'cast({{0}}, "{name}")', 3, "same", reference=reference, aten=(), kinds=kinds)


def compare(name: str, sign: str) -> ScalarOp:
    return binary(name, f"{{0}} {sign} {{1}}", "bool", kinds="fi")


def bitwise(name: str, sign: str) -> ScalarOp:
    return binary(name, f"{{0}} {sign} {{1}}", kinds="ib")


_ROWS = [
    # exponentials and logarithms
    unary("exp"),
    unary("exp2"),
    unary("expm1", cost=16),
    unary("sigmoid", cost=16),
    unary("log", domain=(1e-3, 8.0)),
    unary("log2", domain=(1e-3, 8.0)),
    unary("log10", domain=(1e-3, 8.0)),
    unary("log1p", domain=(-0.9, 8.0), cost=16),
    # trigonometric, hyperbolic, special
    unary("sin"),
    unary("cos"),
    unary("tan", domain=(-1.5, 1.5), cost=20),
    unary("asin", domain=(-1, 1), cost=20),
    unary("acos", domain=(-1, 1), cost=20),
    unary("atan", cost=20),
    unary("sinh", cost=20),
    unary("cosh", cost=20),
    unary("tanh", cost=16),
    unary("asinh", cost=20),
    unary("acosh", domain=(1, 8), cost=20),
    unary("atanh", domain=(-0.99, 0.99), cost=20),
    unary("erf", cost=16),
    unary("erfc", cost=20),
    unary("erfinv", domain=(-0.99, 0.99), cost=20),
    # roots, rounding, sign
    unary("sqrt", domain=(0, 8), cost=4),
    unary("rsqrt", domain=(1e-3, 8), cost=5),
    unary("reciprocal", "{one} / {0}", cost=3, domain=(0.1, 8)),
    rounding("floor"),
    rounding("ceil"),
    rounding("trunc", aten=("trunc", "fix")),
    rounding("rint", reference=torch.round, aten=("round",)),
    rounding("fabs", reference=torch.abs, aten=("abs",)),
    unary("neg", "-{0}", cost=1, result="same"),
    storage_cast(torch.bfloat16, "f"),
    storage_cast(torch.float16, "f"),
    storage_cast(torch.int8, "i"),
    storage_cast(torch.uint8, "i"),
    storage_cast(torch.int16, "i"),
    # predicates
    unary("isnan", "{0} != {0}", cost=1, result="bool", kinds="f"),
    # inf - inf is NaN, and NaN equals nothing
    unary("isinf", "({0} == {0}) & ({0} - {0} != {0} - {0})", cost=2, result="bool", kinds="f"),
    unary("isfinite", "{0} - {0} == {0} - {0}", cost=2, result="bool", kinds="f"),
    unary("logical_not", "~{0}", cost=1, result="bool", kinds="b"),
    unary("bitwise_not", "~{0}", cost=1, result="same", kinds="ib"),
    # arithmetic
    binary("add", "{0} + {1}"),
    binary("sub", "{0} - {1}"),
    binary("mul", "{0} * {1}"),
    binary("div", "{0} / {1}", "float", 3, kinds="f", domain=(0.1, 4)),
    binary("pow", "pow({0}, {1})", cost=30, aten=(), domain=(0.1, 4), kinds="f"),
    binary("atan2", "atan2({0}, {1})", "float", 24, kinds="f"),
    binary("maximum", "maximum({0}, {1})"),
    binary("minimum", "minimum({0}, {1})"),
    binary("floor_divide", "{0} // {1}", cost=12, aten=(), domain=(1, 9), kinds="i"),
    binary("remainder", "{0} % {1}", cost=6, aten=(), domain=(1, 9), kinds="i"),
    binary("copysign", "copysign({0}, {1})", "float", kinds="f"),
    binary("left_shift", "{0} << {1}", aten=(), domain=(0, 9), kinds="i", reference=torch.bitwise_left_shift),
    binary(
        "right_shift", "{0} >> {1}", aten=(), domain=(0, 9), kinds="i", reference=torch.bitwise_right_shift
    ),
    # comparison and logic
    compare("eq", "=="),
    compare("ne", "!="),
    compare("lt", "<"),
    compare("le", "<="),
    compare("gt", ">"),
    compare("ge", ">="),
    bitwise("bitwise_and", "&"),
    bitwise("bitwise_or", "|"),
    bitwise("bitwise_xor", "^"),
    ScalarOp("where", 3, torch.where, "same", "where({0}, {1}, {2})", 1, (), kinds="fib"),
    # random numbers: float32 in [0, 1) from (seed, position)
    ScalarOp("philox_uniform", 2, philox_uniform, "float32", "philox_uniform({0}, {1})", 40, (), kinds="i"),
]

SCATTERS = {"set": "{1}", "add": "{0} + {1}", "max": "maximum({0}, {1})", "min": "minimum({0}, {1})"}
"""How a Scatter puts a value {1} where {0} is."""

OPS: dict[str, ScalarOp] = {row.name: row for row in _ROWS}

# ATen operation name -> row, for the operations whose lowering is nothing but the row
ATEN_POINTWISE: dict[str, ScalarOp] = {name: row for row in OPS.values() for name in row.aten}


@dataclass(frozen=True)
class ReduceOp:
    """A reduction: identity by dtype kind, combination, and how a vector becomes a scalar."""

    name: str
    reference: Callable[..., Any]
    identity: dict[str, Any]  # "float", "int", "bool"
    combine: str
    horizontal: str


INFINITY = float("inf")
MAXIMUM, MINIMUM = {"float": -INFINITY, "int": "min"}, {"float": INFINITY, "int": "max"}
REDUCTIONS: dict[str, ReduceOp] = {
    row.name: row
    for row in [
        ReduceOp("sum", torch.sum, {"float": 0.0, "int": 0}, "{0} + {1}", "reduce_add({0})"),
        ReduceOp("prod", torch.prod, {"float": 1.0, "int": 1}, "{0} * {1}", "reduce_mul({0})"),
        ReduceOp("max", torch.amax, MAXIMUM, "maximum({0}, {1})", "reduce_max({0})"),
        ReduceOp("min", torch.amin, MINIMUM, "minimum({0}, {1})", "reduce_min({0})"),
        ReduceOp("any", torch.any, {"bool": False}, "{0} | {1}", "reduce_any({0})"),
        ReduceOp("all", torch.all, {"bool": True}, "{0} & {1}", "reduce_all({0})"),
    ]
}

SCANS: dict[str, Callable[..., torch.Tensor]] = {
    "sum": torch.cumsum,
    "prod": torch.cumprod,
    "max": lambda rows, dim: torch.cummax(rows, dim).values,
    "min": lambda rows, dim: torch.cummin(rows, dim).values,
}
"""Reductions that a Scan may run, with what its running totals are."""

COMPUTE_DTYPE = {
    "float16": "float32",
    "bfloat16": "float32",
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
}
FLOATS = ("float32", "float64")
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def compute_dtype(dtype: str) -> str:
    """The dtype in which values stored as `dtype` are computed."""
    return COMPUTE_DTYPE.get(dtype, dtype)


def dtype_kind(dtype: str) -> str:
    if dtype == "bool":
        return "bool"
    return "float" if "float" in dtype else "int"


def reduce_identity(op: str, dtype: str) -> Any:
    value = REDUCTIONS[op].identity[dtype_kind(dtype)]
    if value in ("min", "max"):
        info = torch.iinfo(DTYPES[dtype])
        return info.min if value == "min" else info.max
    return value
