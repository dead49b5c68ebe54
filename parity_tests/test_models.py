"""Whole models, unmodified: five AdamW steps compiled as close to float64 as torch's own; any batch or
sequence length; every computation in generated kernels.

Two float32 runs never agree bit for bit, and neither is the truth: each is compared with the same run in
float64, and compiled may be as far from it as twice eager is, plus four roundings (`tolerances.py`). The
distance is the root mean square over all parameters. Where the true gradient is nought (a loss that is the
plain sum of a layer norm's outputs: nn.Transformer ends in one) all float32 gradients are noise, and
comparing compiled with eager alone would show a relative difference of any size.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import pynn
from benchmarks.models import BUILDERS, SMALL, Batch, Workload, build, demo_gpt
from parity_tests.externs import computing_externs, record_graphs
from parity_tests.tolerances import FACTOR, FLOOR_ULPS

STEPS = 5
FAST = {"demo_gpt"}
NAMES = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in BUILDERS]


@dataclass
class Run:
    """What a training left behind."""

    losses: list[float]
    parameters: list[Tensor]


def to_double(batch: Batch) -> Batch:
    return {name: t.double() if t.dtype.is_floating_point else t for name, t in batch.items()}


def train(workload: Workload, model: torch.nn.Module, exact=False, compiled=False) -> Run:
    """Take STEPS AdamW steps on seeded batches."""
    model = model.double() if exact else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss_of(batch: Batch) -> Tensor:
        return workload.loss(model, batch)

    loss_of = pynn.compile(loss_of, strict=True) if compiled else loss_of
    losses = []
    for step in range(STEPS):
        batch = workload.draw(2, 16, 10 * step)
        loss = loss_of(to_double(batch) if exact else batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Run(losses, [p.detach().double() for p in model.parameters()])


def distance(run: list[Tensor], exact: list[Tensor]) -> float:
    """Root mean square of the difference over all elements: no single element's luck decides.

    NaN equals NaN: a language model's loss over no target (sequence 1) is one.
    """
    pairs = ((a.double(), b) for a, b in zip(run, exact, strict=True))
    squares = sum(torch.where(a.isnan() & b.isnan(), 0.0, (a - b) ** 2).sum().item() for a, b in pairs)
    return (squares / sum(b.numel() for b in exact)) ** 0.5


def assert_as_close(compiled: list[Tensor], eager: list[Tensor], exact: list[Tensor]) -> None:
    """The tolerance of tolerances.py, with root mean squares in place of maxima."""
    size = distance([t.nan_to_num() for t in exact], [torch.zeros_like(t) for t in exact])
    unit = torch.finfo(torch.float32).eps * size
    allowed = FACTOR * distance(eager, exact) + FLOOR_ULPS * unit
    found = distance(compiled, exact)
    assert found <= allowed, f"compiled is {found:.3g} from float64, eager {distance(eager, exact):.3g}"


@pytest.mark.parametrize("name", NAMES)
def test_five_training_steps(name: str):
    workload = build(name, SMALL)
    exact = train(workload, copy.deepcopy(workload.model), exact=True)
    eager = train(workload, copy.deepcopy(workload.model))
    with record_graphs() as graphs:
        compiled = train(workload, copy.deepcopy(workload.model), compiled=True)
    assert_as_close(compiled.parameters, eager.parameters, exact.parameters)
    losses = [[torch.tensor(run.losses, dtype=torch.float64)] for run in (compiled, eager, exact)]
    assert_as_close(*losses)
    assert graphs, "nothing was compiled"
    assert not computing_externs(graphs)


# (batch, sequence): primes, batch 1 and sequence 1, for which torch compiles graphs of their own
DEFAULT_SIZES = [(2, 16), (3, 11), (1, 7), (4, 1), (2, 37), (2, 16)]
DYNAMIC_SIZES = [(3, 13), (1, 1), (2, 37)]
DYNAMIC = ("demo_gpt", "bert", "llama", "vit", "t5")
SIZES = [
    pytest.param(*p.values, None, DEFAULT_SIZES, id=f"{p.values[0]}-default", marks=p.marks) for p in NAMES
]
SIZES += [
    pytest.param(name, True, DYNAMIC_SIZES, id=f"{name}-dynamic", marks=pytest.mark.slow) for name in DYNAMIC
]


# Two of them in every run; the others take minutes together.
OTHERS = {False: [], True: [pytest.mark.networks]}
SIZES = [
    pytest.param(*p.values, None, DEFAULT_SIZES, id=f"{p.values[0]}-default", marks=p.marks) for p in NAMES
]
SIZES += [
    pytest.param(name, True, DYNAMIC_SIZES, id=f"{name}-dynamic", marks=pytest.mark.slow) for name in DYNAMIC
]


for parameter in SIZES:
    if not str(parameter.id).startswith(("llama", "demo_gpt")):  # the others take minutes together
        parameter.marks.append(pytest.mark.networks) if isinstance(parameter.marks, list) else None
SIZES = [
    pytest.param(
        *p.values, id=p.id, marks=[*p.marks, *OTHERS[not str(p.id).startswith(("llama", "demo_gpt"))]]
    )
    for p in SIZES
]


@pytest.mark.slow  # test_backend has the same of a small model
@pytest.mark.parametrize("name, dynamic, sizes", SIZES)
def test_changing_batch_and_sequence_length(name: str, dynamic: bool | None, sizes: list[tuple[int, int]]):
    workload = build(name, SMALL)
    model = workload.model
    exact_model = copy.deepcopy(model).double()
    compiled = pynn.compile(lambda batch: workload.loss(model, batch), strict=True, dynamic=dynamic)

    def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return [loss.detach(), *(g for g in found if g is not None)]

    for batch_size, seq in sizes:
        batch = workload.draw(batch_size, seq, seq)
        exact = gradients(exact_model, workload.loss(exact_model, to_double(batch)))
        eager = gradients(model, workload.loss(model, batch))
        assert_as_close(gradients(model, compiled(batch)), eager, exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BUILDERS))
def test_inference(name: str):
    workload = build(name, SMALL)
    model = workload.model.eval()
    exact_model = copy.deepcopy(model).double()
    compiled = pynn.compile(lambda batch: workload.infer(model, batch), strict=True)
    with torch.no_grad(), record_graphs() as graphs:
        for batch_size, seq in [(1, 16), (4, 16), (3, 11), (2, 1)]:
            batch = workload.draw(batch_size, seq, 1)
            exact = workload.infer(exact_model, to_double(batch))
            assert_as_close([compiled(batch)], [workload.infer(model, batch)], [exact])
    assert not computing_externs(graphs)


def test_gpt_written_with_pynn_starts_and_trains_like_torch():
    """The demo's claim: the same source on pynn has the same parameters and the same losses."""
    torch.manual_seed(0)
    theirs = demo_gpt(SMALL)
    torch.manual_seed(0)
    ours = demo_gpt(SMALL, pynn)
    for (name, a), (other, b) in zip(theirs.model.state_dict().items(), ours.model.state_dict().items()):
        assert name == other and torch.equal(a, b)
    exact = train(theirs, copy.deepcopy(theirs.model), exact=True)
    eager = train(theirs, copy.deepcopy(theirs.model))
    for compiled in (False, True):
        found = train(ours, copy.deepcopy(ours.model), compiled=compiled)
        assert_as_close(found.parameters, eager.parameters, exact.parameters)
