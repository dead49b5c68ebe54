"""CTC beyond torch's tables: log-probabilities that are normalised, impossible and empty targets, errors."""

from collections.abc import Callable

import torch

from parity_tests.cases import Sample
from parity_tests.cases_own.builders import built, function, module, tensor

FLOATS = (torch.float32, torch.float64)


def normalised(function: Callable, logits: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """The gradient of ctc_loss is that of the logits' log_softmax, so finite differences must see those."""
    return function(logits - logits.exp().sum(-1, keepdim=True).log(), *args, **kwargs)


def spelled(
    time, batch, classes, longest, inputs, targets, *, joined=False, **kwargs
) -> Callable[[], Sample]:
    """A sample with these lengths; labels 1, ..., classes - 1 with repetitions."""

    def draw() -> Sample:
        blank = kwargs.get("blank", 0)
        labels = torch.randint(1, classes, (batch, longest))
        labels = torch.where(labels <= blank, labels - 1, labels)
        if joined:
            labels = torch.cat([row[:n] for row, n in zip(labels, targets, strict=True)])
        return Sample((tensor(time, batch, classes), labels, inputs, targets), kwargs)

    return draw


def alone(time, classes, longest, **kwargs) -> Callable[[], Sample]:
    def draw() -> Sample:
        labels = torch.randint(1, classes, (longest,))
        lengths = torch.tensor(time), torch.tensor(longest)
        return Sample((tensor(time, classes), labels, *lengths), kwargs)

    return draw


SPELLED = [
    spelled(7, 3, 4, 3, (7, 5, 6), (3, 2, 1)),
    spelled(6, 2, 3, 2, (6, 4), (2, 2), joined=True, reduction="sum"),
    spelled(6, 2, 4, 3, torch.tensor([5, 6]), torch.tensor([3, 1]), blank=2, reduction="none"),
    spelled(40, 4, 20, 12, (40, 31, 35, 28), (12, 9, 1, 7)),
    # empty targets, alone and among others
    spelled(4, 2, 3, 2, (4, 3), (0, 2), reduction="none"),
    spelled(4, 2, 3, 0, (4, 3), (0, 0)),
    # an input of no steps spells only the empty target
    spelled(4, 2, 3, 2, (0, 4), (0, 1), reduction="none"),
    alone(5, 4, 2),
    alone(5, 4, 2, reduction="none"),
]

IMPOSSIBLE = [
    spelled(4, 2, 3, 3, (2, 4), (3, 1), reduction="none"),
    spelled(4, 2, 3, 3, (2, 4), (3, 1), zero_infinity=True),
    spelled(4, 2, 3, 3, (0, 4), (3, 1), zero_infinity=True, reduction="sum"),
    spelled(4, 2, 2, 3, (3, 4), (3, 2), joined=True, reduction="none"),
]


def errors() -> list[tuple[Sample, type, str, str]]:
    x, labels, two = torch.randn(5, 2, 4), torch.ones(2, 2, dtype=torch.int64), (2, 2)

    def refused(message: str, *args, error: type = RuntimeError, **kwargs):
        return Sample(args, kwargs), error, message, "call"

    return [
        refused("input_lengths to have value at most 5, but got value 6", x, labels, (6, 5), two),
        refused("input_lengths to have value at least 0, but got value -1", x, labels, (-1, 5), two),
        refused("target_lengths to have value at least 0, but got value -1", x, labels, (5, 5), (-1, 2)),
        refused("size at least 3 at dimension 1, but got size 2 for argument #2 'targets'", x, labels, (5, 5), (3, 2)),
        refused("to have size 3 at dimension 0, but got size 4", x, labels.reshape(-1), (5, 5), (2, 1)),
        refused("to have size 2 at dimension 0, but got size 1", x, labels[:1], (5, 5), two),
        refused("input_lengths must be of size batch_size", x, labels, (5,), two),
        refused("target_lengths must be of size batch_size", x, labels, (5, 5), (2,)),
        refused("blank must be in label range", x, labels, (5, 5), two, blank=4),
        refused("log_probs tensor must not be empty", x[:0], labels, (5, 5), two),
        refused("Expected 1 to 2 dimensions, but got 3-dimensional", x, labels[None], (5, 5), two),
        refused("Expected 3-dimensional tensor, but got 2-dimensional", x[0, 0], labels[0], (5,), (2,)),
        refused("input_lengths must be integral", x, labels, torch.tensor([5.0, 5.0]), torch.tensor([2, 2])),
        refused("invalid combination of arguments", x, labels, torch.tensor([5, 5]), two, error=TypeError),
        refused("not implemented for 'Half'", x.half(), labels, (5, 5), two, error=NotImplementedError),
        refused("is not a valid value for reduction", x, labels, (5, 5), two, error=ValueError, reduction="?"),
    ]  # fmt: skip


ROWS = [
    function("ctc_loss.normalised", *SPELLED, call=normalised, dtypes=FLOATS, errors=errors),
    function("ctc_loss.impossible", *IMPOSSIBLE, call=normalised, dtypes=FLOATS,
             skip={"gradgrad": "an impossible target's gradient is NaN, or 0 by decree"}),
    module("CTCLoss.own", *(built(blank=1, zero_infinity=True, inputs=lambda: (
        tensor(6, 2, 4), torch.tensor([[2, 2], [3, 0]]), torch.tensor([6, 2]), torch.tensor([2, 2])))
        for _ in range(1)), dtypes=FLOATS,
        skip={"forward_ad": "log_probs are not normalised", "gradgrad": "log_probs are not normalised"}),
]  # fmt: skip
