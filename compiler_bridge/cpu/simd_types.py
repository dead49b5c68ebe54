"""Numba types of the kernel language: `Vec(element, lanes)` and `Pointer(dtype)`, with their LLVM forms.

A vector is one LLVM vector value (`<8 x float>`), a mask is `Vec(boolean, lanes)` (`<8 x i1>`).
Vectors wider than a register are split by LLVM. Storage types that Numba has no arithmetic for are
held in another type once loaded: 16-bit floats as float32, 8- and 16-bit integers as int32.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

import struct
from typing import Any

from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.core.imputils import lower_cast
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

intrinsic: Any = numba_intrinsic
"""Untyped, so that a word does not seem to take the typing context its definition takes."""

COMPUTE_TYPES: dict[str, Any] = {
    "float32": types.float32,
    "float64": types.float64,
    "int32": types.int32,
    "int64": types.int64,
    "uint32": types.uint32,
    "uint64": types.uint64,
    "bool": types.boolean,
}
"""dtype name -> Numba scalar type a value of that dtype is computed in."""

HELD_IN: dict[str, str] = {
    "bfloat16": "float32",
    "float16": "float32",
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
    "uint16": "int32",
}
"""Storage-only dtype name -> dtype its values are held in."""

STORAGE: dict[str, Any] = {
    "float32": ir.FloatType(),
    "float64": ir.DoubleType(),
    "int32": ir.IntType(32),
    "int64": ir.IntType(64),
    "uint32": ir.IntType(32),
    "uint64": ir.IntType(64),
    "bool": ir.IntType(8),
    "bfloat16": ir.IntType(16),
    "float16": ir.IntType(16),
    "int8": ir.IntType(8),
    "uint8": ir.IntType(8),
    "int16": ir.IntType(16),
    "uint16": ir.IntType(16),
}
"""dtype name -> LLVM type of one element in memory."""

ITEM_BYTES: dict[str, int] = {
    name: {"float": 4, "double": 8}.get(str(form)) or form.width // 8 for name, form in STORAGE.items()
}

LANE_COUNTS = (2, 4, 8, 16, 32, 64)


class Vec(types.Type):
    """`lanes` elements of the Numba scalar type `element`."""

    def __init__(self, element: Any, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        super().__init__(name=f"Vec({element}, {lanes})")

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        return None


class Pointer(types.Type):
    """A pointer to elements stored as `dtype` (a name of STORAGE)."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        super().__init__(name=f"Pointer({dtype})")

    @property
    def held(self) -> Any:
        """The Numba scalar type of a loaded element."""
        return COMPUTE_TYPES[HELD_IN.get(self.dtype, self.dtype)]


def llvm_scalar(element: Any) -> Any:
    """The LLVM type of one lane or scalar; bool is i1."""
    if element == types.boolean:
        return ir.IntType(1)
    if isinstance(element, types.Float):
        return ir.FloatType() if element.bitwidth == 32 else ir.DoubleType()
    return ir.IntType(element.bitwidth)


def llvm_type(numba_type: Any) -> Any:
    """The LLVM value type of a scalar or a Vec."""
    if isinstance(numba_type, Vec):
        return ir.VectorType(llvm_scalar(numba_type.element), numba_type.lanes)
    return llvm_scalar(numba_type)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Vec) -> None:
        super().__init__(manager, numba_type, llvm_type(numba_type))


@register_model(Pointer)
class _PointerModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Pointer) -> None:
        super().__init__(manager, numba_type, STORAGE[numba_type.dtype].as_pointer())


def fail(message: str) -> Any:
    """Raise the typing error that Numba reports at the user's line."""
    raise errors.TypingError(message)


def element_of(numba_type: Any) -> Any:
    """The scalar type of a scalar or of a vector's lanes, literals made plain."""
    if isinstance(numba_type, Vec):
        return numba_type.element
    return types.unliteral(numba_type)


def is_scalar(numba_type: Any) -> bool:
    return isinstance(types.unliteral(numba_type), (types.Float, types.Integer, types.Boolean))


def with_element(numba_type: Any, element: Any) -> Any:
    """The same shape (scalar or lanes) with another element type."""
    return Vec(element, numba_type.lanes) if isinstance(numba_type, Vec) else element


def literal_lanes(argument: Any) -> int:
    """The lane count of a literal argument."""
    if not isinstance(argument, types.IntegerLiteral):
        fail(f"lanes must be a literal or a global constant, one of {LANE_COUNTS}; got {argument}")
    if argument.literal_value not in LANE_COUNTS:
        fail(f"lanes must be one of {LANE_COUNTS}; got {argument.literal_value}")
    return argument.literal_value


def literal_dtype(argument: Any, names: Any) -> str:
    """The dtype name of a literal argument, checked against `names`."""
    if not isinstance(argument, types.StringLiteral):
        fail(f"dtype must be a literal string, one of {sorted(names)}; got {argument}")
    if argument.literal_value not in names:
        fail(f"dtype must be one of {sorted(names)}; got {argument.literal_value!r}")
    return argument.literal_value


def common_type(typingctx: Any, *arguments: Any) -> Any:
    """The type all arguments are converted to: the vectors' type, or the scalars' common one."""
    vectors = {argument for argument in arguments if isinstance(argument, Vec)}
    if len(vectors) > 1:
        fail(f"vectors of different types need an explicit cast: {sorted(str(v) for v in vectors)}")
    if not all(isinstance(argument, Vec) or is_scalar(argument) for argument in arguments):
        fail(f"expected vectors or scalars; got {arguments}")
    if vectors:
        return vectors.pop()
    return typingctx.unify_types(*(types.unliteral(argument) for argument in arguments))


# ---- building LLVM values -------------------------------------------------------------------------


def constant(llvm: Any, value: Any) -> Any:
    """`value` as a constant of an LLVM scalar or vector type (every lane alike)."""
    if isinstance(llvm, ir.VectorType):
        return ir.Constant(llvm, [ir.Constant(llvm.element, value)] * llvm.count)
    return ir.Constant(llvm, value)


def lane_indices(lanes: Any) -> Any:
    """Constant `<n x i32>` used by shuffles."""
    indices = list(lanes)
    return ir.Constant(
        ir.VectorType(ir.IntType(32), len(indices)), [ir.Constant(ir.IntType(32), i) for i in indices]
    )


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    """Broadcast an LLVM scalar; a constant stays a constant, so that LLVM folds around it."""
    vector = ir.VectorType(scalar.type, lanes)
    if isinstance(scalar, ir.Constant) and not isinstance(scalar.type, ir.VectorType):
        return ir.Constant(vector, [scalar] * lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, lane_indices([0] * lanes))


def mangled(llvm: Any) -> str:
    """How intrinsic names spell a type: f32, v8f32, v4i64, v8p0."""
    if isinstance(llvm, ir.VectorType):
        return f"v{llvm.count}{mangled(llvm.element)}"
    if isinstance(llvm, ir.PointerType):
        return "p0"
    if isinstance(llvm, ir.IntType):
        return f"i{llvm.width}"
    return {"half": "f16", "float": "f32", "double": "f64"}[str(llvm)]


def call_intrinsic(builder: Any, name: str, result: Any, arguments: Any, fastmath: Any = ()) -> Any:
    """Call the LLVM intrinsic with this full name."""
    form = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(
        cgutils.get_or_insert_function(builder.module, form, name), arguments, fastmath=fastmath
    )


def is_signed(element: Any) -> bool:
    return isinstance(element, types.Integer) and bool(getattr(element, "signed", False))


def convert(builder: Any, value: Any, source: Any, target: Any) -> Any:
    """Convert an LLVM scalar or vector between element types (numpy's `astype`; lanes unchanged)."""
    if source == target:
        return value
    shape = value.type
    to = (
        ir.VectorType(llvm_scalar(target), shape.count)
        if isinstance(shape, ir.VectorType)
        else llvm_scalar(target)
    )
    if target == types.boolean:
        zero = constant(shape, 0.0 if isinstance(source, types.Float) else 0)
        if isinstance(source, types.Float):
            return builder.fcmp_unordered("!=", value, zero)
        return builder.icmp_unsigned("!=", value, zero)
    if isinstance(source, types.Float):
        return _convert_float(builder, value, source, target, to)
    if isinstance(target, types.Float):
        return builder.sitofp(value, to) if is_signed(source) else builder.uitofp(value, to)
    width = 1 if source == types.boolean else source.bitwidth
    if target.bitwidth == width:
        return value
    if target.bitwidth < width:
        return builder.trunc(value, to)
    return builder.sext(value, to) if is_signed(source) else builder.zext(value, to)


def _convert_float(builder: Any, value: Any, source: Any, target: Any, to: Any) -> Any:
    if isinstance(target, types.Float):
        return builder.fptrunc(value, to) if target.bitwidth < source.bitwidth else builder.fpext(value, to)
    if is_signed(target):
        return builder.fptosi(value, to)
    if target.bitwidth == 64:
        return builder.fptoui(value, to)
    # through int64, so that a negative float wraps instead of being undefined
    wide = ir.IntType(64)
    wide = ir.VectorType(wide, to.count) if isinstance(to, ir.VectorType) else wide
    return builder.trunc(builder.fptosi(value, wide), to)


def _literal_constant(numba_type: Any, element: Any) -> Any:
    """A literal int or bool as a constant of another element type."""
    number = numba_type.literal_value
    if isinstance(element, types.Float):
        return ir.Constant(llvm_scalar(element), float(number))
    return ir.Constant(llvm_scalar(element), int(number))


@lower_cast(types.Float, Vec)
@lower_cast(types.Integer, Vec)
@lower_cast(types.Boolean, Vec)
def _cast_scalar_to_vector(context: Any, builder: Any, source: Any, target: Vec, value: Any) -> Any:
    if isinstance(source, types.Literal):
        scalar = _literal_constant(source, target.element)
    elif (
        isinstance(value, ir.Constant)
        and isinstance(source, types.Float)
        and isinstance(target.element, types.Float)
    ):
        number = value.constant
        if target.element.bitwidth == 32:
            number = _round_to_float32(number)
        scalar = ir.Constant(llvm_scalar(target.element), number)
    else:
        scalar = convert(builder, value, types.unliteral(source), target.element)
    return splat(builder, scalar, target.lanes)


def _round_to_float32(number: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
