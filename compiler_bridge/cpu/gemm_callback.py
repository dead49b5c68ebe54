"""Calling a generated function through its address: what GEMM uses for prologues and epilogues."""

# pyright: basic

from __future__ import annotations

from compiler_bridge import settings

if settings.INTERPRET:

    def call_pack(address, table, panel, first, count, k_begin, k_count, thread):  # type: ignore[no-untyped-def]
        """address stands for the Python function itself."""
        address(table, panel, first, count, k_begin, k_count, thread)

    def call_epilogue(address, table, row_begin, row_end, column_begin, column_end):  # type: ignore[no-untyped-def]
        """address stands for the Python function itself."""
        address(table, row_begin, row_end, column_begin, column_end)

    def function_table(tab, slot):  # type: ignore[no-untyped-def]
        """The table of the function whose `_TABLE` slot this is."""
        return tab[tab[slot] :]

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
    def function_table(typingctx, tab, slot):  # type: ignore[no-untyped-def]
        """Address of the table of the function whose `_TABLE` slot this is."""

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            position = builder.load(builder.gep(values[0], [values[1]]))
            return builder.ptrtoint(builder.gep(values[0], [position]), ir.IntType(64))

        return types.int64(tab, types.int64), generate
