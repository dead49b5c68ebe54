"""Compiled pooling in both memory layouts against C++: maxima, their indices and gradients to the last bit, averages
in float64 but for the order in which they are added.

Inputs of max pooling hold few different values, so that windows have several largest ones; NaN; and stretches of
-inf, where the index says which element of a padded window counts as its first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compiler_bridge import backend, pipeline
from compiler_bridge.cpu.host import NATIVE_LANES

pytestmark = pytest.mark.slow  # each compiles kernels

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
UNUSUAL = {"ties": None, "nan": torch.nan, "low": -torch.inf, "high and nan": torch.inf}


def max_pool(*window: int, **options: object) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return partial(max_pool_of, window=window, options=options)


def max_pool_of(x: Tensor, window: tuple, options: dict) -> tuple[Tensor, Tensor]:
    return F.max_pool2d(x, *window, return_indices=True, **options)  # type: ignore[return-value]


def adaptive(*counts: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return partial(adaptive_of, counts=counts)


def adaptive_of(x: Tensor, counts: tuple) -> tuple[Tensor, Tensor]:
    return F.adaptive_max_pool2d(x, counts, return_indices=True)  # type: ignore[return-value]


POOLS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], tuple[int, int]]] = {
    "2/2": (max_pool(2), (8, 6)),
    "2/2 odd": (max_pool(2), (7, 13)),
    "2/2 ceil": (max_pool(2, ceil_mode=True), (7, 9)),
    "3/2": (max_pool(3, 2, 1), (8, 12)),
    "3/2 odd": (max_pool(3, 2, 1), (13, 7)),
    "3/1": (max_pool(3, 1, 1), (7, 6)),
    "3/1 dilated": (max_pool(3, 1, 1, 2), (9, 8)),
    "2/3 apart": (max_pool(2, 3, 1), (10, 11)),
    "5/2": (max_pool(5, 2, 2), (9, 14)),
    "5/3 dilated": (max_pool(5, 3, 2, 2), (12, 13)),
    "adaptive even": (adaptive(4, 3), (8, 9)),
    "adaptive uneven": (adaptive(5, 5), (7, 13)),
    "adaptive more": (adaptive(9, 4), (6, 17)),
    "adaptive large": (adaptive(3, 2), (29, 31)),
}


def image(shape: tuple[int, ...], layout: str, unusual: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, shape, generator=generator).float()
    value = UNUSUAL[unusual]
    if value is not None:
        x = torch.where(torch.rand(shape, generator=generator) < (0.1 if unusual == "nan" else 0.7), value, x)
    if unusual == "high and nan":
        x = torch.where(torch.rand(shape, generator=generator) < 0.3, torch.nan, x)
    return x.to(memory_format=LAYOUTS[layout]).requires_grad_()


def assert_as_eager(pool: Callable, compiled: Callable, x: Tensor) -> None:
    (values, indices), (wanted, places) = compiled(x), pool(x)
    torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, places)
    assert values.stride() == wanted.stride()
    # whole numbers: sums do not depend on their order
    cotangent = torch.arange(1.0, wanted.numel() + 1).view(wanted.shape) % 64
    for incoming in (cotangent, cotangent.to(memory_format=torch.channels_last)):
        found, gradient = (torch.autograd.grad(y[0], x, incoming)[0] for y in (compiled(x), pool(x)))
        assert torch.equal(found, gradient)
        assert found.stride() == gradient.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", POOLS)
def test_values_indices_and_gradients(name: str, layout: str):
    pool, size = POOLS[name]
    compiled = backend.compile(pool, strict=True, dynamic=False)
    for unusual in UNUSUAL:
        assert_as_eager(pool, compiled, image((2, NATIVE_LANES + 3, *size), layout, unusual))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [2, 3, 150])
@pytest.mark.parametrize("name", ["3/2 odd", "adaptive uneven"])
def test_few_and_many_channels(name: str, channels: int, layout: str):
    """150: more than the columns that one turn of a scatter takes."""
    pool, size = POOLS[name]
    compiled = backend.compile(pool, strict=True, dynamic=False)
    assert_as_eager(pool, compiled, image((2, channels, *size), layout, "ties"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["2/2 odd", "3/2 odd", "adaptive uneven"])
def test_any_batch_and_any_size(name: str, layout: str):
    pool, size = POOLS[name]
    for dynamic in ([0], [2, 3], [0, 1, 2, 3]):
        torch._dynamo.reset()
        compiled = backend.compile(pool, strict=True)
        for batch, more in ((2, 0), (3, 4), (5, 2)):
            shape = [batch, 5 + more, *(extent + more for extent in size)]
            fixed = [2, 5, *size]
            x = image(tuple(shape[k] if k in dynamic else fixed[k] for k in range(4)), layout, "ties", more)
            for dim in dynamic:
                torch._dynamo.mark_dynamic(x, dim)
            assert_as_eager(pool, compiled, x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["2/2 odd", "3/2 odd", "adaptive uneven", "large"])
def test_places_that_only_the_gradient_needs_are_saved_in_few_bits(name: str, layout: str):
    """Saved in 64 bits they took up to 4 times the bytes of the pooled image, and most of the kernel's time."""
    pool, size = (max_pool(3, 2), (182, 183)) if name == "large" else POOLS[name]
    torch._dynamo.reset()
    pipeline.records.clear()
    compiled = backend.compile(lambda x: pool(x)[0], strict=True, dynamic=False)
    for unusual in UNUSUAL:
        x = image((2, 5, *size), layout, unusual)
        ours, theirs = compiled(x), pool(x)[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        cotangent = torch.arange(1.0, theirs.numel() + 1).view(theirs.shape) % 64
        found, gradient = (torch.autograd.grad(y, x, cotangent)[0] for y in (ours, theirs))
        assert torch.equal(found, gradient)
    forward = next(record for record in pipeline.records if record.kind == "forward")
    dtypes = {buffer.dtype for buffer in forward.program.buffers if buffer.kind == "output"}
    assert dtypes == {torch.float32, torch.int32 if name == "large" else torch.int16}


AVERAGES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int]]] = {
    "2/2": (lambda x: F.avg_pool2d(x, 2), (8, 6)),
    "2/2 odd": (lambda x: F.avg_pool2d(x, 2), (7, 13)),
    "2/2 ceil": (lambda x: F.avg_pool2d(x, 2, ceil_mode=True), (7, 8)),
    "3/1": (lambda x: F.avg_pool2d(x, 3, 1, 1), (7, 8)),
    "3/2 of what is there": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (8, 12)),
    "3/3 divided by 7": (lambda x: F.avg_pool2d(x, 3, divisor_override=7), (9, 6)),
    "5/5": (lambda x: F.avg_pool2d(x, 5), (10, 15)),
    "2/4 apart": (lambda x: F.avg_pool2d(x, 2, 4), (8, 12)),
    "adaptive even": (lambda x: F.adaptive_avg_pool2d(x, (4, 3)), (8, 9)),
    "adaptive uneven": (lambda x: F.adaptive_avg_pool2d(x, 5), (7, 13)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", AVERAGES)
def test_averages_and_their_gradients(name: str, layout: str):
    pool, size = AVERAGES[name]
    compiled = backend.compile(pool, strict=True, dynamic=False)
    generator = torch.Generator().manual_seed(1)
    for channels in (3, NATIVE_LANES + 3):
        x = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
        x = x.to(memory_format=LAYOUTS[layout]).requires_grad_()
        found, wanted = compiled(x), pool(x)
        cotangent = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
        gradients = [torch.autograd.grad(y, x, cotangent)[0] for y in (found, wanted)]
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
        assert found.stride() == wanted.stride() and gradients[0].stride() == gradients[1].stride()
