"""Tensors of oneDNN's own layout: torch's functions take them, and so do pynn's (test_mkldnn.py of torch)."""

import pytest
import torch

import pynn

C = torch.nn.functional
STATISTICS = (torch.zeros(3), torch.ones(3), torch.ones(3), torch.ones(3))

CALLS = {
    "relu": (),
    "relu_": (),
    "gelu": (),
    "sigmoid": (),
    "tanh": (),
    "softmax": (1,),
    "prelu": (torch.full((1,), 0.3),),
    "linear": (torch.randn(5, 8), torch.randn(5)),
    "conv2d": (torch.randn(4, 3, 3, 3), torch.randn(4)),
    "max_pool2d": (2,),
    "avg_pool2d": (2, None, 1),
    "adaptive_avg_pool2d": (2,),
    "batch_norm": STATISTICS,
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_take_tensors_of_onednns_layout(name):
    x = torch.randn(2, 3, 8, 8)
    expected, found = (
        getattr(functions, name)(x.to_mkldnn(), *CALLS[name]) for functions in (C, pynn.functional)
    )
    assert found.is_mkldnn and found.dtype == expected.dtype
    torch.testing.assert_close(found.to_dense(), expected.to_dense())


def test_gradients_pass_through_the_layout():
    """Those of float64 copies: oneDNN has no float64, and its float32 rounds otherwise."""
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    grads = []
    for functions, is_blocked in ((C, False), (C, True), (pynn.functional, True)):
        dtype = torch.float32 if is_blocked else torch.float64
        inputs = [t.to(dtype).requires_grad_() for t in (x, weight)]
        out = functions.conv2d(inputs[0].to_mkldnn() if is_blocked else inputs[0], inputs[1])
        out = out.to_dense() if is_blocked else out
        grads.append(torch.autograd.grad(out.square().sum(), inputs))
    for exact, cpp, own in zip(*grads):
        assert (own - exact).abs().max() <= 2 * (cpp - exact).abs().max()


@pytest.mark.parametrize("in_place", [False, True])
def test_in_place_results_are_written_back(in_place):
    x = torch.randn(2, 3).to_mkldnn()
    before = x.to_dense()
    out = pynn.functional.relu(x, inplace=in_place)
    assert (out is x) == in_place
    torch.testing.assert_close(x.to_dense(), before.clamp(min=0) if in_place else before)


def test_narrow_input_among_float32_parameters():
    """test_conv_deconv_2d_lower_precision of test_mkldnn.py."""
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    found = pynn.functional.conv2d(x.to_mkldnn(torch.bfloat16), weight)
    assert found.is_mkldnn and found.dtype == torch.bfloat16
    expected = C.conv2d(x.bfloat16().float(), weight)
    torch.testing.assert_close(found.to_dense(torch.float32), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["avg_pool3d", "max_pool3d"])
def test_pools_of_narrow_volumes(name):
    """test_avg_pool3d_bf16 of test_mkldnn.py: torch has it of oneDNN's layout only."""
    x = torch.randn(2, 3, 4, 4, 4).to_mkldnn(torch.bfloat16)
    cpp, own = (getattr(functions, name)(x, 2) for functions in (C, pynn.functional))
    assert own.is_mkldnn and own.dtype == cpp.dtype
    torch.testing.assert_close(own.to_dense(), cpp.to_dense(), rtol=2**-8, atol=0)
