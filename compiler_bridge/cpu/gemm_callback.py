"""Calling a generated function through its address: what GEMM uses for prologues and epilogues."""

# pyright: basic

from __future__ import annotations

from compiler_bridge import settings
from compiler_bridge.cpu.gemm_table import SLOTS

if settings.INTERPRET:

    def call_pack(address, table, panel, first, count, k_begin, k_count, thread):  # type: ignore[no-untyped-def]
        """address stands for the Python function itself."""
        address(table, panel, first, count, k_begin, k_count, thread)

    def call_epilogue(address, table, row_begin, row_end, column_begin, column_end):  # type: ignore[no-untyped-def]
        """address stands for the Python function itself."""
        address(table, row_begin, row_end, column_begin, column_end)

    def end_of_table(tab):  # type: ignore[no-untyped-def]
        """What follows the GEMM's own slots."""
        return tab[len(SLOTS) :]

else:
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    def _generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        form = ir.FunctionType(ir.VoidType(), [value.type for value in values[1:]])
        builder.call(builder.inttoptr(values[0], form.as_pointer()), values[1:])
        return context.get_dummy_value()

    @intrinsic
    def call_pack(  # type: ignore[no-untyped-def]
        typingctx, address, table, panel, first, count, k_begin, k_count, thread
    ):
        """pack(table, panel, first, count, k_begin, k_count, thread) at an address."""
        return types.void(*[types.int64] * 8), _generate

    @intrinsic
    def call_epilogue(  # type: ignore[no-untyped-def]
        typingctx, address, table, row_begin, row_end, column_begin, column_end
    ):
        """epilogue(table, row_begin, row_end, column_begin, column_end) at an address."""
        return types.void(*[types.int64] * 6), _generate

    @intrinsic
    def end_of_table(typingctx, tab):  # type: ignore[no-untyped-def]
        """Address of what follows the GEMM's own slots."""

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            word = ir.IntType(64)
            return builder.add(builder.ptrtoint(values[0], word), ir.Constant(word, 8 * len(SLOTS)))

        return types.int64(tab), generate
