"""The phases of a strided convolution: which taps of its window reach a place of the input."""

from __future__ import annotations

from dataclasses import dataclass

from compiler_bridge.ir import Axis, Expr, Index, IndexValue, Size, Value
from compiler_bridge.lower.lowering import apply, constant
from compiler_bridge.lower.window import affine


@dataclass(frozen=True)
class Phase:
    """One dimension of the input's gradient: y = stride * step + phase, so that the taps which reach y depend on
    the phase alone."""

    step: Axis
    phase: Axis
    index: Index

    @staticmethod
    def of(place: Axis, stride: Size) -> Phase:
        if stride == 1:
            return Phase(place, Axis(f"{place.name}r", 1), affine(place, 1))
        steps = (place.extent + stride - 1) // stride
        step, phase = Axis(f"{place.name}s", steps), Axis(f"{place.name}r", stride)
        return Phase(step, phase, affine(step, stride) + affine(phase, 1))


def source_place(phase: Phase, t: Index, stride: Size) -> tuple[Index, Expr | None]:
    """step - floor(t / stride), and the condition that the phase is what t leaves of the stride."""
    if stride == 1:
        return affine(phase.step, 1) + t.scaled(-1), None
    quotient = apply("floor_divide", IndexValue("int64", t), constant(stride, "int64"))
    rest = apply("remainder", IndexValue("int64", t), constant(stride, "int64"))
    place = affine(phase.step, 1) + Index(((Value(quotient), -1),))
    return place, apply("eq", IndexValue("int64", affine(phase.phase, 1)), rest)
