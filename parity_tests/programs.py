"""Random small programs: chains of operations over random shapes, strides and dtypes, as Python source.

A drawn `Program` is text that Python runs, so a failing example is a script to paste:

    def program(a, b):
        t0 = a.transpose(0, 1)
        t1 = torch.softmax(t0, dim=0)
        t2 = t1 @ b
        return t2
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

SIZES = st.sampled_from([1, 2, 3, 4, 5, 8, 17])
SIZES_WITH_ZERO = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 17])
DTYPES = st.sampled_from([torch.float32] * 4 + [torch.float64, torch.bfloat16, torch.float16])
LAYOUTS = st.sampled_from(["contiguous", "transposed", "stepped", "expanded"])
MOST_ELEMENTS = 3000

UNARY = [
    "torch.tanh({x})", "torch.sigmoid({x})", "torch.exp(-{x}.abs())", "torch.sin({x})", "torch.cos({x})",
    "torch.relu({x})", "-{x}", "{x}.abs()", "torch.rsqrt({x} * {x} + 1)", "torch.log1p({x}.abs())",
    "torch.erf({x})", "{x} * 0.5 + 0.25", "torch.clamp({x}, -0.7, 0.9)", "torch.sqrt({x} * {x} + 0.5)",
    "torch.nn.functional.gelu({x})", "torch.nn.functional.silu({x})", "1 / (1 + {x} * {x})",
]  # fmt: skip
BINARY = [
    "{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} / ({y}.abs() + 1)", "torch.maximum({x}, {y})",
    "torch.minimum({x}, {y})", "torch.where({x} > {y}, {x}, {y} * 2)",
]  # fmt: skip
REDUCTIONS = ["sum", "mean", "amax", "amin"]
SOFTMAX = ["softmax", "log_softmax"]


@dataclass
class Input:
    """How to make one input tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str

    def make(self, generator: torch.Generator) -> Tensor:
        """Draw values; `layout` decides the strides."""
        shape = self.shape
        if self.layout == "transposed":
            base = torch.randn(shape[::-1], generator=generator).to(self.dtype)
            return base.permute(*reversed(range(len(shape))))
        if self.layout == "stepped":
            wide = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator).to(self.dtype)
            return wide[..., ::2]
        if self.layout == "expanded":
            return torch.randn(1, *shape[1:], generator=generator).to(self.dtype).expand(shape)
        return torch.randn(shape, generator=generator).to(self.dtype)


@dataclass
class Program:
    """Inputs, one line of source a step, and the shapes and dtypes known so far (from meta tensors)."""

    inputs: list[Input]
    lines: list[str] = field(default_factory=list)
    known: dict[str, Tensor] = field(default_factory=dict)

    def add(self, expression: str) -> bool:
        """Append a step unless it does not type-check or grows too large; the meta device decides."""
        try:
            result = eval(expression, {"torch": torch}, dict(self.known))
        except (RuntimeError, IndexError, TypeError):
            return False
        if result.numel() > MOST_ELEMENTS:
            return False
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        self.known[name] = result
        return True

    @property
    def source(self) -> str:
        names = ", ".join(f"a{i}" for i in range(len(self.inputs)))
        body = "".join(f"    {line}\n" for line in self.lines)
        # The last two results: a program with more than one output, some of them views.
        outputs = ", ".join(f"t{i}" for i in range(max(0, len(self.lines) - 2), len(self.lines)))
        return f"def program({names}):\n{body}    return ({outputs},)\n"

    def function(self) -> Callable:
        scope: dict = {"torch": torch}
        exec(self.source, scope)
        return scope["program"]

    def __repr__(self) -> str:
        return f"{self.inputs}\n{self.source}"


@st.composite
def inputs(draw) -> Input:
    zero = draw(st.integers(0, 9)) == 0
    shape = tuple(draw(st.lists(SIZES_WITH_ZERO if zero else SIZES, min_size=1, max_size=3)))
    return Input(shape, draw(DTYPES), draw(LAYOUTS))


@st.composite
def programs(draw, most_steps: int = 8) -> Program:
    """Draw one to three inputs and up to `most_steps` steps that fit together."""
    first = draw(inputs())
    given = [first]
    for _ in range(draw(st.integers(0, 2))):
        # Often a shape that broadcasts against the first, or multiplies with it.
        kind = draw(st.sampled_from(["same", "broadcast", "matrix", "free"]))
        shapes = {
            "same": first.shape,
            "broadcast": tuple(draw(st.sampled_from([1, size])) for size in first.shape),
            "matrix": (first.shape[-1], draw(SIZES)),
            "free": draw(inputs()).shape,
        }
        given.append(Input(shapes[kind], first.dtype, draw(LAYOUTS)))
    program = Program(given)
    for i, item in enumerate(given):
        program.known[f"a{i}"] = torch.empty(item.shape, dtype=item.dtype, device="meta")
    wanted = draw(st.integers(1, most_steps))
    for _ in range(3 * wanted):
        if len(program.lines) == wanted:
            break
        program.add(draw(steps(program)))
    if not program.lines:
        program.add("a0 * 2")
    return program


@st.composite
def steps(draw, program: Program) -> str:
    """Draw one expression over the names known so far; it may turn out not to type-check."""
    names = list(program.known)
    recent = names[-3:] + names[: len(program.inputs)]
    x, y = draw(st.sampled_from(recent)), draw(st.sampled_from(recent))
    shape = program.known[x].shape
    dim = draw(st.integers(0, max(0, len(shape) - 1)))
    size = shape[dim] if shape else 1
    kind = draw(st.sampled_from(["unary", "unary", "binary", "binary", "reduce", "softmax", "running", "view",
                                 "matmul", "cat", "cast"]))  # fmt: skip
    if kind == "unary":
        return draw(st.sampled_from(UNARY)).format(x=x)
    if kind == "binary":
        return draw(st.sampled_from(BINARY)).format(x=x, y=y)
    if kind == "reduce":
        reduction, keepdim = draw(st.sampled_from(REDUCTIONS)), draw(st.booleans())
        return f"{x}.{reduction}(dim={dim}, keepdim={keepdim})"
    if kind == "running":
        return f"{x}.cumsum(dim={dim})"
    if kind == "softmax":
        return f"torch.{draw(st.sampled_from(SOFTMAX))}({x}, dim={dim})"
    if kind == "matmul":
        products = [f"{x} @ {y}", f"{x} @ {x}.transpose(-1, -2)", f"{x}.transpose(-1, -2) @ {y}"]
        return draw(st.sampled_from(products))
    if kind == "cat":
        joined = [f"torch.cat([{x}, {y}], dim={dim})", f"torch.stack([{x}, {y}], dim={dim})"]
        return draw(st.sampled_from(joined))
    if kind == "cast":
        dtype = draw(st.sampled_from(["float32", "bfloat16", "float16", "float64"]))
        return f"{x}.to(torch.{dtype})"
    return draw(views(x, len(shape), dim, size))


@st.composite
def views(draw, x: str, ndim: int, dim: int, size: int) -> str:
    start = draw(st.integers(0, max(0, size - 1)))
    step = draw(st.sampled_from([1, 1, 2, 3]))
    prefix = ":, " * dim
    choices = [
        f"{x}.reshape(-1)", f"{x}.flatten(0, {dim})", f"{x}.transpose(0, {dim})",
        f"{x}[{prefix}{start}::{step}]",
        f"{x}.unsqueeze({dim}).expand({', '.join(['-1'] * dim + ['3'] + ['-1'] * (ndim - dim))})",
        f"{x}.flip({dim})", f"{x}.select({dim}, {start})", f"{x}.movedim({dim}, -1)", f"{x}.squeeze({dim})",
        f"{x}.unsqueeze({dim})",
    ]  # fmt: skip
    if size and size % 2 == 0:
        choices.append(f"{x}.unflatten({dim}, ({size // 2}, 2))")
    return draw(st.sampled_from(choices))
