"""A matrix product as a step of the program: planned when its sizes are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy

from compiler_bridge import program as p
from compiler_bridge.contract import IndirectForm, IndirectPanels, MatrixForm, offset_of
from compiler_bridge.cpu.gemm_kernels import gemm_kernel
from compiler_bridge.cpu.gemm_plan import GemmPlan, packing_plan, plan_gemm, plan_indirect
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


def plan_form(
    form: MatrixForm, dtype: str, size: Callable[[Size], int], threads: int, b_prepacked: bool = False
) -> GemmPlan:
    """How the product is carried out for sizes that `size` gives."""
    if isinstance(form, IndirectForm):
        return plan_indirect_form(form, dtype, size, threads, b_prepacked)
    outer, inner = form.batch
    dimensions = (outer, inner, form.m, form.n, form.k)
    o, i, m, n, k = (size(d.extent) for d in dimensions)
    a_strides, b_strides = (
        (0, 0, 0, 0) if made else tuple(map(size, strides))
        for made, strides in zip(
            form.made,
            ((outer.a, inner.a, form.m.a, form.k.a), (outer.b, inner.b, form.k.b, form.n.b)),
        )
    )
    run = form.run.extent if isinstance(form, IndirectPanels) and form.run is not None else 0
    segments = tuple(size(x) for x in (form.k_segments.extent, form.k_segments.a, form.k_segments.b))
    return plan_gemm(
        m, n, k, (o, i), dtype, a_strides, b_strides,
        (size(outer.c), size(inner.c), size(form.m.c), size(form.n.c)),
        threads, has_pack_a=form.made[0], has_pack_b=form.made[1], run=size(run), b_prepacked=b_prepacked,
        k_segments=segments,
    )  # fmt: skip


def plan_indirect_form(
    form: IndirectForm, dtype: str, size: Callable[[Size], int], threads: int, b_prepacked: bool
) -> GemmPlan:
    """A product whose rows of A, and of C, functions find."""
    batch = form.batch[1]
    assert form.run is not None
    m, n, length = (size(extent) for extent in (form.m.extent, form.n.extent, form.run.extent))
    segments = size(size_product(axis.extent for axis in form.segments))
    b_strides = (0, 0, 0, 0) if form.made[1] else (0, *map(size, (batch.b, form.k.b, form.n.b)))
    return plan_indirect(
        m, n, segments, length, size(batch.extent), dtype, b_strides, size(form.n.c), threads,
        b_segment=size(form.b_segment), has_pack_b=form.made[1], b_prepacked=b_prepacked,
    )  # fmt: skip


def gemm_step(
    form: MatrixForm,
    dtype: str,
    names: tuple[str, str, str],
    c_offset: Size,
    functions: GemmFunctions,
    packed: str | None = None,
) -> p.DynamicStep:
    """names: buffers of A, B and C; that of an operand a function makes is any (C's).
    packed: the buffer where a `packing_step` has left B, if one has
    """
    found = isinstance(form, IndirectForm)
    offsets = [0 if made else offset_of(x) for x, made in zip((form.lhs, form.rhs), form.made)]
    if packed and isinstance(form.m.extent, int):  # whatever the threads, B is read packed
        names, offsets[1], functions = (names[0], packed, names[2]), 0, replace(functions, pack_b=None)
    operands = dict(zip("ABC", zip(names, [*offsets, 0 if found else c_offset])))
    called = functions.by_slot()

    def plan(symbols: Mapping[sympy.Symbol, int], threads: int) -> p.DynamicPlan:
        def size(value: Size) -> int:
            return evaluate(value, symbols)

        gemm = plan_form(form, dtype, size, threads)
        source = packed if packed and packing_plan(gemm) else None
        if source:
            gemm = plan_form(form, dtype, size, threads, b_prepacked=True)
        order = "BAC" if gemm.table["SWAPPED"] else "ABC"
        pointers = {
            slot: p.PointerArgument(n, size(at))
            for slot, (n, at) in zip("ABC", (operands[name] for name in order))
        }
        m, n, k = (size(d.extent) for d in (form.m, form.n, form.k))
        k *= size(form.k_segments.extent)
        return bind_plan(gemm, pointers, called, size, f"gemm {m}x{n}x{k}", source)

    outer, inner = form.batch
    k = form.k.extent * form.k_segments.extent
    text = f"gemm {form.m.extent}x{form.n.extent}x{k} batch {outer.extent}x{inner.extent} {dtype}"
    text += ", A where it lies" if found else ""
    return dynamic_step(plan, (*names, packed) if packed else names, called, text)


def guessing(hints: Mapping[sympy.Symbol, int]) -> Callable[[Size], int]:
    """Sizes as they were while tracing; what wasn't known then counts as many."""

    def size(value: Size) -> int:
        if isinstance(value, int):
            return value
        return evaluate(value, {symbol: hints.get(symbol, MANY) for symbol in value.free_symbols})  # pyright: ignore

    return size


MANY = 1024


def packed_bytes(form: MatrixForm, dtype: str, hints: Mapping[sympy.Symbol, int]) -> int:
    """Bytes of packed B; 0 where B is better read as it lies."""
    packing = packing_plan(plan_form(form, dtype, guessing(hints), 1))
    return packing.workspace_bytes if packing else 0


def packing_step(
    form: MatrixForm,
    dtype: str,
    b: str,
    packed: str,
    pack_b: Function | None,
    hints: Mapping[sympy.Symbol, int],
) -> p.DynamicStep:
    """Packs all of B (buffer b, unless a function makes it) into the buffer `packed`."""
    called = GemmFunctions(pack_b=pack_b).by_slot()
    source = packed if pack_b else b
    offset = 0 if form.made[1] else offset_of(form.rhs)

    size = guessing(hints)

    def plan(_: Mapping[sympy.Symbol, int], threads: int) -> p.DynamicPlan:
        packing = packing_plan(plan_form(form, dtype, size, threads))
        assert packing is not None
        pointers = {"B": p.PointerArgument(source, size(offset))}
        return bind_plan(packing, pointers, called, size, "pack B", packed)

    return dynamic_step(plan, (source, packed), called, f"pack {form.k.extent}x{form.n.extent} {dtype}")


def dynamic_step(plan: Any, names: tuple[str, ...], called: dict[str, Function], text: str) -> p.DynamicStep:
    buffers = list(dict.fromkeys([*names, *(name for f in called.values() for name in f.buffers)]))
    kernels: list[Any] = [function.name for function in called.values()]
    return p.DynamicStep(plan, buffers, kernels, " + ".join([text, *kernels]))


def bind_plan(
    gemm: GemmPlan,
    pointers: dict[str, p.PointerArgument],
    called: dict[str, Function],
    size: Callable[[Size], int],
    title: str,
    packed: str | None = None,
) -> p.DynamicPlan:
    """The steps of a plan: its table with the operands' pointers and the called functions' own tables.

    packed: the buffer that holds packed B, if not a workspace
    """
    scratch = 0 if packed else -(-gemm.workspace_bytes // 64) * 64
    arguments: dict[str, p.Argument] = {name: p.SizeArgument(gemm.table.get(name, 0)) for name in SLOTS}
    arguments.update(pointers)
    arguments["WORKSPACE"] = p.PointerArgument(packed) if packed else p.WorkspaceArgument(0)
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
