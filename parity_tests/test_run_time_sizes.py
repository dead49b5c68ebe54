"""Graphs whose sizes are known only at run time: compiled once, nothing left to ATen, at every size no less accurate
than C++. Values, gradients and strides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pynn
from compiler_bridge import pipeline, settings
from compiler_bridge.ir import Extern, Graph
from parity_tests.externs import computing_externs, record_graphs
from parity_tests.tolerances import compare


@dataclass(frozen=True)
class Case:
    """dynamic: dimensions of each argument that differ between calls; shapes: of the arguments, for every call

    draw: makes an argument from its shape
    """

    name: str
    function: Callable[..., Tensor]
    dynamic: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    draw: Callable[..., Tensor] = torch.randn


IMAGES = (((2, 3, 6, 11),), ((2, 3, 13, 5),), ((2, 3, 8, 8),))


def byte_images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def image(mode: str, draw: Callable[..., Tensor] = torch.randn, **options: Any) -> Case:
    name = " ".join([mode, draw.__name__, *(f"{k}={v}" for k, v in options.items())])
    return Case(name, lambda x: F.interpolate(x, mode=mode, **options), ((2, 3),), IMAGES, draw)


def upsampled(name: str, *options: Any) -> Case:
    """The operation itself, called with sizes that are symbols."""
    operation = getattr(torch.ops.aten, name).default

    def upsample(x: Tensor) -> Tensor:
        return operation(x, [x.shape[2] * 2, x.shape[3] + 3], *options)

    return Case(f"{name} {options}", upsample, ((2, 3),), IMAGES)


def resized_by(mode: str, dims: int, **options: Any) -> Case:
    shapes = tuple(((2, 3, *sizes[:dims]),) for sizes in ((6, 11, 4), (13, 5, 7)))
    function = lambda x: F.interpolate(x, mode=mode, **options)  # noqa: E731
    return Case(f"{mode} {dims}d {options}", function, (tuple(range(2, 2 + dims)),), shapes)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def fold_of(**geometry: Any) -> Case:
    def windows_there_and_back(x: Tensor) -> Tensor:
        return F.fold(F.unfold(x, **geometry).square(), x.shape[2:], **geometry)

    return Case(f"fold {geometry}", windows_there_and_back, ((0, 2, 3),), (*IMAGES, ((3, 3, 9, 6),)))


def bag_of(mode: str, samples: bool = False, **options: Any) -> Case:
    """Bags of three indices each, the first of them empty."""

    def bags(weight: Tensor, numbers: Tensor) -> Tensor:
        indices = (numbers.detach() * 5).long() % weight.shape[0]
        offsets = (torch.arange(1 + indices.shape[0] // 3) * 3 - 3).clamp(min=0)
        given = {"per_sample_weights": numbers} if samples else {}
        return F.embedding_bag(indices, weight, offsets, mode=mode, **given, **options)

    shapes = ((7, 5), (12,)), ((7, 5), (30,)), ((7, 5), (9,))
    return Case(f"bag {mode} {samples} {options}", bags, ((), (0,)), shapes, torch.rand)


def pairs_by(p: float) -> Case:
    return Case(f"pdist {p}", lambda x: F.pdist(x, p), ((0,),), (((6, 5),), ((11, 5),), ((3, 5),)))


def convolution_in_groups(channels: int, outputs: int, **options: Any) -> Case:
    """Channels are multiples of these."""
    groups = options["groups"]

    def shapes_of(*factors: int) -> tuple[tuple[int, ...], ...]:
        c, o = channels * factors[0], outputs * factors[1]
        if options.get("transposed"):
            return (2, c, 6, 7), (c, o // groups, 3, 3)
        return (2, c, 6, 7), (o, c // groups, 3, 3)

    kwargs = {k: v for k, v in options.items() if k != "transposed"}
    function = F.conv_transpose2d if options.get("transposed") else F.conv2d
    shapes = shapes_of(2, 3), shapes_of(3, 2), shapes_of(5, 4)
    name = f"convolution {channels} {outputs} {options}"
    return Case(name, lambda x, w: function(x, w, **kwargs), ((1,), (0, 1)), shapes)


def padded(mode: str, draw: Callable[..., Tensor] = torch.randn) -> Case:
    name = f"pad {mode} {draw.__name__}"
    return Case(name, lambda x: F.pad(x, (1, 3, 2, 0), mode=mode), ((2, 3),), IMAGES, draw)


def sampled(mode: str, **options: Any) -> Case:
    """At places that the grid makes of numbers, some of them outside."""

    def sample(x: Tensor, places: Tensor) -> Tensor:
        return F.grid_sample(x, places.tanh() * 1.1, mode=mode, **options)

    shapes = tuple((shape, (2, shape[3], 4, 2)) for (shape,) in IMAGES)
    return Case(f"grid {mode} {options}", sample, ((2, 3), (1,)), shapes)


CASES = [
    Case("logit", lambda x: torch.logit(x, 1e-3), ((0, 1),), (((5, 7),), ((3, 2),)), torch.rand),
    *(padded(mode) for mode in ("reflect", "replicate", "circular")),
    padded("reflect", channels_last),
    sampled("nearest", align_corners=False),
    sampled("bilinear", align_corners=True, padding_mode="border"),
    sampled("bilinear", align_corners=False, padding_mode="reflection"),
    convolution_in_groups(2, 2, groups=2, padding=1),
    convolution_in_groups(32, 16, groups=2, stride=2),
    convolution_in_groups(4, 4, groups=4, stride=2, padding=1, transposed=True),
    *(bag_of(mode) for mode in ("mean", "max")),
    bag_of("sum", True, padding_idx=1),
    *(pairs_by(p) for p in (0.0, 2.0, float("inf"))),
    fold_of(kernel_size=3, padding=1),
    fold_of(kernel_size=(3, 2), padding=(1, 2), stride=(3, 1), dilation=(1, 2)),
    *(image(mode, scale_factor=2.0) for mode in ("nearest", "bilinear", "area")),
    *(image(mode, channels_last, scale_factor=2.0) for mode in ("bilinear", "bicubic")),
    *(image(mode, size=(7, 9)) for mode in ("nearest-exact", "bilinear", "area")),
    image("bicubic", scale_factor=(1.7, 0.6), align_corners=True),
    image("nearest-exact", scale_factor=1.3),
    image("bilinear", scale_factor=1.3, recompute_scale_factor=True),
    image("bilinear", scale_factor=0.5, antialias=True),
    upsampled("upsample_bilinear2d", False, 2.0, None),
    upsampled("_upsample_bicubic2d_aa", True),
    upsampled("_upsample_nearest_exact2d"),
    resized_by("linear", 1, scale_factor=1.5),
    resized_by("nearest", 1, size=5),
    resized_by("area", 1, size=5),
    resized_by("area", 3, scale_factor=0.6),
    resized_by("trilinear", 3, scale_factor=2.0),
    image("nearest", byte_images, scale_factor=1.5),
    image("bicubic", byte_images, scale_factor=0.5, antialias=True),
]  # fmt: skip

MORE_CASES = [
    *(padded(mode, channels_last) for mode in ("replicate", "circular")),
    sampled("bilinear", align_corners=False),
    bag_of("sum"),
    *(pairs_by(p) for p in (1.0, 3.0)),
    fold_of(kernel_size=3, padding=1, stride=2),
    image("bicubic", scale_factor=2.0),
    *(image(mode, channels_last, scale_factor=2.0) for mode in ("nearest", "area")),
    *(image(mode, size=(7, 9)) for mode in ("nearest", "bicubic")),
    image("bilinear", scale_factor=(1.7, 0.6), align_corners=True),
    image("bicubic", channels_last, scale_factor=0.5, antialias=True),
    upsampled("upsample_nearest2d", None, 1.5),
    image("area", channels_last, size=(3, 17)),
    upsampled("upsample_bicubic2d", False),
    resized_by("nearest", 3, scale_factor=2.0),
    image("bilinear", byte_images, scale_factor=1.5),
]
"""Taken as far as the loop IR: most of the time goes into compiling kernels, which these share with those above."""


def run(
    function: Callable[..., Tensor], inputs: list[Tensor], dynamic: tuple[tuple[int, ...], ...] = ()
) -> list[Tensor]:
    """The value, and the gradients of the floating-point inputs for a cotangent that tells elements apart."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    for x, dims in zip(leaves, dynamic):
        torch._dynamo.mark_dynamic(x, list(dims))
    out = function(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    if not out.requires_grad:
        return [out]
    weights = torch.linspace(1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, wanted, weights, materialize_grads=True)]


def in_float64(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def assert_right_at_all_sizes(case: Case) -> None:
    torch._dynamo.reset()
    compiled = pynn.compile(case.function, strict=True)
    for number, shapes in enumerate(case.shapes):
        torch.manual_seed(number)
        inputs = [case.draw(*shape) for shape in shapes]
        found = run(compiled, inputs, case.dynamic)
        expected = run(case.function, inputs)
        exact = run(case.function, [in_float64(x) for x in inputs])
        assert found[0].stride() == expected[0].stride()
        for value, cpp, true in zip(found, expected, exact, strict=True):
            comparison = compare(value, cpp, true, False)
            assert comparison.passed, f"{shapes}: {comparison}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_graph_for_all_sizes_without_aten(case: Case) -> None:
    with record_graphs() as graphs:
        assert_right_at_all_sizes(case)
    assert len(graphs) == len({graph.kind for graph in graphs}), "a size was compiled anew"
    assert not computing_externs(graphs)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_CASES, ids=lambda case: case.name)
def test_one_loop_ir_for_all_sizes_without_aten(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    legalize = pipeline.legalize

    def noted(graph: Graph) -> Graph:
        fused = legalize(graph)
        graphs.append(SimpleNamespace(externs=[node for node in fused.nodes if isinstance(node, Extern)]))
        return fused

    monkeypatch.setattr(settings, "INTERPRET_IR", True)
    monkeypatch.setattr(pipeline, "legalize", noted)
    assert_right_at_all_sizes(case)
    has_gradient = case.draw is not byte_images
    assert len(graphs) == 1 + has_gradient, "a size was compiled anew"
    assert not computing_externs(graphs)
