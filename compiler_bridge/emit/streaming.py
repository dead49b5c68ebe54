"""Which kernels write their results past the caches.

A plain store first reads the line it writes to: a third of the traffic of y = f(x), for nothing where the caches hold
none of y any more when it is read again.
"""

from __future__ import annotations

from collections.abc import Mapping

from compiler_bridge.cpu.host import cache_bytes
from compiler_bridge.fuse import expr_cost
from compiler_bridge.ir import Index, Load, Map, Size, node_exprs, walk
from compiler_bridge.ops import DTYPES
from compiler_bridge.schedule import Schedule, numel

OPERATIONS_PER_TENSOR = 8  # read or written: more arithmetic (`expr_cost`) takes longer than the memory


def passes_the_caches(
    schedule: Schedule, outputs: set[str], dtypes: Mapping[str, str], aliases: Mapping[str, str]
) -> bool:
    """Whether a kernel writes more than the caches hold, reads none of it back, and waits for memory: where arithmetic
    takes the time, stores past the caches, which wait for each other, cost more than they save."""
    written = [node for node in schedule.nodes if node.output in outputs and isinstance(node, Map)]
    nbytes: Size = 0
    for node in written:
        nbytes = nbytes + numel(node.axes) * DTYPES[dtypes[node.output]].itemsize
    if not isinstance(nbytes, int) or nbytes < cache_bytes(3):
        return False
    exprs = [expr for node in schedule.nodes for expr in node_exprs(node)]
    read = {aliases.get(e.buffer, e.buffer) for top in exprs for e in walk(top) if isinstance(e, Load)}
    arithmetic = sum(expr_cost(expr) for expr in exprs)
    if arithmetic > OPERATIONS_PER_TENSOR * (len(read) + len(written)):
        return False
    return not read & {aliases.get(node.output, node.output) for node in written}


def is_aligned(place: Index, vector: str | None, lanes: int) -> bool:
    """Whether whole vectors of a result begin at multiples of their size, if their axis takes only multiples of the
    lanes. Memory that kernels write begins at a multiple of 64 bytes."""
    places = (*[step for atom, step in place.terms if atom != vector], place.const)
    return all(isinstance(step, int) and step % lanes == 0 for step in places)
