"""Compiled channels-last convolutions: windows and panels found where they lie (compiler_bridge/cpu/gemm_indirect.py,
gemm_runs.py).

Geometries that make whole and partial tiles, panels that straddle taps, taps that a stride skips, several blocks of
rows and of segments; on every executor that compiles.
"""

from typing import Any, NamedTuple

import pytest
import torch

import pynn
from parity_tests.executors import in_executor_process, prepare


class Geometry(NamedTuple):
    batch: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1


GEOMETRIES = {
    "3x3": Geometry(2, 16, 40, (9, 7), (3, 3), padding=1),
    "3x3 stride 2": Geometry(2, 8, 32, (8, 8), (3, 3), 2, 1),
    "3x3 stride 2 of odd size": Geometry(1, 24, 20, (9, 7), (3, 3), 2, 1),
    "1x1 stride 2": Geometry(2, 16, 24, (6, 8), (1, 1), 2),
    "1x1 stride 3, rows left over": Geometry(1, 8, 8, (7, 8), (1, 1), 3),
    "dilated": Geometry(1, 8, 16, (9, 9), (3, 2), 1, 2, 2),
    "5x5 stride 3": Geometry(1, 12, 33, (11, 10), (5, 5), 3, 2),
    "padding wider than the window": Geometry(1, 8, 8, (3, 3), (2, 2), 1, 3),
    "one output row": Geometry(1, 8, 32, (3, 3), (3, 3)),
    "image": Geometry(2, 3, 16, (11, 10), (7, 7), 2, 3),
    "image 3x3": Geometry(1, 3, 8, (6, 5), (3, 3), 2, 1),
    "image of 14 channels, dilated": Geometry(1, 14, 8, (8, 6), (3, 2), 1, 1, 2),
    "image of 2 channels": Geometry(2, 2, 33, (9, 12), (3, 4), 1, 3),
    "image, windows side by side": Geometry(2, 3, 70, (8, 12), (4, 4), 4),
    "image 16x16": Geometry(1, 3, 5, (48, 32), (16, 16), 16),
    "3d image": Geometry(1, 4, 8, (4, 5, 6), (2, 3, 3), 1, 1),
    "3d": Geometry(1, 8, 12, (4, 3, 5), (2, 3, 3), 2, 1),
}
LARGE = {
    "many rows": Geometry(2, 32, 64, (30, 31), (3, 3), padding=1),
    "image": Geometry(1, 3, 40, (67, 70), (7, 7), 2, 3),
    "blocks of segments": Geometry(1, 600, 40, (4, 4), (3, 3), padding=1),
}


def run(geometry: Geometry, dtype: str, executor: str, last: bool = False) -> list[torch.Tensor]:
    """The output and both gradients, all channels-last."""
    tensors, steps = draw(geometry, dtype, last)
    return prepare(executor, convolve)(*tensors, *steps)


def draw(geometry: Geometry, dtype: str, last: bool) -> tuple[list[torch.Tensor], list[Any]]:
    """last: whether the weight is channels-last too, else its taps lie side by side"""
    torch.manual_seed(0)
    dims = len(geometry.size)
    steps = [[step] * dims for step in (geometry.stride, geometry.padding, geometry.dilation)]
    x = torch.randn(geometry.batch, geometry.channels, *geometry.size, dtype=torch.float64)
    weight = torch.randn(geometry.outputs, geometry.channels, *geometry.kernel, dtype=torch.float64)
    out = torch.ops.aten.convolution(x, weight, None, *steps, False, [0] * dims, 1)
    gradient = torch.randn_like(out)
    form = torch.channels_last if dims == 2 else torch.channels_last_3d
    chosen = getattr(torch, dtype)
    x, gradient = (t.to(chosen).contiguous(memory_format=form) for t in (x, gradient))
    weight = weight.to(chosen).contiguous(memory_format=form if last else torch.contiguous_format)
    return [x, weight, gradient], steps


def convolve(
    x: Any, weight: Any, gradient: Any, stride: Any, padding: Any, dilation: Any
) -> list[torch.Tensor]:
    none = [0] * len(stride)
    out = torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, False, none, 1)
    of_input, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, none, 1, [True, True, False]
    )
    return [out, of_input, of_weight]


def check(geometry: Geometry, dtype: str, executor: str, last: bool = False) -> None:
    found = in_executor_process(executor, run, geometry, dtype, executor, last)
    tensors, steps = draw(geometry, dtype, last)
    theirs = convolve(*tensors, *steps)
    exact = convolve(*(t.double() for t in tensors), *steps)
    for ours, cpp, truth in zip(found, theirs, exact):
        assert steps_of(ours) == steps_of(cpp) and ours.dtype == cpp.dtype
        scale = truth.abs().max().item()
        bound = 2 * (cpp.double() - truth).abs().max().item() + 8 * torch.finfo(cpp.dtype).eps * scale
        assert (ours.double() - truth).abs().max().item() <= bound


def steps_of(tensor: torch.Tensor) -> list[int]:
    """The strides that lead anywhere."""
    return [stride for stride, extent in zip(tensor.stride(), tensor.shape) if extent != 1]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["ir", "python", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_small(name: str, dtype: str, executor: str):
    if executor == "python" and dtype == "float64":
        pytest.skip("the generated code is float32's with wider numbers")
    check(GEOMETRIES[name], dtype, executor)


@pytest.mark.slow
@pytest.mark.parametrize("name", GEOMETRIES)
def test_channels_last_weight(name: str):
    check(GEOMETRIES[name], "float32", "numba", last=True)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["image", "image, windows side by side"])
def test_threads_share_the_sum_of_an_images_weight_gradient(name: str, threads: int):
    """Each keeps its part of the sums, transposed, in scratch (cpu/gemm_runs.py)."""
    tensors, steps = draw(GEOMETRIES[name]._replace(batch=4), "float32", False)

    def of_weight(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return convolve(x, weight, gradient, *steps)[2]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = pynn.compile(of_weight, strict=True)(*tensors)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(ours, of_weight(*tensors))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LARGE)
def test_large(name: str, dtype: str):
    check(LARGE[name], dtype, "numba")
