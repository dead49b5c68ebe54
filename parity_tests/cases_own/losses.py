"""Losses beyond torch's tables: adaptive softmax, chunked linear cross-entropy, NLLLoss2d, triplets."""

from collections.abc import Callable

import torch

from parity_tests.cases import Sample
from parity_tests.cases_own.builders import built, function, module, tensor


def adaptive(*shape: int, **kwargs) -> Callable[[], Sample]:
    """10 classes: 4 in the head, clusters of 3 and 3."""
    return built(8, 10, [4, 7], inputs=lambda: (tensor(*shape, 8), torch.randint(10, shape)), **kwargs)


def adaptive_errors() -> list[tuple[Sample, type, str, str]]:
    def refused(cutoffs, message):
        return Sample((), {}, ((8, 10, cutoffs), {})), ValueError, message, "constructor"

    def called(message, input, target):
        return Sample((input, target), {}, ((8, 10, [4, 7]), {})), RuntimeError, message, "call"

    increasing = "cutoffs should be a sequence of unique, positive integers sorted"
    x, y = torch.randn(3, 8), torch.tensor([1, 2, 3])
    return [
        refused([], "cutoffs should be a sequence of length larger than 0"),
        *(refused(cutoffs, increasing) for cutoffs in ([7, 4], [0, 4], [4, 4], [4, 10], [4.5])),
        called("same size in the batch dimension", x, y[:2]),
        called("1D target tensor expects 2D input tensors, but found inputs with size", x[..., None], y),
        called("0D target tensor expects 1D input tensors, but found inputs with size", x, y[0]),
        called("multi-target not supported", x, y[None]),
        called(
            r"Target values should be in \[0, 9\], but values in range \[4, 12\] were found", x, y * y + 3
        ),
    ]


def chunked(
    rows, features, classes, *, bias=False, weighted=False, ignored=False, **kwargs
) -> Callable[[], Sample]:
    def draw() -> Sample:
        shape = () if rows is None else (rows,)
        drawn = {"options": torch.nn.LinearCrossEntropyOptions(**kwargs.get("options", {}))}
        if bias:
            drawn["linear_bias"] = tensor(classes)
        if weighted:
            drawn["weight"] = tensor(classes, low=0.2, high=2.0, grad=False)
        target = torch.randint(classes, shape)
        if ignored:
            target[::3], drawn["ignore_index"] = 1, 1
        arguments = tensor(*shape, features), tensor(classes, features), target
        return Sample(arguments, {k: v for k, v in kwargs.items() if k != "options"} | drawn)

    return draw


FOUR_ROWS = {"batch_chunk_size": 4}
CHUNKED = [
    *(
        chunked(10, 6, 9, bias=True, options=FOUR_ROWS, reduction=reduction)
        for reduction in ("mean", "sum", "none")
    ),
    chunked(10, 6, 9, weighted=True, ignored=True, options=FOUR_ROWS),
    chunked(10, 6, 9, weighted=True, ignored=True, bias=True, options=FOUR_ROWS, reduction="none"),
    chunked(17, 4, 40, options={"allow_retain_graph": True}),
    chunked(17, 4, 40, options={"chunking_method": "aspect_ratio:2"}),
    chunked(None, 6, 9, options=FOUR_ROWS),
    chunked(None, 6, 9, options=FOUR_ROWS, reduction="none", bias=True),
]


def linear_errors() -> list[tuple[Sample, type, str, str]]:
    x, w, y = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])

    def refused(message, *args, error=RuntimeError, **kwargs):
        return Sample(args, kwargs), error, message, "call"

    wide = torch.nn.LinearCrossEntropyOptions(acc_dtype=torch.float64)
    return [
        refused("input with dimensionality 1 or 2, got 3", x[None], w, y),
        refused("linear_weight with dimensionality at least 2, got 1", x, w[0], y),
        refused("last dimensions .*, got 4 and 3, respectively", x, w[:, :3], y),
        refused(r"expected linear_bias shape \(5,\), got \(4,\)", x, w, y, linear_bias=torch.ones(4)),
        refused("requires batched input, .*, got unbatched", x[0], w[:, None], y[:1]),
        refused("ignore_index cannot be specified", x, w, torch.ones(3, 5), ignore_index=1),
        refused("supports float32 acc_dtype with", x, w, y, options=wide),
    ]


def triplet(*shape: int) -> tuple:
    return tensor(*shape), tensor(*shape), tensor(*shape)


def no_margin(args: tuple, kwargs: dict) -> list[tuple[Sample, type, str, str]]:
    message = "expected margin to be greater than 0, got"
    return [(Sample((), {}, (args, kwargs)), ValueError, message, "constructor")]


ROWS = [
    module("AdaptiveLogSoftmaxWithLoss", adaptive(12), adaptive(12, head_bias=True, div_value=2.0), adaptive(),
           adaptive(1), errors=adaptive_errors),
    function("linear_cross_entropy.chunked", *CHUNKED, errors=linear_errors),
    module("NLLLoss2d", built(inputs=lambda: (tensor(2, 4, 3, 5), torch.randint(4, (2, 3, 5)))),
           built(torch.tensor([0.5, 1.0, 2.0, 0.1]), ignore_index=2, reduction="sum",
                 inputs=lambda: (tensor(2, 4, 3, 5), torch.randint(4, (2, 3, 5))))),
    module("TripletMarginLoss", built(inputs=lambda: triplet(5, 6)),
           built(0.5, 1.0, 1e-3, True, inputs=lambda: triplet(5, 6)),
           built(reduction="none", inputs=lambda: triplet(6)),
           errors=lambda: no_margin((-1.0,), {})),
    module("TripletMarginWithDistanceLoss", built(inputs=lambda: triplet(5, 6)),
           built(margin=2.0, swap=True, reduction="sum", inputs=lambda: triplet(5, 6)),
           errors=lambda: no_margin((), {"margin": 0.0})),
]  # fmt: skip
