"""Pooling at sizes, windows and paddings that Hypothesis draws, against the C++ operations.

Where C++ refuses the numbers, so does pynn, in the same words.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pynn

SIZE = st.integers(1, 9)
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
PROFILE = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def inputs(draw: Callable, dims: int) -> Tensor:
    """Batched or not, contiguous or channels-last; few different values, so that windows hold equal ones."""
    lead = draw(st.sampled_from([(2, 3), (3,), (1, 1), (0, 2)]))
    shape = [*lead, *draw(st.lists(SIZE, min_size=dims, max_size=dims))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    x = torch.randint(-4, 5, shape, generator=generator).double()
    if len(lead) == 2 and dims in LAYOUTS and draw(st.booleans()):
        x = x.contiguous(memory_format=LAYOUTS[dims])
    return x


@st.composite
def numbers(draw: Callable, dims: int, low: int, high: int) -> Any:
    """One number for all dimensions or one for each."""
    number = st.integers(low, high)
    return draw(st.one_of(number, st.lists(number, min_size=dims, max_size=dims)))


@st.composite
def windows(draw: Callable, dims: int, dilated: bool) -> dict[str, Any]:
    """Arguments that mostly make a window; some are refused: padding beyond half of it, nothing that fits."""
    drawn = {
        "kernel_size": draw(numbers(dims, 1, 4)),
        "stride": draw(st.one_of(st.none(), numbers(dims, 1, 4))),
        "padding": draw(st.one_of(st.just(0), numbers(dims, 0, 2))),
        "ceil_mode": draw(st.booleans()),
    }
    return drawn | {"dilation": draw(numbers(dims, 1, 3))} if dilated else drawn


def attempt(function: Callable, *args: Any, **kwargs: Any) -> tuple | Exception:
    try:
        found = function(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return error
    return found if isinstance(found, tuple) else (found,)


def strides(x: Tensor) -> list[int]:
    """Those that matter."""
    return [step for size, step in zip(x.shape, x.stride()) if size > 1] if x.numel() else []


def assert_same(name: str, x: Tensor, *args: Any, exactly: bool, **kwargs: Any) -> None:
    """Both refuse in the same words, or agree on values, strides, indices and the gradient."""
    bounds = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-11, "atol": 1e-11}
    leaf = x.requires_grad_(x.is_floating_point())
    theirs = attempt(getattr(F, name), leaf, *args, **kwargs)
    ours = attempt(getattr(pynn.functional, name), leaf, *args, **kwargs)
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        return
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, equal_nan=True, **bounds)
        assert strides(found) == strides(wanted)
    if theirs[0].requires_grad and theirs[0].numel():
        cotangent = torch.arange(1.0, theirs[0].numel() + 1, dtype=x.dtype).view(theirs[0].shape)
        wanted, found = (torch.autograd.grad(out[0], leaf, cotangent)[0] for out in (theirs, ours))
        torch.testing.assert_close(found, wanted, equal_nan=True, **bounds)
        assert strides(found) == strides(wanted)


def misses_the_input(sizes: torch.Size, kwargs: dict[str, Any]) -> bool:
    """Whether a first window of widely spread elements has none inside the input.

    C++ gives it an index outside of the input, and may crash when the gradient goes there.
    """
    names = ("kernel_size", "padding", "dilation")
    each = zip(sizes, *(k if isinstance(k := kwargs[name], list) else [k] * len(sizes) for name in names))
    return any(
        all(not 0 <= k * spread - pad < size for k in range(width)) for size, width, pad, spread in each
    )


@pytest.mark.slow
@PROFILE
@given(st.data())
def test_the_largest_of_windows(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 3]))
    x, kwargs = data.draw(inputs(dims)), data.draw(windows(dims, dilated=True))
    assume(not misses_the_input(x.shape[-dims:], kwargs))
    unusual = data.draw(st.sampled_from([None, torch.nan, -torch.inf, torch.inf]))
    if unusual is not None:
        x = torch.where(x < data.draw(st.integers(-4, 5)), unusual, x)
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.int64, torch.uint8]))
    if unusual is None or dtype.is_floating_point:
        x = (x + 4 if dtype == torch.uint8 else x).to(dtype)
    assert_same(f"max_pool{dims}d", x, **kwargs, return_indices=data.draw(st.booleans()), exactly=True)


@pytest.mark.slow
@PROFILE
@given(st.data())
def test_the_mean_of_windows(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 3]))
    x, kwargs = data.draw(inputs(dims)), data.draw(windows(dims, dilated=False))
    kwargs["count_include_pad"] = data.draw(st.booleans())
    if dims > 1:
        kwargs["divisor_override"] = data.draw(st.sampled_from([None, None, 1, 3, 7, -2]))
    assert_same(f"avg_pool{dims}d", x, **kwargs, exactly=False)


@pytest.mark.slow
@PROFILE
@given(st.data())
def test_the_norm_of_windows(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 3]))
    kwargs = data.draw(windows(dims, dilated=False))
    del kwargs["padding"]
    power = data.draw(st.sampled_from([1, 2, 3, 2.0, torch.inf, -torch.inf]))
    assert_same(f"lp_pool{dims}d", data.draw(inputs(dims)), power, **kwargs, exactly=False)


@pytest.mark.slow
@PROFILE
@given(st.data())
def test_adaptive_windows(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 3]))
    count = st.integers(0, 11) if dims == 1 else st.one_of(st.none(), st.integers(0, 11))
    counts = data.draw(st.one_of(st.integers(0, 11), st.lists(count, min_size=dims, max_size=dims)))
    x = data.draw(inputs(dims))
    if counts == 1 or counts == [1] * dims:
        x = (
            x.contiguous()
        )  # one mean for all: C++'s gradient is contiguous, pynn's channels-last as the input
    assert_same(f"adaptive_avg_pool{dims}d", x, counts, exactly=False)
    x = torch.where(x == 4, torch.nan, x.detach()) if data.draw(st.booleans()) else x
    assert_same(f"adaptive_max_pool{dims}d", x, counts, return_indices=True, exactly=True)


@pytest.mark.slow
@PROFILE
@given(st.data())
def test_random_windows(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([2, 3]))
    x = data.draw(inputs(dims))
    if data.draw(st.booleans()):
        x = torch.where(x == 4, torch.nan, x)
    batch = x.size(0) if x.dim() == dims + 2 else 1
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    samples = torch.rand(batch, x.size(-dims - 1), dims, dtype=x.dtype, generator=generator)
    sizes = data.draw(numbers(dims, 1, 4)), data.draw(numbers(dims, 1, 6))
    kwargs = {"return_indices": True, "_random_samples": samples}
    assert_same(f"fractional_max_pool{dims}d", x, *sizes, **kwargs, exactly=True)


@pytest.mark.slow
@PROFILE
@given(st.data())
def test_the_way_back(data: st.DataObject) -> None:
    """Of windows that do not overlap: where they do, several elements may go to one place."""
    dims = data.draw(st.sampled_from([1, 2, 3]))
    x, width = data.draw(inputs(dims)), data.draw(st.integers(1, 3))
    step, pad = width + data.draw(st.integers(0, 2)), data.draw(st.integers(0, width // 2))
    pooled = attempt(getattr(F, f"max_pool{dims}d"), x, width, step, pad, return_indices=True)
    if isinstance(pooled, Exception):
        return
    size = data.draw(
        st.one_of(st.none(), st.just(list(x.shape)), st.lists(SIZE, min_size=dims, max_size=dims))
    )
    assert_same(f"max_unpool{dims}d", *pooled, width, step, pad, size, exactly=True)


@pytest.mark.slow
@PROFILE
@given(st.data())
def test_numbers_that_make_no_window(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 3]))
    kind = data.draw(st.sampled_from(["max", "avg"]))
    x = data.draw(inputs(data.draw(st.integers(dims - 1, dims + 1))) if dims > 1 else inputs(dims))
    names = ["kernel_size", "stride", "padding"] + ["dilation"] * (kind == "max")
    kwargs = {name: data.draw(numbers(dims, -1, 3)) for name in names}
    wrong = data.draw(st.sampled_from([None, None, *names]))
    if wrong is not None:
        kwargs[wrong] = data.draw(st.lists(st.integers(1, 3), max_size=4))
    if kind == "max":
        kwargs["return_indices"] = data.draw(st.booleans())
        assume(wrong is not None or x.dim() <= dims or not misses_the_input(x.shape[-dims:], kwargs))
    assert_same(f"{kind}_pool{dims}d", x, **kwargs, exactly=False)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((3, 3), {"kernel_size": 5000, "ceil_mode": True}),
        ((3, 2), {"kernel_size": 5000, "padding": 1, "ceil_mode": True}),
        ((5, 2), {"kernel_size": (4, 4), "stride": 1, "padding": (0, 1)}),
        ((1, 7), {"kernel_size": (2, 9), "stride": (1, 2), "padding": 1, "ceil_mode": True}),
        ((3, 4), {"kernel_size": 6, "stride": 9, "padding": 2, "ceil_mode": True}),
    ],
)
def test_windows_longer_than_the_input(size: tuple, window: dict, kind: str, compiled: bool) -> None:
    """transformers' EfficientNet pools 3 x 3 pixels by windows of 1280 x 1280: all of them were gone through."""
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    name = f"{kind}_pool2d"
    kwargs = window | ({"return_indices": True} if kind == "max" else {"count_include_pad": False})
    if not compiled:
        assert_same(name, x.detach(), **kwargs, exactly=False)
        return
    torch._dynamo.reset()
    program = torch.compile(partial(getattr(F, name), **kwargs), backend="pynn", fullgraph=True)
    theirs, ours = (out if kind == "max" else (out,) for out in (getattr(F, name)(x, **kwargs), program(x)))
    torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn_like(theirs[0])
    torch.testing.assert_close(*(torch.autograd.grad(out[0], x, cotangent) for out in (ours, theirs)))
