"""A matrix product as a step of the program: planned when its sizes are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from compiler_bridge import program as p
from compiler_bridge.contract import MatrixForm
from compiler_bridge.cpu.gemm_plan import gemm_kernel, plan_gemm
from compiler_bridge.cpu.gemm_table import SLOTS
from compiler_bridge.emit.epilogue import Epilogue
from compiler_bridge.ir import Size


def evaluate(size: Size, symbols: Mapping[sympy.Symbol, int]) -> int:
    return size if isinstance(size, int) else int(size.subs(list(symbols.items())))


def gemm_step(
    form: MatrixForm, dtype: str, names: tuple[str, ...], c_offset: Size, epilogue: Epilogue | None = None
) -> p.DynamicStep:
    """names: buffers of A, B and C."""
    outer, inner = form.batch
    a, b, c = names
    offsets = (form.lhs.index.const, form.rhs.index.const, c_offset)

    def plan(symbols: Mapping[sympy.Symbol, int], threads: int) -> p.DynamicPlan:
        def size(value: Size) -> int:
            return evaluate(value, symbols)

        dimensions = (outer, inner, form.m, form.n, form.k)
        o, i, m, n, k = (size(d.extent) for d in dimensions)
        gemm = plan_gemm(
            m, n, k, (o, i), dtype,
            (size(outer.a), size(inner.a), size(form.m.a), size(form.k.a)),
            (size(outer.b), size(inner.b), size(form.k.b), size(form.n.b)),
            (size(outer.c), size(inner.c), size(form.m.c), size(form.n.c)),
            threads,
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
        if epilogue is not None:
            arguments["EPILOGUE"] = p.FunctionArgument(epilogue.function)
        table: list[Any] = [arguments[name] for name in SLOTS]
        if epilogue is not None:  # its table is the end of the GEMM's own
            table += [p.PointerArgument(name) for name in epilogue.buffers]
            table += [p.SizeArgument(size(value)) for value in epilogue.sizes]
        steps = [
            p.KernelStep(gemm_kernel(e.kernel, dtype), table, e.length, 1, f"gemm {m}x{n}x{k} {e.kernel}")
            for e in gemm.entries
        ]
        return p.DynamicPlan(steps, scratch + gemm.scratch_bytes * gemm.threads)

    text = f"gemm {form.m.extent}x{form.n.extent}x{form.k.extent} batch {outer.extent}x{inner.extent} {dtype}"
    if epilogue is None:
        return p.DynamicStep(plan, [a, b, c], description=text)
    buffers = list(dict.fromkeys([a, b, c, *epilogue.buffers]))
    return p.DynamicStep(plan, buffers, [epilogue.function], f"{text} + {epilogue.function}")
