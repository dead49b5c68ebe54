"""Calling a captured graph without AOTAutograd's runtime, where that has nothing to do.

AOTAutograd wraps the compiled graphs in code for everything a graph may need: replaying mutations and aliases,
tensor subclasses, effects, random states. A *plain* graph needs none of it: its forward is a function of its
inputs, its backward a function of what the forward saved and of the incoming gradients. `LeanCall` learns while
AOTAutograd compiles whether a graph is plain, and then calls

    inference   graph(*inputs)
    training    an autograd.Function: forward graph -> save_for_backward -> backward graph

in place of AOTAutograd's callable. Everything else keeps AOTAutograd's, and so do the calls before a plain
graph's backward was compiled (AOTAutograd does so when it is first needed), calls with gradients switched off or
under a functorch transform, and calls under compiled autograd. What is private to torch is looked up here; where
a version lacks any of it no graph is plain.

Source:  torch/_functorch/_aot_autograd/runtime_wrappers.py, whose behaviour it keeps
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

Kind = Literal["forward", "backward", "inference"]
Graph = Callable[..., Sequence[Any]]

NO_DOUBLE_BACKWARD = "torch.compile with aot_autograd does not currently support double backward"
IN_TRANSFORM = (
    "It looks like you're trying to call a compiled backward function within vmap/grad/vjp, which isn't supported. "
    "Try wrapping vmap inside torch.compile, or skip compiling the backward function."
)
NOT_DETERMINISTIC = (
    "This compiled backward function is being run with torch.use_deterministic_algorithms(True), "
    "but it was previously generated during the forward function while "
    "torch.use_deterministic_algorithms(False) was set."
)

NOTHING = (
    "num_mutated_inp_runtime_indices",
    "num_mutated_graph_handled_indices",
    "num_outputs_aliased",
    "num_intermediate_bases",
    "num_outputs_rng_offset",
    "num_graphsafe_rng_states",
    "num_backward_tokens",
    "tokens",
    "act_input_indices",
    "indices_of_inputs_that_requires_grad_with_mutations_in_bw",
    "grad_enabled_mutation",
    "dynamic_outputs",
    "num_symints_saved_for_bw",
    "num_opaque_objects_saved_for_bw",
    "num_tensors_saved_with_no_vc_check",
    "dynamic_saved_tensors_idxs",
    "is_rng_op_functionalized",
)
"""Fields of AOTAutograd's ViewAndMutationMeta that are empty, 0, None or False for a plain graph.

Sizes that are symbols and show in an output or in what is saved are among them: AOTAutograd passes these on.
"""


@dataclass
class Torch:
    """What the calls below need of torch's private parts."""

    set_eval_frame: Any
    skip_code: Any
    process_tangent: Any
    plain_meta: Any
    non_alias: Any
    unsafe_view_alias: Any
    inlines_saved_tensors_hooks: Any
    compiled_autograd: Any

    @staticmethod
    def find() -> Torch | None:
        """Them, or None where this version lacks one."""
        try:
            from torch._dynamo import compiled_autograd
            from torch._dynamo.eval_frame import set_eval_frame, skip_code
            from torch._functorch._aot_autograd import runtime_wrappers, schemas

            if not hasattr(compiled_autograd, "compiled_autograd_enabled"):
                return None
            return Torch(
                set_eval_frame,
                skip_code,
                runtime_wrappers.AOTDispatchAutograd.process_runtime_tangent,
                schemas.PlainTensorMeta,
                schemas.OutputType.non_alias,
                schemas.OutputType.unsafe_view_alias,
                runtime_wrappers._should_disable_saved_tensors_hooks,
                compiled_autograd,
            )
        except (ImportError, AttributeError):
            return None


class LeanCall:
    """What becomes known of one captured graph while AOTAutograd compiles it."""

    def __init__(self, inputs: Sequence[Any]):
        self.torch = Torch.find()
        self.inputs = len(inputs)
        self.plain = is_plain_surrounding(self.torch, inputs)
        self.metadata: Any = None
        self.saved = 0
        self.graphs: dict[Kind, Graph] = {}
        self.training: TrainingCall | None = None

    def learn(self, kind: Kind, module: fx.GraphModule, boxed_call: Any) -> None:
        """Called with every graph AOTAutograd has had compiled."""
        graph = getattr(boxed_call, "unboxed", None)
        if not self.plain:
            return
        if graph is None or kind in self.graphs:
            self.plain = False  # called with lists only, or a second graph of this kind
            return
        try:
            if kind != "backward":
                self.metadata = plain_metadata(self.torch, self.inputs, module)
                self.plain = self.metadata is not None
                self.saved = len(results_of(module)) - len(self.metadata.output_info) if self.plain else 0
            elif self.training is not None:
                self.training.add_backward(module, graph, self.saved)
        except AttributeError:
            self.plain = False
        self.graphs[kind] = graph

    def finish(self, full: Callable[..., Any]) -> Callable[..., Any]:
        """The callable for Dynamo: `full`, AOTAutograd's, or ours with `full` for what ours isn't made for."""
        if not self.plain or self.torch is None or len(self.graphs) != 1:
            return full
        if "inference" in self.graphs:
            return inference_call(full, self.graphs["inference"], self.metadata)
        if "forward" not in self.graphs:
            return full
        self.training = TrainingCall(self.torch, full, self.graphs["forward"], self.metadata)
        return self.training.call()


def is_plain_surrounding(names: Torch | None, inputs: Sequence[Any]) -> bool:
    """Whether nothing outside of the graph asks for AOTAutograd's runtime."""
    if names is None:
        return False
    from torch._functorch import config

    context = torch._guards.TracingContext.try_get()
    try:
        return not (
            torch._C._is_any_autocast_enabled()
            or names.inlines_saved_tensors_hooks()
            or torch._C._are_functorch_transforms_active()
            or config.debug_assert
            or (context is not None and context.fakify_first_call)
            or not all(isinstance(value, (torch.Tensor, int, torch.SymInt)) for value in inputs)
        )
    except AttributeError:
        return False


def plain_metadata(names: Torch | None, inputs: int, module: fx.GraphModule) -> Any:
    """AOTAutograd's description of the graph it is having compiled, if that says plain.

    Raises:  AttributeError where this version of torch describes graphs differently
    """
    context = torch._guards.TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    if names is None or metadata is None or any(getattr(metadata, name) for name in NOTHING):
        return None
    plain = (
        count_inputs(module) == len(metadata.input_info) == inputs
        and all(type(meta) is names.plain_meta for meta in metadata.subclass_inp_meta)
        and all(type(meta) is names.plain_meta for meta in metadata.subclass_fw_graph_out_meta)
        and all(is_plain_output(names, info) for info in metadata.output_info)
    )
    return metadata if plain else None


def count_inputs(module: fx.GraphModule) -> int:
    return sum(node.op == "placeholder" for node in module.graph.nodes)


def results_of(module: fx.GraphModule) -> Any:
    """What a graph returns, as nodes."""
    return next(node for node in module.graph.nodes if node.op == "output").args[0]


def is_plain_output(names: Torch, info: Any) -> bool:
    """Whether an output is a tensor of its own, or None."""
    if info.output_type not in (names.non_alias, names.unsafe_view_alias):
        return False
    return issubclass(info.raw_type, (torch.Tensor, type(None)))


def inference_call(full: Callable[..., Any], graph: Graph, metadata: Any) -> Callable[..., Any]:
    """The graph, run without gradients; the first call is `full`'s, which then checks custom operators."""
    grad_enabled, set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled
    calls = [full]

    def run(*inputs: Any) -> Any:
        if calls:
            calls.clear()
            return full(*inputs)
        if not grad_enabled():
            return graph(*inputs)
        set_grad_enabled(False)
        try:
            return graph(*inputs)
        finally:
            set_grad_enabled(True)

    return run


@dataclass
class Tangent:
    """The gradient of one output, as the backward graph takes it."""

    position: int
    meta: Any
    contiguous: bool


class TrainingCall:
    """A forward graph whose backward may have been compiled."""

    def __init__(self, names: Torch, full: Callable[..., Any], forward: Graph, metadata: Any):
        self.torch = names
        self.full = full
        self.forward = forward
        self.metadata = metadata
        self.detached: list[int] = []
        self.apply: Callable[..., Any] | None = None  # set last: from then on the calls are ours

    def add_backward(self, module: fx.GraphModule, backward: Graph, saved: int) -> None:
        """Called by the thread that runs the first backward.

        Raises:  AttributeError where this version of torch describes graphs differently
        """
        tangents = plain_tangents(self.torch, self.metadata)
        results = results_of(module)
        if tangents is None or len(results) != len(self.metadata.input_info):
            return
        if count_inputs(module) != saved + len(tangents):
            return
        # autograd must not go on to inputs that have no gradient: that graph may have been freed
        self.detached = [
            index
            for index, (info, result) in enumerate(zip(self.metadata.input_info, results))
            if result is None and info.requires_grad and not info.is_leaf
        ]
        function = autograd_function(self.torch, self.forward, backward, self.metadata, tangents)
        # Function.apply itself would look for functorch's wrappers first, which can't be here
        self.apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def call(self) -> Callable[..., Any]:
        """The callable for Dynamo."""
        full = self.full
        grad_enabled, in_transform = torch.is_grad_enabled, torch._C._are_functorch_transforms_active
        compiled_autograd = self.torch.compiled_autograd

        def run(*inputs: Any) -> Any:
            apply = self.apply
            if (
                apply is None
                or not grad_enabled()
                or in_transform()
                or compiled_autograd.compiled_autograd_enabled
            ):
                return full(*inputs)
            if self.detached:
                inputs = detach(inputs, self.detached)
            return apply(*inputs)

        return run


def detach(inputs: Sequence[Any], indices: Sequence[int]) -> tuple[Any, ...]:
    """The inputs, those at `indices` cut from the autograd graph."""
    values = list(inputs)
    for index in indices:
        values[index] = values[index].detach()
    return tuple(values)


def plain_tangents(names: Torch, metadata: Any) -> list[Tangent] | None:
    """The gradients the backward graph takes, in order; None if one of them isn't a plain tensor."""
    positions = [
        position
        for position, info in enumerate(metadata.output_info)
        if issubclass(info.raw_type, torch.Tensor) and info.requires_grad_for_backward
    ]
    metas = metadata.subclass_tangent_meta
    if len(metas) != len(positions):
        return None
    if not all(type(meta) is names.plain_meta and meta.memory_format for meta in metas):
        return None
    return [
        Tangent(position, meta, is_contiguous_format(meta.memory_format))
        for position, meta in zip(positions, metas)
    ]


def is_contiguous_format(expected: Any) -> bool:
    """Whether the backward graph was compiled for a contiguous gradient."""
    if expected.memory_format is not None:
        return expected.memory_format is torch.contiguous_format
    strides, step = [], 1
    for size in reversed(expected.size):
        strides.append(step)
        step *= max(size, 1)
    return tuple(expected.stride) == tuple(reversed(strides))


class NoDoubleBackward(torch.autograd.Function):
    """A backward graph that stays connected, so that differentiating it raises."""

    @staticmethod
    def forward(ctx: Any, connected: torch.Tensor, backward: Graph, *arguments: Any) -> Any:
        return tuple(backward(*arguments))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(NO_DOUBLE_BACKWARD)


def autograd_function(
    names: Torch, forward_graph: Graph, backward_graph: Graph, metadata: Any, tangents: list[Tangent]
) -> Any:
    """An autograd.Function of a plain pair of graphs."""
    outputs = metadata.num_outputs
    constant = [i for i, info in enumerate(metadata.output_info) if not info.requires_grad]
    nondeterministic = metadata.deterministic is False
    set_eval_frame, process_tangent = names.set_eval_frame, names.process_tangent
    expected = [(tangent.position, tangent.contiguous, tangent.meta) for tangent in tangents]
    tensor = torch.Tensor

    def own(value: Any) -> Any:
        """Not a view: in-place changes to what a Function returns as a view raise."""
        if value is not None and value._is_view():
            return torch.ops.aten._unsafe_view(value, value.shape)
        return value

    class CompiledFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            results = forward_graph(*inputs)
            returned = tuple([own(value) for value in results[:outputs]])
            ctx.save_for_backward(*[x.detach() if x._is_view() else x for x in results[outputs:]])
            if constant:
                ctx.mark_non_differentiable(*[returned[i] for i in constant if returned[i] is not None])
            ctx._materialize_non_diff_grads = False
            return returned

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            prior = set_eval_frame(None)  # Dynamo shall not look into what is called from here
            try:
                if torch._C._are_functorch_transforms_active():
                    raise RuntimeError(IN_TRANSFORM)
                if nondeterministic and torch.are_deterministic_algorithms_enabled():
                    raise RuntimeError(NOT_DETERMINISTIC)
                arguments = [*ctx.saved_tensors]
                for position, contiguous, meta in expected:
                    grad = grads[position]
                    if not (contiguous and type(grad) is tensor and grad.is_contiguous()):
                        grad = process_tangent(grad, meta)[0]
                    arguments.append(grad)
                if torch.is_grad_enabled():
                    connected = torch.empty(0, requires_grad=True)
                    return NoDoubleBackward.apply(connected, backward_graph, *arguments)
                return tuple(backward_graph(*arguments))
            finally:
                set_eval_frame(prior)

    for function in (CompiledFunction.forward, CompiledFunction.backward):
        names.skip_code(function.__code__)
    return CompiledFunction
