"""Clean-ups of traced graphs before they are partitioned or compiled.

torch has a pass that merges equal nodes, but calling it imports all of Inductor (1.6 s of processor time).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx
from torch.multiprocessing.reductions import StorageWeakRef

aten = torch.ops.aten

_EMPTY = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)


def simplify_graph(graph: fx.Graph) -> None:
    """In place: drop dead nodes and detach, merge equal nodes."""
    remove_detach(graph)
    graph.eliminate_dead_code()
    merge_equal_nodes(graph)


def remove_detach(graph: fx.Graph) -> None:
    """detach(x) -> x. Valid because nothing differentiates these graphs; a saved value and an output that
    differ only by detach become one buffer."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def merge_equal_nodes(graph: fx.Graph) -> None:
    """y = f(x); z = f(x) -> y = f(x); z = y.

    Valid for functions of their arguments: random draws, uninitialized memory and everything that mutates are
    left alone, and so is what shares memory with an output, since two equal outputs are two tensors.
    """
    returned = output_storages(graph)
    found: dict[Hashable, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not is_pure(node.target) or storage_of(node) in returned:
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        try:
            earlier = found.setdefault(key, node)
        except TypeError:  # an argument without a hash
            continue
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)


def is_pure(target: Any) -> bool:
    """Whether equal arguments give equal results: an ATen (or pynn) function that neither draws nor writes."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target.overloadpacket in _EMPTY or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return not target._schema.is_mutable


def output_storages(graph: fx.Graph) -> set[Any]:
    """The (fake) storages of the results."""
    (output,) = graph.find_nodes(op="output")
    return {storage_of(node) for node in output.all_input_nodes} - {None}


def storage_of(node: fx.Node) -> Any:
    """The (fake) storage of a node's tensor, or None."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return StorageWeakRef(value.untyped_storage())
    except NotImplementedError:  # sparse tensors have none
        return None


def _hashable(tree: Any) -> Hashable:
    """Arguments as a dictionary key, in which 1, 1.0 and True differ."""
    if isinstance(tree, (list, tuple)):
        return (type(tree).__name__, *(_hashable(branch) for branch in tree))
    if isinstance(tree, dict):
        return ("dict", *((key, _hashable(tree[key])) for key in sorted(tree)))
    if isinstance(tree, slice):
        return ("slice", _hashable(tree.start), _hashable(tree.stop), _hashable(tree.step))
    return (type(tree).__name__, tree) if isinstance(tree, (bool, int, float)) else tree
