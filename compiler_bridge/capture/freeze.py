"""freeze=True: an inference graph is cut in two, and what depends on parameters alone is computed once.

    graph(x, weight, mean, var) = conv(x, weight * rsqrt(var + eps)) - mean * rsqrt(var + eps)
    folding(weight, mean, var)  = weight * rsqrt(var + eps), -mean * rsqrt(var + eps)     once
    main(x, folded...)          = conv(x, folded[0]) + folded[1]                          each call

Scales after a convolution or a product go into its weight first (`fold_scales.py`). The folding graph is made of
elementary ATen operations and runs as pynn's definitions run eagerly; `refold.py` says when it runs again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext

from compiler_bridge.capture.decompositions import KEPT_WHOLE, WAITS_FOR_LOWERING
from compiler_bridge.capture.fold_scales import move_scales_into_weights
from compiler_bridge.capture.refold import Recipe, refolding
from compiler_bridge.capture.simplify import is_pure, output_storages, simplify_graph, storage_of

aten = torch.ops.aten

CompileMain = Callable[[fx.GraphModule, Sequence[Any]], Any]


@dataclass
class Cut:
    """A graph in two.

    read:   positions of the inputs that the folding graph takes
    passed: positions of the inputs that the main graph takes; the folded values follow them
    frozen: positions, among the main graph's inputs, of frozen inputs and folded values
    """

    folding: fx.GraphModule
    main: fx.GraphModule
    read: list[int]
    passed: list[int]
    frozen: list[int]


def compile_frozen(module: fx.GraphModule, compile_main: CompileMain) -> Callable[..., Sequence[Any]]:
    """The graph as a function of its inputs that computes what it can once."""
    frozen = frozen_inputs(module)
    if not frozen:
        return compile_main(module, [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")])
    known = only_frozen(module.graph, frozen)
    move_scales_into_weights(module.graph, known)
    module.recompile()
    known = only_frozen(module.graph, frozen)
    cut = cut_graph(module, known, values_to_fold(module.graph, known))
    examples = [node.meta["val"] for node in cut.main.graph.find_nodes(op="placeholder")]
    cut.main.meta["frozen"] = cut.frozen
    if cut.read:
        cut.main.meta["folding"] = cut.folding.print_readable(print_output=False)
    main = compile_main(cut.main, examples)
    once = getattr(main, "once", None)
    packed = [cut.passed[i] for i in once.positions if i < len(cut.passed)] if once else []
    watched = sorted({*cut.read, *packed})
    return refolding(Recipe(cut.folding, cut.read, cut.passed, main, once), watched) if watched else main


def frozen_inputs(module: fx.GraphModule) -> list[fx.Node]:
    """The inputs that are parameters and buffers of modules, and that the graph doesn't change itself.

    Whether they stay what they are is looked at in every call, so nothing wrong comes of one too many here.
    """
    context = TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    placeholders = module.graph.find_nodes(op="placeholder")
    infos: Any = getattr(metadata, "input_info", ())
    if metadata is None or len(infos) != len(placeholders):
        return []
    return [
        placeholders[index]
        for index in getattr(metadata, "static_input_indices", ())
        if not (infos[index].mutates_data or infos[index].mutates_metadata)
        and has_memory(placeholders[index].meta.get("val"))
    ]


def has_memory(value: Any) -> bool:
    """Whether it is a tensor with an address and a version to look at."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu"


def only_frozen(graph: fx.Graph, frozen: Sequence[fx.Node]) -> dict[fx.Node, bool]:
    """The nodes that need no other input than frozen ones; True for those that need at least one."""
    known: dict[fx.Node, bool] = dict.fromkeys(frozen, True)
    for node in graph.nodes:
        if node.op == "get_attr":
            known[node] = True
        elif node.op == "call_function" and can_run_once(node):
            sources = node.all_input_nodes
            if all(source in known for source in sources):
                known[node] = any(known[source] for source in sources)
    return known


def can_run_once(node: fx.Node) -> bool:
    """An elementary function of its arguments. What has a definition of its own is compiled, never run by ATen; what
    has no kernel stays in the main graph, where it is counted and shown."""
    from compiler_bridge.lower.graph import lowering_of

    target: Any = node.target
    if target is operator.getitem:
        return True
    if not is_pure(target) or target in KEPT_WHOLE | WAITS_FOR_LOWERING or target.namespace != "aten":
        return False
    return lowering_of(target) is not None


def is_view(node: fx.Node) -> bool:
    """Whether it costs nothing in a kernel: another way to index what it is made of."""
    if node.target is operator.getitem:
        return is_view(node.args[0])  # type: ignore[arg-type]
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    aliases = any(result.alias_info is not None for result in node.target._schema.returns)
    return aliases or node.target is aten._unsafe_view.default


def values_to_fold(graph: fx.Graph, known: dict[fx.Node, bool]) -> list[fx.Node]:
    """The results that the rest of the graph needs, in the graph's order.

    Views are taken again from what they look at, and so are values made of nothing but numbers (they live in
    registers). A result of the graph is computed in every call: the caller may write into it.
    """
    results = output_storages(graph)
    needed: set[fx.Node] = set()
    folded = []
    for node in reversed(graph.nodes):
        used = any(user in needed for user in node.users)
        recomputed = is_view(node) or not known.get(node, False) or storage_of(node) in results
        if node.op != "call_function" or node not in known:
            needed.add(node)
        elif used and recomputed:
            needed.add(node)
        elif used:
            folded.append(node)
    return folded[::-1]


def cut_graph(module: fx.GraphModule, known: dict[fx.Node, bool], folded: Sequence[fx.Node]) -> Cut:
    """The folding graph, which returns `folded`, and the main graph, which takes them after its own inputs."""
    placeholders = module.graph.find_nodes(op="placeholder")
    folding, read = folding_graph(placeholders, known, folded)
    main = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {node: main.node_copy(node) for node in placeholders}
    taken = list(copies.values())
    for node in folded:
        copies[node] = main.placeholder(f"folded_{node.name}")
        copies[node].meta = dict(node.meta)
    for node in module.graph.nodes:
        if node not in copies:
            copies[node] = main.node_copy(node, copies.__getitem__)
    simplify_graph(main)
    passed, frozen = list[int](), list[int]()
    for position, (original, copy) in enumerate(zip(placeholders, taken)):
        if known.get(original) and folded and not copy.users:
            main.erase_node(copy)
            continue
        if known.get(original):
            frozen.append(len(passed))
        passed.append(position)
    frozen += range(len(passed), len(passed) + len(folded))
    return Cut(fx.GraphModule(module, folding), fx.GraphModule(module, main), read, passed, frozen)


def folding_graph(
    placeholders: Sequence[fx.Node], known: dict[fx.Node, bool], folded: Sequence[fx.Node]
) -> tuple[fx.Graph, list[int]]:
    """The graph that returns `folded`, and the positions of the inputs it takes."""
    wanted = set(folded)
    for node in reversed(known):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    read = [position for position, node in enumerate(placeholders) if node in wanted]
    for node in [placeholders[position] for position in read] + [n for n in known if n.op != "placeholder"]:
        if node in wanted:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in folded))
    return graph, read
