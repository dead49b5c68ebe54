"""A contraction's epilogue as a function of the generated module, called on finished regions of C.

def k(tab, row_begin, row_end, column_begin, column_end):
    for r in range(row_begin, row_end):
        <decode r into the outer axes>
        <row values>
        for j in range(column_begin, column_end, lanes):
            store(y, ..., f(load(c, ...)))
"""

from __future__ import annotations

from typing import Any

from compiler_bridge.emit.kernel import INDENT, KernelCode, KernelWriter
from compiler_bridge.group import Group
from compiler_bridge.ir import Contract, Load, node_loads
from compiler_bridge.schedule import Schedule


class EpilogueWriter(KernelWriter):
    can_stream = False

    def __init__(
        self, schedule: Schedule, dtypes: dict[str, str], outputs: set[str], product: Contract
    ) -> None:
        super().__init__(schedule, dtypes, outputs, None)
        self.product = product

    def write(self) -> KernelCode:
        s = self.schedule
        self.line(1, "for r in range(row_begin, row_end):")
        self.decode_rows(2)
        loops = [node for node in s.nodes if s.in_loop(node, self.outputs)]
        self.write_loop(loops, 0, 2)
        body = [INDENT + line for line in self.names.preamble()] + self.lines
        return KernelCode(body, self.names, 0, 1)

    def vector_chunks(
        self, nodes: list[Any], level: int, accumulators: dict[str, str]
    ) -> list[tuple[str, list[str]]]:
        """Whole vectors of the region, and what is left of it: a region ends anywhere, whatever the extent (few rows
        are multiplied in column blocks cut evenly)."""
        s = self.schedule
        assert s.vector is not None
        name = s.vector.name
        whole = f"column_end - (column_end - column_begin) % {s.lanes}"
        header = f"for {name} in range(column_begin, {whole}, {s.lanes}):"
        chunks = [(header, self.write_body(nodes, level, accumulators))]
        left = f"(column_end - column_begin) % {s.lanes}"
        self.writer.count = f"({left})"
        body = self.write_body(nodes, level, accumulators)
        self.writer.count = None
        return [*chunks, (f"if {left} > 0:", [f"{name} = {whole}", *body])]

    def write_body(self, nodes: list[Any], level: int, accumulators: dict[str, str]) -> list[str]:
        """The product is read first: a result may be written in its place."""
        self.first_loads = product_loads(self.schedule.nodes, self.product)
        return super().write_body(nodes, level, accumulators)

    def begin_body(self) -> None:
        for load in self.first_loads:
            self.writer.write(load)


def product_loads(nodes: list[Any], product: Contract) -> list[Load]:
    return list(dict.fromkeys(x for node in nodes for x in node_loads(node) if x.buffer == product.output))


def place_of_product(
    product: Contract, group: Group, outputs: set[str], dtypes: dict[str, str]
) -> str | None:
    """A result of the epilogue with the place and dtype of the product, if nobody else reads the product."""
    if product.output in outputs:
        return None
    members = group.nodes[1:]
    places = {load.index for load in product_loads(members, product)}
    for member in members:
        if member.output in outputs and dtypes[member.output] == dtypes[product.output]:
            if places == {member.store}:
                return member.output
    return None
