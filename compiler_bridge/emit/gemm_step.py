"""A matrix product as a step of the program: planned when its sizes are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from compiler_bridge import program as p
from compiler_bridge.contract import IndirectForm, IndirectPanels, MatrixForm, offset_of
from compiler_bridge.cpu.gemm_plan import GemmPlan, gemm_kernel, plan_gemm, plan_indirect
from compiler_bridge.cpu.gemm_table import SLOTS
from compiler_bridge.ir import Size, size_product


def evaluate(size: Size, symbols: Mapping[sympy.Symbol, int]) -> int:
    return size if isinstance(size, int) else int(size.subs(list(symbols.items())))


@dataclass(frozen=True)
class Function:
    """A function of the module that a GEMM calls; its table holds the addresses of `buffers`, then `sizes`."""

    name: str
    buffers: list[str]
    sizes: list[Size]


@dataclass(frozen=True)
class GemmFunctions:
    """What fills the panels of A and B in place of a strided read, what is called on finished regions, and what
    finds the rows of A and C."""

    pack_a: Function | None = None
    pack_b: Function | None = None
    epilogue: Function | None = None
    places_a: Function | None = None
    places_c: Function | None = None
    places_b: Function | None = None

    def by_slot(self) -> dict[str, Function]:
        named = {
            "PACK_A": self.pack_a, "PACK_B": self.pack_b, "EPILOGUE": self.epilogue,
            "PLACES_A": self.places_a, "PLACES_C": self.places_c,
            "PLACES_B": self.places_b,
        }  # fmt: skip
        return {slot: function for slot, function in named.items() if function is not None}


def gemm_step(
    form: MatrixForm, dtype: str, names: tuple[str, str, str], c_offset: Size, functions: GemmFunctions
) -> p.DynamicStep:
    """names: buffers of A, B and C; that of an operand a function makes is any (C's)."""
    outer, inner = form.batch
    a, b, c = names
    offsets = [0 if made else offset_of(x) for x, made in zip((form.lhs, form.rhs), form.made)] + [c_offset]
    called = functions.by_slot()
    run = form.run.extent if isinstance(form, IndirectPanels) and form.run is not None else 0

    def plan(symbols: Mapping[sympy.Symbol, int], threads: int) -> p.DynamicPlan:
        def size(value: Size) -> int:
            return evaluate(value, symbols)

        dimensions = (outer, inner, form.m, form.n, form.k)
        o, i, m, n, k = (size(d.extent) for d in dimensions)
        a_strides, b_strides = (
            (0, 0, 0, 0) if made else tuple(map(size, strides))
            for made, strides in zip(
                form.made,
                ((outer.a, inner.a, form.m.a, form.k.a), (outer.b, inner.b, form.k.b, form.n.b)),
            )
        )
        gemm = plan_gemm(
            m, n, k, (o, i), dtype, a_strides, b_strides,
            (size(outer.c), size(inner.c), size(form.m.c), size(form.n.c)),
            threads, has_pack_a=form.made[0], has_pack_b=form.made[1], run=size(run),
        )  # fmt: skip
        swapped = gemm.table["SWAPPED"]
        first, second = ((b, offsets[1]), (a, offsets[0])) if swapped else ((a, offsets[0]), (b, offsets[1]))
        pointers = {"A": first, "B": second, "C": (c, offsets[2])}
        return bind_plan(gemm, {slot: p.PointerArgument(n, size(at)) for slot, (n, at) in pointers.items()}, called,
                         size, f"gemm {m}x{n}x{k}")  # fmt: skip

    text = f"gemm {form.m.extent}x{form.n.extent}x{form.k.extent} batch {outer.extent}x{inner.extent} {dtype}"
    return dynamic_step(plan, (a, b, c), called, text)


def dynamic_step(
    plan: Any, names: tuple[str, str, str], called: dict[str, Function], text: str
) -> p.DynamicStep:
    buffers = list(dict.fromkeys([*names, *(name for f in called.values() for name in f.buffers)]))
    kernels: list[Any] = [function.name for function in called.values()]
    return p.DynamicStep(plan, buffers, kernels, " + ".join([text, *kernels]))


def bind_plan(
    gemm: GemmPlan,
    pointers: dict[str, p.PointerArgument],
    called: dict[str, Function],
    size: Callable[[Size], int],
    title: str,
) -> p.DynamicPlan:
    """The steps of a plan: its table with the operands' pointers and the called functions' own tables."""
    scratch = -(-gemm.workspace_bytes // 64) * 64
    arguments: dict[str, p.Argument] = {name: p.SizeArgument(gemm.table.get(name, 0)) for name in SLOTS}
    arguments.update(pointers)
    arguments["WORKSPACE"] = p.WorkspaceArgument(0)
    arguments["SCRATCH"] = p.WorkspaceArgument(scratch)
    after: list[p.Argument] = []  # the functions' own tables follow the GEMM's slots
    for slot, function in called.items():
        arguments[slot] = p.FunctionArgument(function.name)
        arguments[f"{slot}_TABLE"] = p.SizeArgument(len(SLOTS) + len(after))
        after += [p.PointerArgument(name) for name in function.buffers]
        after += [p.SizeArgument(size(value)) for value in function.sizes]
    table: list[Any] = [*(arguments[name] for name in SLOTS), *after]
    steps = [
        p.KernelStep(gemm_kernel(e.kernel, gemm.dtype), table, e.length, 1, f"{title} {e.kernel}")
        for e in gemm.entries
    ]
    return p.DynamicPlan(steps, scratch + gemm.scratch_bytes * gemm.threads)


def indirect_step(
    form: IndirectForm, dtype: str, names: tuple[str, str, str], functions: GemmFunctions
) -> p.DynamicStep:
    """A product whose rows of A, and of C, functions find."""
    a, b, c = names
    batch = form.batch[1]
    called = functions.by_slot()
    assert form.run is not None
    run = form.run.extent

    def plan(symbols: Mapping[sympy.Symbol, int], threads: int) -> p.DynamicPlan:
        def size(value: Size) -> int:
            return evaluate(value, symbols)

        m, n, k, length = (size(extent) for extent in (form.m.extent, form.n.extent, form.k.extent, run))
        segments = size(size_product(axis.extent for axis in form.segments))
        b_strides = (0, 0, 0, 0) if form.made[1] else (0, *map(size, (batch.b, form.k.b, form.n.b)))
        gemm = plan_indirect(m, n, segments, length, size(batch.extent), dtype, b_strides, size(form.n.c), threads,
                             has_pack_b=form.made[1])  # fmt: skip
        offset = 0 if form.made[1] else size(offset_of(form.rhs))
        pointers = {"A": p.PointerArgument(a), "B": p.PointerArgument(b, offset), "C": p.PointerArgument(c)}
        return bind_plan(gemm, pointers, called, size, f"gemm {m}x{n}x{k}")

    text = (
        f"gemm {form.m.extent}x{form.n.extent}x{form.k.extent} batch {batch.extent} {dtype}, A where it lies"
    )
    return dynamic_step(plan, names, called, text)
