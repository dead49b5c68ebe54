"""Bags of embeddings and distances of pairs beyond torch's tables."""

import math
from collections.abc import Callable

import torch

from parity_tests.cases import Sample
from parity_tests.cases_own.builders import function, module, strided, tensor

COUNT, ROWS_OF_TABLE, COLS = 9, 6, 5


def bag_sample(offsets, *, samples=False, dtype=torch.int64, count=COUNT, **kwargs) -> Callable[[], Sample]:
    """count indices, with repetitions, in bags that begin at offsets."""

    def draw() -> Sample:
        indices = torch.randint(ROWS_OF_TABLE, (count,), dtype=dtype)
        drawn = {"per_sample_weights": tensor(count)} if samples else {}
        starts = torch.tensor(offsets, dtype=dtype)
        return Sample((indices, tensor(ROWS_OF_TABLE, COLS), starts), kwargs | drawn)

    return draw


def rectangle(*shape: int, samples=False, **kwargs) -> Callable[[], Sample]:
    def draw() -> Sample:
        drawn = {"per_sample_weights": tensor(*shape)} if samples else {}
        return Sample((torch.randint(ROWS_OF_TABLE, shape), tensor(ROWS_OF_TABLE, COLS)), kwargs | drawn)

    return draw


BAGS = [
    *(
        draw
        for mode in ("sum", "mean", "max")
        for draw in (
            bag_sample([0, 3, 3, 7], mode=mode),  # one of them empty
            bag_sample([0, 4, COUNT, COUNT], mode=mode, include_last_offset=True),
            bag_sample([0, 2], mode=mode, padding_idx=3, dtype=torch.int32),
            bag_sample([0, 0], mode=mode, count=0),
            bag_sample([], mode=mode, count=0),
            rectangle(4, 3, mode=mode, padding_idx=-2),
            rectangle(0, 3, mode=mode),
        )
    ),
    bag_sample([0, 3, 3, 7], mode="sum", samples=True),
    bag_sample([0, 3, 3, 7], mode="sum", samples=True, padding_idx=2),
    rectangle(4, 3, mode="sum", samples=True),
]


def layer(*args, **kwargs) -> Callable[[], Sample]:
    def draw() -> Sample:
        return Sample((torch.randint(6, (9,)), torch.tensor([0, 3, 3, 7])), {}, (args, kwargs))

    return draw


def refused(error: type, message: str, *args, **kwargs) -> tuple[Sample, type, str, str]:
    return Sample(args, kwargs), error, message, "call"


def bag_errors() -> list[tuple[Sample, type, str, str]]:
    i, w, at = torch.tensor([1, 2, 4]), torch.randn(5, 3), torch.tensor([0, 2])
    two = i[:2].reshape(1, 2)
    return [
        refused(RuntimeError, r"offsets\[0\] has to be 0.*However, got 1", i, w, at + 1),
        refused(RuntimeError, r"offsets\[-1\] can not be greater than input's length 3 but got offsets\[-1\] of 8",
                i, w, at * 4),
        refused(RuntimeError, r"Index 0 of input takes value 5 which is not in the valid range \[0, 5\)", i + 4, w, at),
        refused(RuntimeError, "Expected idx >= 0 && idx < num_embeddings but found idx to be -1", i - 2, w, at,
                mode="max"),
        refused(RuntimeError, "'indices' to have one of the following scalar types: Long, Int; but got torch.Short",
                i.short(), w, at.short()),
        refused(RuntimeError, "'weight' to have one of the following scalar types", i, w.long(), at),
        refused(RuntimeError, "number of offset should be at least 1", i, w, at[:0], include_last_offset=True),
        refused(RuntimeError, "padding_idx must be within the number of embeddings, -5 through 4, but got 7", i, w, at,
                padding_idx=7),
        refused(RuntimeError, "type torch.FloatTensor does not equal torch.DoubleTensor", i, w, at, mode="sum",
                per_sample_weights=torch.ones(3).double()),
        refused(ValueError, "must have the same shape as the input", i, w, at, per_sample_weights=torch.ones(2)),
        refused(NotImplementedError, r"only supported for mode='sum' \(got mode='mean'\)", i, w, at,
                per_sample_weights=torch.ones(3)),
        refused(ValueError, "weight has to be a 2D Tensor, but got Tensor of dimension 1", i, w[0], at),
        refused(ValueError, "input has to be 1D or 2D Tensor, but got Tensor of dimension 0", i[0], w),
        refused(ValueError, "offsets has to be a 1D Tensor but got None", i, w),
        refused(ValueError, "offsets has to be a 1D Tensor", i, w, at[None]),
        refused(ValueError, "if input is 2D, then offsets has to be None", two, w, at),
        refused(ValueError, "mode has to be one of sum, mean or max", i, w, at, mode="median"),
        refused(ValueError, "max mode does not support sparse weights", i, w, at, mode="max", sparse=True),
        refused(ValueError, "max mode does not support scaling the gradient", i, w, at, mode="max",
                scale_grad_by_freq=True),
    ]  # fmt: skip


def constructor_errors() -> list[tuple[Sample, type, str, str]]:
    wrong = {"padding_idx": 7}, {"padding_idx": -7}
    return [
        *((Sample((), {}, ((5, 3), kwargs)), AssertionError, "padding_idx must be within num_embeddings", "constructor")
          for kwargs in wrong),
        (Sample((), {}, ((5, 3), {"_weight": torch.ones(3, 5)})), AssertionError, "Shape of weight does not match",
         "constructor"),
    ]  # fmt: skip


def pdist_errors() -> list[tuple[Sample, type, str, str]]:
    return [
        refused(RuntimeError, "pdist only supports 2D tensors, got: 1D", torch.ones(3)),
        refused(RuntimeError, "pdist only supports floating-point dtypes", torch.ones(3, 2).long()),
        refused(RuntimeError, "pdist only supports non-negative p values", torch.ones(3, 2), -1.0),
        refused(NotImplementedError, "not implemented for 'Half'", torch.ones(3, 2).half()),
    ]


def with_equals() -> torch.Tensor:
    """Two rows alike, and elements alike in different rows."""
    x = tensor(5, 4, grad=False)
    x[3], x[2, 1] = x[1], x[0, 1]
    return x.requires_grad_()


def far_and_near() -> torch.Tensor:
    """Pairs of rows that only their last digits tell apart, far from the origin and from other pairs."""
    x = tensor(6, 5, low=-100, high=100, grad=False)
    x[3:] = x[:3] * (1 + 1e-6 * torch.rand(3, 5))
    return (x + 1000).requires_grad_()


AT_EQUALS = "a distance of 0 has no derivative"
ROWS = [
    function("embedding_bag.modes", *BAGS, errors=bag_errors),
    module("EmbeddingBag", *(layer(6, 4, mode=mode, padding_idx=pad) for mode in ("sum", "mean", "max")
                             for pad in (None, 0, 2, -1)),
           layer(6, 4, 1.5, 3.0), layer(6, 4, dtype=torch.float64), errors=constructor_errors,
           skip={"vmap": "vmap over a weight that max_norm renormalises in place is no function",
                 "gradgrad": "max_norm renormalises in place", "forward_ad": "max_norm renormalises in place",
                 "meta": "a layer of one dtype is asked for"}),
    function("pdist.norms", *(lambda p=p: Sample((tensor(6, 5), p)) for p in (0, 0.5, 1, 1.5, 2, 2.5, 3, math.inf)),
             lambda: Sample((strided(7, 3),)), *(lambda s=s: Sample((tensor(*s),)) for s in [(1, 3), (4, 0)]),
             # without a gradient: torch's backward of no rows divides by 0 and ends the process
             lambda: Sample((tensor(0, 3, grad=False),)),
             dtypes=(torch.float32, torch.float64), errors=pdist_errors),
    function("pdist.equals", *(lambda p=p: Sample((with_equals(), p)) for p in (0, 0.5, 1, 1.5, 2, 3, math.inf)),
             dtypes=(torch.float32, torch.float64), skip={"gradgrad": AT_EQUALS, "forward_ad": AT_EQUALS}),
    function("pdist.far", *(lambda p=p: Sample((far_and_near(), p)) for p in (1, 2, 3, math.inf)),
             dtypes=(torch.float32, torch.float64),
             skip=dict.fromkeys(("gradgrad", "forward_ad"), "finite differences step over the near pairs")),
]  # fmt: skip
