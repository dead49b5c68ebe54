"""Interpolation at sizes and scales that Hypothesis draws, against the C++ operations."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pynn
from parity_tests.externs import computing_externs, record_graphs

DIMS = {"nearest": (1, 2, 3), "nearest-exact": (1, 2, 3), "area": (1, 2, 3), "linear": (1,), "bilinear": (2,),
        "trilinear": (3,), "bicubic": (2,)}  # fmt: skip
SIZE = st.integers(1, 9)
SCALE = st.one_of(st.floats(0.3, 4.0), st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 1 / 3]))


@st.composite
def calls(draw, modes=tuple(DIMS)):
    """(sizes of the input, keyword arguments)"""
    mode = draw(st.sampled_from(modes))
    dims = draw(st.sampled_from(DIMS.get(mode, (2,))))
    sizes = draw(st.lists(SIZE, min_size=dims, max_size=dims))
    kwargs: dict = {"mode": mode}
    if draw(st.booleans()):
        kwargs["size"] = draw(st.lists(SIZE, min_size=dims, max_size=dims))
    else:
        scales = draw(st.lists(SCALE, min_size=dims, max_size=dims))
        kwargs["scale_factor"] = [max(scale, 1.0 / size) for scale, size in zip(scales, sizes)]
        kwargs["recompute_scale_factor"] = draw(st.sampled_from([None, True, False]))
    if mode in ("linear", "bilinear", "trilinear", "bicubic"):
        kwargs["align_corners"] = draw(st.booleans())
    if mode in ("bilinear", "bicubic"):
        kwargs["antialias"] = draw(st.booleans())
        if kwargs["antialias"] and sizes[-1] == 1:
            sizes[-1] = 2  # images of width 1: C++ gives every row the first one's value
    return sizes, kwargs


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(calls())
def test_values_and_gradients_are_those_of_cpp(call):
    sizes, kwargs = call
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        x = torch.linspace(-3, 3, 2 * torch.Size(sizes).numel(), dtype=dtype).sin().view(1, 2, *sizes)
        leaf = x.requires_grad_()
        theirs, ours = F.interpolate(leaf, **kwargs), pynn.functional.interpolate(leaf, **kwargs)
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
        cotangent = torch.linspace(1, 2, theirs.numel(), dtype=dtype).view(theirs.shape)
        wanted, found = (torch.autograd.grad(out, leaf, cotangent)[0] for out in (theirs, ours))
        torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(calls(modes=("nearest", "nearest-exact", "bilinear", "bicubic")))
def test_bytes_are_those_of_cpp(call):
    sizes, kwargs = call
    dims = len(sizes)
    if (
        dims == 2
        and min(
            *sizes,
            *kwargs.get("size", [2]),
            *(int(n * s) for n, s in zip(sizes, kwargs.get("scale_factor", ()))),
        )
        < 2
    ):
        return  # C++ fails, or mistakes the layout, where an image is one element wide
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randint(256, (1, 3 + 2 * (sizes[0] % 2), *sizes), dtype=torch.uint8, generator=generator)
    if dims != 2 and not kwargs["mode"].startswith("nearest"):
        return
    theirs, ours = F.interpolate(x, **kwargs), pynn.functional.interpolate(x, **kwargs)
    assert torch.equal(ours, theirs), (ours.int() - theirs.int()).abs().max()


BYTES = [  # channels, size, layout
    (3, (20, 45), torch.contiguous_format),
    (3, (20, 45), torch.channels_last),
    (3, (37, 60), torch.channels_last),  # C++ passes over a dimension whose size stays
    (5, (37, 60), torch.contiguous_format),
    (4, (3, 5), torch.contiguous_format),
    (1, (37, 41), torch.contiguous_format),
]


@pytest.mark.slow
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels, size, layout", BYTES)
def test_compiled_bytes_are_those_of_cpp(channels, size, layout, mode, antialias):
    torch._dynamo.reset()
    x = torch.randint(
        256, (2, channels, 37, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    x = x.contiguous(memory_format=layout)

    def resize(x):
        return F.interpolate(x, size, mode=mode, antialias=antialias)

    with record_graphs() as graphs:
        found = pynn.compile(resize, strict=True, dynamic=False)(x)
    assert not computing_externs(graphs)
    expected = resize(x)
    assert torch.equal(found, expected) and found.stride() == expected.stride()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_taps_of_weight_zero_count(layout: torch.memory_format):
    """0 times infinity is NaN: compiled gradients left such taps out. Here every second output has one."""
    sizes = [5, 5], [1, 2, 3, 3], True, None, None
    function = torch.ops.aten.upsample_bilinear2d_backward
    grad = torch.randn(1, 2, 5, 5)
    grad[0, 0, 2, 2], grad[0, 1, 1, 2] = float("inf"), float("nan")
    grad = grad.contiguous(memory_format=layout)
    compiled = torch.compile(lambda grad: function(grad, *sizes), backend="pynn", options={"strict": True})
    expected = function(grad, *sizes).isnan()
    assert expected.sum() > 1
    assert torch.equal(compiled(grad).isnan(), expected)
