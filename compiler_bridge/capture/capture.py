"""Dynamo graph -> AOTAutograd -> `compile_graph` for each of forward, backward and inference.

torch.compile hands over      gm, example_inputs
rewrite_attention             scaled_dot_product_attention -> pynn::attention
lay_out_channels_last         convolutions work channels-last, where nobody can tell (`layout.py`)
aot_autograd                  functional graphs of elementary operations (`decompositions.py`),
                              forward and backward cut by `partition.py`
compile_graph                 each graph -> kernels (`pipeline.py`), as far as tensors are strided (`sparse.py`)
LeanCall                      how the graphs are called, where AOTAutograd's own way isn't needed (`lean.py`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._dynamo.backends.common import aot_autograd

from compiler_bridge.capture.attention_rewrite import rewrite_attention
from compiler_bridge.capture.decompositions import KEPT_WHOLE, TORCHS_TEXTS, decompositions
from compiler_bridge.capture.freeze import compile_frozen
from compiler_bridge.capture.layout import lay_out_channels_last
from compiler_bridge.capture.lean import Kind, LeanCall
from compiler_bridge.capture.partition import copy_saved_inputs, functorch_settings, partition
from compiler_bridge.capture.simplify import simplify_graph
from compiler_bridge.capture.sparse import with_sparse_tail
from compiler_bridge.capture.whole import without_python_kernels

BoxedCall = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Options:
    """What the user may choose.

    strict:       a graph that can't be compiled raises; else one warning and ATen runs it
    eager_random: draw exactly the numbers torch's eager mode would
    freeze:       what inference graphs make of parameters alone is computed once, until one changes (`freeze.py`)
    """

    strict: bool = False
    eager_random: bool = False
    freeze: bool = False


CompileGraph = Callable[[fx.GraphModule, Sequence[Any], Kind, Options], BoxedCall]


def capture(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, compile_graph: CompileGraph
) -> Callable[..., Any]:
    """A callable for a Dynamo graph, its pieces made by `compile_graph`."""
    rewrite_attention(gm, options.eager_random)
    lay_out_channels_last(gm, example_inputs, options.eager_random)
    lean = LeanCall(example_inputs)

    def compile_main(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return compile_graph(graph, inputs, "inference", options).unboxed  # type: ignore[attr-defined]

    def compiler(kind: Kind) -> Callable[[fx.GraphModule, Sequence[Any]], BoxedCall]:
        def compile_kind(graph: fx.GraphModule, inputs: Sequence[Any]) -> BoxedCall:
            if kind == "inference":
                simplify_graph(graph.graph)
                graph.recompile()
            elif kind == "forward":
                copy_saved_inputs(graph)

            def compile_strided(main: fx.GraphModule) -> Any:
                if kind == "inference" and options.freeze:
                    return compile_frozen(main, compile_main)
                return compile_graph(main, inputs, kind, options).unboxed  # type: ignore[attr-defined]

            call = boxed(with_sparse_tail(graph, compile_strided))
            lean.learn(kind, graph, call)
            return call

        return compile_kind

    traced = aot_autograd(
        fw_compiler=compiler("forward"),
        bw_compiler=compiler("backward"),
        inference_compiler=compiler("inference"),
        partition_fn=partition,
        decompositions=decompositions(options.eager_random),
        keep_inference_input_mutations=False,  # AOTAutograd copies new values into mutated inputs
    )
    # Kernels never write into saved activations, so nothing is gained by declaring them donated, and
    # backward(retain_graph=True) would be refused.
    with functorch_settings(donated_buffer=False), without_python_kernels(KEPT_WHOLE | TORCHS_TEXTS):
        return lean.finish(traced(gm, example_inputs))


def boxed(function: Callable[..., Sequence[Any]]) -> BoxedCall:
    """A function of a list of inputs that empties the list, so that AOTAutograd can let go of them.

    `unboxed` is the function itself (`capture/lean.py` calls it).
    """

    def call(inputs: list[Any]) -> Sequence[Any]:
        outputs = function(*inputs)
        inputs.clear()
        return outputs

    call._boxed_call = True  # type: ignore[attr-defined]
    call.unboxed = function  # type: ignore[attr-defined]
    return call
