"""`@math_word`: one function over vectors, usable by kernels on vectors and scalars of either float dtype.

A math word is called with floats; integers and bools count as float32, as in torch. A scalar argument
is computed as a short vector of equal lanes, so that the mathematics is written once.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from compiler_bridge import settings
from compiler_bridge.cpu.language import extract, helper, outlined_helper, splat


def math_word(function: Callable[..., Any] | None = None, *, outlined: bool = False, **by_dtype: Any) -> Any:
    """A word from a function of vectors, or from one function for each of float32 and float64.

    Args:    function: generic over both dtypes (used as a decorator)
             outlined: leave the machine code as a function of its own (long ones); else it is inlined
             by_dtype: float32=..., float64=..., where the two need different mathematics
    """
    if function is None and not by_dtype:
        return functools.partial(math_word, outlined=outlined)
    make = outlined_helper if outlined else helper
    if by_dtype:
        compiled = {name: make(version) for name, version in by_dtype.items()}
        described: Any = by_dtype["float32"]
    else:
        generic: Any = function
        compiled: dict[str, Any] = dict.fromkeys(("float32", "float64"), make(generic))
        described = generic
    word = (_interpreted_word if settings.INTERPRET else _compiled_word)(compiled)
    word.__doc__ = described.__doc__
    word.__name__ = described.__name__
    return word


def _interpreted_word(by_dtype: dict[str, Any]) -> Any:
    from compiler_bridge.cpu.simd_python_vector import Vector, common, typed

    def word(*args: Any) -> Any:
        values = common(*args)
        name = values[0].dtype.name
        values = values if name in by_dtype else [typed(value).astype("float32") for value in values]
        version = by_dtype.get(name, by_dtype["float32"])
        if any(isinstance(value, Vector) for value in values):
            lanes = max(value.size for value in values)
            return version(*(v if isinstance(v, Vector) else splat(v, lanes) for v in values))
        return extract(version(*(splat(value, 2) for value in values)), 0)

    return word


def _compiled_word(by_dtype: dict[str, Any]) -> Any:
    from compiler_bridge.cpu.simd_mathword import register_math_word

    def word(*args: Any) -> Any:
        raise TypeError("a math word runs inside kernels; set PYNN_INTERPRET=1 to call it from Python")

    register_math_word(word, by_dtype)
    return word
