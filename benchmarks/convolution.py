"""The convolution suite: ResNet-50's convolutions and depthwise ones, compiled, against oneDNN.

Forward, gradient of the input and gradient of the weight are timed apart. Either side is taken at the faster of NCHW
and channels_last; all four take turns, and the record's "layouts" keeps them (alone in NCHW, pynn pays for its copies
into channels-last and back, which a network pays once at each end). So that the gradients are single ATen operations
on either side, they are asked for with aten.convolution_backward's mask.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.compare import Work, compilers, measure

aten = torch.ops.aten

BATCHES = (1, 4, 16)
DEPTHWISE_KERNELS = (3, 5, 7)
LAYOUTS = ("nchw", "channels_last")
MODES = ("forward", "grad input", "grad weight")
# Stages of ResNet-50 at 224 pixels: width of the bottleneck, size of its input, stride of its first block.
STAGES = ((64, 56, 1), (128, 56, 2), (256, 28, 2), (512, 14, 2))
EXPANSION = 4  # channels of a stage over its bottleneck's


@dataclass(frozen=True)
class Shape:
    """One convolution without bias: channels -> out_channels, size x size pixels, padded to keep the size."""

    channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def out_size(self) -> int:
        return (self.size - 1) // self.stride + 1

    @property
    def multiplications(self) -> float:
        """Of one image; each gradient takes as many."""
        return self.out_size**2 * self.out_channels * self.channels // self.groups * self.kernel**2

    def __str__(self) -> str:
        step = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.channels}>{self.out_channels} {self.size}px{step}"


def resnet50_shapes() -> list[Shape]:
    """The distinct convolutions of ResNet-50 (v1.5: a stage's stride stands in its first 3x3), in order.

    Source:  He et al. 2015, "Deep Residual Learning for Image Recognition", table 1
    """
    shapes = [Shape(3, 64, 224, 7, stride=2)]
    channels = 64
    for width, size, stride in STAGES:
        wide = EXPANSION * width
        after = size // stride
        shapes += [
            Shape(channels, width, size, 1),  # into the first block's bottleneck
            Shape(width, width, size, 3, stride),
            Shape(width, wide, after, 1),  # out of every block's bottleneck
            Shape(channels, wide, size, 1, stride),  # the first block's shortcut
            Shape(wide, width, after, 1),  # into the other blocks'
            Shape(width, width, after, 3),
        ]
        channels = wide
    return list(dict.fromkeys(shapes))


def depthwise_shapes() -> list[Shape]:
    """One channel a group, as MobileNet, EfficientNet (3x3, 5x5) and ConvNeXt (7x7) have."""
    places = [(96, 56, 1), (96, 56, 2), (192, 28, 1), (384, 14, 1)]
    return [
        Shape(channels, channels, size, kernel, stride, groups=channels)
        for kernel in DEPTHWISE_KERNELS
        for channels, size, stride in places
    ]


@dataclass(frozen=True)
class Case:
    """A shape at a batch size, one way through it."""

    shape: Shape
    batch: int
    mode: str

    @property
    def name(self) -> str:
        kind = "depthwise" if self.shape.groups > 1 else "conv"
        return f"{kind} {self.shape.kernel}x{self.shape.kernel}"

    @property
    def size(self) -> str:
        return f"{self.batch}x {self.shape}"

    def operation(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """(x, weight, grad_out) -> the result or the gradient that `mode` names."""
        shape = self.shape
        steps = ([shape.stride] * 2, [shape.kernel // 2] * 2, [1, 1], False, [0, 0], shape.groups)
        if self.mode == "forward":
            return lambda x, weight, grad_out: aten.convolution(x, weight, None, *steps)
        wanted = MODES.index(self.mode) - 1
        mask = [i == wanted for i in range(3)]

        def gradient(x: Tensor, weight: Tensor, grad_out: Tensor) -> Tensor:
            return aten.convolution_backward(grad_out, x, weight, None, *steps, mask)[wanted]

        return gradient

    def inputs(self) -> list[Tensor]:
        shape = self.shape
        return [
            torch.randn(self.batch, shape.channels, shape.size, shape.size),
            torch.randn(shape.out_channels, shape.channels // shape.groups, shape.kernel, shape.kernel),
            torch.randn(self.batch, shape.out_channels, shape.out_size, shape.out_size),
        ]


def cases(quick: bool) -> Iterator[Case]:
    for batch in BATCHES[:2] if quick else BATCHES:
        for shape in resnet50_shapes() + depthwise_shapes():
            # The image's own gradient is nobody's in training; it is timed all the same, as any other.
            for mode in MODES:
                yield Case(shape, batch, mode)


def build_work(case: Case, compiler: Callable, channels_last: bool) -> Work:
    torch.manual_seed(0)
    inputs = case.inputs()
    if channels_last:
        inputs = [t.contiguous(memory_format=torch.channels_last) for t in inputs]
    function = compiler(case.operation())

    def work() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    return work


def contenders_of(case: Case, chosen: set[str]) -> dict[str, Callable[[], Work]]:
    """oneDNN (Inductor calls the same) and pynn, each in both layouts."""
    known = compilers(chosen - {"inductor"})
    found = {}
    for name, compiler in known.items():
        for is_last, layout in enumerate(LAYOUTS):
            found[f"{name} {layout}"] = partial(build_work, case, compiler, bool(is_last))
    return found


def with_better_layout(measured: dict) -> dict:
    """Replace each contender's two times by the smaller one; "layouts" keeps all four."""
    layouts = measured["seconds"]
    seconds: dict[str, float] = {}
    for name, value in layouts.items():
        contender = name.split()[0]
        seconds[contender] = min(value, seconds.get(contender, value))
    return measured | {"seconds": seconds, "layouts": layouts}


def measure_convolutions(chosen: set[str], quick: bool, only: str, say: Callable[[dict], None]) -> list[dict]:
    """Time every case; `say` is told each record as it comes."""
    records = []
    for case in cases(quick):
        if only not in f"{case.name} {case.size} {case.mode}":
            continue
        torch._dynamo.reset()
        measured = measure(contenders_of(case, chosen), budget=0.15 if quick else 0.4)
        kind = "depthwise " if case.shape.groups > 1 else ""
        record = {
            "suite": "convolution",
            "name": case.name,
            "size": case.size,
            "mode": kind + case.mode,
            **with_better_layout(measured),
            "flops": 2.0 * case.batch * case.shape.multiplications,
        }
        records.append(record)
        say(record)
    return records
