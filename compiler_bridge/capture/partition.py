"""Which values the backward graph is given and which it computes again.

torch's min-cut partitioner decides; here it learns about our operations:

- `pynn::uniform(seed, size)` is a pure function of its seed and fuses into what uses it: recomputed, so that
  dropout saves its seed (8 bytes) in place of a mask.
- `pynn::seed()` draws from torch's generator: never recomputed, since it is on no list.
- Reductions (row statistics of softmax and norms) are saved, the elementwise rest recomputed, as by default.

Places that max pooling found are saved in 16 or 32 bits.
"""

from __future__ import annotations

import math
import operator
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
        forward, backward = partitioners.min_cut_rematerialization_partition(
            joint_module, joint_inputs, **kwargs
        )
    save_places_in_short(forward, backward, kwargs["num_fwd_outputs"])
    return forward, backward


aten = torch.ops.aten
POOLS_WITH_PLACES = tuple(
    getattr(aten, name).default
    for name in (
        "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d",
        "fractional_max_pool2d", "fractional_max_pool3d",
    )
)  # fmt: skip


def save_places_in_short(forward: fx.GraphModule, backward: fx.GraphModule, num_outputs: int) -> None:
    """In place: what max pooling saves for its gradient, places in an image, goes from graph to graph in as few bits
    as hold it, not in 64: up to 4 times the bytes of the pooled image itself."""
    output = next(node for node in forward.graph.nodes if node.op == "output")
    results = list(output.args[0])
    given = {node.name: node for node in backward.graph.nodes if node.op == "placeholder"}
    for position in range(num_outputs, len(results)):
        places = results[position]
        dtype = dtype_of_places(places) if isinstance(places, fx.Node) else None
        if dtype is None or places in results[:num_outputs] or places.name not in given:
            continue
        with forward.graph.inserting_before(output):
            short = results[position] = convert(forward.graph, places, dtype)
        full = given[places.name]
        with backward.graph.inserting_before(full):
            taken = backward.graph.placeholder(short.name)
        taken.meta.update(short.meta)
        first = next(node for node in backward.graph.nodes if node.op != "placeholder")
        with backward.graph.inserting_before(first):
            full.replace_all_uses_with(convert(backward.graph, taken, torch.int64))
        backward.graph.erase_node(full)
    if results != list(output.args[0]):
        output.args = (type(output.args[0])(results),)
        forward.recompile()
        backward.recompile()


def convert(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    made = graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
    made.meta.update(node.meta)
    made.meta["val"] = node.meta["val"].to(dtype)
    made.meta.pop("tensor_meta", None)
    return made


def dtype_of_places(node: fx.Node) -> torch.dtype | None:
    """What holds the places that max pooling of images of this size finds; None for anything else."""
    if node.target is not operator.getitem or node.args[1] != 1:
        return None
    pool: Any = node.args[0]
    if pool.target not in POOLS_WITH_PLACES:
        return None
    dims = 3 if "3d" in str(pool.target) else 2
    image = pool.args[0].meta["val"].shape[-dims:]
    if not all(isinstance(extent, int) for extent in image):
        return None
    count = math.prod(image)
    return torch.int16 if count <= 2**15 else torch.int32 if count <= 2**31 else None


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
