"""Which values the backward graph is given and which it computes again.

torch's min-cut partitioner decides; here it learns about our operations:

- `pynn::uniform(seed, size)` is a pure function of its seed and fuses into what uses it: recomputed, so that
  dropout saves its seed (8 bytes) in place of a mask.
- `pynn::seed()` draws from torch's generator: never recomputed, since it is on no list.
- Reductions (row statistics of softmax and norms) are saved, the elementwise rest recomputed, as by default.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch._functorch import config, partitioners
from torch._guards import TracingContext

from compiler_bridge.capture.gradient_layout import lay_out_gradients
from compiler_bridge.capture.simplify import simplify_graph

_lock = threading.RLock()


def _operations(name: str) -> list[Any]:
    """pynn::name, if `capture/random.py` is loaded (without it no graph holds such a node)."""
    return [getattr(torch.ops.pynn, name)] if hasattr(torch.ops.pynn, name) else []


@contextmanager
def our_operations_known() -> Generator[None, None, None]:
    """Within, torch's partitioner may recompute `pynn::uniform`.

    A torch without that list saves the masks of dropout: more memory, the same result.
    """
    torch_op_list = getattr(partitioners, "get_default_op_list", None)
    if torch_op_list is None:
        yield
        return

    def op_list() -> Any:
        types = torch_op_list()
        for name in ("fusible_ops", "recomputable_ops"):
            getattr(types, name, set[Any]()).update(_operations("uniform"))
        return types

    with _lock, patch.object(partitioners, "get_default_op_list", op_list):
        yield


def functorch_settings(**wanted: Any) -> Any:
    """A context with these settings of AOTAutograd, as far as this torch has them."""
    return config.patch({name: value for name, value in wanted.items() if hasattr(config, name)})


def partition(joint_module: fx.GraphModule, joint_inputs: Any, **kwargs: Any) -> Any:
    """Joint graph -> (forward graph, backward graph)."""
    simplify_graph(joint_module.graph)
    lay_out_gradients(joint_module.graph, kwargs["num_fwd_outputs"])
    joint_module.recompile()
    with our_operations_known(), functorch_settings(cse=False):
        return partitioners.min_cut_rematerialization_partition(joint_module, joint_inputs, **kwargs)


def copy_saved_inputs(forward: fx.GraphModule) -> None:
    """Let a forward graph save copies of the inputs that get new values when it has run: the backward needs the old.

    Where the program multiplies by `buffer.clone()` and then changes the buffer, the copy is recomputed in the
    backward graph, and the buffer is what is saved.
    """
    context = TracingContext.try_get()
    metadata: Any = None if context is None else context.fw_metadata
    mutated = getattr(metadata, "mutated_inp_runtime_indices", ())
    if not mutated:
        return
    placeholders = [node for node in forward.graph.nodes if node.op == "placeholder"]
    changing = {placeholders[index] for index in mutated if index < len(placeholders)}
    output = next(node for node in forward.graph.nodes if node.op == "output")
    results = list(output.args[0])
    positions = [i for i in range(metadata.num_forward, len(results)) if results[i] in changing]
    if not positions:
        return
    for position in positions:
        value = results[position]
        with forward.graph.inserting_before(output):
            results[position] = forward.graph.call_function(torch.ops.aten.clone.default, (value,))
        results[position].meta.update(value.meta)
    output.args = (type(output.args[0])(results),)
    forward.recompile()
