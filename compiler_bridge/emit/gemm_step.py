"""A matrix product as a step of the program: planned when its sizes are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from compiler_bridge import program as p
from compiler_bridge.contract import MatrixForm, offset_of
from compiler_bridge.cpu.gemm_plan import gemm_kernel, plan_gemm
from compiler_bridge.cpu.gemm_table import SLOTS
from compiler_bridge.ir import Size


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
    """What fills the panels of A and B in place of a strided read, and what is called on finished regions."""

    pack_a: Function | None = None
    pack_b: Function | None = None
    epilogue: Function | None = None

    def by_slot(self) -> dict[str, Function]:
        named = {"PACK_A": self.pack_a, "PACK_B": self.pack_b, "EPILOGUE": self.epilogue}
        return {slot: function for slot, function in named.items() if function is not None}


def gemm_step(
    form: MatrixForm, dtype: str, names: tuple[str, str, str], c_offset: Size, functions: GemmFunctions
) -> p.DynamicStep:
    """names: buffers of A, B and C; that of an operand a function makes is any (C's)."""
    outer, inner = form.batch
    a, b, c = names
    offsets = [0 if made else offset_of(x) for x, made in zip((form.lhs, form.rhs), form.made)] + [c_offset]
    called = functions.by_slot()

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
            threads, has_pack_a=form.made[0], has_pack_b=form.made[1],
        )  # fmt: skip
        scratch = -(-gemm.workspace_bytes // 64) * 64
        arguments: dict[str, p.Argument] = {name: p.SizeArgument(gemm.table.get(name, 0)) for name in SLOTS}
        first, second = (b, a) if gemm.table["SWAPPED"] else (a, b)
        first_offset, second_offset = (1, 0) if gemm.table["SWAPPED"] else (0, 1)
        arguments["A"] = p.PointerArgument(first, size(offsets[first_offset]))
        arguments["B"] = p.PointerArgument(second, size(offsets[second_offset]))
        arguments["C"] = p.PointerArgument(c, size(offsets[2]))
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
            p.KernelStep(gemm_kernel(e.kernel, dtype), table, e.length, 1, f"gemm {m}x{n}x{k} {e.kernel}")
            for e in gemm.entries
        ]
        return p.DynamicPlan(steps, scratch + gemm.scratch_bytes * gemm.threads)

    text = f"gemm {form.m.extent}x{form.n.extent}x{form.k.extent} batch {outer.extent}x{inner.extent} {dtype}"
    buffers = list(dict.fromkeys([a, b, c, *(name for f in called.values() for name in f.buffers)]))
    kernels: list[Any] = [function.name for function in called.values()]
    return p.DynamicStep(plan, buffers, kernels, " + ".join([text, *kernels]))
