"""A small convolutional network in the dtypes that are not float32, and under autocast, compiled.

Outputs, running statistics and gradients are as close to float64 (to long double, for float64) as torch's C++ is, by
the rule of tolerances.py; their dtypes and strides are torch's; no ATen call is left in the graphs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pynn
from parity_tests.executors import prepare
from parity_tests.externs import record_graphs
from parity_tests.frozen import randomize
from parity_tests.long_double import IS_WIDER, in_long_double
from parity_tests.measure import NEIGHBOURS, gradients, move_to_neighbour
from parity_tests.tolerances import compare, error_in_ulps

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Net(nn.Module):
    """Each kind of layer that convolutional networks are made of, once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.avg_pool2d(F.max_pool2d(self.depthwise(x), 3, 2, 1), 2)
        x = F.interpolate(F.relu(self.up(x)), scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(x)


@dataclass(frozen=True)
class Case:
    """mode: training, inference or frozen   dtype: of the model and the images   autocast: to bfloat16"""

    mode: str
    dtype: torch.dtype
    format: str
    autocast: bool = False

    @property
    def name(self) -> str:
        dtype = "autocast" if self.autocast else str(self.dtype).removeprefix("torch.")
        return f"{self.mode}-{dtype}-{self.format}"

    def compile(self, function: Any) -> Any:
        if self.mode != "frozen":
            return prepare("numba", function)
        torch._dynamo.reset()
        return pynn.compile(function, strict=True, dynamic=False, freeze=True)


def run(case: Case, compile: Any = lambda f: f, exact: bool = False, neighbour: int = 0) -> dict[str, Any]:
    """Outputs, running statistics and gradients by name; where `exact`, of the same numbers in a wider type."""
    net = randomize(Net()).to(case.dtype).train(case.mode == "training")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 16, 12, generator=generator).to(case.dtype)
    if neighbour:
        move_to_neighbour([x, *net.parameters()], neighbour)
    if exact:
        net, x = net.double(), x.double()
    net, x = (each.to(memory_format=FORMATS[case.format]) for each in (net, x))
    training, names = net.training, ["x", *(name for name, _ in net.named_parameters())]
    leaves = [x.requires_grad_(training), *net.parameters()]

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            return net(x)

    with in_long_double() if exact and case.dtype is torch.float64 else nullcontext() as wider:
        with torch.set_grad_enabled(training):
            out = compile(call)(x)
        found = {"output": out}
        if training:
            found |= {name: getattr(net.norm, name) for name in ("running_mean", "running_var")}
            grads = gradients([out], leaves, torch.bfloat16 if case.autocast else case.dtype)
            found |= {f"gradient of {name}": grad for name, grad in zip(names, grads)}
    return {name: (wider.value(t) if wider else t.detach()) for name, t in found.items()}


def check(case: Case) -> None:
    cpp, exact = run(case), run(case, exact=True)
    with record_graphs() as graphs:
        ours = run(case, case.compile)
    assert len(graphs) == (2 if case.mode == "training" else 1), "the graph is broken"
    assert [node for record in graphs for node in record.externs] == []
    assert ours.keys() == cpp.keys() == exact.keys()
    for name, value in ours.items():
        assert value.stride() == cpp[name].stride(), name
    compared = {name: compare(value, cpp[name], exact[name], False) for name, value in ours.items()}
    # As measure.compare_result does: the C++ error, less its luck at this very input.
    for number in range(1, NEIGHBOURS + 1):
        if all(comparison.passed or comparison.problem for comparison in compared.values()):
            break
        rounded, truth = run(case, neighbour=number), run(case, exact=True, neighbour=number)
        for name, comparison in compared.items():
            theirs = error_in_ulps(rounded[name], truth[name], False)
            compared[name] = replace(comparison, cpp=max(comparison.cpp, theirs))
    failed = [f"{name}: {comparison}" for name, comparison in compared.items() if not comparison.passed]
    assert not failed, "\n".join(failed)


DTYPES = [(torch.bfloat16, False), (torch.float16, False), (torch.float64, False), (torch.float32, True)]
MODES = [("training", "contiguous"), ("training", "channels_last")]
MODES += [("inference", "contiguous"), ("frozen", "channels_last")]
# The widest and the narrowest way through: `make check` has these.
FAST = {"training-bfloat16-channels_last", "frozen-autocast-channels_last"}


def cases() -> list[Any]:
    parameters = []
    for mode, form in MODES:
        for dtype, autocast in DTYPES:
            case = Case(mode, dtype, form, autocast)
            marks = [] if case.name in FAST else [pytest.mark.slow]
            if dtype is torch.float64:
                marks.append(
                    pytest.mark.skipif(not IS_WIDER, reason="long double is no wider than float64 here")
                )
            parameters.append(pytest.param(case, id=case.name, marks=marks))
    return parameters


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_network_is_as_close_to_float64_as_torch(case: Case) -> None:
    check(case)
