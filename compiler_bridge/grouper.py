"""Which loops share a kernel: every node is placed in turn, with what it reads or beside what reads the same.

`group.join` says whether two loops can share a frame; here is which pairs are tried, and the order of the
kernels that keeps every value before its readers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler_bridge.epilogue import fuse_epilogue, join_all
from compiler_bridge.fuse import hint
from compiler_bridge.group import Group, Mismatch, check_dependences, join, single
from compiler_bridge.ir import (
    Contract,
    Extern,
    Graph,
    Load,
    Map,
    Node,
    Reduce,
    node_loads,
    node_outputs,
    node_reads,
    size_product,
)


def merge(first: Group, other: Group, node: Any, hints: Any) -> Group:
    """One group of the nodes of both, or Mismatch. They need not share an input: `node`, which reads values
    of both and is left out again, tells which axes correspond."""
    merged = join_all(join(first, node, hints), other.nodes, hints)
    count = len(first.nodes)
    nodes = [*merged.nodes[:count], *merged.nodes[count + 1 :], merged.nodes[count]]
    for end in range(count + 1, len(nodes) + 1):
        check_dependences(replace(merged, nodes=nodes[:end]), nodes[end - 1])
    return replace(merged, nodes=nodes[:-1], notes=first.notes + other.notes)


class Grouper:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.hints = graph.symbol_hints
        self.groups: list[Group] = []  # one without nodes was merged into another
        self.owner: dict[str, int] = {}  # buffer -> group
        self.ancestors: list[set[int]] = []
        self.known_reads: dict[int, tuple[Group, set[str]]] = {}

    def run(self) -> list[Group]:
        for node in self.graph.nodes:
            self.place(node)
        for position, group in enumerate(self.groups):
            if group.nodes and isinstance(group.nodes[0], Contract):
                self.add_epilogue(position)
        return [self.groups[i] for i in self.topological_order() if self.groups[i].nodes]

    def place(self, node: Any) -> None:
        sources = self.sources(node)
        if isinstance(node, (Map, Reduce)):
            self.merge_sources(node, sources)
            sources = self.sources(node)
            notes = []
            for candidate in self.candidates(node, sources):
                blockers = [s for s in sources if s != candidate and candidate in self.ancestors[s]]
                if blockers:
                    continue
                try:
                    joined = join(self.groups[candidate], node, self.hints)
                except Mismatch as reason:
                    notes.append(f"{node.output} not fused with kernel {candidate}: {reason}")
                    continue
                self.groups[candidate] = joined
                self.record(node, candidate, sources)
                return
            group = single(node, self.hints)
            group.notes = notes
        else:
            group = Group([node])
        self.groups.append(group)
        self.ancestors.append(set())
        self.record(node, len(self.groups) - 1, sources)

    def reads_of(self, position: int) -> set[str]:
        """Buffers a group reads from outside, remembered until it changes."""
        group = self.groups[position]
        known = self.known_reads.get(position)
        if known is None or known[0] is not group:
            known = self.known_reads[position] = (group, group.reads())
        return known[1]

    def sources(self, node: Any) -> set[int]:
        """The groups that make what a node reads."""
        return {self.owner[b] for b in node_reads(node) if b in self.owner}

    # ------------------------------------------------------------ merging kernels that meet in a node

    def merge_sources(self, node: Any, sources: set[int]) -> None:
        """Kernels over the same rows whose values meet in `node` become one, if the node then joins it.

        a = f(x); b = g(y); c = a + b: a and b share no input, so nothing joined them before c came.
        """
        loops = sorted(s for s in sources if self.groups[s].is_loop)
        for other in loops[1:]:
            first = self.owner[self.groups[loops[0]].nodes[0].output]
            if self.is_path_through_third(first, other):
                continue
            try:
                merged = merge(self.groups[first], self.groups[other], node, self.hints)
            except Mismatch:
                continue
            self.replace_group(first, other, merged)

    def is_path_through_third(self, first: int, other: int) -> bool:
        """Whether one depends on the other through a third group; `other` before `first` counts as well."""
        if other in self.ancestors[first]:
            return True
        between = self.ancestors[other] - {first}
        return any(first in self.ancestors[third] for third in between)

    def replace_group(self, first: int, other: int, merged: Group) -> None:
        self.groups[first], self.groups[other] = merged, Group([])
        for name in merged.outputs():
            self.owner[name] = first
        inherited = (self.ancestors[first] | self.ancestors[other]) - {first, other}
        self.ancestors[first], self.ancestors[other] = inherited, set()
        for third in range(len(self.groups)):
            if self.ancestors[third] & {first, other}:
                self.ancestors[third] = (self.ancestors[third] - {other}) | {first} | inherited

    # ------------------------------------------------------------ epilogues of contractions

    def add_epilogue(self, position: int) -> None:
        """Let the first loop that reads a contraction's result, and can, run as its epilogue."""
        product = self.groups[position].nodes[0]
        readers = [i for i, g in enumerate(self.groups) if g.is_loop and product.output in self.reads_of(i)]
        for reader in sorted(readers, key=lambda i: len(self.ancestors[i])):
            group = self.groups[reader]
            if self.is_path_through_third(position, reader):
                continue
            try:
                merged = fuse_epilogue(product, group, self.hints)
            except Mismatch as reason:
                group.notes.append(f"not the epilogue of {product.output}: {reason}")
                continue
            self.replace_group(position, reader, merged)
            return

    # ------------------------------------------------------------ candidates

    def candidates(self, node: Any, sources: set[int]) -> list[int]:
        """Kernels worth trying: those that make what the node reads (latest first), then those that read it."""
        made = sorted((s for s in sources if self.groups[s].is_loop), reverse=True)
        reads = {load.buffer for load in node_loads(node) if self.is_large(load)}
        siblings = [
            i
            for i in range(len(self.groups) - 1, -1, -1)
            if i not in sources
            and self.groups[i].is_loop
            and reads & self.reads_of(i)
            and not any(i in self.ancestors[s] for s in sources)
        ]
        return made + siblings[:4]

    def is_large(self, load: Load) -> bool:
        buffer = self.graph.buffers[load.buffer]
        return hint(size_product(buffer.shape), self.hints) >= 1024

    def record(self, node: Node, group: int, sources: set[int]) -> None:
        for name in node_outputs(node):
            self.owner[name] = group
        parents = {s for s in sources if s != group}
        new = parents | {a for p in parents for a in self.ancestors[p]}
        self.ancestors[group] |= new
        for other in range(len(self.groups)):  # whoever comes after this group inherits its ancestors
            if group in self.ancestors[other]:
                self.ancestors[other] |= self.ancestors[group]

    def topological_order(self) -> list[int]:
        """Sources before readers. What needs the graph's inputs alone (a weight in another layout, a scatter's
        zeros) waits for its first reader, so that it takes memory no longer than it must; not ATen's calls, whose
        random draws have an order."""
        order = sorted(range(len(self.groups)), key=lambda i: (len(self.ancestors[i]), i))
        read = set().union(*self.ancestors)
        calls = {
            i for i, group in enumerate(self.groups) if group.nodes and isinstance(group.nodes[0], Extern)
        }
        waiting = {i for i in order if not self.ancestors[i] and i in read - calls}
        result: list[int] = []
        for position in order:
            if position not in waiting:
                needed = sorted(waiting & self.ancestors[position])
                waiting.difference_update(needed)
                result += [*needed, position]
        return result


def group_nodes(graph: Graph) -> list[Group]:
    return Grouper(graph).run()
