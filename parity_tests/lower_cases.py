"""Small functions, one row for each thing a lowering has to get right.

A row: name, function, inputs (a function that draws them), and the ATen operations that stay Externs (most
rows have none), with fixed sizes or only with symbolic ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class LowerCase:
    name: str
    function: Callable[..., Any]
    inputs: Callable[[], tuple]
    externs: tuple[str, ...] = ()
    symbolic_externs: tuple[str, ...] = ()


ROWS: list[LowerCase] = []


def row(name: str, function: Callable[..., Any], *inputs: Any, externs: str = "", symbolic: str = "") -> None:
    """inputs: tensors (used as they are), or functions that draw one; symbolic: Externs of symbolic sizes only."""

    def draw() -> tuple:
        return tuple(x() if callable(x) and not isinstance(x, Tensor) else x for x in inputs)

    ROWS.append(LowerCase(name, function, draw, tuple(externs.split()), tuple(symbolic.split())))


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape).to(dtype)


def bools(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(shape) < 0.5


def ints(high: int, *shape: int, low: int = 0, dtype: torch.dtype = torch.int64) -> Callable[[], Tensor]:
    return lambda: torch.randint(low, high, shape).to(dtype)


SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.5, 1e-40, float("inf"), -float("inf"), float("nan")])
HALF = (torch.float16, torch.bfloat16)


# ---------------------------------------------------------------- pointwise

row("add-broadcast", lambda x, y: x + y, floats(3, 1, 5), floats(4, 1))
row("add-alpha", lambda x, y: torch.add(x, y, alpha=3), floats(5), floats(5))
row("add-alpha-int", lambda x, y: torch.sub(x, y, alpha=2), ints(9, 5), ints(9, 5))
row("add-scalar", lambda x: x + 2.5, floats(3, 4))
row("add-int-float", lambda x, y: x + y, ints(9, 4), floats(4))
row("add-int-scalar-float", lambda x: x * 0.5 + 1, ints(9, 4))
row("add-half-float", lambda x, y: x + y, floats(4, dtype=torch.float16), floats(4))
row("add-0d", lambda x, y: x + y, floats(3), floats())
row("add-0d-double", lambda x, y: x * y, floats(3), lambda: torch.tensor(1.5, dtype=torch.float64))
row("add-bool", lambda x, y: (x + y, x * y, x ^ y, x & y, ~x, x != y, x == y, x < y), bools(9), bools(9))
row("add-empty", lambda x, y: x + y, floats(0, 3), floats(3))
row("int8-wraps", lambda x: x + x, lambda: torch.tensor([100, -100, 3], dtype=torch.int8))
row("uint8-wraps", lambda x: (x - 7, x * 3, -x), lambda: torch.tensor([1, 200, 9], dtype=torch.uint8))
row("int16-int64", lambda x, y: x * y, ints(99, 5, dtype=torch.int16), ints(99, 5))
row("div-int", lambda x, y: x / y, ints(9, 5), ints(9, 5, low=1))
row("div-float", lambda x, y: x / y, floats(5), floats(5))
row("div-trunc-float", lambda x: torch.div(x, 0.3, rounding_mode="trunc"), floats(9))
row("div-floor-int", lambda x: torch.div(x, 3, rounding_mode="floor"), ints(20, 9, low=-20))
row("div-trunc-int", lambda x: torch.div(x, 3, rounding_mode="trunc"), ints(20, 9, low=-20))
row("div-trunc-negative", lambda x: torch.div(x, -3, rounding_mode="trunc"), ints(20, 9, low=-20))
row("div-floor-negative", lambda x: x // -3, ints(20, 9, low=-20))
row("div-minus-one", lambda x: (x // -1, x % -1), ints(20, 9, low=-20))
row("remainder-int", lambda x: (x % 7, x % -7, torch.fmod(x, 5), torch.fmod(x, -5)), ints(40, 30, low=-40))
row("remainder-int8", lambda x: x % 7, ints(40, 9, low=-40, dtype=torch.int8))
row("remainder-float", lambda x: x % 0.7, floats(9), externs="remainder")
row("remainder-tensor", lambda x, y: x % y, ints(9, 5), ints(9, 5, low=1), externs="remainder")
row("floor-divide-tensor", lambda x, y: x // y, ints(9, 5), ints(9, 5, low=1), externs="floor_divide")
row("pow", lambda x: (x**2, x**3, x**4, x**0, x**-1, x**-2, x**1), floats(9))
row("pow-fraction", lambda x: (x**0.5, x**-0.5, x**1.7), lambda: torch.rand(9) + 0.1)
row("pow-tensors", lambda x, y: x**y, lambda: torch.rand(9) + 0.1, floats(9))
row("pow-base", lambda x: 2.0**x, floats(9))
row("pow-int", lambda x: (x**2, x**3), ints(9, 9))
row("rsub", lambda x: (1 - x, torch.rsub(x, 3.0, alpha=2)), floats(5))
row("where", lambda c, x, y: torch.where(c, x, y), bools(4, 1), floats(3), floats(4, 3))
row("where-scalar", lambda c, x: torch.where(c, x, 0.0), bools(4), floats(4))
row("where-promote", lambda c, x, y: torch.where(c, x, y), bools(4), floats(4), ints(9, 4))
row("masked-fill", lambda x, m: x.masked_fill(m, -1e9), floats(4, 3), bools(3))
row("masked-fill-tensor", lambda x, m, v: x.masked_fill(m, v), floats(4, 3), bools(4, 3), floats())
row("clamp", lambda x: (x.clamp(-1, 1), x.clamp(min=0.5), x.clamp(max=0.5), x.clamp_min(0.1)), floats(9))
row("clamp-tensors", lambda x, a, b: x.clamp(a, b), floats(9), floats(9), floats(9))
row("clamp-int", lambda x: x.clamp(2, 5), ints(9, 9))
row("clamp-max", lambda x: (x.clamp_max(0.25), torch.minimum(x, -x), torch.maximum(x, -x)), floats(9))
row("relu", lambda x: (F.relu(x), torch.sign(x), torch.sgn(x), x.abs()), lambda: SPECIAL)
row("rounding", lambda x: (x.floor(), x.ceil(), x.trunc(), x.round()), lambda: torch.randn(20) * 3)
row("rounding-int", lambda x: (x.floor(), x.round(), x.abs(), torch.sign(x)), ints(9, 9, low=-9))
row("round-decimals", lambda x: torch.round(x, decimals=1), floats(9), externs="round")
row("predicates", lambda x: (x.isnan(), x.isinf(), torch.isfinite(x), x > 0, x.bool()), lambda: SPECIAL)
row("predicates-int", lambda x: (x.isnan(), x.isinf(), torch.isfinite(x)), ints(9, 9))
row("logical", lambda x, y: (torch.logical_and(x, y), torch.logical_or(x, y), torch.logical_not(x),
                             torch.logical_xor(x, y)), floats(9), ints(2, 9))  # fmt: skip
row("bitwise", lambda x, y: (x & y, x | y, x ^ y, ~x), ints(99, 9), ints(99, 9))
row("shift", lambda x: (x << 3, x >> 2), ints(99, 9, low=-99))
row("shift-tensor", lambda x, y: x << y, ints(99, 9), ints(9, 9), externs="__lshift__")
row("compare-promote", lambda x, y: (x < y, x == 2.5, x >= 1, y <= 3), ints(9, 9), floats(9))
row("compare-bfloat16", lambda x: (x == 0.1, x < 0.1), lambda: torch.tensor([0.1, 0.2]).bfloat16())
row("square", lambda x: (torch.square(x), torch.reciprocal(x), torch.rsqrt(x.abs())), floats(9))
row("addcmul", lambda x, a, b: (torch.addcmul(x, a, b, value=2), torch.addcdiv(x, a, b)), *[floats(9)] * 3)
row(
    "lerp",
    lambda a, b, w: (torch.lerp(a, b, 0.3), torch.lerp(a, b, 0.7), torch.lerp(a, b, w)),
    *[floats(9)] * 3,
)
row("copysign", lambda x, y: (torch.copysign(x, y), torch.atan2(x, y)), floats(9), floats(9))
row("casts", lambda x: (x.double(), x.half(), x.bfloat16(), x.int(), x.long(), x.bool(), x.char()), floats(9))
row("casts-from-int", lambda x: (x.float(), x.half(), x.bool(), x.byte(), x.short()), ints(99, 9, low=-99))
row("casts-from-bool", lambda x: (x.float(), x.long(), x.half()), bools(9))
row("half-chain", lambda x: torch.exp(x * 2 + 1), floats(20, dtype=torch.bfloat16))
row("clone", lambda x: (x.clone(), x.t().contiguous(), x.t().clone()), floats(3, 4))
row("silu-gelu", lambda x: x * torch.sigmoid(x) + 0.5 * x * (1 + torch.erf(x * 0.7)), floats(9))

# ---------------------------------------------------------------- strides and views

row("transposed", lambda x: x + 1, lambda: torch.randn(4, 3).t())
row(
    "channels-last",
    lambda x: x * 2,
    lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
)
row("expanded-input", lambda x: x + 1, lambda: torch.randn(4, 1).expand(4, 3))
row("offset-input", lambda x: (x[1:] * 2, x[0]), lambda: torch.randn(6, 4)[2:, 1:3])
row("stepped-input", lambda x: x.sum(1), lambda: torch.randn(6, 8)[::2, ::3])
row("views", lambda x: x.view(2, 6).t()[1:, None].expand(5, 3, 2).permute(2, 0, 1) + 1, floats(3, 4))
row("view-output", lambda x: (x + 1).t()[1:], floats(3, 4))
row("input-view-output", lambda x: (x.t(), x[1]), floats(3, 4))
row("input-output", lambda x: (x, x + 1), floats(3))
row("none-output", lambda x: [x * 2, None], floats(3))
row("split", lambda x: [p * 2 for p in x.split(2, 1)] + list(x.unbind(0)) + list(x.chunk(2)), floats(3, 5))
row("split-sizes", lambda x: [p + 1 for p in aten.split_with_sizes(x, [1, 4], 1)], floats(3, 5))
row("unsafe-split", lambda x: [p + 1 for p in aten.unsafe_split(x[1:], 2, 1)], floats(4, 4))
row("unsafe-view", lambda x: aten._unsafe_view(x[1:], [6]) + 1, floats(3, 3))
row("diagonal", lambda x: x.diagonal() + x.as_strided((3,), (1,), 1), floats(3, 3))
row("unfold", lambda x: x.unfold(0, 3, 2).sum(1), floats(9))
row("view-dtype", lambda x: x.view(torch.int32) + 1, floats(4), externs="view_copy")
row("complex", lambda x: torch.view_as_real(torch.view_as_complex(x) * 2) + 1, floats(4, 2),
    externs="view_as_complex_copy mul view_as_real_copy")  # fmt: skip
row("reshape-copy", lambda x: x.t().reshape(-1) * 2, floats(3, 4))
row("constant", lambda x: x + torch.tensor([1.0, 2.0, 3.0]), floats(2, 3))
row(
    "squeeze",
    lambda x: (x.squeeze(1) + x.unsqueeze(0).squeeze(), x.squeeze(1).expand(2, 3, 4)),
    floats(3, 1, 4),
)

# ---------------------------------------------------------------- moving pieces

row("cat", lambda x, y: torch.cat([x, y, x], 1), floats(3, 2), floats(3, 4))
row("cat-promote", lambda x, y: torch.cat([x, y]), floats(3), ints(9, 2))
row("cat-one", lambda x: torch.cat([x], 0), floats(3))
row("cat-empty", lambda x, y: torch.cat([x, y], 1), floats(3, 0), floats(3, 2))
row("cat-legacy-empty", lambda x, y: torch.cat([x, y], 1), floats(0), floats(3, 2))
row("cat-narrow", lambda x, y: torch.cat([x, y], 1), floats(3, 1), floats(3, 0))
row("cat-views", lambda x: torch.cat([x[:, 1:], x[:, :1]], 1).t(), floats(3, 4))
row("stack", lambda x, y: (torch.stack([x, y]), torch.stack([x, y], -1), torch.stack([x, y], 1)),
    floats(3, 2), floats(3, 2))  # fmt: skip
row("pad", lambda x: (F.pad(x, (1, 2)), F.pad(x, (0, 0, 2, 1), value=3.5), F.pad(x, (-1, 1))), floats(3, 4))
row("pad-crop", lambda x: F.pad(x, (-1, -1, 1, -1), value=-1.0), floats(3, 4))
row("pad-int", lambda x: F.pad(x, (1, 1), value=7), ints(9, 3))
row("pad-bool", lambda x: F.pad(x, (1, 1), value=True), bools(3))
row("slice-backward", lambda g: (aten.slice_backward(g, [6, 4], 0, 2, 5, 1),
                                 aten.slice_backward(g, [3, 9], 1, -5, -1, 1)), floats(3, 4))  # fmt: skip
row("slice-backward-step", lambda g: aten.slice_backward(g, [6, 4], 0, 0, 6, 2), floats(3, 4))  # fmt: skip
row(
    "slice-backward-all", lambda g: aten.slice_backward(g, [3, 4], 0, 0, 9223372036854775807, 1), floats(3, 4)
)
row("select-backward", lambda g: (aten.select_backward(g, [3, 4], 0, 1), aten.select_backward(g, [4, 3], 1, -1)),
    floats(4))  # fmt: skip
row("slice-scatter", lambda x, y: (torch.slice_scatter(x, y, 0, 1, 3), torch.slice_scatter(x, y, 0, -2)),
    floats(4, 3), floats(2, 3))  # fmt: skip
row("slice-scatter-step", lambda x, y: torch.slice_scatter(x, y, 1, 1, 6, 2), floats(3, 7), floats(3, 3))
row("as-strided-scatter", lambda x, y: torch.as_strided_scatter(x, y, (4, 1, 3), (1, 4, 4)),
    floats(3, 4), floats(4, 1, 3))  # fmt: skip
row("as-strided-scatter-flat", lambda x, y: torch.as_strided_scatter(x, y, (4, 3), (1, 4)),
    floats(12), floats(4, 3), symbolic="as_strided_scatter")  # fmt: skip
row("as-strided-scatter-part", lambda x, y: torch.as_strided_scatter(x, y, (2, 2), (4, 1)),
    floats(3, 4), floats(2, 2), externs="as_strided_scatter")  # fmt: skip
# beside a larger temporary, so that the base does not begin where the arena does
row("as-strided-scatter-arena",
    lambda x, y: (lambda large: torch.as_strided_scatter(x * 2, y * 2, (2, 2), (4, 1), 0) + large[3:])(
        torch.cumsum(x.repeat(2, 1), 0)),
    floats(3, 4), floats(2, 2), externs="as_strided_scatter")  # fmt: skip
row("select-scatter", lambda x, y: torch.select_scatter(x, y, 1, -2), floats(4, 3), floats(4))
row("flip", lambda x: (x.flip(0), x.flip(-1, 0)), floats(3, 4))
row("roll", lambda x: (x.roll(1, 0), x.roll((2, -1), (0, 1)), x.roll(4, 1)), floats(3, 4), symbolic="roll")
row("roll-flat", lambda x: x.roll(1), floats(3, 4), externs="roll")
row("repeat", lambda x: (x.repeat(2, 3), x.repeat(2, 1, 1), x.repeat(0, 1)), floats(3, 2))
row("repeat-scalar", lambda x: x.repeat(3), floats())
row("tril", lambda x: (x.tril(), x.triu(1), x.tril(-1)), floats(4, 5))
row("tril-batched-int", lambda x: x.triu(), ints(9, 2, 3, 3))

# ---------------------------------------------------------------- creation

row("full", lambda x: x.new_full((2, 3), 1.5) + torch.full((3,), 2.0) + torch.full_like(x, 3), floats(3))
row(
    "zeros-ones", lambda x: (torch.zeros(3), torch.ones_like(x), x.new_zeros(2, dtype=torch.int64)), floats(3)
)
row("arange", lambda x: (torch.arange(5), torch.arange(2, 9, 3), torch.arange(0, 1, 0.1), torch.arange(3.0)),
    floats(1))  # fmt: skip
row(
    "linspace",
    lambda x: (torch.linspace(0, 1, 7), torch.linspace(3, -2, 4), torch.linspace(1, 2, 1)),
    floats(1),
)
row("eye", lambda x: (torch.eye(3), torch.eye(2, 4), torch.eye(3, dtype=torch.bool)), floats(1))
row("scalar-tensor", lambda x: aten.scalar_tensor(2.5, dtype=torch.float32) * x, floats(3))
row("fill", lambda x, v: (aten.fill(x, 2.0), aten.fill(x, v), aten.zero(x)), floats(3), floats())
row("copy", lambda x, y: aten.copy(x, y), floats(3, 4), ints(9, 4))

# ---------------------------------------------------------------- reductions

row("sum", lambda x: (x.sum(), x.sum(0), x.sum((0, 2), True), x.sum(-1, keepdim=True)), floats(3, 4, 5))
row("sum-int", lambda x: (x.sum(), x.bool().sum(0), x.prod(1)), ints(5, 3, 4, dtype=torch.int32))
row(
    "sum-half",
    lambda x: (x.sum(1), x.mean(1), x.sum(1, dtype=torch.float32)),
    floats(3, 200, dtype=torch.float16),
)
row("sum-0d", lambda x: (x.sum(), x.mean(), x.amax(), x.argmax()), floats())
row("sum-empty", lambda x: (x.sum(1), x.prod(1), x.any(1), x.mean(1)), floats(3, 0))
row("sum-of-none", lambda x: x.sum(1), floats(0, 3))
row("amax", lambda x: (x.amax(1), x.amin((0, 1)), x.max(), x.min()), floats(3, 4))
row("amax-nan", lambda x: (x.amax(), x.amin(), x.argmax(), x.max(0)), lambda: SPECIAL)
row("amax-int-bool", lambda x: (x.amax(0), x.amin(0), (x > 2).amax(0), (x > 2).amin(0)), ints(9, 3, 4))
row("any-all", lambda x: (x.any(), x.all(0), (x > 0).any(1), x.long().all()), floats(3, 4))
row("max-dim", lambda x: (x.max(1), x.min(0, True)), floats(3, 4))
row("max-dim-ties", lambda x: (x.max(1), x.min(1), x.argmax(1), x.argmin(1, True)), ints(3, 5, 6))
row("argmax-flat", lambda x: (x.argmax(), x.argmin()), floats(3, 4))
row("argmax-transposed", lambda x: (x.t().argmax(0), x.t().argmax()), floats(3, 4))
row("argmax-half", lambda x: x.max(1), floats(4, 30, dtype=torch.bfloat16))
row("vector-norm", lambda x: (torch.linalg.vector_norm(x, 2, -1), torch.linalg.vector_norm(x, 1, (0, 1), True),
                              torch.linalg.vector_norm(x, float("inf"))), floats(3, 4))  # fmt: skip
row("dot-mv", lambda m, v: (m.mv(v), v.dot(v)), floats(3, 4), floats(4))
row(
    "softmax",
    lambda x: (x - x.amax(-1, True)).exp() / (x - x.amax(-1, True)).exp().sum(-1, True),
    floats(3, 9),
)

# ---------------------------------------------------------------- running totals

row("cumsum", lambda x: (x.cumsum(1), x.cumsum(0), x.cumsum(-3)), floats(5, 4, 37))
row("cumsum-long", lambda x: (x.cumsum(0), x.t().cumsum(1), x.cumprod(1)), floats(700, 3))
row("cumsum-fused", lambda x: (x.view(3, 8) * 2 + 1).flatten().cumsum(0).exp(), lambda: torch.randn(24) - 1)
row(
    "cumsum-int", lambda x: (x.cumsum(0), x.bool().cumsum(1), x.cumsum(1, dtype=torch.float32)), ints(9, 3, 5)
)
row("cumsum-narrow", lambda x: (x.cumsum(0), x.cumsum(0, dtype=torch.int8), x.int().cumsum(0, dtype=torch.int32),
                                x.cumprod(0, dtype=torch.uint8)), ints(120, 40, dtype=torch.int16))  # fmt: skip
row("cumsum-truncates", lambda x: x.cumsum(0, dtype=torch.int64), lambda: torch.randn(9) * 3)
row("cumsum-half", lambda x: (x.cumsum(1), x.cumsum(0), x.cumsum(1, dtype=torch.float32)),
    floats(17, 90, dtype=torch.bfloat16))  # fmt: skip
row("cumsum-0d", lambda x: (x.cumsum(0), x.cumprod(-1), x.cummax(0)), floats())
row("cumsum-empty", lambda x: (x.cumsum(1), x.cumsum(0), x.cumprod(-1)), floats(0, 3))
row("cumsum-one", lambda x: (x.cumsum(1), x.cumprod(1, dtype=torch.float64)), floats(4, 1))
row("cumsum-strided", lambda x: (x.cumsum(1), x.cumsum(0) * 2), lambda: torch.randn(6, 8)[::2, ::3].t())
row("cumprod", lambda x: (x.cumprod(1), x.cumprod(0)), lambda: torch.rand(4, 21) + 0.5)
row("cummax", lambda x: (x.cummax(0), x.cummin(1), x.cummax(-1)), floats(20, 33))
row("cummax-ties", lambda x: (x.cummax(1), x.cummin(0)), ints(4, 5, 19))
row("cummax-nan", lambda x: (x.cummax(0), x.cummin(0), x[:8].cummax(0)), lambda: SPECIAL)
row("cummax-half", lambda x: x.cummax(1), floats(3, 40, dtype=torch.float16))
row("cummax-bool", lambda x: x.cummax(0), bools(9), externs="cummax")
row("logcumsumexp", lambda x: x.logcumsumexp(1), floats(3, 4), externs="logcumsumexp")

# ---------------------------------------------------------------- data-dependent places

row("embedding", lambda w, i: F.embedding(i, w), floats(7, 3), ints(7, 2, 4))
row("embedding-0d", lambda w, i: F.embedding(i, w), floats(7, 3), ints(7))
row("embedding-int32", lambda w, i: F.embedding(i, w), floats(7, 3), ints(7, 4, dtype=torch.int32))
row("embedding-backward", lambda g, i: (aten.embedding_dense_backward(g, i, 7, -1, False),
                                        aten.embedding_dense_backward(g, i, 7, 2, False)),
    floats(2, 4, 3), ints(7, 2, 4))  # fmt: skip
row("embedding-backward-half", lambda g, i: aten.embedding_dense_backward(g, i, 3, -1, False),
    floats(2, 9, 3, dtype=torch.bfloat16), ints(3, 2, 9))  # fmt: skip
row("index-select", lambda x, i: (x.index_select(0, i), x.index_select(1, i)), floats(4, 3), ints(3, 5))
row("gather", lambda x, i: (x.gather(1, i), x.gather(0, i)), floats(4, 5), ints(4, 3, 2))
row("gather-one", lambda x, i: x.gather(1, i), floats(1, 5), ints(5, 1, 7))
row("index", lambda x, i: (x[i], x[:, i], x[i, i], x[i, :, i]), floats(4, 4, 4), ints(4, 3, low=-4))
row(
    "index-broadcast",
    lambda x, i, j: (x[i, j], x[:, i, j], x[i, :, j]),
    floats(4, 4, 4),
    ints(4, 3, 1),
    ints(4, 2),
)
row("index-0d", lambda x, i: aten.index(x, [None, i]), floats(4, 4), ints(4))
row(
    "index-put",
    lambda x, i, v: torch.index_put(x, (i,), v),
    floats(9, 3),
    lambda: torch.randperm(9)[:4],
    floats(4, 3),
)
row(
    "index-put-add",
    lambda x, i, v: aten.index_put(x, [None, i], v, True),
    floats(3, 4),
    ints(4, 9),
    floats(3, 9),
)
row(
    "index-put-broadcast",
    lambda x, i, v: torch.index_put(x, (i,), v, True),
    floats(3, 4),
    ints(3, 9),
    floats(),
)
row("index-put-separated", lambda x, i, v: aten.index_put(x, [i, None, i], v, True), floats(3, 4, 3), ints(3, 9),
    floats(9, 4))  # fmt: skip
row("index-put-mask", lambda x, v: torch.index_put(x, (x > 0,), v), floats(3, 4), floats())
row(
    "index-put-int",
    lambda x, i: torch.index_put(x, (i,), x[i] * 2),
    ints(9, 5),
    lambda: torch.randperm(5)[:2],
)
row("scatter-add", lambda x, i, v: (x.scatter_add(0, i, v), x.scatter_add(1, i, v)), floats(4, 5), ints(4, 3, 2),
    floats(3, 4))  # fmt: skip
row("scatter-add-half", lambda x, i, v: x.scatter_add(1, i, v), floats(4, 3, dtype=torch.float16), ints(3, 4, 9),
    floats(4, 9, dtype=torch.float16))  # fmt: skip
row("scatter-value", lambda x, i: x.scatter(1, i, 2.0), floats(4, 5), ints(5, 4, 3))
row(
    "scatter-src",
    lambda x, i, v: x.scatter(1, i, v),
    floats(2, 5),
    lambda: torch.tensor([[0, 3], [4, 1]]),
    floats(2, 5),
)
row("scatter-transposed", lambda x, i: x.t().scatter(0, i, 1.0), floats(4, 5), ints(5, 2, 4))
row("scatter-zeros", lambda i, v: torch.zeros(4, 5).scatter_add(1, i, v), ints(5, 4, 3), floats(4, 3))
row("one-hot", lambda i: torch.zeros(4, 5, dtype=torch.int64).scatter(1, i.unsqueeze(1), 1), ints(5, 4))
row("index-add", lambda x, i, v: (x.index_add(0, i, v), torch.index_add(x, 0, i, v, alpha=2)), floats(4, 3),
    ints(4, 6), floats(6, 3))  # fmt: skip

# ---------------------------------------------------------------- contractions

row("mm", lambda x, y: x @ y, floats(5, 7), floats(7, 3))
row("mm-transposed", lambda x, y: x.t() @ y.t(), floats(7, 5), floats(3, 7))
row("mm-half", lambda x, y: x @ y, floats(5, 70, dtype=torch.bfloat16), floats(70, 3, dtype=torch.bfloat16))
row("mm-one", lambda x, y: x @ y, floats(1, 1), floats(1, 3))
row("mm-empty", lambda x, y: x @ y, floats(3, 0), floats(0, 2))
row("mm-int", lambda x, y: x @ y, ints(9, 3, 4), ints(9, 4, 2), externs="mm")
row("bmm", lambda x, y: x @ y, floats(2, 5, 7), floats(2, 7, 3))
row("bmm-expanded", lambda x, y: x.expand(2, 5, 7).bmm(y), floats(1, 5, 7), floats(2, 7, 3))
row("linear", lambda x, w, b: F.linear(x, w, b), floats(2, 3, 4), floats(5, 4), floats(5))
row("linear-half", lambda x, w, b: F.linear(x, w, b), *[floats(n, 64, dtype=torch.bfloat16) for n in (3, 5)],
    floats(5, dtype=torch.bfloat16))  # fmt: skip
row("addmm", lambda b, x, y: (torch.addmm(b, x, y, alpha=0.5, beta=2), torch.addmm(b, x, y, beta=0)),
    floats(3, 5), floats(3, 4), floats(4, 5))  # fmt: skip
row(
    "baddbmm",
    lambda b, x, y: torch.baddbmm(b, x, y, alpha=2),
    floats(2, 3, 5),
    floats(2, 3, 4),
    floats(2, 4, 5),
)
row(
    "conv2d",
    lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
    floats(2, 3, 9, 8),
    floats(4, 3, 3, 3),
    floats(4),
)
row("conv2d-patches", lambda x, w: F.conv2d(x, w, stride=4), floats(2, 3, 8, 8), floats(5, 3, 4, 4))
row(
    "conv2d-dilated",
    lambda x, w: F.conv2d(x, w, padding=(2, 1), dilation=2),
    floats(1, 2, 9, 9),
    floats(3, 2, 3, 2),
)
row("conv2d-point", lambda x, w: F.conv2d(x, w), floats(2, 3, 4, 4), floats(5, 3, 1, 1))
row("conv1d", lambda x, w, b: F.conv1d(x, w, b, padding=1), floats(2, 3, 9), floats(4, 3, 3), floats(4))
row("conv-groups", lambda x, w: F.conv2d(x, w, groups=2), floats(1, 4, 5, 5), floats(4, 2, 3, 3))


def convolution_backward(stride: int, padding: int, dilation: int) -> Callable[..., Any]:
    def run(grad: Tensor, x: Tensor, w: Tensor) -> Any:
        steps = [stride] * 2, [padding] * 2, [dilation] * 2
        return aten.convolution_backward(grad, x, w, [w.shape[0]], *steps, False, [0, 0], 1, [True] * 3)

    return run


row(
    "conv-backward", convolution_backward(1, 1, 1), floats(2, 4, 6, 5), floats(2, 3, 6, 5), floats(4, 3, 3, 3)
)
row(
    "conv-backward-stride",
    convolution_backward(2, 1, 1),
    floats(2, 4, 5, 4),
    floats(2, 3, 9, 8),
    floats(4, 3, 3, 3),
)
row(
    "conv-backward-dilated",
    convolution_backward(3, 2, 2),
    floats(2, 4, 3, 4),
    floats(2, 3, 9, 8),
    floats(4, 3, 3, 2),
)
row(
    "conv-backward-patches",
    convolution_backward(4, 0, 1),
    floats(2, 5, 2, 2),
    floats(2, 3, 8, 8),
    floats(5, 3, 4, 4),
)


row("scatter-reduce", lambda x, i, y: [x.scatter_reduce(0, i, y, op) for op in ("amax", "amin", "sum")],
    floats(4, 5), ints(4, 6, 5), floats(6, 5))  # fmt: skip
row("scatter-reduce-int", lambda x, i, y: [x.scatter_reduce(1, i, y, op) for op in ("amax", "amin")],
    ints(99, 3, 4), ints(4, 3, 9), ints(99, 3, 9))  # fmt: skip
row("scatter-reduce-nan", lambda x, i: x.scatter_reduce(0, i, x, "amax"), SPECIAL, ints(9, 9))
row("scatter-reduce-others", lambda x, i, y: x.scatter_reduce(0, i, y, "amax", include_self=False),
    floats(4, 5), ints(4, 6, 5), floats(6, 5), externs="scatter_reduce")  # fmt: skip


def fold(size: list, kernel: list, dilation: list, padding: list, stride: list) -> Callable[..., Any]:
    return lambda x: aten.col2im(x, size, kernel, dilation, padding, stride)


# so many windows over an element that they are not written out
row("fold-wide", fold([8, 8], [9, 9], [1, 1], [4, 4], [1, 1]), floats(1, 81, 64))
row("fold-wide-stride", fold([10, 11], [9, 10], [1, 1], [1, 3], [1, 2]), floats(2, 180, 16))
row("fold-wide-dilated", fold([17, 17], [9, 9], [2, 2], [4, 4], [3, 3]), floats(81, 9))
row("fold-wide-half", fold([8, 8], [9, 9], [1, 1], [4, 4], [1, 1]), floats(1, 81, 64, dtype=torch.bfloat16))


def grouped(*steps: Any, transposed: bool = False, output_padding: int = 0) -> Callable[..., Any]:
    """relu(convolution) and its three gradients. steps: stride, padding, dilation, groups"""
    stride, padding, dilation, groups = steps

    def run(x: Tensor, w: Tensor, bias: Tensor, grad: Tensor) -> Any:
        options = [stride] * 2, [padding] * 2, [dilation] * 2, transposed, [output_padding] * 2, groups
        out = aten.convolution(x, w, bias, *options).relu()
        return out, aten.convolution_backward(grad, x, w, [bias.numel()], *options, [True] * 3)

    return run


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def grouped_row(
    name: str, function: Callable[..., Any], x: tuple, w: tuple, grad: tuple, **options: Any
) -> None:
    """options: layout and dtype"""
    layout = options.pop("layout", channels_last)
    inputs = (
        layout(*x, **options),
        floats(*w, **options),
        floats(grad[1], **options),
        layout(*grad, **options),
    )
    row(f"conv-{name}", function, *inputs)


# borders on both sides of whole blocks of columns, and channels that fill no vector
grouped_row("depthwise", grouped(1, 1, 1, 20), (2, 20, 4, 27), (20, 1, 3, 3), (2, 20, 4, 27))
grouped_row("depthwise-nchw", grouped(1, 1, 1, 4), (2, 4, 4, 11), (4, 1, 3, 3), (2, 4, 4, 11), layout=floats)
grouped_row("depthwise-wide", grouped(1, 3, 1, 32), (1, 32, 5, 9), (32, 1, 7, 7), (1, 32, 5, 9))
grouped_row("depthwise-dilated", grouped(1, 2, 2, 8), (2, 8, 6, 19), (8, 1, 3, 3), (2, 8, 6, 19))
grouped_row("depthwise-valid", grouped(1, 0, 1, 8), (2, 8, 6, 19), (8, 1, 3, 2), (2, 8, 4, 18))
grouped_row("depthwise-point", grouped(1, 1, 1, 8), (2, 8, 3, 4), (8, 1, 1, 1), (2, 8, 5, 6))
grouped_row("depthwise-stride", grouped(2, 1, 1, 16), (2, 16, 6, 18), (16, 1, 3, 3), (2, 16, 3, 9))
grouped_row("depthwise-vectors", grouped(2, 1, 1, 48), (2, 48, 6, 18), (48, 1, 3, 3), (2, 48, 3, 9))
grouped_row("depthwise-vectors-five", grouped(1, 2, 1, 96), (1, 96, 4, 9), (96, 1, 5, 5), (1, 96, 4, 9))
grouped_row("depthwise-stride-odd", grouped(2, 1, 1, 16), (2, 16, 7, 9), (16, 1, 3, 3), (2, 16, 4, 5))
grouped_row("depthwise-stride-three", grouped(3, 2, 1, 8), (1, 8, 6, 9), (8, 1, 5, 5), (1, 8, 2, 3))
grouped_row("depthwise-multiplied", grouped(1, 1, 1, 6), (2, 6, 4, 5), (18, 1, 3, 3), (2, 18, 4, 5))
grouped_row("few-channels-double", grouped(1, 1, 1, 9), (2, 18, 3, 9), (9, 2, 3, 3), (2, 9, 3, 9),
    dtype=torch.float64)  # fmt: skip
for half in HALF:
    name = f"depthwise-{str(half)[6:]}"
    grouped_row(
        name, grouped(1, 1, 1, 8), (2, 8, 5, 9), (8, 1, 3, 3), (2, 8, 5, 9), layout=floats, dtype=half
    )
grouped_row("depthwise-empty", grouped(1, 1, 1, 8), (0, 8, 5, 9), (8, 1, 3, 3), (0, 8, 5, 9), layout=floats)
grouped_row("few-channels", grouped(1, 1, 1, 5), (2, 20, 5, 9), (10, 4, 3, 3), (2, 10, 5, 9))
grouped_row("few-channels-stride", grouped(2, 1, 1, 4), (2, 12, 4, 6), (8, 3, 3, 3), (2, 8, 2, 3))
grouped_row("two-groups", grouped(2, 1, 1, 2), (2, 40, 5, 6), (32, 20, 3, 3), (2, 32, 3, 3))

grouped_row("transposed", grouped(2, 1, 1, 1, transposed=True, output_padding=1),
    (2, 6, 4, 3), (6, 5, 3, 3), (2, 5, 8, 6))  # fmt: skip
grouped_row("transposed-depthwise", grouped(2, 1, 1, 8, transposed=True, output_padding=1),
    (2, 8, 4, 3), (8, 1, 3, 3), (2, 8, 8, 6))  # fmt: skip
grouped_row("transposed-groups", grouped(2, 0, 1, 2, transposed=True),
    (2, 6, 4, 3), (6, 4, 2, 2), (2, 8, 8, 6), layout=floats)  # fmt: skip
