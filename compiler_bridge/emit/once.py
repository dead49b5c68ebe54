"""What a program computes of frozen inputs: in a program of its own, which runs when one of them has changed.

    program(x, weight)            = pack(weight) -> workspace; x @ workspace
    once.program(weight)          = pack(weight) -> packed
    program(x, weight, packed)    = x @ packed

Both are made of one generated module. The results of the first are inputs of the second, after its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from compiler_bridge import program as p
from compiler_bridge.contract import MatrixForm
from compiler_bridge.group import Group
from compiler_bridge.ir import Graph, Load, walk


class Once:
    """Steps that need nothing but frozen inputs.

    frozen: buffers of frozen inputs, and of what was made of them
    kept:   buffers that the steps hand over to the main program
    """

    def __init__(self, graph: Graph, frozen: Iterable[int]):
        self.graph = graph
        self.frozen = {name for name in (graph.inputs[i] for i in frozen) if isinstance(name, str)}
        self.steps: list[p.Step] = []
        self.kept: dict[str, p.Buffer] = {}

    def can_take(self, group: Group, reads: set[str], outputs: set[str]) -> bool:
        """Whether a kernel of loops reads frozen values alone and its results have one size.

        reads, outputs: buffers, those of other kernels
        """
        if not self.frozen or not group.is_loop or not reads or not reads <= self.frozen:
            return False
        sizes = [self.graph.buffers[name].numel() for name in outputs]
        return bool(sizes) and all(isinstance(size, int) for size in sizes)

    def can_pack(self, form: MatrixForm) -> bool:
        """Whether B is made of frozen values and has one size."""
        loads = [part for part in walk(form.rhs) if isinstance(part, Load)]
        extents = [dimension.extent for dimension in (*form.batch, form.n, form.k, form.k_segments)]
        return (
            bool(loads)
            and all(load.buffer in self.frozen for load in loads)
            and all(isinstance(extent, int) for extent in extents)
        )

    def keep(self, buffer: p.Buffer) -> None:
        self.kept[buffer.name] = buffer
        self.frozen.add(buffer.name)

    def inputs_of_main(self) -> list[p.Input]:
        """The kept buffers, flat, as the main program takes them."""
        return [p.TensorInput(b.name, b.dtype, (b.numel,), (1,)) for b in self.kept.values()]

    def without_unused(
        self, inputs: list[p.Input], steps: list[p.Step], outputs: list[p.Output]
    ) -> list[p.Input]:
        """The main program's inputs, its steps and outputs given: frozen ones it doesn't need any more are unused."""
        needed = {name for step in steps for name in step.buffer_names()}
        needed |= {output.buffer_name for output in outputs if isinstance(output, p.TensorView)}
        returned = {output.index for output in outputs if isinstance(output, p.InputReference)}

        def is_needed(position: int, spec: p.Input) -> bool:
            if not isinstance(spec, p.TensorInput) or spec.name not in self.frozen or position in returned:
                return True
            return spec.name in needed

        return [
            spec if is_needed(i, spec) else p.UnusedInput(getattr(spec, "name", ""))
            for i, spec in enumerate(inputs)
        ]

    def program(
        self, source: str, buffers: Callable[[list[Any]], list[p.Buffer]], inputs: list[p.Input], name: str
    ) -> p.OnceProgram | None:
        """The program of the steps, and which of the main program's inputs it takes; None without steps.

        buffers: gives the buffers that steps touch
        inputs:  of the main program
        """
        if not self.steps:
            return None
        touched = {name for step in self.steps for name in step.buffer_names()}
        positions = [
            i for i, spec in enumerate(inputs) if isinstance(spec, p.TensorInput) and spec.name in touched
        ]
        taken = [inputs[position] for position in positions]
        names = {spec.name for spec in taken if isinstance(spec, p.TensorInput)}
        kept = [p.Buffer(b.name, b.dtype, b.numel, "output") for b in self.kept.values()]
        others = [
            b
            for b in buffers(self.steps)
            if b.name not in self.kept and (b.kind != "input" or b.name in names)
        ]
        outputs: list[p.Output] = [p.TensorView(b.name, (b.numel,), (1,), 0, b.dtype) for b in kept]
        return p.OnceProgram(
            p.Program(source, others + kept, self.steps, taken, outputs, {}, f"{name}_once"), positions, []
        )
