"""Convolutional networks in channels-last order inside a Dynamo graph, in the user's at its edges.

convolution(x, ...)      -> convolution(channels_last(x), ...)      (`channels_last.py`)
x.view(...)              -> x.reshape(...)                          a view of one layout may be none of the other
return y                 -> return laid_out(y, the order eager's y has)

The graph is tried on fake tensors first: their strides say which outputs differ from eager's, and what shares
memory with what. Sharing is another where a reshape copies in one layout and not in the other. That is no
matter unless somebody writes into that memory afterwards, or the user gets both; then, and wherever else the
layout could be seen (as_strided, operators of other libraries, torch's own random numbers), the graph stays as
it is.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compiler_bridge import settings
from compiler_bridge.capture.channels_last import CONVOLUTIONS

aten = torch.ops.aten

RESHAPES = {"view": "reshape", "view_as": "reshape_as"}
OF_STRIDES = set(
    """as_strided as_strided_ as_strided_copy as_strided_scatter data_ptr is_contiguous resize_ resize_as_ set_
    squeeze_ storage storage_offset stride swapaxes_ swapdims_ t_ transpose_ unsqueeze_ untyped_storage""".split()
)
"""Calls that see or change how a tensor lies in memory."""


class Visible(Exception):
    """Another layout inside of the graph would be seen from outside, for the reason given."""


def lay_out_channels_last(gm: fx.GraphModule, inputs: Sequence[Any], eager_random: bool) -> None:
    """In place: the convolutions of a Dynamo graph work channels-last, where nobody can tell."""
    if not any(node.op == "call_function" and node.target in CONVOLUTIONS for node in gm.graph.nodes):
        return
    (output,) = gm.graph.find_nodes(op="output")
    targets, returned = [(node, node.target) for node in gm.graph.nodes], output.args
    try:
        Trial(gm, detect_fake_mode(inputs), eager_random).run()
    except Exception as error:  # whatever can't be tried on fake tensors is left alone
        for node, target in targets:
            node.target = target
        output.args = returned
        gm.graph.eliminate_dead_code(lambda node: node.target is not in_order)
        if settings.DEBUG >= 1:
            print(f"pynn: convolutions keep the user's layout: {error}", file=sys.stderr)
    gm.recompile()


class Trial:
    """A graph in channels-last order, run on fake tensors beside eager's (node.meta["example_value"])."""

    def __init__(self, gm: fx.GraphModule, fake_mode: Any, eager_random: bool):
        if fake_mode is None:
            raise Visible("the graph has no fake tensors")
        self.gm = gm
        self.fake_mode = fake_mode
        self.eager_random = eager_random
        self.graph = gm.graph
        self.eager: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, Any] = {}
        self.written: dict[fx.Node, set[int]] = {}
        """The storages of `values` that a node writes into."""

    def run(self) -> None:
        """Rewrite the graph; whatever it raises, the caller undoes it."""
        *nodes, output = self.graph.nodes
        for node in nodes:
            self.eager[node] = node.meta.get("example_value")
            rewrite(node)
        interpreter = fx.Interpreter(self.gm, garbage_collect_values=False)
        with self.fake_mode, torch.no_grad(), autocast_left() as entered:
            for node in nodes:
                self.values[node] = interpreter.env[node] = self.run_node(interpreter, node)
                note_autocast(node, self.values[node], entered)
            self.check_sharing(nodes)
            self.restore_outputs(output)

    def run_node(self, interpreter: fx.Interpreter, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return fresh(self.eager[node])
        if is_opaque(node):
            raise Visible(f"{node.target} may see it")
        with Watch(self.eager_random) as watch:
            value = interpreter.run_node(node)
        self.written[node] = watch.written
        if watch.foreign and any(not self.same_strides(argument) for argument in node.all_input_nodes):
            raise Visible(f"{watch.foreign} may see it")
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):  # a constant
            return self.fake_mode.from_tensor(value, static_shapes=True)
        return value

    def same_strides(self, node: fx.Node) -> bool:
        pairs = zip(tensors_of(self.eager[node]), tensors_of(self.values[node]))
        return all(equal_strides(eager, value) for eager, value in pairs)

    def check_sharing(self, nodes: list[fx.Node]) -> None:
        """Memory that a node's result shares with its arguments in one layout alone: nobody may write into it."""
        mine: set[int] = set()  # storages of the results so far that share otherwise than in eager
        for node in nodes:
            if self.written.get(node, set()) & mine:
                raise Visible(f"{node} writes into what is a view in one layout and a copy in the other")
            eager, values = tensors_of(self.eager[node]), tensors_of(self.values[node])
            if len(eager) != len(values):
                raise Visible(f"{node} is not what it was in eager")
            sources = [(x, y) for n in node.all_input_nodes for x, y in self.pairs(n)]
            for was, now in zip(eager, values):
                if free_unbacked_symbols(now):
                    raise Visible(f"the size of {node} depends on data")
                for eager_source, source in sources:
                    if (storage(was) == storage(eager_source)) != (storage(now) == storage(source)):
                        mine |= {storage(now), storage(source)}

    def pairs(self, node: fx.Node) -> list[tuple[Tensor, Tensor]]:
        """Eager's tensors and ours."""
        return list(zip(tensors_of(self.eager[node]), tensors_of(self.values[node])))

    # ------------------------------------------------------------ edges

    def restore_outputs(self, output: fx.Node) -> None:
        """Copies where an output's strides are not eager's."""
        returned = list(output.all_input_nodes)
        self.check_outputs(returned)
        restored: dict[int, fx.Node] = {}

        def edge(node: fx.Node) -> fx.Node:
            was, now = self.eager[node], self.values[node]
            if not isinstance(now, Tensor) or equal_strides(was, now):
                return node
            if id(now) not in restored:
                with self.graph.inserting_before(output):
                    order = order_of_memory(was)
                    made = self.graph.call_function(in_order, (node, order))
                made.meta["example_value"] = was
                if not equal_strides(was, in_order(now, order)):
                    raise Visible(f"output {node} has strides {was.stride()}, which a copy hasn't")
                restored[id(now)] = made
            return restored[id(now)]

        output.args = fx.map_arg(output.args, edge)

    def check_outputs(self, returned: list[fx.Node]) -> None:
        """Outputs share memory as in eager, and what shares is not copied."""
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        edges = [pair for node in [*inputs, *returned] for pair in self.pairs(node)]
        owners: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # the first edge with this storage
        for edge in edges:
            was, now = edge
            first = owners.setdefault(("eager", storage(was)), edge)
            if first is not owners.setdefault(("here", storage(now)), edge):
                raise Visible("outputs share memory in one layout alone")
            if first[1] is not now and not (equal_strides(*first) and equal_strides(was, now)):
                raise Visible("outputs share memory, and their layout is not eager's")


class Watch(TorchDispatchMode):
    """What the operations of one node do beside computing.

    written: storages written into;  foreign: an operator of another library, or None
    """

    def __init__(self, eager_random: bool):
        super().__init__()
        self.eager_random = eager_random
        self.written: set[int] = set()
        self.foreign: Any = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.eager_random and torch.Tag.nondeterministic_seeded in func.tags:
            raise Visible(f"{func} draws torch's own random numbers, in the order of memory")
        if func.namespace not in ("aten", "prim", "prims", "pynn"):
            self.foreign = func
        if func._schema.is_mutable:
            for k, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    given = args[k] if k < len(args) else kwargs.get(argument.name)
                    self.written |= {storage(x) for x in tensors_of(given)}
        return func(*args, **kwargs)


def rewrite(node: fx.Node) -> None:
    """In place, what the head of this file says of one node."""
    if node.op == "call_function" and node.target in CONVOLUTIONS:
        node.target = CONVOLUTIONS[node.target]
    elif node.op == "call_method" and node.target in RESHAPES:
        if not any(isinstance(argument, torch.dtype) for argument in (*node.args, *node.kwargs.values())):
            node.target = RESHAPES[str(node.target)]
    elif node.op == "call_function" and node.target in (torch.Tensor.view, aten.view.default):
        node.target = torch.Tensor.reshape


def is_opaque(node: fx.Node) -> bool:
    """Calls that can't be tried, or that look at strides."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method"):
        return False
    module = getattr(node.target, "__module__", None) or ""
    changes_mode = name.startswith("_enter_") and name != "_enter_autocast"
    return changes_mode or "functorch" in module or name.split(".")[0] in OF_STRIDES


@contextmanager
def autocast_left() -> Generator[list[Any], None, None]:
    """A list for the autocast regions entered; those left open by an error are closed."""
    entered: list[Any] = []
    try:
        yield entered
    finally:
        while entered:
            torch.amp.autocast_mode._exit_autocast(entered.pop())


def note_autocast(node: fx.Node, value: Any, entered: list[Any]) -> None:
    name = getattr(node.target, "__name__", "")
    if name == "_enter_autocast":
        entered.append(value)
    elif name == "_exit_autocast" and entered:
        entered.pop()


def fresh(value: Any) -> Any:
    """A tensor like an input's, which may be changed without harm."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def tensors_of(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def equal_strides(was: Tensor, now: Tensor) -> bool:
    """Whether two tensors of a shape lie alike: a stride along one element says nothing."""
    return all(
        statically_known_true(n == 1) or statically_known_true(x == y)
        for n, x, y in zip(was.shape, was.stride(), now.stride())
    )


def order_of_memory(tensor: Tensor) -> list[int]:
    """Its dimensions, that of the longest step first.

    Strides of symbols are compared by their hints: the copy is compared with eager's afterwards.
    """

    def step(k: int) -> tuple[int, int]:
        return -hint(tensor.stride(k)), -hint(tensor.shape[k])

    return sorted(range(tensor.dim()), key=step)


def hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def in_order(tensor: Tensor, order: list[int]) -> Tensor:
    """The same values, its dimensions in this order of memory."""
    if order == sorted(order):
        return tensor.contiguous()
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)
