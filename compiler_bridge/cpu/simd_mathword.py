"""How Numba types and lowers a math word: pick the dtype's function, and lanes for scalar arguments."""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from compiler_bridge.cpu.simd_types import Vec, common_type, element_of, with_element
from compiler_bridge.cpu.simd_types import splat as splat_value

_SCALAR_LANES = {"float32": 4, "float64": 2}  # one 128-bit register


def register_math_word(word: Any, by_dtype: dict[str, Any]) -> None:
    """Make `word` callable from compiled code; `by_dtype` maps a dtype's name to a Numba dispatcher."""

    class Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            form = _argument_type(self.context, args)
            version = _version(by_dtype, form)
            vector = _vector_type(form)
            result = version.get_call_type(self.context, (vector,) * len(args), {}).return_type
            result = result if isinstance(form, Vec) else result.element
            return signature(result, *[form] * len(args))

    infer_global(word, types.Function(_named(Typing, word)))

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        form = sig.args[0]
        version = _version(by_dtype, form)
        vector = _vector_type(form)
        inner = version.get_call_type(context.typing_context, (vector,) * len(args), {})
        implementation = context.get_function(version, inner)
        if isinstance(form, Vec):
            return implementation(builder, args)
        lanes = [splat_value(builder, value, vector.lanes) for value in args]
        return builder.extract_element(implementation(builder, lanes), ir.Constant(ir.IntType(32), 0))

    for count in (1, 2, 3):
        lower_builtin(word, *[Vec] * count)(lower)
        lower_builtin(word, *[types.Float] * count)(lower)


def _named(template: Any, word: Any) -> Any:
    template.key = word
    return template


def _argument_type(context: Any, args: Any) -> Any:
    """The arguments' common type; anything but a float counts as float32."""
    form = common_type(context, *args)
    return form if isinstance(element_of(form), types.Float) else with_element(form, types.float32)


def _vector_type(form: Any) -> Vec:
    return form if isinstance(form, Vec) else Vec(form, _SCALAR_LANES[str(form)])


def _version(by_dtype: dict[str, Any], form: Any) -> Any:
    return by_dtype[str(element_of(form))]._numba_type_
