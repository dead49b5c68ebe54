"""Words that move values between the lanes of vectors: reductions, extract, halves, transpose.

Reductions fold the upper half onto the lower half until one lane is left (8 lanes: lane + lane 4,
then + lane 2, then + lane 1), so that the result is the same on every machine and when interpreted.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from compiler_bridge.cpu.simd_elementwise import build_extreme
from compiler_bridge.cpu.simd_types import LANE_COUNTS, Vec, fail, intrinsic, lane_indices

_I32 = ir.IntType(32)


def _check_vector(numba_type: Any, name: str) -> Vec:
    if not isinstance(numba_type, Vec):
        fail(f"{name} takes a vector; got {numba_type}")
    return numba_type


def half(builder: Any, value: Any, upper: bool) -> Any:
    """The lower or upper half of an LLVM vector."""
    count = value.type.count // 2
    start = count if upper else 0
    return builder.shuffle_vector(
        value, ir.Constant(value.type, ir.Undefined), lane_indices(range(start, start + count))
    )


def _reduction(name: str, accepts: Any, combine: Any, meaning: str) -> Any:
    def typing(typingctx, vector):
        element = _check_vector(vector, name).element
        if not accepts(element):
            fail(f"{name} does not take {vector}")

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = args[0]
            while value.type.count > 1:
                value = combine(builder, element, half(builder, value, False), half(builder, value, True))
            return builder.extract_element(value, ir.Constant(_I32, 0))

        return element(vector), generate

    typing.__name__ = typing.__qualname__ = name
    typing.__doc__ = meaning
    return intrinsic(typing)


def _add(builder: Any, element: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b) if isinstance(element, types.Float) else builder.add(a, b)


def _multiply(builder: Any, element: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b) if isinstance(element, types.Float) else builder.mul(a, b)


def _is_number(element: Any) -> bool:
    return element != types.boolean


def _is_bool(element: Any) -> bool:
    return element == types.boolean


reduce_add = _reduction("reduce_add", _is_number, _add, "The sum of the lanes.")
reduce_mul = _reduction("reduce_mul", _is_number, _multiply, "The product of the lanes.")
reduce_max = _reduction(
    "reduce_max",
    _is_number,
    lambda builder, element, a, b: build_extreme(builder, element, a, b, True),
    "The largest lane; NaN if any is NaN.",
)
reduce_min = _reduction(
    "reduce_min",
    _is_number,
    lambda builder, element, a, b: build_extreme(builder, element, a, b, False),
    "The smallest lane; NaN if any is NaN.",
)


def _mask_test(name: str, every: bool, meaning: str) -> Any:
    def typing(typingctx, mask):
        if not _is_bool(_check_vector(mask, name).element):
            fail(f"{name} takes a mask; got {mask}")
        width = mask.lanes

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            bits = builder.bitcast(args[0], ir.IntType(width))
            if every:
                return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, -1))
            return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

        return types.boolean(mask), generate

    typing.__name__ = typing.__qualname__ = name
    typing.__doc__ = meaning
    return intrinsic(typing)


reduce_any = _mask_test("reduce_any", False, "Whether any lane is true.")
reduce_all = _mask_test("reduce_all", True, "Whether every lane is true.")


# ---- shuffles ---------------------------------------------------------------------------------------


@intrinsic
def lane_count(typingctx, x):
    """How many lanes a vector has."""
    width = _check_vector(x, "lane_count").lanes

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), width)

    return types.intp(x), generate


@intrinsic(prefer_literal=True)
def extract(typingctx, vector, lane):
    """One lane of a vector."""
    _check_vector(vector, "extract")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], _I32))

    return vector.element(vector, types.intp), generate


@intrinsic(prefer_literal=True)
def insert(typingctx, vector, lane, value):
    """The vector with one lane replaced."""
    _check_vector(vector, "insert")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.insert_element(args[0], args[2], builder.trunc(args[1], _I32))

    return vector(vector, types.intp, vector.element), generate


@intrinsic
def concat_vectors(typingctx, low, high):
    """Both vectors' lanes, one after the other."""
    if _check_vector(low, "concat_vectors") != high:
        fail(f"concat_vectors takes two vectors of one type; got {low} and {high}")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.shuffle_vector(*args, lane_indices(range(2 * low.lanes)))

    return Vec(low.element, 2 * low.lanes)(low, high), generate


def _half_word(name: str, upper: bool, meaning: str) -> Any:
    def typing(typingctx, vector):
        if _check_vector(vector, name).lanes // 2 not in LANE_COUNTS:
            fail(f"{name} needs at least 4 lanes; got {vector}")

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return half(builder, args[0], upper)

        return Vec(vector.element, vector.lanes // 2)(vector), generate

    typing.__name__ = typing.__qualname__ = name
    typing.__doc__ = meaning
    return intrinsic(typing)


low_half = _half_word("low_half", False, "The first half of the lanes.")
high_half = _half_word("high_half", True, "The second half of the lanes.")


@intrinsic
def reverse_quads(typingctx, vector):
    """Lanes 3, 2, 1, 0, 7, 6, 5, 4, ..."""
    if _check_vector(vector, "reverse_quads").lanes < 4:
        fail(f"reverse_quads needs at least 4 lanes; got {vector}")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        order = lane_indices(lane ^ 3 for lane in range(vector.lanes))
        return builder.shuffle_vector(args[0], ir.Constant(args[0].type, ir.Undefined), order)

    return vector(vector), generate


def build_transpose(builder: Any, rows: Any) -> Any:
    """Transpose n LLVM vectors of n lanes in log2(n) rounds of exchanges between pairs of rows."""
    count = len(rows)
    distance = count // 2
    while distance:
        exchanged = list(rows)
        for row in range(count):
            if row & distance:
                continue
            a, b = rows[row], rows[row + distance]
            # each pair swaps its off-diagonal blocks of `distance` lanes
            first = [lane if not lane & distance else count + lane - distance for lane in range(count)]
            second = [lane + distance if not lane & distance else count + lane for lane in range(count)]
            exchanged[row] = builder.shuffle_vector(a, b, lane_indices(first))
            exchanged[row + distance] = builder.shuffle_vector(a, b, lane_indices(second))
        rows = exchanged
        distance //= 2
    return rows


@intrinsic
def transpose(typingctx, rows):
    """A tuple of n vectors of n lanes -> the tuple of the matrix's columns."""
    if not (
        isinstance(rows, types.UniTuple) and isinstance(rows.dtype, Vec) and rows.dtype.lanes == rows.count
    ):
        fail(f"transpose takes a tuple of n vectors of n lanes; got {rows}")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = [builder.extract_value(args[0], row) for row in range(rows.count)]
        return context.make_tuple(builder, rows, build_transpose(builder, vectors))

    return rows(rows), generate


@intrinsic
def transpose8(typingctx, v0, v1, v2, v3, v4, v5, v6, v7):
    """Eight vectors of 8 lanes -> the tuple of the matrix's columns."""
    if (
        any(vector != v0 for vector in (v1, v2, v3, v4, v5, v6, v7))
        or _check_vector(v0, "transpose8").lanes != 8
    ):
        fail("transpose8 takes eight vectors of one type with 8 lanes")
    result = types.UniTuple(v0, 8)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_tuple(builder, result, build_transpose(builder, list(args)))

    return result(v0, v1, v2, v3, v4, v5, v6, v7), generate
