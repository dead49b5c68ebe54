"""How plain graphs are called (`lean.py` says which are): directly, or through a thin autograd.Function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

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
    mark_dynamic: Any  # None in versions that don't mark sizes that are symbols

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
                getattr(runtime_wrappers, "mark_dynamo_propagated_dynamic_indices", None)
                or getattr(runtime_wrappers, "maybe_mark_dynamic_helper", None),  # torch 2.11
            )
        except (ImportError, AttributeError):
            return None


def count_inputs(module: fx.GraphModule) -> int:
    return sum(node.op == "placeholder" for node in module.graph.nodes)


def results_of(module: fx.GraphModule) -> Any:
    """What a graph returns, as nodes."""
    return next(node for node in module.graph.nodes if node.op == "output").args[0]


def copying_into(graph: Graph, mutated: Sequence[int]) -> Graph:
    """The graph, its first results copied into the inputs that are `mutated` and not returned."""
    if not mutated:
        return graph

    def run(*inputs: Any) -> Sequence[Any]:
        results = graph(*inputs)
        for index, value in zip(mutated, results):
            inputs[index].copy_(value)
        return results[len(mutated) :]

    return run


def dynamic_outputs(metadata: Any) -> list[tuple[int, Any]]:
    """Outputs with sizes that are symbols, and which dimensions these are."""
    infos = enumerate(metadata.output_info)
    return [(index, info.dynamic_dims) for index, info in infos if info.dynamic_dims is not None]


def inference_call(names: Torch, full: Callable[..., Any], graph: Graph, metadata: Any) -> Callable[..., Any]:
    """The graph, run without gradients."""
    grad_enabled, set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled
    first_call = [True]

    def run(*inputs: Any) -> Any:
        if first_call:
            first_call.clear()
            return full(*inputs)
        if not grad_enabled():
            return graph(*inputs)
        set_grad_enabled(False)
        try:
            return graph(*inputs)
        finally:
            set_grad_enabled(True)

    return marking_dynamic(names, run, metadata)


def marking_dynamic(names: Torch, run: Callable[..., Any], metadata: Any) -> Callable[..., Any]:
    """`run`, its outputs marked where a size is a symbol: Dynamo compiles what takes them for any size."""
    dynamic = dynamic_outputs(metadata) if metadata.dynamic_outputs else []
    if not dynamic:
        return run
    mark = names.mark_dynamic

    def run_and_mark(*inputs: Any) -> Any:
        outputs = run(*inputs)
        for index, dims in dynamic:
            mark(outputs[index], dims)
        return outputs

    return run_and_mark


@dataclass
class Tangent:
    """The gradient of one output, as the backward graph takes it.

    as_expected: whether a plain tensor lies in memory as the backward graph was compiled for
    """

    position: int
    meta: Any
    as_expected: Callable[[torch.Tensor], bool]


class TrainingCall:
    """A forward graph, and the backward once it is compiled.

    saved: results of the forward graph that are kept for the backward
    """

    def __init__(self, names: Torch, forward: Graph, metadata: Any, saved: int):
        self.torch = names
        self.forward = forward
        self.metadata = metadata
        self.saved = saved
        self.detached: list[int] = []
        self.was_called = False
        self.ready: Callable[..., Any] | None = None
        self.apply: Callable[..., Any] | None = None  # set last: from then on the calls are ours

    def add_backward(self, module: fx.GraphModule, backward: Graph) -> None:
        """Called by the thread that runs the first backward, or before any call where sizes are symbols.

        Raises:  AttributeError where this version of torch describes graphs differently
        """
        tangents = plain_tangents(self.torch, self.metadata)
        results = results_of(module)
        if tangents is None or len(results) != len(self.metadata.input_info):
            return
        if count_inputs(module) != self.saved + len(tangents):
            return
        # autograd must not go on to inputs that have no gradient: that graph may have been freed
        self.detached = [
            index
            for index, (info, result) in enumerate(zip(self.metadata.input_info, results))
            if result is None and info.requires_grad and not info.is_leaf
        ]
        function = autograd_function(self.torch, self.forward, backward, self.metadata, tangents)
        # Function.apply itself would look for functorch's wrappers first, which can't be here
        self.ready = super(torch.autograd.Function, function).apply  # type: ignore[misc]
        if self.was_called:
            self.apply = self.ready

    def call(self, full: Callable[..., Any]) -> Callable[..., Any]:
        """The callable for Dynamo."""
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
                outputs = full(*inputs)
                self.was_called = True
                self.apply = self.ready
                return outputs
            if self.detached:
                inputs = detach(inputs, self.detached)
            return apply(*inputs)

        return marking_dynamic(self.torch, run, self.metadata)


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
        if issubclass(info.raw_type, torch.Tensor)
        and getattr(info, "requires_grad_for_backward", info.requires_grad)  # 2.11 has the latter alone
    ]
    metas = metadata.subclass_tangent_meta
    if len(metas) != len(positions):
        return None
    if not all(type(meta) is names.plain_meta and meta.memory_format for meta in metas):
        return None
    return [
        Tangent(position, meta, format_test(meta.memory_format)) for position, meta in zip(positions, metas)
    ]


def format_test(expected: Any) -> Callable[[torch.Tensor], bool]:
    """Whether a gradient has the memory format, or the size and strides, that the backward graph was compiled for."""
    format = expected.memory_format
    if format is None and is_contiguous_stride(expected.size, expected.stride):
        format = torch.contiguous_format
    if format is torch.contiguous_format:
        return torch.Tensor.is_contiguous
    if format is not None:
        return lambda grad: grad.is_contiguous(memory_format=format)
    size, stride = torch.Size(expected.size), tuple(expected.stride)
    return lambda grad: grad.stride() == stride and grad.shape == size


def is_contiguous_stride(size: Sequence[int], stride: Sequence[int]) -> bool:
    strides, step = [], 1
    for extent in reversed(size):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(stride) == tuple(reversed(strides))


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
    outputs, symbols = metadata.num_outputs, metadata.num_symints_saved_for_bw
    dynamic, mark = list(metadata.dynamic_saved_tensors_idxs.items()), names.mark_dynamic
    constant = [i for i, info in enumerate(metadata.output_info) if not info.requires_grad]
    nondeterministic = metadata.deterministic is False
    set_eval_frame, process_tangent = names.set_eval_frame, names.process_tangent
    expected = [(tangent.position, tangent.as_expected, tangent.meta) for tangent in tangents]
    tensor = torch.Tensor

    def own(view: Any) -> Any:
        """The same, not a view: in-place changes to what a Function returns as a view raise."""
        return torch.ops.aten._unsafe_view(view, view.shape)

    class CompiledFunction(torch.autograd.Function):
        @staticmethod
        def _compiled_autograd_key(ctx: Any) -> Any:
            return ctx._autograd_function_id, *ctx.symbols

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            results = forward_graph(*inputs)
            returned = tuple([y if y is None or not y._is_view() else own(y) for y in results[:outputs]])
            saved = results[outputs : len(results) - symbols]
            saved = [x.detach() if x._is_view() else x for x in saved]
            for index, dims in dynamic:
                mark(saved[index], dims)
            ctx.save_for_backward(*saved)
            ctx.symbols = results[len(results) - symbols :]
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
                arguments = [*ctx.symbols, *ctx.saved_tensors]
                for position, as_expected, meta in expected:
                    grad = grads[position]
                    if not (type(grad) is tensor and as_expected(grad)):
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
