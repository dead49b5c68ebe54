"""Batch norm after a convolution or a product, folded into its weight and bias.

    conv(x, weight, bias) * s   ->  conv(x, weight * s, bias * s)
    conv(x, weight, bias) + t   ->  conv(x, weight, bias + t)

s and t are frozen and have one value a channel; weight and bias are frozen too. The same for `mm` and `addmm`, and
with views and additions of other such vectors between. Valid in exact arithmetic; in float32 and float64 the error
stays of the same size: one rounding of each weight in place of one of each result. In 16 bits it would be larger
than C++'s: a weight is rounded to 16 bits, a sum isn't before it is scaled. There nothing is folded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
SAME_AXES = (aten.clone.default,)
PRODUCTS = (aten.convolution.default, aten.mm.default, aten.addmm.default)


def move_scales_into_weights(graph: fx.Graph, known: dict[fx.Node, bool]) -> None:
    """In place. `known`: nodes that depend on frozen inputs alone (and on at least one where True)."""
    hoist(graph, known)
    for node in list(graph.nodes):
        if node in known or node.kwargs or node.target not in (aten.mul.Tensor, aten.add.Tensor):
            continue
        for value, vector in (node.args, node.args[::-1]):
            if known.get(vector) and fold_one(node, value, vector, known):
                break


def hoist(graph: fx.Graph, known: dict[fx.Node, bool]) -> None:
    """Frozen values first, so that any node may use them."""
    last = graph.find_nodes(op="placeholder")[-1]
    for node in known:
        if node.op != "placeholder":
            last.append(node)
            last = node


def fold_one(node: fx.Node, value: Any, vector: fx.Node, known: dict[fx.Node, bool]) -> bool:
    """Rewrite node = value * vector or value + vector, if it is what this is for."""
    axis = channel_axis(value, vector, node)
    found = None if axis is None else product_below(node, value, axis, known)
    if found is None or not can_take(found[0], vector, known):
        return False
    product, additions = found
    with product.graph.inserting_before(product):
        if node.target is aten.mul.Tensor:
            rescale(product, vector, known)
            for addition in additions:
                change_addend(addition, aten.mul.Tensor, vector, known)
        elif additions:
            change_addend(additions[0], aten.add.Tensor, vector, known)
        elif product.target is aten.mm.default:
            return False  # it becomes the epilogue's addition, as addmm's own bias would
        else:
            shift(product, vector, known)
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)
    return True


def channel_axis(value: Any, vector: fx.Node, node: fx.Node) -> int | None:
    """The only axis of `value` along which `vector` varies."""
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return None
    whole, row = value.meta["val"], vector.meta["val"]
    if node.meta["val"].dim() != whole.dim() or node.meta["val"].dtype != whole.dtype:
        return None
    real = [dim - row.dim() for dim, extent in enumerate(row.shape) if extent != 1]
    if len(real) != 1 or row.dim() > whole.dim() or row.shape[real[0]] != whole.shape[real[0]]:
        return None
    return real[0] % whole.dim()


def product_below(
    node: fx.Node, value: Any, axis: int, known: dict[fx.Node, bool]
) -> tuple[fx.Node, list[fx.Node]] | None:
    """The product whose channels `axis` of value is, and frozen vectors added on the way.

    It is seen through these additions and through views, as long as nobody else reads them.
    """
    reader, additions = node, list[fx.Node]()
    while isinstance(value, fx.Node) and list(value.users) == [reader]:
        if value.target in PRODUCTS:
            return (value, additions) if axis == 1 else None
        reader = value
        if value.target is aten.add.Tensor and not value.kwargs:
            value, addend = value.args if known.get(value.args[1]) else value.args[::-1]  # type: ignore[index,arg-type]
            if not known.get(addend) or channel_axis(value, addend, reader) != axis:  # type: ignore[arg-type]
                return None
            additions.append(reader)
            continue
        below = axis_below(value, axis)
        if below is None:
            return None
        value, axis = below
    return None


def axis_below(node: fx.Node, axis: int) -> tuple[fx.Node, int] | None:
    """A view -> what it looks at, and which axis of that its `axis` is."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.target in SAME_AXES:
        return source, axis
    if node.target is aten.permute.default:
        return source, int(node.args[1][axis]) % len(node.args[1])  # type: ignore[index,arg-type]
    if node.target not in VIEWS:
        return None
    after, before = node.meta["val"].shape, source.meta["val"].shape
    inner = after[axis:]
    for candidate in range(len(before)):
        rest = before[candidate:]
        if are_numbers(rest) and are_numbers(inner) and rest[0] == inner[0]:
            if math.prod(rest[1:]) == math.prod(inner[1:]):
                return source, candidate
    return None


def are_numbers(sizes: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def can_take(product: fx.Node, vector: fx.Node, known: dict[fx.Node, bool]) -> bool:
    """Whether weight and bias are frozen, of one dtype with the vector, and wide enough for another rounding."""
    if product.kwargs:
        return False  # alpha, beta
    weight, bias = weight_and_bias(product)
    operands = [weight, vector] if bias is None else [weight, bias, vector]
    if not all(isinstance(operand, fx.Node) and known.get(operand) for operand in operands):
        return False
    dtypes = {operand.meta["val"].dtype for operand in [*operands, product]}
    if len(dtypes) != 1 or dtypes.pop() not in (torch.float32, torch.float64):
        return False
    if bias is not None and bias.meta["val"].dim() != 1:
        return False
    transposed, groups = (product.args[6], product.args[8]) if is_convolution(product) else (False, 1)
    return not transposed or bool(groups == 1)


def is_convolution(product: fx.Node) -> bool:
    return product.target is aten.convolution.default


def weight_and_bias(product: fx.Node) -> tuple[Any, Any]:
    if is_convolution(product):
        return product.args[1], product.args[2]
    if product.target is aten.mm.default:
        return product.args[1], None
    return product.args[2], product.args[0]


def set_weight_and_bias(product: fx.Node, weight: fx.Node, bias: Any) -> None:
    args = list(product.args)
    if is_convolution(product):
        args[1:3] = weight, bias
    elif product.target is aten.mm.default:
        args[1] = weight
    else:
        args[0], args[2] = bias, weight
    product.args = tuple(args)


def rescale(product: fx.Node, vector: fx.Node, known: dict[fx.Node, bool]) -> None:
    weight, bias = weight_and_bias(product)
    channels = vector.meta["val"].numel()
    shape = [channels]
    if is_convolution(product):
        first = [1, channels] if product.args[6] else [channels]
        shape = first + [1] * (weight.meta["val"].dim() - len(first))
    scaled = computed(known, aten.mul.Tensor, weight, computed(known, aten.view.default, vector, shape))
    if bias is not None:
        flat = computed(known, aten.view.default, vector, [channels])
        bias = computed(known, aten.mul.Tensor, bias, flat)
    set_weight_and_bias(product, scaled, bias)


def shift(product: fx.Node, vector: fx.Node, known: dict[fx.Node, bool]) -> None:
    weight, bias = weight_and_bias(product)
    flat = computed(known, aten.view.default, vector, [vector.meta["val"].numel()])
    bias = flat if bias is None else computed(known, aten.add.Tensor, bias, flat)
    set_weight_and_bias(product, weight, bias)


def change_addend(addition: fx.Node, target: Any, vector: fx.Node, known: dict[fx.Node, bool]) -> None:
    """value + t -> value + target(t, vector)"""
    position = 1 if known.get(addition.args[1]) else 0  # type: ignore[arg-type]
    addend: Any = addition.args[position]
    shaped = computed(known, aten.view.default, vector, list(addend.meta["val"].shape))
    addition.update_arg(position, computed(known, target, addend, shaped))


def computed(known: dict[fx.Node, bool], target: Any, *args: Any) -> fx.Node:
    """A new frozen node at the graph's insertion point, with its fake tensor."""
    sources = [arg for arg in args if isinstance(arg, fx.Node)]
    node = sources[0].graph.call_function(target, args)
    values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
    with values[0].fake_mode, torch.no_grad():
        node.meta["val"] = target(*values)
    known[node] = True
    return node
