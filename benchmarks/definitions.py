"""The definitions suite: pynn's Python, run eagerly as it stands, against torch's C++; medium sizes.

The definitions are there to be read and compiled. This suite watches that running them as they are stays usable.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pynn
from benchmarks.compare import Work, forward_work, measure, training_work

NAMESPACES = {"eager": torch.nn, "pynn": pynn}


@dataclass
class Case:
    """One layer or function.

    family: the file of pynn/modules that holds it
    make:   torch.nn or pynn -> what is called: a layer, or a function
    """

    family: str
    name: str
    make: Callable[[Any], Callable]
    inputs: list

    @property
    def size(self) -> str:
        return "x".join(map(str, next(x for x in self.inputs if isinstance(x, Tensor)).shape))


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def layer(family: str, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Case:
    return Case(family, name, lambda nn: getattr(nn, name)(*args, **kwargs), [x])


def call(family: str, name: str, *inputs: Any, **kwargs: Any) -> Case:
    return Case(family, name, lambda nn: partial(getattr(nn.functional, name), **kwargs), list(inputs))


ACTIVATIONS = [
    "relu",
    "leaky_relu",
    "elu",
    "gelu",
    "silu",
    "mish",
    "sigmoid",
    "tanh",
    "softplus",
    "hardswish",
]
LOSSES = {
    "CrossEntropyLoss": lambda rows, cols: torch.randint(cols, (rows,)),
    "NLLLoss": lambda rows, cols: torch.randint(cols, (rows,)),
    "MSELoss": lambda rows, cols: torch.randn(rows, cols),
    "SmoothL1Loss": lambda rows, cols: torch.randn(rows, cols),
    "BCEWithLogitsLoss": lambda rows, cols: torch.rand(rows, cols),
    "KLDivLoss": lambda rows, cols: torch.rand(rows, cols),
    "MultiMarginLoss": lambda rows, cols: torch.randint(cols, (rows,)),
}


def row_cases() -> Iterator[Case]:
    """Over [2048, 768], or what is near it."""
    rows, cols = 2048, 768
    for name in ACTIVATIONS:
        yield call("activation", name, tensor(rows, cols))
    yield call("activation", "softmax", tensor(rows, cols), dim=-1)
    yield call("activation", "log_softmax", tensor(rows, cols), dim=-1)
    yield call("dropout", "dropout", tensor(rows, cols), p=0.1)
    yield layer("normalization", "LayerNorm", tensor(rows, cols), cols)
    yield layer("normalization", "RMSNorm", tensor(rows, cols), cols)
    yield layer("linear", "Linear", tensor(512, cols), cols, cols)
    yield call("distance", "cosine_similarity", tensor(rows, cols), tensor(rows, cols))
    yield call("distance", "pdist", tensor(256, 64))
    for name, target in LOSSES.items():
        case = layer("loss", name, tensor(rows, 1000))
        yield Case(case.family, name, case.make, [*case.inputs, target(rows, 1000)])
    log_probs = torch.randn(50, 16, 32).log_softmax(-1).requires_grad_()
    targets, lengths = torch.randint(1, 32, (16, 20)), (torch.full((16,), 50), torch.full((16,), 20))
    yield Case("loss", "CTCLoss", lambda nn: nn.CTCLoss(), [log_probs, targets, *lengths])
    tokens = torch.randint(4000, (32, 64))
    yield layer("sparse", "Embedding", tokens, 4000, cols)
    yield layer("sparse", "EmbeddingBag", tokens, 4000, cols)
    q, k, v = (tensor(4, 8, 128, 64) for _ in range(3))
    yield call("attention", "scaled_dot_product_attention", q, k, v)
    yield layer("transformer", "TransformerEncoderLayer", tensor(4, 64, 256), 256, 4, 1024, dropout=0.0)


def image_cases() -> Iterator[Case]:
    """Over [8, 64, 28, 28]."""
    x = tensor(8, 64, 28, 28)
    for kernel, kwargs in [(1, {}), (3, {"padding": 1}), (3, {"padding": 1, "stride": 2}),
                           (3, {"padding": 1, "groups": 64})]:  # fmt: skip
        yield layer("conv", "Conv2d", x, 64, 64, kernel, **kwargs)
    yield layer("conv", "Conv2d", tensor(8, 3, 112, 112), 3, 32, 7, stride=2, padding=3)
    yield layer("conv", "ConvTranspose2d", tensor(8, 32, 14, 14), 32, 32, 2, stride=2)
    yield layer("conv", "Conv1d", tensor(8, 64, 500), 64, 64, 5, padding=2)
    yield layer("conv", "Conv3d", tensor(2, 16, 12, 16, 16), 16, 16, 3, padding=1)
    yield layer("fold", "Unfold", tensor(8, 32, 28, 28), 3, padding=1)
    yield layer("fold", "Fold", tensor(8, 288, 784), (28, 28), 3, padding=1)
    for name in ("MaxPool2d", "AvgPool2d"):
        yield layer("pooling", name, x, 2)
        yield layer("pooling", name, x, 3, stride=2, padding=1)
    yield layer("pooling", "LPPool2d", x, 2.0, 2)
    yield layer("pooling", "AdaptiveAvgPool2d", x, 1)
    yield layer("pooling", "AdaptiveAvgPool2d", x, 7)
    yield layer("pooling", "AdaptiveMaxPool2d", x, 7)
    yield layer("pooling", "FractionalMaxPool2d", x, 2, output_ratio=0.5)
    for name, args in [("BatchNorm2d", (64,)), ("InstanceNorm2d", (64,))]:
        yield layer("batchnorm" if name == "BatchNorm2d" else "instancenorm", name, x, *args)
    yield layer("normalization", "GroupNorm", x, 8, 64)
    yield layer("normalization", "LocalResponseNorm", x, 5)
    small = tensor(8, 32, 32, 32)
    for mode in ("nearest", "bilinear", "bicubic", "area"):
        yield layer("upsampling", "Upsample", small, scale_factor=2, mode=mode)
    yield call("upsampling", "interpolate", small, size=(20, 20), mode="bilinear", antialias=True)
    grid = (torch.rand(8, 32, 32, 2) * 2 - 1).requires_grad_()
    yield call("upsampling", "grid_sample", small, grid, align_corners=False)
    yield layer("padding", "ReflectionPad2d", x, 2)
    yield layer("pixelshuffle", "PixelShuffle", x, 2)


class FirstResult(torch.nn.Module):
    """A recurrent layer's output sequence, without its last states."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def recurrent_cases() -> Iterator[Case]:
    """50 steps of 16 sequences, 128 and 256 wide."""
    for name in ("RNN", "GRU", "LSTM"):
        for hidden in (128, 256):
            make = partial(
                lambda nn, name, size: FirstResult(getattr(nn, name)(size, size)), name=name, size=hidden
            )
            yield Case("rnn", name, make, [tensor(50, 16, hidden)])
    yield layer("rnn", "GRUCell", tensor(64, 256), 256, 256)


def cases() -> Iterator[Case]:
    for family in (row_cases, image_cases, recurrent_cases):
        yield from family()


def build_work(case: Case, namespace: Any, backward: bool, device: str) -> Work:
    torch.manual_seed(0)
    with torch.device(device):
        function = case.make(namespace)
    parameters = list(function.parameters()) if isinstance(function, torch.nn.Module) else []
    if backward:
        return training_work(function, case.inputs, parameters)
    return forward_work(function, case.inputs)


def measure_definitions(
    chosen: set[str], quick: bool, only: str, say: Callable[[dict], None], device: str = "cpu"
) -> list[dict]:
    """Time every case both ways; `say` is told each record as it comes."""
    records = []
    with torch.device(device):  # as long as tensors are made: the mode costs every call time
        drawn = list(cases())
    for case in drawn:
        if only not in case.name and only not in case.family:
            continue
        for backward in (False, True):
            build = {
                name: partial(build_work, case, nn, backward, device)
                for name, nn in NAMESPACES.items()
                if name in chosen
            }
            record = {
                "suite": "definitions",
                "family": case.family,
                "name": case.name,
                "size": case.size,
                "mode": "forward+backward" if backward else "forward",
                **measure(build, budget=0.2 if quick else 0.6),
            }
            records.append(record)
            say(record)
    return records
