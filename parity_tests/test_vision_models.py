"""Whole convolutional networks, unmodified: outputs, gradients and running statistics as close to float64 as
torch's own; state_dicts that compiling leaves alone; and which ATen calls are left in their graphs.

As in test_models.py, compiled may be as far from float64 as twice torch's float32 is, plus four roundings, in the
root mean square; here each tensor is held to that by itself.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

import pynn
from benchmarks.models import Batch, Workload
from benchmarks.vision_models import BUILDERS, TINY, build
from parity_tests.externs import computing_externs, record_graphs
from parity_tests.measure import NEIGHBOURS, move_to_neighbour
from parity_tests.test_models import distance, to_double
from parity_tests.tolerances import FACTOR, FLOOR_ULPS

pytestmark = pytest.mark.slow

BATCH = 3

# Compiled in every run of the suite; the others take minutes together and are `make test-networks`.
ALWAYS = ("resnet18", "convnext", "unet", "autoencoder")


@dataclass
class Run:
    """What a pass left behind, tensors by name, and the state_dict after it."""

    tensors: dict[str, Tensor]
    state: dict[str, Tensor] = field(default_factory=dict)


def training(workload: Workload, model: torch.nn.Module, batch: Batch, compiler: Callable) -> Run:
    """One forward and backward in training mode: loss, gradients, running statistics."""
    model.train()
    loss = compiler(lambda batch: workload.loss(model, batch))(batch)
    loss.backward()
    tensors = {"loss": loss.detach()}
    tensors |= {f"grad of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    tensors |= {name: b.clone() for name, b in model.named_buffers() if b.dtype.is_floating_point}
    return Run(tensors, model.state_dict())


def inference(workload: Workload, model: torch.nn.Module, batch: Batch, compiler: Callable) -> Run:
    model.eval()
    with torch.no_grad():
        out = compiler(lambda batch: workload.infer(model, batch))(batch)
    return Run({"output": out}, model.state_dict())


def with_statistics(workload: Workload) -> torch.nn.Module:
    """The model with running statistics of some batches, as inference meets them."""
    model = workload.model.train()
    with torch.no_grad():
        for seed in range(20):
            workload.infer(model, workload.draw(8, 0, 100 + seed))
    return model


def scale(name: str, exact: Run) -> float:
    """What a rounding of this tensor is a rounding of: its root mean square, or that of what it is summed from.

    A mean is summed from values of the standard deviation's size. A gradient may truly be nought (of a bias in front
    of a batch norm); what float32 leaves there is noise of its neighbours' size.
    """

    def size(tensors: list[Tensor]) -> float:
        return distance(tensors, [torch.zeros_like(t) for t in tensors])

    own = [exact.tensors[name]]
    if name.endswith("running_mean"):
        own += [exact.tensors[name.replace("running_mean", "running_var")].sqrt()]
    gradients = [t for other, t in exact.tensors.items() if other.startswith("grad")]
    return max(size([t]) for t in own) if not name.startswith("grad") else max(size(own), size(gradients))


def failures(compiled: Run, references: Iterator[tuple[Run, Run]]) -> list[str]:
    """Name each tensor that is further from float64 than the rule allows.

    Args:    references: torch's float32 and float64 runs; at the batch itself first, then at neighbouring ones, which
             are asked where the first fails: an activation on the other side of relu's kink, or another maximum
             chosen by a pooling, is luck that either has now and then (see measure.compare_result)
    """
    eager, exact = next(references)
    own = {name: distance([compiled.tensors[name]], [truth]) for name, truth in exact.tensors.items()}
    rounding = {name: torch.finfo(torch.float32).eps * scale(name, exact) for name in own}
    theirs = dict.fromkeys(own, 0.0)
    for rounded, true in chain([(eager, exact)], references):
        for name in own:
            theirs[name] = max(theirs[name], distance([rounded.tensors[name]], [true.tensors[name]]))
        failed = [
            name for name in own if not own[name] <= FACTOR * theirs[name] + FLOOR_ULPS * rounding[name]
        ]
        if not failed:
            break
    return [f"{name}: compiled is {own[name]:.3g} from float64, eager {theirs[name]:.3g}" for name in failed]


def reference_runs(mode: Callable, workload: Workload, model: torch.nn.Module, batch: Batch) -> Iterator[Any]:
    """torch's float32 and float64 runs: here, then at NEIGHBOURS neighbouring weights and batches."""
    for number in range(NEIGHBOURS + 1):
        here, moved = copy.deepcopy(model), {name: t.clone() for name, t in batch.items()}
        if number:
            move_to_neighbour([*here.parameters(), *moved.values()], number)
        exact = mode(workload, copy.deepcopy(here).double(), to_double(moved), lambda function: function)
        yield mode(workload, here, moved, lambda function: function), exact


def assert_nothing_left_to_aten(graphs: list[Any]) -> None:
    assert graphs, "nothing was compiled"
    assert not computing_externs(graphs)


@pytest.mark.parametrize("mode", [training, inference], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.networks]) for name in BUILDERS],
)
def test_as_close_to_float64_as_torch(name: str, mode: Callable):
    theirs = build(name, TINY)
    base = with_statistics(theirs) if mode is inference else theirs.model
    ours = build(name, TINY, pynn)
    ours.model.load_state_dict(base.state_dict())
    before = copy.deepcopy(base.state_dict())
    batch = theirs.draw(BATCH, 0, 1)

    with record_graphs() as graphs:
        compiled = mode(ours, ours.model, batch, lambda function: pynn.compile(function, strict=True))

    eager = mode(theirs, copy.deepcopy(base), batch, lambda function: function)
    assert eager.tensors.keys() == compiled.tensors.keys()
    assert_state_is_kept(before, compiled.state, eager.state)
    problems = failures(compiled, reference_runs(mode, theirs, base, batch))
    assert not problems, "\n".join(problems)
    assert len(graphs) == (2 if mode is training else 1), "the graph is broken"
    assert_nothing_left_to_aten(graphs)


def assert_state_is_kept(
    before: dict[str, Tensor], after: dict[str, Tensor], eager: dict[str, Tensor]
) -> None:
    """The same names and parameters to the bit; only what eager changes too has changed."""
    assert list(after) == list(before)
    for name, value in before.items():
        if torch.equal(eager[name], value):
            assert torch.equal(after[name], value), f"{name} has changed"
        elif not value.dtype.is_floating_point:
            assert torch.equal(after[name], eager[name]), f"{name} is {after[name]}, in eager {eager[name]}"


@pytest.mark.parametrize("name", ["vgg", "unet", "autoencoder"])
def test_written_with_pynn_starts_like_torch(name: str):
    """The networks written here have, on pynn, the same parameters for the same seed."""
    theirs, ours = build(name, TINY).model, build(name, TINY, pynn).model
    for (key, a), (other, b) in zip(theirs.state_dict().items(), ours.state_dict().items(), strict=True):
        assert key == other and torch.equal(a, b)
    layers = [m for m in ours.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))]
    assert layers and all(isinstance(m, (pynn.Conv2d, pynn.ConvTranspose2d)) for m in layers)
