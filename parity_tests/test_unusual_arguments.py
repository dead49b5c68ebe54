"""Calls that a random search over dtypes, sizes, strides and values has found to differ from torch: one row each."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F

import pynn.functional as P
from parity_tests.test_refusals import outcome
from parity_tests.torch_version import IS_OLDER
from pynn.torch_version import SINCE_2_14

ones, tensor = torch.ones, torch.tensor
HALF, HALVES = torch.float16, tensor([0.25, 0.5])
NAN, INF = torch.nan, torch.inf
NUMBERS = tensor([-3, -1, 0, 1, 2])


def running(mean: torch.dtype, variance: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(3, dtype=mean), ones(3, dtype=variance)


CALLS: dict[str, Callable[[Any], Any]] = {
    # targets outside [0, 1] were taken
    **{f"binary_cross_entropy of {t}": lambda f, t=t: f.binary_cross_entropy(HALVES, tensor([0.5, t]))
       for t in (NAN, INF, -0.1, 1.5)},
    # another dtype of weights was multiplied, one of the bias raised the result's
    **{f"conv_tbc of {x}, {w}, {b}": lambda f, x=x, w=w, b=b: f.conv_tbc(
        ones(5, 2, 3).to(x), ones(3, 3, 4).to(w), ones(4).to(b))
       for x, w, b in ((torch.float32, torch.float32, torch.float64), (torch.float32, torch.float64, torch.float32),
                       (HALF, HALF, torch.float32), (torch.int64,) * 3, (torch.bool,) * 3)},
    # a bias of another dtype was refused
    **{f"conv_transpose{dims}d of {x} with a bias of {b}": lambda f, dims=dims, x=x, b=b: getattr(
        f, f"conv_transpose{dims}d")(
            ones([2, 3, *[3] * dims]).to(x), ones([3, 4, *[1] * dims]).to(x), NUMBERS[1:].to(b))
       for dims in (1, 2, 3) for x in (torch.float32, torch.float64, HALF, torch.bfloat16, torch.int64, torch.complex64)
       for b in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex128)},
    # integers became floating-point numbers, bools were compared
    **{f"threshold of {dtype}": lambda f, dtype=dtype: f.threshold(NUMBERS.to(dtype), 0.5, 7.9)
       for dtype in (torch.int8, torch.int64, torch.bool, torch.complex64, HALF)},
    **{f"threshold_ of {dtype}": lambda f, dtype=dtype: f.threshold_(NUMBERS.to(dtype), 0.5, 7.9)
       for dtype in (torch.int8, torch.int64, torch.bool, torch.complex64, HALF)},
    # the kernel for dimensions other than the last has another name
    **{f"{name} of integers along {dim}": lambda f, name=name, dim=dim: getattr(f, name)(ones(2, 3, 2).long(), dim)
       for name in ("softmax", "log_softmax", "softmin") for dim in (0, 1, 2, -1, -2)},
    **{f"cosine_similarity, eps {eps}": lambda f, eps=eps: f.cosine_similarity(ones(2, 3), ones(2, 3), eps=eps)
       for eps in (-1.0, -1e-8, NAN, 0)},
    "rrelu of 16 bits in training": lambda f: f.rrelu(ones(3).half(), training=True),
    # the scale was complained of
    **{f"{name} of {n} dimensions": lambda f, name=name, n=n: getattr(f, name)(ones([2] * n), scale_factor=2)
       for name in ("upsample_nearest", "upsample_bilinear", "interpolate") for n in range(3)},
    # running statistics of another dtype were refused
    **{f"instance_norm with statistics of {m} and {v}": lambda f, m=m, v=v: f.instance_norm(
        torch.arange(24.0).view(2, 3, 4), *running(m, v), use_input_stats=False)
       for m, v in ((torch.float64, torch.float64), (HALF, torch.float32), (torch.float32, HALF))},
    # means over everything take any other dimensions
    **{f"adaptive_avg_pool{dims}d of {shape} to 1": lambda f, dims=dims, shape=shape: getattr(
        f, f"adaptive_avg_pool{dims}d")(torch.arange(96.0).view(shape), 1)
       for dims in (1, 2, 3)
       for shape in ((96,), (3, 32), (2, 3, 16), (2, 3, 4, 4), (1, 2, 3, 4, 4), (1, 1, 2, 3, 4, 4))},
    **{f"avg_pool{dims}d of {dtype}": lambda f, dims=dims, dtype=dtype: getattr(f, f"avg_pool{dims}d")(
        ones([2, 3, *[4] * dims], dtype=dtype), 2) for dims in (1, 2, 3) for dtype in (torch.bool, torch.int32)},
    **{f"prelu of {dtype}": lambda f, dtype=dtype: f.prelu(NUMBERS.to(dtype), ones(1, dtype=dtype))
       for dtype in (torch.int64, torch.uint8, torch.bool)},
    **{f"rms_norm of {shape} over {normed}": lambda f, shape=shape, normed=normed: f.rms_norm(ones(shape), normed)
       for shape in ((), (3,), (2, 3)) for normed in ((), (3,), (2, 3), (1, 2, 3))},
    "strides of rms_norm": lambda f: f.rms_norm(torch.randn(4, 2, 3).permute(2, 0, 1), (4, 2)).stride(),
    "huber_loss, delta NaN": lambda f: f.huber_loss(HALVES, HALVES, delta=NAN),
    **{f"{name} of {x} and {t}": lambda f, name=name, x=x, t=t: getattr(f, name)(
        ones(x), torch.zeros(t, dtype=torch.int64), reduction="none")
       for name in ("multi_margin_loss", "multilabel_margin_loss") for x in ((), (1,), (5,), (2, 5))
       for t in ((), (1,), (1, 1), (2,), (5,), (2, 5))},
    **{f"conv{dims}d by a weight of {n} dimensions": lambda f, dims=dims, n=n: getattr(f, f"conv{dims}d")(
        ones([1, 1, *[4] * dims]), ones([1] * n), stride=[1] * dims) for dims in (1, 2, 3) for n in range(4)},
    **{f"fractional_max_pool{dims}d of {n} dimensions": lambda f, dims=dims, n=n: getattr(
        f, f"fractional_max_pool{dims}d")(ones([5] * n), 2, 2) for dims in (2, 3) for n in range(8)},
    "fractional_max_pool2d of complex numbers": lambda f: f.fractional_max_pool2d(
        ones(2, 5, 5).cfloat(), 2, 2, _random_samples=ones(1, 2, 2).cfloat()),
    **{f"linear by {weight} and {bias}": lambda f, weight=weight, bias=bias: f.linear(ones(3, 4), ones(weight), bias)
       for weight in ((4,), (6, 4), (1, 6, 4), ()) for bias in (None, ones(6), ones(4))},
    **{f"layer_norm of {x} with {w} and {b}": lambda f, x=x, w=w, b=b: f.layer_norm(
        ones(3, 4).to(x), (4,), ones(4).to(w), ones(4).to(b))
       for x in (torch.float32, torch.int64, HALF)
       for w in (torch.float32, torch.float64) for b in (HALF, torch.float32)},
    "bilinear with a bias of another dtype": lambda f: f.bilinear(
        ones(2, 3), ones(2, 4), ones(5, 3, 4), ones(5).double()),
    **{f"embedding of {dtype}": lambda f, dtype=dtype: f.embedding(ones(2).to(dtype), ones(3, 2))
       for dtype in (torch.bool, torch.uint8, torch.bfloat16, torch.float64, torch.complex64)},
    **{f"embedding_bag of {dtype}": lambda f, dtype=dtype: f.embedding_bag(
        ones(4).to(dtype), ones(3, 2), tensor([0, 2]))
       for dtype in (torch.bool, torch.uint8, torch.bfloat16)},
    **{f"embedding_bag weighted by {dtype}": lambda f, dtype=dtype: f.embedding_bag(
        ones(1, 2).long(), ones(3, 2), per_sample_weights=ones(1, 2).to(dtype), mode="sum")
       for dtype in (torch.bool, torch.bfloat16, torch.float64)},
    **{f"attention of {q} and {mask}": lambda f, q=q, mask=mask: f.scaled_dot_product_attention(
        ones(2, 3, 4).to(q), ones(2, 5, 4), ones(2, 5, 4), mask if mask is None else ones(3, 5).to(mask))
       for q in (torch.float32, torch.uint8, HALF) for mask in (None, torch.int64, torch.uint8)},
    # numbers of numpy's, and tensors of one, raised the result to their dtype
    **{f"{name} by {number!r}": lambda f, name=name, args=args, number=number: getattr(f, name)(
        HALVES.half(), *args, number)
       for number in (tensor(0.5), numpy.float32(0.5), numpy.float64(0.5), tensor(1), numpy.int64(1), True)
       for name, args in (("softplus", ()), ("elu", ()), ("leaky_relu", ()), ("rrelu", (number,)), ("hardshrink", ()),
                          ("threshold", (0.3,)), ("pairwise_distance", (HALVES.half(), 2.0)))},
    **{f"dropout by {number!r}": lambda f, number=number: torch.cat([
        torch.manual_seed(0) and f.alpha_dropout(ones(2, 4), number, True), f.dropout2d(ones(1, 2, 4), number)[0]])
       for number in (tensor(0.5), numpy.float32(0.5), 0.5)},
    **{f"{name} along {dim!r}": lambda f, name=name, args=args, dim=dim: getattr(f, name)(ones(2, 3), *args, dim)
       for dim in (numpy.int64(1), numpy.int32(-1), tensor(0))
       for name, args in (("normalize", (2.0,)), ("cosine_similarity", (ones(2, 3),)), ("softmax", ()))},
    **{f"{name}, p {p}, of {shape}": lambda f, name=name, args=args, p=p, shape=shape: getattr(f, name)(
        ones(shape), *args, p) for p in (INF, -INF, -1.0, -0.5, 0.5) for shape in ((0,), (2, 0), (0, 2))
       for name, args in (("normalize", ()), ("pairwise_distance", (ones(1),)))},
    "gradient of a table without columns, scaled by frequency": lambda f: torch.autograd.grad(f.embedding(
        tensor([1, 1]), weight := ones(3, 0, requires_grad=True), scale_grad_by_freq=True).sum(), weight)[0],
    "batch_norm of an empty batch of 16 bits": lambda f: f.batch_norm(
        ones(0, 3, dtype=HALF), *running(torch.float32, torch.float32), ones(3), ones(3), True),
    "multi_margin_loss with weights of another dtype": lambda f: f.multi_margin_loss(
        ones(2, 3).double(), tensor([0, 1]), weight=ones(3)),
    # sizes that do not fit, where there is nothing to attend, or nobody to
    **{f"attention of {q}, {k}, {v}": lambda f, q=q, k=k, v=v: f.scaled_dot_product_attention(
        ones(q), ones(k), ones(v))
       for q, k, v in (((2, 0, 2), (3, 4, 7), (5, 4, 5)), ((2, 3, 2), (2, 4, 7), (2, 0, 5)),
                       ((3, 0), (0, 3), (0, 2)), ((1, 2, 0), (0, 1, 3, 0), (0, 1, 1, 3)),
                       ((2, 3, 0), (2, 4, 0), (2, 4, 5)), *(() if SINCE_2_14 else (((0, 3, 2), (2, 4, 2), (2, 4, 5)),)))
       if not IS_OLDER},  # torch 2.11 refuses most of them, 2.14 counts the dimensions of the last otherwise
    **{f"attention in groups of {heads} heads": lambda f, heads=heads: f.scaled_dot_product_attention(
        ones(2, heads, 3, 4), ones(2, 0, 3, 4), ones(2, 0, 3, 4), enable_gqa=True)
       for heads in (() if IS_OLDER else (0, 1, 2))},  # torch 2.11 divides by 0 there, which ends the process
    # masks larger than the scores were taken
    **{f"attention of {q} with a mask of {m}": lambda f, q=q, m=m: f.scaled_dot_product_attention(
        ones(q), ones(3, 4), ones(3, 2), ones(m))
       for q in ((1, 4), (2, 4)) for m in ((2, 1), (2, 3), (1, 3), (5, 2, 3), (1, 2, 3), (2, 2))},
    "grid_sample of too few dimensions": lambda f: f.grid_sample(ones(1, 2, 4, 4), ones(1, 3, 2)),
    # C++ has no kernel for these on the CPU
    **{f"{name} of {dtype}": lambda f, name=name, args=args, dtype=dtype: getattr(f, name)(
        ones(1, 2, 4, 4, 4).to(dtype), *args)
       for dtype in (HALF, torch.bfloat16, torch.int64, torch.bool)
       for name, args in (("avg_pool3d", (2,)), ("lp_pool3d", (2, 2)))},
    **{f"fractional_max_pool{dims}d of {shape}, {dtype}": lambda f, dims=dims, shape=shape, dtype=dtype: getattr(
        f, f"fractional_max_pool{dims}d")(
            ones([*shape, *[6] * dims], dtype=dtype), 2, 2, _random_samples=ones(shape[0], shape[1], dims).to(dtype))
       for dims in (2, 3) for shape in ((2, 3), (0, 3)) for dtype in (torch.int64, torch.uint8)},
    # no batch of images: a volume whose channels C++ does not find
    **{f"max_pool3d of a volume like channels-last images by {width}, {stride}": lambda f, width=width, stride=stride:
       f.max_pool3d(torch.arange(96.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), width, stride)
       for width in (0, 1, 2, 9, (1, 2)) for stride in (None, 0, 1)},
    # the weight is multiplied in place: it changes no dtype, and cannot be complex
    **{f"{name} of {x} weighted by {w}": lambda f, name=name, x=x, w=w: getattr(f, name)(
        HALVES.to(x), HALVES.to(x), tensor([1.0, 2.0]).to(w))
       for name in ("binary_cross_entropy", "binary_cross_entropy_with_logits")
       for x in (torch.float32, HALF) for w in (torch.float64, torch.float32, torch.bfloat16, torch.complex64)},
    **{f"positive classes weighted by {w}": lambda f, w=w: f.binary_cross_entropy_with_logits(
        HALVES, HALVES, pos_weight=tensor([1.0, 2.0]).to(w)) for w in (torch.float64, HALF, torch.complex64)},
    "cross_entropy of a scalar": lambda f: f.cross_entropy(ones(()), ones((), dtype=torch.int64)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_a_search_has_found(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = outcome(CALLS[name], F), outcome(CALLS[name], P)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, equal_nan=True)
    else:
        assert found == expected


SHUFFLES = {
    "channel_shuffle by 1": (lambda f, x: f.channel_shuffle(x, 1), (2, 4, 2, 2)),
    "channel_shuffle of one each": (lambda f, x: f.channel_shuffle(x, 4), (2, 4, 2, 2)),
    "native_channel_shuffle by 1": (lambda f, x: f.native_channel_shuffle(x, 1), (2, 4, 2, 2)),
    "pixel_shuffle of one pixel": (lambda f, x: f.pixel_shuffle(x, 2), (2, 4, 1, 1)),
    "pixel_shuffle by 1": (lambda f, x: f.pixel_shuffle(x, 1), (2, 4, 2, 2)),
    "pixel_unshuffle to one pixel": (lambda f, x: f.pixel_unshuffle(x, 2), (2, 4, 2, 2)),
    "pixel_unshuffle by 1": (lambda f, x: f.pixel_unshuffle(x, 1), (2, 4, 2, 2)),
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_a_shuffle_that_moves_nothing_is_a_copy(name: str) -> None:
    """It was a view: what was written into the result was written into the input."""
    function, shape = SHUFFLES[name]
    for namespace in (F, P):
        x = torch.randn(shape)
        kept = x.clone()
        function(namespace, x).zero_()
        assert torch.equal(x, kept)


def test_relu_keeps_its_result_and_not_its_input() -> None:
    """As C++: what is added to the input in place afterwards changes no gradient, and raised here."""
    for namespace in (F, P):
        x = torch.tensor([-1.0, 2.0], requires_grad=True)
        hidden = x * 1
        out = namespace.relu(hidden)
        hidden += 5
        out.sum().backward()
        assert torch.equal(x.grad, torch.tensor([0.0, 1.0]))
