"""Python function -> machine code (through Numba) -> address (through LLVM's linker).

The two halves are independent: the object file produced here holds no addresses of this process, so it can be
kept on disk and loaded by a process that never imports Numba. That is what `cache.py` does.

A function compiled here returns nothing and takes `tab`, a pointer to int64, then int64 numbers, as many as
its signature has: a kernel three (begin, end, thread), a driver of `threads.py` none.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Mapping
from functools import cache as remember
from typing import Any

import llvmlite.binding as llvm

from compiler_bridge.cpu.host import NATIVE_LANES

FASTMATH = {"contract"}  # as for the helpers of language.py

_engines: list[Any] = []  # owners of loaded machine code; never freed, so that addresses stay valid
_loading = threading.Lock()


def compile_to_object(function: types.FunctionType, symbol: str) -> bytes:
    """Compile `function(tab, *numbers)` into an ELF (or Mach-O) object that exports it as `symbol`.

    Numba's own C wrapper reports exceptions through Python and needs the GIL; kernels raise nothing, so the
    wrapper here only drops the status. Division follows IEEE (error_model "numpy"), no bounds are checked.
    """
    from llvmlite import ir
    from numba.core import compiler
    from numba.core import types as numba_types
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.cpu_options import FastMathOptions
    from numba.core.registry import cpu_target

    from compiler_bridge.cpu.code_library import intermediate_only, object_library
    from compiler_bridge.cpu.numba_passes import KernelCompiler

    numbers = function.__code__.co_argcount - 1
    arguments = (numba_types.CPointer(numba_types.int64), *[numba_types.int64] * numbers)
    flags: Any = compiler.Flags()
    flags.error_model = "numpy"
    flags.fastmath = FastMathOptions(FASTMATH)
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.no_compile = True
    with global_compiler_lock:
        target: Any = cpu_target
        typing_context, context = target.typing_context, target.target_context
        typing_context.refresh()
        context.refresh()
        with intermediate_only(context):
            compiled = compiler.compile_extra(
                typing_context, context, function, arguments, numba_types.none, flags, {},
                pipeline_class=KernelCompiler,  # pyright: ignore
            )  # fmt: skip
        context = compiled.target_context
        library = object_library(context.codegen(), symbol)
        module = library.create_ir_module(symbol)
        int64 = ir.IntType(64)
        signature = ir.FunctionType(ir.VoidType(), [int64.as_pointer(), *[int64] * numbers])
        wrapper = ir.Function(module, signature, symbol)
        builder = ir.IRBuilder(wrapper.append_basic_block())
        callee = context.declare_function(module, compiled.fndesc)
        context.call_conv.call_function(builder, callee, numba_types.none, arguments, list(wrapper.args))
        builder.ret_void()
        library.add_ir_module(module)
        library.add_linking_library(compiled.library)
        return library.emit_native_object()


def load_objects(objects: Mapping[str, bytes]) -> dict[str, int]:
    """Link object files (symbol -> object) into this process; returns symbol -> address.

    Raises:  ValueError when an object is not one the linker accepts, or lacks its symbol
    """
    if not objects:
        return {}
    with _loading:
        _initialize()
        module = llvm.parse_assembly("")
        module.triple = llvm.get_process_triple()
        engine = llvm.create_mcjit_compiler(module, _target_machine())
        for content in objects.values():
            try:
                reference = llvm.ObjectFileRef.from_data(content)
            except Exception as error:
                raise ValueError(f"not an object file: {error}") from error
            engine.add_object_file(reference)
        engine.finalize_object()
        addresses = {symbol: engine.get_function_address(symbol) for symbol in objects}
        missing = [symbol for symbol, address in addresses.items() if not address]
        if missing:
            raise ValueError(f"object file without symbol {', '.join(missing)}")
        _engines.append(engine)
        return addresses


@remember
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _target_machine() -> Any:
    return llvm.Target.from_default_triple().create_target_machine(opt=3, jit=True)


@remember
def describe_host() -> str:
    """The processor the machine code is for: its name, every feature LLVM may use, the lanes of a register."""
    _initialize()
    features = llvm.get_host_cpu_features().flatten()
    return f"{llvm.get_process_triple()} {llvm.get_host_cpu_name()} {features} {NATIVE_LANES}"
