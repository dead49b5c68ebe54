"""No pynn function reaches an ATen operation outside the elementary list, forward or backward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pynn
from parity_tests.cases import Row, Sample, defined_rows
from parity_tests.elementary import is_elementary
from pynn.definitions import PUBLIC

# Functions that the parity table does not list.
UNLISTED = [
    Row("functional.native_channel_shuffle", lambda: [Sample((torch.randn(2, 6, 3), 2))]),
    Row("functional.rrelu_", lambda: [Sample((torch.randn(5), 0.1, 0.3, True))]),
]
ROWS = defined_rows() + UNLISTED


class Recorder(TorchDispatchMode):
    """Collects the names of the ATen operations that run below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operations_of(row, sample: Sample) -> set[str]:
    sample = sample.cast(torch.float32)
    subject = row.build(pynn, sample)
    with Recorder() as recorder:
        out = subject(*sample.args, **sample.kwargs)
        tensors = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        leaves = sample.differentiable()
        if isinstance(subject, torch.nn.Module):
            leaves += [p for p in subject.parameters() if p.requires_grad]
        total = sum(t.sum() for t in tensors if t.requires_grad)
        if leaves and isinstance(total, torch.Tensor):
            torch.autograd.grad(total, leaves, allow_unused=True)
    return recorder.names


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_nothing_outside_the_elementary_list_is_called(row):
    for sample in row.draw(8):
        if any(callable(value) for value in sample.kwargs.values()):
            continue  # the caller's own function, a torch layer in torch's tables
        outside = sorted(name for name in operations_of(row, sample) if not is_elementary(name))
        assert not outside, f"{row.name} calls {', '.join(outside)}"


def test_recorder_sees_a_fused_operation():
    with Recorder() as recorder:
        torch.nn.functional.softmax(torch.ones(3), 0)
    assert "_softmax" in recorder.names and not is_elementary("_softmax")


def test_every_public_function_has_a_row():
    """A row of its own; for one that torch lacks, the row of its layer will do."""
    rows = {row.symbol for row in ROWS}
    families = {row.look_up(pynn).__module__ for row in ROWS if row.is_module and row.reference is not None}
    assert [name for name, own in PUBLIC.items() if name not in rows and own.__module__ not in families] == []
