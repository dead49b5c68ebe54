"""Pointers, loads and stores of the kernel language.

Element alignment is all that is assumed, and nothing about aliasing. Values are held as simd_types
says: 16-bit floats as float32, 8- and 16-bit integers as int32, bool (one byte in memory) as i1.
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from compiler_bridge.cpu.simd_types import (
    ITEM_BYTES,
    STORAGE,
    Pointer,
    Vec,
    call_intrinsic,
    constant,
    convert,
    element_of,
    fail,
    intrinsic,
    is_scalar,
    literal_dtype,
    literal_lanes,
    mangled,
    splat,
)

INDEX = ir.IntType(64)
_I32 = ir.IntType(32)


def _check_pointer(pointer: Any) -> Pointer:
    if not isinstance(pointer, Pointer):
        fail(f"expected a pointer; got {pointer}")
    return pointer


def _optional(argument: Any, numba_type: Any) -> Any:
    """`numba_type`, or none when the caller left this trailing argument out (Numba fills it in)."""
    return types.none if argument is None else numba_type


def _index_type(index: Any) -> Any:
    if not isinstance(index, types.Integer):
        fail(f"an index must be an integer; got {index}")
    return types.intp


# ---- between memory and value -----------------------------------------------------------------------


def _shaped(element: Any, like: Any) -> Any:
    """`element`, as a vector when `like` is one."""
    return ir.VectorType(element, like.count) if isinstance(like, ir.VectorType) else element


def decode(builder: Any, raw: Any, dtype: str) -> Any:
    """Stored bits -> the value they are held as."""
    form = raw.type
    if dtype == "bool":
        return builder.icmp_unsigned("!=", raw, constant(form, 0))
    if dtype == "bfloat16":
        wide = builder.zext(raw, _shaped(_I32, form))
        return builder.bitcast(builder.shl(wide, constant(wide.type, 16)), _shaped(ir.FloatType(), form))
    if dtype == "float16":
        return builder.fpext(
            builder.bitcast(raw, _shaped(ir.HalfType(), form)), _shaped(ir.FloatType(), form)
        )
    if dtype in ("int8", "int16"):
        return builder.sext(raw, _shaped(_I32, form))
    if dtype in ("uint8", "uint16"):
        return builder.zext(raw, _shaped(_I32, form))
    return raw


def encode(builder: Any, value: Any, dtype: str) -> Any:
    """A held value -> the bits to store; 16-bit floats round to nearest even and keep NaN."""
    form = value.type
    if dtype == "bool":
        return builder.zext(value, _shaped(ir.IntType(8), form))
    if dtype == "bfloat16":
        return _encode_bfloat16(builder, value)
    if dtype == "float16":
        half = builder.fptrunc(value, _shaped(ir.HalfType(), form))
        return builder.bitcast(half, _shaped(ir.IntType(16), form))
    if dtype in ("int8", "uint8", "int16", "uint16"):
        return builder.trunc(value, _shaped(STORAGE[dtype], form))
    return value


def _encode_bfloat16(builder: Any, value: Any) -> Any:
    """Add half of the last kept bit (less one when it is even), then drop the low 16 bits."""
    form = value.type
    bits = builder.bitcast(value, _shaped(_I32, form))
    sixteen = constant(bits.type, 16)
    odd = builder.and_(builder.lshr(bits, sixteen), constant(bits.type, 1))
    rounded = builder.add(builder.add(bits, odd), constant(bits.type, 0x7FFF))
    upper = builder.lshr(rounded, sixteen)
    is_nan = builder.fcmp_unordered("uno", value, value)
    upper = builder.select(is_nan, constant(bits.type, 0x7FC0), upper)
    return builder.trunc(upper, _shaped(ir.IntType(16), form))


# ---- addresses --------------------------------------------------------------------------------------


def _element_address(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.gep(pointer, [index])


def _vector_address(builder: Any, pointer: Any, index: Any, raw: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), raw.as_pointer())


def _raw_vector(dtype: str, lanes: int) -> Any:
    return ir.VectorType(STORAGE[dtype], lanes)


def count_mask(builder: Any, count: Any, lanes: int) -> Any:
    """Mask of the first `count` lanes; any int64 count."""
    limit = ir.Constant(INDEX, lanes)
    clamped = builder.select(builder.icmp_signed("<", count, limit), count, limit)
    narrow = builder.trunc(
        builder.select(
            builder.icmp_signed("<", clamped, ir.Constant(INDEX, 0)), ir.Constant(INDEX, 0), clamped
        ),
        _I32,
    )
    numbers = ir.Constant(ir.VectorType(_I32, lanes), [ir.Constant(_I32, lane) for lane in range(lanes)])
    return builder.icmp_signed("<", numbers, splat(builder, narrow, lanes))


def _masked_load(builder: Any, address: Any, mask: Any, raw: Any, dtype: str) -> Any:
    align = ir.Constant(_I32, ITEM_BYTES[dtype])
    name = f"llvm.masked.load.{mangled(raw)}.p0"
    return call_intrinsic(builder, name, raw, [address, align, mask, constant(raw, _zero(raw.element))])


def _masked_store(builder: Any, address: Any, mask: Any, value: Any, dtype: str) -> None:
    align = ir.Constant(_I32, ITEM_BYTES[dtype])
    name = f"llvm.masked.store.{mangled(value.type)}.p0"
    call_intrinsic(builder, name, ir.VoidType(), [value, address, align, mask])


def _zero(element: Any) -> Any:
    return 0 if isinstance(element, ir.IntType) else 0.0


def _full_mask(lanes: int) -> Any:
    return constant(ir.VectorType(ir.IntType(1), lanes), 1)


def _gather(builder: Any, pointer: Any, index: Any, mask: Any, dtype: str) -> Any:
    raw = _raw_vector(dtype, index.type.count)
    addresses = builder.gep(splat(builder, pointer, index.type.count), [index], source_etype=STORAGE[dtype])
    align = ir.Constant(_I32, ITEM_BYTES[dtype])
    name = f"llvm.masked.gather.{mangled(raw)}.v{raw.count}p0"
    return call_intrinsic(builder, name, raw, [addresses, align, mask, constant(raw, _zero(raw.element))])


def _scatter(builder: Any, pointer: Any, index: Any, mask: Any, value: Any, dtype: str) -> None:
    addresses = builder.gep(splat(builder, pointer, index.type.count), [index], source_etype=STORAGE[dtype])
    align = ir.Constant(_I32, ITEM_BYTES[dtype])
    name = f"llvm.masked.scatter.{mangled(value.type)}.v{index.type.count}p0"
    call_intrinsic(builder, name, ir.VoidType(), [value, addresses, align, mask])


def _strided_index(builder: Any, start: Any, stride: Any, lanes: int) -> Any:
    numbers = ir.Constant(ir.VectorType(INDEX, lanes), [ir.Constant(INDEX, lane) for lane in range(lanes)])
    return builder.add(splat(builder, start, lanes), builder.mul(numbers, splat(builder, stride, lanes)))


# ---- pointers ---------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def pointer(typingctx, table, slot, dtype):
    """The address in `table[slot]` as a pointer to `dtype`."""
    result = Pointer(literal_dtype(dtype, STORAGE))

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.load(builder.gep(args[0], [args[1]]))
        return builder.inttoptr(address, context.get_value_type(result))

    return result(table, _index_type(slot), dtype), generate


@intrinsic(prefer_literal=True)
def pointer_at(typingctx, address, dtype):
    """An int64 address as a pointer to `dtype`."""
    result = Pointer(literal_dtype(dtype, STORAGE))

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(result))

    return result(_index_type(address), dtype), generate


@intrinsic(prefer_literal=True)
def address_of(typingctx, pointer):
    """The int64 address a pointer holds."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], INDEX)

    return types.int64(_check_pointer(pointer)), generate


@intrinsic(prefer_literal=True)
def offset_pointer(typingctx, pointer, count):
    """The pointer `count` elements further."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _element_address(builder, args[0], args[1])

    return _check_pointer(pointer)(pointer, _index_type(count)), generate


# ---- loads ------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def load(typingctx, pointer, index, lanes=None, count=None):
    """p[i], or lanes p[i], p[i + 1], ... of which only the first `count` are read and the rest 0."""
    dtype = _check_pointer(pointer).dtype
    where = _index_type(index)
    if lanes is None:

        def generate_scalar(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return decode(builder, builder.load(_element_address(builder, args[0], args[1])), dtype)

        return pointer.held(pointer, where, types.none, types.none), generate_scalar
    width = literal_lanes(lanes)
    result = Vec(pointer.held, width)
    raw = _raw_vector(dtype, width)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _vector_address(builder, args[0], args[1], raw)
        if count is None:
            return decode(builder, builder.load(address, align=ITEM_BYTES[dtype]), dtype)
        return decode(
            builder, _masked_load(builder, address, count_mask(builder, args[3], width), raw, dtype), dtype
        )

    return result(pointer, where, lanes, _optional(count, types.intp)), generate


@intrinsic(prefer_literal=True)
def load_masked(typingctx, pointer, index, lanes, mask):
    """Contiguous lanes where `mask`, else 0; masked-off lanes are not read."""
    dtype, width = _check_pointer(pointer).dtype, literal_lanes(lanes)
    raw = _raw_vector(dtype, width)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _vector_address(builder, args[0], args[1], raw)
        return decode(builder, _masked_load(builder, address, args[3], raw, dtype), dtype)

    return Vec(pointer.held, width)(pointer, _index_type(index), lanes, Vec(types.boolean, width)), generate


@intrinsic(prefer_literal=True)
def load_if(typingctx, pointer, index, condition):
    """p[i] if the condition holds, else 0; nothing is read then."""
    dtype = _check_pointer(pointer).dtype

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        before = builder.block
        with builder.if_then(args[2]):
            value = builder.load(_element_address(builder, args[0], args[1]))
            inside = builder.block
        raw = builder.phi(STORAGE[dtype])
        raw.add_incoming(constant(STORAGE[dtype], _zero(STORAGE[dtype])), before)
        raw.add_incoming(value, inside)
        return decode(builder, raw, dtype)

    return pointer.held(pointer, _index_type(index), types.boolean), generate


@intrinsic(prefer_literal=True)
def load_strided(typingctx, pointer, index, stride, lanes, count=None):
    """Lanes p[i], p[i + stride], p[i + 2 stride], ..., of which the first `count` are read."""
    dtype, width = _check_pointer(pointer).dtype, literal_lanes(lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        indices = _strided_index(builder, args[1], args[2], width)
        mask = _full_mask(width) if count is None else count_mask(builder, args[4], width)
        return decode(builder, _gather(builder, args[0], indices, mask, dtype), dtype)

    arguments = (pointer, _index_type(index), _index_type(stride), lanes, _optional(count, types.intp))
    return Vec(pointer.held, width)(*arguments), generate


def _check_index_vector(index: Any) -> int:
    if not (isinstance(index, Vec) and index.element in (types.int32, types.int64)):
        fail(f"expected an int32 or int64 vector of indices; got {index}")
    return index.lanes


@intrinsic(prefer_literal=True)
def gather(typingctx, pointer, index, mask=None):
    """Lanes p[index[lane]]; masked-off lanes are 0 and not read."""
    dtype, width = _check_pointer(pointer).dtype, _check_index_vector(index)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        chosen = _full_mask(width) if mask is None else args[2]
        return decode(builder, _gather(builder, args[0], args[1], chosen, dtype), dtype)

    return Vec(pointer.held, width)(pointer, index, _optional(mask, Vec(types.boolean, width))), generate


@intrinsic(prefer_literal=True)
def broadcast_load(typingctx, pointer, index, lanes):
    """p[i] in every lane."""
    dtype, width = _check_pointer(pointer).dtype, literal_lanes(lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = decode(builder, builder.load(_element_address(builder, args[0], args[1])), dtype)
        return splat(builder, value, width)

    return Vec(pointer.held, width)(pointer, _index_type(index), lanes), generate


@intrinsic(prefer_literal=True)
def prefetch(typingctx, pointer, index):
    """Ask for the cache line of p[i], to be read soon."""
    _check_pointer(pointer)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(_element_address(builder, *args), ir.IntType(8).as_pointer())
        flags = [ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)]  # read, keep, data
        call_intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), [address, *flags])
        return context.get_dummy_value()

    return types.void(pointer, _index_type(index)), generate


# ---- stores -----------------------------------------------------------------------------------------


def _stored(pointer: Any, value: Any) -> Any:
    """The type a value keeps on its way to a store (conversion happens in `_to_storage`)."""
    _check_pointer(pointer)
    if isinstance(value, Vec):
        return value
    if not is_scalar(value):
        fail(f"expected a value to store; got {value}")
    return types.unliteral(value)


def _to_storage(builder: Any, value: Any, value_type: Any, pointer: Pointer) -> Any:
    held = convert(builder, value, element_of(value_type), pointer.held)
    return encode(builder, held, pointer.dtype)


@intrinsic(prefer_literal=True)
def store(typingctx, pointer, index, value, count=None):
    """p[i] = value, or p[i + lane] = value[lane] for every lane (for lane < count)."""
    kept = _stored(pointer, value)
    dtype = pointer.dtype

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _to_storage(builder, args[2], kept, pointer)
        if not isinstance(kept, Vec):
            builder.store(bits, _element_address(builder, args[0], args[1]))
            return context.get_dummy_value()
        address = _vector_address(builder, args[0], args[1], bits.type)
        if count is None:
            builder.store(bits, address, align=ITEM_BYTES[dtype])
        else:
            _masked_store(builder, address, count_mask(builder, args[3], kept.lanes), bits, dtype)
        return context.get_dummy_value()

    return types.void(pointer, _index_type(index), kept, _optional(count, types.intp)), generate


@intrinsic(prefer_literal=True)
def store_masked(typingctx, pointer, index, value, mask):
    """p[i + lane] = value[lane] where mask."""
    kept = _stored(pointer, value)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _to_storage(builder, args[2], kept, pointer)
        address = _vector_address(builder, args[0], args[1], bits.type)
        _masked_store(builder, address, args[3], bits, pointer.dtype)
        return context.get_dummy_value()

    return types.void(pointer, _index_type(index), kept, Vec(types.boolean, kept.lanes)), generate


@intrinsic(prefer_literal=True)
def store_stream(typingctx, pointer, index, value):
    """store(p, i, value) past the cache; the address must be aligned to the whole vector, or to 64 bytes if that is
    less."""
    kept = _stored(pointer, value)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _to_storage(builder, args[2], kept, pointer)
        address = _vector_address(builder, args[0], args[1], bits.type)
        lanes = bits.type.count if isinstance(bits.type, ir.VectorType) else 1
        instruction = builder.store(bits, address, align=min(ITEM_BYTES[pointer.dtype] * lanes, 64))
        one = builder.module.add_metadata([ir.Constant(_I32, 1)])
        instruction.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.void(pointer, _index_type(index), kept), generate


@intrinsic(prefer_literal=True)
def store_strided(typingctx, pointer, index, stride, value, count=None):
    """p[i + lane * stride] = value[lane] (for lane < count)."""
    kept = _stored(pointer, value)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _to_storage(builder, args[3], kept, pointer)
        indices = _strided_index(builder, args[1], args[2], kept.lanes)
        mask = _full_mask(kept.lanes) if count is None else count_mask(builder, args[4], kept.lanes)
        _scatter(builder, args[0], indices, mask, bits, pointer.dtype)
        return context.get_dummy_value()

    arguments = (pointer, _index_type(index), _index_type(stride), kept, _optional(count, types.intp))
    return types.void(*arguments), generate


@intrinsic(prefer_literal=True)
def scatter(typingctx, pointer, index, value, mask=None):
    """p[index[lane]] = value[lane] where mask; equal indices keep the last lane."""
    kept, width = _stored(pointer, value), _check_index_vector(index)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _to_storage(builder, args[2], kept, pointer)
        chosen = _full_mask(width) if mask is None else args[3]
        _scatter(builder, args[0], args[1], chosen, bits, pointer.dtype)
        return context.get_dummy_value()

    return types.void(pointer, index, kept, _optional(mask, Vec(types.boolean, width))), generate
