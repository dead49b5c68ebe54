"""The vision_layers suite: pooling, normalisation over images and interpolation, forward and forward + backward."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import measure_both_ways
from benchmarks.layers import Case, build_work

Image = Callable[[tuple[int, ...]], Tensor]

# batch, channels, height, width: early, middle and late in a network
SHAPES = [(4, 64, 56, 56), (4, 256, 28, 28), (16, 512, 7, 7)]
GROUPS = 32

POOLING: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool 2/2": lambda x: F.max_pool2d(x, 2),
    "max_pool 3/2": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "avg_pool 2/2": lambda x: F.avg_pool2d(x, 2),
    "avg_pool 3/1": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1),
    "adaptive_avg_pool 1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_avg_pool 5": lambda x: F.adaptive_avg_pool2d(x, 5),
    "adaptive_max_pool 5": lambda x: F.adaptive_max_pool2d(x, 5),
}


def traffic(read: int, written: int) -> tuple[float, float]:
    """Least bytes of x -> y, and of that with y's gradient read and x's written."""
    return (4.0 * (read + written), 8.0 * (read + written))


def layer_case(name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Case:
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    with torch.no_grad():
        written = function(x).numel()
    size = "x".join(map(str, x.shape)) + ("" if x.is_contiguous() else " nhwc")
    return Case(name, size, function, [x], parameters, nbytes=traffic(x.numel(), written))


def contiguous(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def channels_last(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()


LAYOUTS = (contiguous, channels_last)


def pooling_cases(shape: tuple[int, ...], image: Image) -> Iterator[Case]:
    for name, function in POOLING.items():
        yield layer_case(name, function, image(shape))


def normalisation_cases(shape: tuple[int, ...], image: Image) -> Iterator[Case]:
    """In training: batch norm takes the batch's statistics and moves the running ones."""
    channels = shape[1]
    yield layer_case("batch_norm", nn.BatchNorm2d(channels).train(), image(shape))
    yield layer_case("group_norm", nn.GroupNorm(GROUPS, channels), image(shape))


def interpolation_cases(shape: tuple[int, ...], image: Image) -> Iterator[Case]:
    """Twice the size, and 5/8 of it: of the nearest elements, and antialiased."""
    twice = [2 * side for side in shape[2:]]
    smaller = [max(1, side * 5 // 8) for side in shape[2:]]
    for mode in ("nearest", "bilinear", "bicubic"):
        yield layer_case(mode, partial(F.interpolate, size=twice, mode=mode), image(shape))
    yield layer_case("nearest smaller", partial(F.interpolate, size=smaller, mode="nearest"), image(shape))
    for mode in ("bilinear", "bicubic"):
        function = partial(F.interpolate, size=smaller, mode=mode, antialias=True)
        yield layer_case(f"{mode} antialias", function, image(shape))


def cases(quick: bool) -> Iterator[Case]:
    """In both memory layouts."""
    chosen = {contiguous: SHAPES[1:], channels_last: SHAPES[2:]} if quick else dict.fromkeys(LAYOUTS, SHAPES)
    for image, shapes in chosen.items():
        for shape in shapes:
            for family in (pooling_cases, normalisation_cases, interpolation_cases):
                yield from family(shape, image)


def measure_vision_layers(
    chosen: set[str], quick: bool, only: str, say: Callable[[dict], None]
) -> list[dict]:
    """Time every case both ways; `say` is told each record as it comes."""
    wanted = (case for case in cases(quick) if only in case.name)
    return measure_both_ways("vision_layers", wanted, build_work, chosen, 0.2 if quick else 0.6, say)
