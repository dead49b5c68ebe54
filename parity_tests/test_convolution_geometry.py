"""Convolutions at sizes, strides and paddings that Hypothesis draws, against the C++ operations: the definitions,
and compiled, forward and backward.

Where C++ refuses the numbers, so does pynn, in the same words.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import pynn
from compiler_bridge.contract import IndirectForm, packed_form
from compiler_bridge.interpret import interpret
from compiler_bridge.ir import Contract, Extern, Graph
from compiler_bridge.lower import lower_graph
from compiler_bridge.pipeline import compile_graph, inline_with_checks, legalize
from compiler_bridge.verify import verify

# as close as two orders of the same float64 additions of at most some hundred numbers below 1 come
BOUNDS = {"rtol": 1e-12, "atol": 1e-12}
PROFILE = settings(max_examples=200, deadline=None, derandomize=True)


def values(*shape: int) -> Tensor:
    """A few irregular numbers below 1, the same for the same shape."""
    return torch.linspace(0.5, 900.0, torch.Size(shape).numel(), dtype=torch.float64).sin().view(shape)


@st.composite
def numbers(draw: Callable, dims: int, low: int, high: int) -> Any:
    """One number for all dimensions or one for each."""
    number = st.integers(low, high)
    return draw(st.one_of(number, st.lists(number, min_size=dims, max_size=dims)))


@st.composite
def calls(
    draw: Callable, transposed: bool, batches: tuple = ((2,), (), (1,))
) -> tuple[str, list[Tensor | None], dict[str, Any]]:
    """(function, input, weight and bias, keyword arguments)"""
    dims = draw(st.sampled_from([1, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inside, outside = (groups * draw(st.integers(1, 2)) for _ in range(2))
    sizes = draw(st.lists(st.integers(1, 7), min_size=dims, max_size=dims))
    kernel = draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))
    x = values(*draw(st.sampled_from(batches)), inside, *sizes)
    if x.dim() == 4 and dims == 2 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    features = (inside, outside // groups) if transposed else (outside, inside // groups)
    weight = values(*features, *kernel)
    bias = values(outside) if draw(st.booleans()) else None
    kwargs = {"stride": draw(numbers(dims, 1, 3)), "dilation": draw(numbers(dims, 1, 3)), "groups": groups}
    kwargs["padding"] = draw(numbers(dims, 0, 3))
    if transposed:
        kwargs["output_padding"] = draw(numbers(dims, 0, 2))
    elif draw(st.integers(0, 3)) == 0:
        kwargs["padding"] = draw(st.sampled_from(["same", "valid"]))
    return f"conv{'_transpose' * transposed}{dims}d", [x, weight, bias], kwargs


@st.composite
def calls_of_few_channels(draw: Callable) -> tuple[str, list[Tensor | None], dict[str, Any]]:
    """The gradient to the image, or the image a transposed convolution makes, has a product with its taps as columns
    (lower/narrow_gradients.py)."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    channels = draw(st.integers(1, 3))
    kernel = [
        *draw(st.lists(st.integers(1, 3), min_size=dims - 1, max_size=dims - 1)),
        draw(st.integers(2, 7)),
    ]
    stride = draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))
    out = channels * kernel[-1] * math.prod(stride[:-1]) + draw(st.integers(0, 3))
    transposed = draw(st.booleans())
    sizes = draw(st.lists(st.integers(1, 7), min_size=dims, max_size=dims))
    x = values(2, out if transposed else channels, *sizes)
    if dims == 2 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    kwargs: dict[str, Any] = {"stride": stride, "padding": draw(numbers(dims, 0, 4))}
    kwargs["dilation"] = [*draw(st.lists(st.integers(1, 2), min_size=dims - 1, max_size=dims - 1)), 1]
    if transposed:
        kwargs["output_padding"] = draw(numbers(dims, 0, 2))
    return f"conv{'_transpose' * transposed}{dims}d", [x, values(out, channels, *kernel), None], kwargs


ANY_CALL = st.booleans().flatmap(lambda transposed: calls(transposed, ((2,), (), (1,), (0,))))


def attempt(function: Callable, *args: Any, **kwargs: Any) -> Tensor | Exception:
    try:
        return function(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        return error


def assert_same(name: str, tensors: list[Tensor | None], kwargs: dict[str, Any]) -> None:
    """Both refuse in the same words, or agree on values, strides and every gradient."""
    leaves = [None if t is None else t.requires_grad_() for t in tensors]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # padding="same" of an even kernel
        theirs = attempt(getattr(F, name), *leaves, **kwargs)
        ours = attempt(getattr(pynn.functional, name), *leaves, **kwargs)
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        return
    torch.testing.assert_close(ours, theirs, **BOUNDS)
    assert strides(ours) == strides(theirs)
    given = [leaf for leaf in leaves if leaf is not None]
    cotangent = values(*theirs.shape)
    wanted, found = (torch.autograd.grad(out, given, cotangent) for out in (theirs, ours))
    for each, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, other, **BOUNDS)


def strides(x: Tensor) -> list[int]:
    """Those that matter."""
    return [step for size, step in zip(x.shape, x.stride()) if size > 1] if x.numel() else []


@pytest.mark.slow
@PROFILE
@given(calls(transposed=False))
def test_convolutions(call: tuple) -> None:
    assert_same(*call)


@pytest.mark.slow
@PROFILE
@given(calls(transposed=True))
def test_transposed_convolutions(call: tuple) -> None:
    assert_same(*call)


@pytest.mark.slow
@PROFILE
@given(st.data())
def test_numbers_that_fit_nothing(data: st.DataObject) -> None:
    name, (x, weight, bias), kwargs = data.draw(calls(transposed=data.draw(st.booleans())))
    dims = int(name[-2])
    wrong = data.draw(st.sampled_from([*kwargs, "input", "weight", "bias"]))
    if wrong in ("input", "weight"):
        least = dims + 1 if wrong == "input" else dims + 2
        shape = data.draw(st.lists(st.integers(1, 4), min_size=least, max_size=dims + 2))
        x, weight = (values(*shape), weight) if wrong == "input" else (x, values(*shape))
    elif wrong == "bias":
        bias = values(data.draw(st.integers(1, 8)))
    elif wrong == "groups":
        kwargs["groups"] = data.draw(st.integers(-1, 4))
        if kwargs["padding"] == "same":
            kwargs["stride"] = 1  # of two mistakes C++ names another one first
    else:
        kwargs[wrong] = data.draw(numbers(data.draw(st.integers(1, 4)), -2, 3))
    assert_same(name, [x, weight, bias], kwargs)


def traced(call: tuple) -> tuple[Any, list[Tensor], list[Tensor]] | None:
    """Forward and backward as one FX graph, its inputs and what C++ makes of them; None where C++ refuses."""
    name, tensors, kwargs = call
    given = [t for t in tensors if t is not None]

    def function(cotangent: Tensor, *leaves: Tensor) -> list[Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]  # pyright: ignore
        out = getattr(F, name)(*leaves, **kwargs)
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # padding="same" of an even kernel
        out = attempt(getattr(F, name), *given, **kwargs)
        if isinstance(out, Exception):
            return None
        given.insert(0, values(*out.shape))  # an input: an ulp of linspace at 900 would be 1e-13 in every sum
        wanted = attempt(function, *given)
        if isinstance(wanted, Exception):
            return None
        # torch's fake tensors refuse some empty results that its C++ makes
        module = attempt(make_fx(function, tracing_mode="fake"), *given)
        if isinstance(module, Exception):
            assert not wanted[0].numel(), module  # pyright: ignore
            return None
        return module, given, wanted  # pyright: ignore


def assert_computes(results: Any, wanted: list[Tensor]) -> None:
    for ours, theirs in zip(results, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **BOUNDS)
        assert strides(ours) == strides(theirs)


def externs(graph: Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if isinstance(node, Extern)]


def assert_loop_ir_computes(call: tuple) -> None:
    """As lowered and as fused, with nothing left to C++."""
    case = traced(call)
    if case is None:
        return
    module, inputs, wanted = case
    graph = lower_graph(module)
    verify(graph)
    assert not externs(graph)
    assert_computes(interpret(graph, inputs), wanted)
    fused = legalize(inline_with_checks(graph))
    verify(fused, "fuse")
    assert_computes(interpret(fused, inputs), wanted)


@pytest.mark.slow
@PROFILE
@given(ANY_CALL)
def test_loop_ir(call: tuple) -> None:
    assert_loop_ir_computes(call)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(calls_of_few_channels())
def test_loop_ir_of_few_channels(call: tuple) -> None:
    assert_loop_ir_computes(call)


@pytest.mark.parametrize(
    "image, taps, stride, padding", (((2, 3, 30, 30), 7, 2, 3), ((2, 3, 9, 10), 4, 2, 1))
)
def test_columns_of_an_images_gradient_are_taps_and_channels(image, taps, stride, padding) -> None:
    """Three channels alone filled 3 lanes of 32: 0.4x oneDNN, where taps and channels reach 2x."""
    x, weight = values(*image), values(64, image[1], taps, taps)
    case = traced(("conv2d", [x, weight], {"stride": stride, "padding": padding}))
    assert case is not None
    module, inputs, wanted = case
    fused = legalize(inline_with_checks(lower_graph(module)))
    forms = [packed_form(node) for node in fused.nodes if isinstance(node, Contract)]
    assert taps * image[1] in [form.n.extent for form in forms if isinstance(form, IndirectForm)]
    assert_computes(compile_graph(module, inputs)(*inputs), wanted)


def test_rows_of_a_strided_convolution_make_matrices_as_high_as_they_can() -> None:
    """Each matrix reads the weight anew: 112 matrices of 7 rows took 1.5 times as long as 7 of 112."""
    x, weight = values(16, 32, 14, 14).contiguous(memory_format=torch.channels_last), values(64, 32, 1, 1)
    case = traced(("conv2d", [x, weight], {"stride": 2}))
    assert case is not None
    module, inputs, wanted = case
    forms = [packed_form(node) for node in lower_graph(module).nodes if isinstance(node, Contract)]
    assert (16 * 7, 7) in [(form.m.extent, form.batch[1].extent) for form in forms if form is not None]
    assert_computes(compile_graph(module, inputs)(*inputs), wanted)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(ANY_CALL)
def test_loop_ir_of_a_few(call: tuple) -> None:
    assert_loop_ir_computes(call)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(ANY_CALL)
def test_kernels(call: tuple) -> None:
    case = traced(call)
    if case is not None:
        module, inputs, wanted = case
        assert_computes(compile_graph(module, inputs)(*inputs), wanted)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(calls_of_few_channels())
def test_kernels_of_few_channels(call: tuple) -> None:
    case = traced(call)
    if case is not None:
        module, inputs, wanted = case
        assert_computes(compile_graph(module, inputs)(*inputs), wanted)
