"""The phases of a strided convolution: which taps of its window reach a place of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler_bridge.ir import Axis, BufferView, Expr, Index, IndexValue, Load, Size, Value
from compiler_bridge.lower.lowering import Lowering, apply, both, constant
from compiler_bridge.lower.window import Window, affine, window_load


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


def load_by_phases(
    lowering: Lowering,
    grad: BufferView,
    lead: list[Axis],
    phases: Sequence[Phase],
    taps: Sequence[Axis],
    window: Window,
    last: Sequence[Index] = (),
) -> Load:
    """grad[lead..., step - floor(t / stride) ..., last...] with t = tap * dilation - padding, and 0 where the phase is
    not what t leaves of the stride."""
    found = [
        source_place(phase, affine(tap, dilation, -padding), stride)
        for phase, tap, dilation, padding, stride in zip(
            phases, taps, window.dilation, window.padding, window.stride
        )
    ]
    index = [*(place for place, _ in found), *last]
    load = window_load(lowering, grad, lead, index, [True] * len(phases) + [False] * len(last))
    assert isinstance(load, Load)
    for _, fits in found:
        load = replace(load, mask=both(load.mask, fits)) if fits is not None else load
    return load
