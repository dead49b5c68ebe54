"""Sums over rows and nothing else: each vector of columns goes down all rows of a block in registers.

for block in range(begin, end):
    for j in range(0, cols, lanes):
        acc = 0
        for r in range(block * rows // blocks, (block + 1) * rows // blocks):
            acc = acc + x[r, j]
        sums[block, j] = acc

Row by row, every sum would be loaded and stored again for each of its terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compiler_bridge.emit.kernel import KernelWriter


def sums_columns_only(writer: KernelWriter) -> bool:
    """Whether a kernel keeps nothing but sums of columns along its vectors."""
    s = writer.schedule
    if s.vector is None or s.lanes_outer or s.sections or s.inner != (s.vector,) or s.kept or s.loops != 1:
        return False
    if any(node.output in writer.outputs for node in s.nodes if node.output not in writer.sinks):
        return False
    return all(s.roles[node.output] in ("sink", "full", "row") for node in s.nodes) and all(
        sink.axes == (s.vector,) for sink in writer.sinks.values()
    )


def write_columns(writer: KernelWriter, depth: int, rows: str) -> None:
    """The loops inside of a block. rows: the range of its rows."""
    s, vector = writer.schedule, writer.schedule.vector
    assert vector is not None
    writer.accumulators = {name: writer.names.fresh("acc") for name in writer.sinks}
    nodes = [node for node in s.nodes if node.output in writer.sinks]
    for node in s.nodes:
        if s.roles[node.output] == "row":
            writer.write_row_map(node)
    chunks = writer.vector_chunks(nodes, 0, {})
    of_a_row = list(writer.writer.row.lines)
    writer.writer.row.lines.clear()
    for header, body in chunks:
        inside, place = depth, f"{vector.name} = "
        if header:
            writer.line(depth, header)
            inside += 1
        if body[0].startswith(place):
            writer.line(inside, body.pop(0))
        for name, accumulator in writer.accumulators.items():
            writer.line(inside, f"{accumulator} = {writer.identity(writer.sinks[name].node)}")
        writer.line(inside, f"for r in {rows}:")
        writer.decode_rows(inside + 1)
        stores = [text for text in body if text.startswith("store(")]
        for text in of_a_row + [text for text in body if not text.startswith("store(")]:
            writer.line(inside + 1, text)
        for text in stores:
            writer.line(inside, text)
