"""torch's own Python decompositions stay away from what the lowering takes whole (`capture/whole.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx

from compiler_bridge.capture.decompositions import KEPT_WHOLE, TORCHS_TEXTS
from compiler_bridge.capture.whole import COMPOSITES, KEYS, without_python_kernels
from pynn.definitions import DEFINITIONS

aten = torch.ops.aten
IMAGE = torch.randn(1, 2, 5, 6)


def bilinear(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def nearest(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def bicubic(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(7, 4), mode="bicubic", align_corners=True)


def circular(x: Tensor) -> Tensor:
    return F.pad(x, (2, 1, 1, 3), mode="circular")


def with_gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        out = function(leaf)
        return out.detach(), torch.autograd.grad(out, leaf, torch.ones_like(out))[0]

    return both


def traced(function: Callable[..., Any]) -> Any:
    """As AOTAutograd traces: Python kernels of operations run."""
    with enable_python_dispatcher():
        return make_fx(function, tracing_mode="fake")(IMAGE)


def operations(function: Callable[..., Any]) -> set[str]:
    """Names of the ATen operations in the graph of forward and backward."""
    graph = traced(with_gradient(function)).graph
    return {node.target.overloadpacket.__name__ for node in graph.nodes if node.op == "call_function"}


WHOLE = [(bilinear, "upsample_bilinear2d"), (nearest, "upsample_nearest2d"), (bicubic, "upsample_bicubic2d")]


@pytest.mark.parametrize("function, name", WHOLE, ids=[name for _, name in WHOLE])
def test_one_node_with_its_own_backward(function: Callable[..., Any], name: str):
    with without_python_kernels(KEPT_WHOLE):
        seen = operations(function)
    assert {name, f"{name}_backward"} <= seen
    assert not seen & {"index", "_unsafe_index", "index_put", "_unsafe_index_put", "mul", "add"}


def test_circular_padding_is_not_copied_slice_by_slice():
    assert "copy_" in operations(circular)
    with without_python_kernels(KEPT_WHOLE):
        seen = operations(circular)
    assert not seen & {"copy_", "copy", "slice_scatter", "empty", "new_empty"}


@pytest.mark.parametrize("function", [bilinear, nearest, bicubic, circular])
def test_values_and_gradients_are_torchs(function: Callable[..., Any]):
    both = with_gradient(function)
    expected = both(IMAGE)
    with without_python_kernels(KEPT_WHOLE):
        found, graph = both(IMAGE), traced(both)
    for mine, graphs, wanted in zip(found, graph(IMAGE), expected, strict=True):
        torch.testing.assert_close(mine, wanted)
        torch.testing.assert_close(graphs, wanted)


MAKES_FUNCTIONAL = {aten.native_batch_norm.default}  # to _native_batch_norm_legit, which is defined


def test_no_definition_has_a_text_of_torchs_before_it():
    texts = {op for op in DEFINITIONS if any(key in op.py_kernels for key in KEYS)}
    assert texts - MAKES_FUNCTIONAL <= KEPT_WHOLE | TORCHS_TEXTS
    assert TORCHS_TEXTS <= texts


LABELS = [[1, 2, -1, 0], [1, 2, -1, -1], [0, -1, 2, 1], [-1, 0, 1, 2]]


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_padding_is_no_label_of_multilabel_margin_loss(labels: list[int]):
    """torch 2.13's own text takes it for class 0; whoever compiled got that."""

    def loss(x: Tensor) -> Tensor:
        return F.multilabel_margin_loss(x, torch.tensor([labels] * 3), reduction="none")

    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.compile(loss, backend="pynn")(x), loss(x))


def kernels() -> list[dict[Any, Any]]:
    packets = {operation.overloadpacket for operation in KEPT_WHOLE}
    overloads = [getattr(packet, name) for packet in packets for name in packet.overloads()]
    return [dict(overload.py_kernels) for overload in [*overloads, *COMPOSITES]]


class Interrupted(Exception):
    pass


def test_torchs_kernels_come_back():
    """Also after an error, and where two of these are nested."""
    before, names = kernels(), operations(bilinear)
    assert "upsample_bilinear2d_backward" not in names  # torch decomposes it
    with pytest.raises(Interrupted), without_python_kernels(KEPT_WHOLE):
        with without_python_kernels(KEPT_WHOLE):
            assert kernels() != before
        assert operations(bilinear) != names
        raise Interrupted
    assert kernels() == before and operations(bilinear) == names
