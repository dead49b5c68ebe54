"""Calling a captured graph without AOTAutograd's runtime, where that has nothing to do.

AOTAutograd wraps the compiled graphs in code for everything a graph may need: replaying mutations and aliases,
tensor subclasses, effects, random states. A *plain* graph needs none of it: its forward is a function of its
inputs, its backward a function of what the forward saved and of the incoming gradients. Only inputs without
gradients may be mutated (batch norm's running statistics): the graph's first results are copied into them.
`LeanCall` learns while AOTAutograd compiles whether a graph is plain, and then calls

    inference   graph(*inputs)
    training    an autograd.Function: forward graph -> save_for_backward -> backward graph

in place of AOTAutograd's callable. Everything else keeps AOTAutograd's, and so do the first call (it checks custom
operators), the calls before a plain graph's backward was compiled (AOTAutograd does so when it is first needed),
training graphs called with gradients off or under a functorch transform, and calls under compiled autograd. What
is private to torch is looked up here; where a version lacks any of it no graph is plain.

Source:  torch/_functorch/_aot_autograd/runtime_wrappers.py, whose behaviour it keeps
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import fx
from torch._guards import TracingContext
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from compiler_bridge.capture.lean_calls import (
    Graph,
    Torch,
    TrainingCall,
    copying_into,
    count_inputs,
    inference_call,
    results_of,
)

Kind = Literal["forward", "backward", "inference"]

NOTHING = (
    "num_mutated_graph_handled_indices",
    "num_outputs_aliased",
    "num_intermediate_bases",
    "num_outputs_rng_offset",
    "num_graphsafe_rng_states",
    "num_backward_tokens",
    "tokens",
    "indices_of_inputs_that_requires_grad_with_mutations_in_bw",
    "grad_enabled_mutation",
    "num_opaque_objects_saved_for_bw",
    "num_tensors_saved_with_no_vc_check",
    "is_rng_op_functionalized",
)
"""Fields of AOTAutograd's ViewAndMutationMeta that are empty, 0, None or False for a plain graph."""

WAITED_FOR = ("act_input_indices", "act_input_paths")
"""Alike, for collectives under way: torch 2.13 has the first, 2.14 the second, 2.11 neither."""


class LeanCall:
    """What becomes known of one captured graph while AOTAutograd compiles it."""

    def __init__(self, inputs: Sequence[Any]):
        self.torch = Torch.find()
        self.inputs = len(inputs)
        self.plain = is_plain_surrounding(self.torch, inputs)
        self.graphs: dict[Kind, Graph] = {}
        self.metadata: Any = None
        self.training: TrainingCall | None = None

    def learn(self, kind: Kind, module: fx.GraphModule, boxed_call: Any) -> None:
        """Called with every graph AOTAutograd has had compiled."""
        graph = getattr(boxed_call, "unboxed", None)
        if not self.plain or self.torch is None:
            return
        if graph is None or kind in self.graphs:
            self.plain = False  # called with lists only, or a second graph of this kind
            return
        self.graphs[kind] = graph
        try:
            if kind == "backward":
                if self.training is not None:
                    self.training.add_backward(module, graph)
                return
            self.metadata = plain_metadata(self.torch, self.inputs, module)
            if self.metadata is None:
                self.plain = False
                return
            mutated = list(self.metadata.mutated_inp_runtime_indices)
            self.graphs[kind] = graph = copying_into(graph, mutated)
            if kind == "forward":
                saved = len(results_of(module)) - len(mutated) - len(self.metadata.output_info)
                self.training = TrainingCall(self.torch, graph, self.metadata, saved)
        except AttributeError:
            self.plain = False

    def finish(self, full: Callable[..., Any]) -> Callable[..., Any]:
        """The callable for Dynamo: `full`, AOTAutograd's, or ours with `full` for what ours isn't made for."""
        if not self.plain or self.torch is None or ("forward" in self.graphs) == ("inference" in self.graphs):
            return full
        if self.training is not None:
            return self.training.call(full)
        return inference_call(self.torch, full, self.graphs["inference"], self.metadata)


def is_plain_surrounding(names: Torch | None, inputs: Sequence[Any]) -> bool:
    """Whether nothing outside of the graph asks for AOTAutograd's runtime."""
    if names is None:
        return False
    from torch._functorch import config

    context = TracingContext.try_get()
    try:
        return not (
            torch._C._is_any_autocast_enabled()
            or names.inlines_saved_tensors_hooks()
            or torch._C._are_functorch_transforms_active()
            or config.debug_assert
            or (context is not None and context.fakify_first_call)
            or not all(isinstance(value, (torch.Tensor, int, torch.SymInt)) for value in inputs)
            or any(is_traceable_wrapper_subclass(value) for value in inputs)
        )
    except AttributeError:
        return False


def plain_metadata(names: Torch | None, inputs: int, module: fx.GraphModule) -> Any:
    """AOTAutograd's description of the graph it is having compiled, if that says plain.

    Raises:  AttributeError where this version of torch describes graphs differently
    """
    context = TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    if names is None or metadata is None or any(getattr(metadata, name) for name in NOTHING):
        return None
    if any(getattr(metadata, name, None) for name in WAITED_FOR):
        return None
    dynamic = metadata.dynamic_outputs or metadata.dynamic_saved_tensors_idxs
    plain = (
        not (dynamic and names.mark_dynamic is None)
        and count_inputs(module) == len(metadata.input_info) == inputs
        and all(type(meta) is names.plain_meta for meta in metadata.subclass_inp_meta)
        and all(type(meta) is names.plain_meta for meta in metadata.subclass_fw_graph_out_meta)
        and all(is_plain_output(names, info) for info in metadata.output_info)
        and all(is_plain_mutation(metadata.input_info[i]) for i in metadata.mutated_inp_runtime_indices)
    )
    return metadata if plain else None


def is_plain_output(names: Torch, info: Any) -> bool:
    """Whether an output is a tensor of its own, or None."""
    if info.output_type not in (names.non_alias, names.unsafe_view_alias):
        return False
    return issubclass(info.raw_type, (torch.Tensor, type(None)))


def is_plain_mutation(info: Any) -> bool:
    """Whether nothing but the elements of an input change, and autograd need not know."""
    return info.mutates_data and not (
        info.requires_grad
        or info.mutates_metadata
        or info.mutates_storage_metadata
        or info.mutation_inductor_storage_resize
    )
