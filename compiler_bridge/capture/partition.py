"""Which values the backward graph is given and which it computes again.

torch's min-cut partitioner decides; here it learns about our operations:

- `pynn::uniform(seed, size)` is a pure function of its seed and fuses into what uses it: recomputed, so that
  dropout saves its seed (8 bytes) in place of a mask.
- `pynn::seed()` draws from torch's generator: never recomputed, and two draws are never merged.
- Reductions (row statistics of softmax and norms) are saved, the elementwise rest recomputed, as by default.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch._functorch import compile_utils, partitioners

_lock = threading.RLock()


def _operations(name: str) -> list[Any]:
    """pynn::name, if `capture/random.py` is loaded (without it no graph holds such a node)."""
    return [getattr(torch.ops.pynn, name)] if hasattr(torch.ops.pynn, name) else []


@contextmanager
def our_operations_known() -> Iterator[None]:
    """Within, torch's partitioner and common-subexpression pass treat our random operations as they must."""
    torch_op_list = partitioners.get_default_op_list

    def op_list() -> Any:
        types = torch_op_list()
        for known in (types.fusible_ops, types.recomputable_ops):
            known.update(_operations("uniform"))
        return types

    random_ops = [*compile_utils.rand_ops, *_operations("seed")]
    with (
        _lock,
        patch.object(partitioners, "get_default_op_list", op_list),
        patch.object(compile_utils, "rand_ops", random_ops),
    ):
        yield


def partition(joint_module: fx.GraphModule, joint_inputs: Any, **kwargs: Any) -> Any:
    """Joint graph -> (forward graph, backward graph)."""
    remove_detach(joint_module.graph)
    with our_operations_known():
        return partitioners.min_cut_rematerialization_partition(joint_module, joint_inputs, **kwargs)


def remove_detach(graph: fx.Graph) -> None:
    """detach(x) -> x. Valid because nothing differentiates these graphs; a saved value and an output that
    differ only by detach become one buffer."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def simplify_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """Drop dead nodes and merge equal ones, as the partitioner does to training graphs; in place."""
    remove_detach(gm.graph)
    with our_operations_known():
        gm.graph.eliminate_dead_code()
        gm.graph = compile_utils.fx_graph_cse(gm.graph)
        gm.recompile()
    return gm
