"""Pooling: what torch's tables lack. Indices, norms, unpooling layers, last windows that hang over, NaN and ties."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity_tests.cases import FLOATS, Row, Sample
from parity_tests.cases_own.builders import built, function, module, strided, tensor
from parity_tests.torch_version import IS_OLDER

SHAPES = {1: (2, 3, 11), 2: (2, 3, 7, 8), 3: (1, 2, 5, 5, 5)}
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def volume(dims: int, draw: Callable[..., Tensor] = tensor, **options: Any) -> Tensor:
    return draw(*SHAPES[dims], **options)


def call(dims: int, *args: Any, draw: Callable[..., Tensor] = tensor, **kwargs: Any) -> Callable[[], Sample]:
    return lambda: Sample((volume(dims, draw), *args), kwargs)


def channels_last(*shape: int) -> Tensor:
    layout = LAYOUTS[len(shape) - 2]
    return tensor(*shape, grad=False).contiguous(memory_format=layout).requires_grad_()


def few_values(*shape: int) -> Tensor:
    """So few that most windows hold their largest element several times."""
    return torch.randint(-1, 2, shape).float().requires_grad_()


def unusual_values(*shape: int) -> Tensor:
    """NaN and infinities in windows, and windows of nothing else."""
    x = few_values(*shape).detach()
    for value, part in ((torch.nan, 0.1), (-torch.inf, 0.3), (torch.inf, 0.05)):
        x = x.masked_fill(torch.rand(shape) < part, value)
    x[..., :3] = -torch.inf
    return x.requires_grad_()


def whole(*shape: int) -> Tensor:
    return torch.randint(-(2**60), 2**60, shape)


def bytes_(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape, dtype=torch.uint8)


def unbatched(*shape: int) -> Tensor:
    return tensor(*shape[1:])


def no_images(*shape: int) -> Tensor:
    return tensor(0, *shape[1:])


DRAWN = (strided, unbatched, no_images)
AT_TIES = {check: "no derivative where elements are equal" for check in ("forward_ad", "gradgrad")}


# C++ averages volumes in these alone.
AVERAGED = {1: FLOATS, 2: FLOATS, 3: (torch.float32, torch.float64)}


def refused(name: str, calls: list[tuple[tuple, dict]]) -> list[tuple[Sample, type, str, str]]:
    """What torch says of calls that it refuses: the whole message, as far as it is not a C++ traceback."""
    found = []
    for args, kwargs in calls:
        try:
            getattr(torch.nn.functional, name)(*args, **kwargs)
        except Exception as error:
            message = re.escape(str(error).splitlines()[0]) + "$"
            found.append((Sample(args, kwargs), type(error), message, "call"))
        else:
            raise AssertionError(f"torch takes {name} of {args} {kwargs}")
    return found


def window_errors(dims: int) -> list[tuple[tuple, dict]]:
    x = volume(dims, grad=False)
    wrong: list[dict] = [{"kernel_size": 0}, {"kernel_size": 20}, {"kernel_size": [2, 2, 2, 2]}]
    wrong += [{"stride": 0}, {"stride": -1}, {"stride": [1, 1, 1, 1]}, {"dilation": 0}]
    wrong += [{"padding": 2}, {"padding": -1}, {"padding": [0, 0, 0, 0]}]
    calls: list[tuple[tuple, dict]] = [((x,), {"kernel_size": 3} | kwargs) for kwargs in wrong]
    calls += [
        ((each, 2), {}) for each in (x[0, 0, 0], x[..., :0], x[:, :0], x[None], x > 0, x.to(torch.complex64))
    ]
    return calls


def adaptive_errors(dims: int) -> list[tuple[tuple, dict]]:
    x = volume(dims, grad=False)
    return [
        ((x, -1), {}),
        ((x, [1] * 4), {}),
        ((x[0, 0, 0], 2), {}),
        ((x[..., :0], 2), {}),
        ((x.long(), 2), {}),
    ]


def random_errors(dims: int) -> list[tuple[tuple, dict]]:
    x = volume(dims, grad=False)
    samples = torch.rand(x.size(0), x.size(1), dims)
    wrong = [samples[0], samples[:, :1], samples[..., :1], samples.double(), samples[:0]]
    calls: list[tuple[tuple, dict]] = [((x, 2, 3), {"_random_samples": each}) for each in wrong]
    return calls + [
        ((x, 2), {}),
        ((x, 7, 5), {}),
        ((x, [2] * 4, 2), {}),
        ((x, 2, -1), {}),
    ]


def unpool_errors(dims: int) -> list[tuple[Sample, type, str, str]]:
    x = torch.rand(1, 2, *[3] * dims)
    index = torch.arange(3**dims).expand(2, 3**dims).reshape(x.shape)
    calls = [
        ((x, index + 6**dims, 2), {}), ((x, index - 1, 2), {}), ((x, index.int(), 2), {}), ((x, index[..., :2], 2), {}),
        ((x[0, 0, 0], index[0, 0, 0], 2), {}), ((x, index, 2, None, 0, [4] * dims), {}),
        ((x, index, 2, None, 0, [6] * (dims + 3)), {}), ((x, index, 1, 1, 3), {}), ((x.long(), index, 2), {}),
    ]  # fmt: skip
    return refused(f"max_unpool{dims}d", calls)


def sliding_rows(dims: int) -> list[Row]:
    last = channels_last if dims in LAYOUTS else strided
    geometries = [
        call(dims, 3, 2, 1), call(dims, 2), call(dims, 3, 1, 1, 2), call(dims, 2, 3, ceil_mode=True),
        call(dims, 3, 2, 1, 1, True), call(dims, [2, 3, 1][:dims], [1, 2, 3][:dims]), call(dims, 1),
        call(dims, 3, 2, 1, draw=last),
    ]  # fmt: skip
    drawn = [call(dims, 3, 2, 1, draw=draw) for draw in DRAWN]
    integers = [call(dims, 3, 2, 1, draw=draw) for draw in (whole, bytes_)]
    unusual = [call(dims, 3, 2, 1, draw=unusual_values), call(dims, 2, 1, draw=unusual_values)]
    means = [
        call(dims, 3, 2, 1, count_include_pad=False), call(dims, 2, 3, 0, True), call(dims, 3, 2, 1, True, False),
        call(dims, 3, 2, 1, True), call(dims, [2, 3, 1][:dims], [1, 2, 3][:dims]), call(dims, 3, draw=last),
        *drawn, call(dims, 3, 2, 1, draw=whole),
    ]  # fmt: skip
    if dims > 1:
        means += [call(dims, 3, 2, 1, divisor_override=number) for number in (1, 5, -2)]
    return [
        function(
            f"max_pool{dims}d_with_indices",
            *geometries,
            *drawn,
            errors=lambda: refused(f"max_pool{dims}d_with_indices", window_errors(dims)),
        ),
        function(f"max_pool{dims}d.integers", *integers, call=indices_too),
        function(
            f"max_pool{dims}d.ties",
            call(dims, 3, 2, 1, draw=few_values),
            call(dims, 2, 1, draw=few_values),
            call(dims, 3, 1, 1, 2, draw=few_values),
            call=indices_too,
            skip=AT_TIES,
        ),
        function(f"max_pool{dims}d.unusual", *unusual, call=indices_too),
        function(f"max_pool{dims}d.edges", *geometries, *drawn),
        function(f"avg_pool{dims}d.edges", *means, dtypes=AVERAGED[dims]),
    ]


def indices_too(function: Callable, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return function(*args, **kwargs, return_indices=True)


def norm_rows(dims: int) -> list[Row]:
    """Of numbers above 0 for powers that are not whole."""

    def positive(*shape: int) -> Tensor:
        return tensor(*shape, low=0.5, high=2.0)

    infinite = () if IS_OLDER else (torch.inf, -torch.inf)  # torch 2.11 gives 1 for them
    whole_powers = [call(dims, power, 2) for power in (1, 2, 3, 2.0, *infinite)]
    return [
        function(f"lp_pool{dims}d", *whole_powers, call(dims, 1.5, 3, 2, draw=positive),
                 call(dims, 2, 3, 2, True), call(dims, 4, 2, 1, draw=unbatched),
                 call(dims, 2.5, 2, draw=positive), call(dims, 2, 2, draw=strided), dtypes=AVERAGED[dims],
                 errors=lambda: refused(f"lp_pool{dims}d", [((volume(dims), 2, 20), {}), ((volume(dims), 2, 2, 0), {}),
                                                            ((volume(dims)[0, 0, 0], 2, 2), {})])),
    ]  # fmt: skip


def adaptive_rows(dims: int) -> list[Row]:
    last = channels_last if dims in LAYOUTS else strided
    counts: list[Any] = [1, 3, 5, [4, 3, 2][:dims] if dims > 1 else 11]
    counts += [[None, 5, 2][:dims]] * (dims > 1)
    samples = [call(dims, count) for count in counts]
    samples += [call(dims, 3, draw=draw) for draw in (last, *DRAWN)]
    return [
        function(f"adaptive_max_pool{dims}d_with_indices", *samples,
                 errors=lambda: refused(f"adaptive_max_pool{dims}d_with_indices", adaptive_errors(dims))),
        function(
            f"adaptive_max_pool{dims}d.ties",
            *(call(dims, count, draw=few_values) for count in counts[:4]),
            call=indices_too,
            skip=AT_TIES,
        ),
        function(f"adaptive_max_pool{dims}d.unusual", call(dims, 3, draw=unusual_values), call=indices_too),
        function(f"adaptive_avg_pool{dims}d.edges", *samples,
                 errors=lambda: refused(f"adaptive_avg_pool{dims}d", adaptive_errors(dims))),
    ]  # fmt: skip


def random_rows(dims: int) -> list[Row]:
    half, parts = [0.5] * dims, [0.5, 0.4, 0.6][:dims]
    name = f"fractional_max_pool{dims}d"
    return [
        function(f"{name}_with_indices", call(dims, 2, 3), call(dims, 2, output_ratio=parts), call(dims, 2, 1),
                 call(dims, [2, 3, 1][:dims], [3, 2, 2][:dims], draw=unbatched),
                 call(dims, 2, output_ratio=half, draw=strided), random=True,
                 errors=lambda: refused(f"{name}_with_indices", random_errors(dims))),
        function(f"{name}.ties", call(dims, 2, 3, draw=few_values), call(dims, 1, 3, draw=few_values),
                 call=indices_too, random=True, skip=AT_TIES),
        function(f"{name}.unusual", call(dims, 2, 3, draw=unusual_values), call=indices_too, random=True),
        module(f"FractionalMaxPool{dims}d.indices", built(2, output_size=3, return_indices=True, inputs=ties(dims)),
               built(2, output_ratio=0.5, inputs=images(dims)), random=True),
    ]  # fmt: skip


def unpool_rows(dims: int) -> list[Row]:
    """From windows that do not overlap, so that no two elements go to one place."""

    def pooled(
        width: int, step: int, pad: int = 0, draw: Callable[..., Tensor] = tensor, shape: tuple = SHAPES[dims]
    ) -> tuple[Tensor, Tensor]:
        pool = getattr(torch.nn.functional, f"max_pool{dims}d")
        values, index = pool(draw(*shape).detach(), width, step, pad, return_indices=True)
        return values.requires_grad_(), index

    size, even = list(SHAPES[dims][2:]), (2, 2, *[4] * dims)
    return [
        function(f"max_unpool{dims}d.sizes", lambda: Sample((*pooled(2, 2, shape=even), 2)),
                 lambda: Sample((*pooled(2, 2), 2), {"output_size": size}),
                 lambda: Sample((*pooled(2, 2), 2), {"output_size": SHAPES[dims]}),
                 lambda: Sample((*pooled(3, 3, 1), 3, 3, 1, size)),
                 lambda: Sample((*pooled(2, 2, draw=unbatched), 2, None, 0, size)),
                 errors=lambda: unpool_errors(dims)),
        module(f"MaxUnpool{dims}d", built(2, inputs=lambda: pooled(2, 2, shape=even)),
               built(2, 2, inputs=lambda: (*pooled(2, 2), size)),
               built(3, stride=3, padding=1, inputs=lambda: (*pooled(3, 3, 1), size))),
    ]  # fmt: skip


def images(dims: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (volume(dims),)


def ties(dims: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (volume(dims, few_values).detach(),)


def layer_rows(dims: int) -> list[Row]:
    given, equal = images(dims), ties(dims)
    return [
        module(f"MaxPool{dims}d.indices", built(2, return_indices=True, inputs=equal),
               built(3, 2, 1, return_indices=True, ceil_mode=True, inputs=given), built(3, dilation=2, inputs=given)),
        module(f"AvgPool{dims}d.options", built(3, 2, 1, True, False, inputs=given),
               dtypes=AVERAGED[dims]),
        module(f"LPPool{dims}d.options", built(3, 2, 2, True, inputs=given), built(1, 2, inputs=given),
               dtypes=AVERAGED[dims]),
        module(f"AdaptiveMaxPool{dims}d.indices", built(3, return_indices=True, inputs=equal)),
    ]  # fmt: skip


ROWS = [
    row
    for dims in (1, 2, 3)
    for kind in (sliding_rows, norm_rows, adaptive_rows, unpool_rows, layer_rows)
    for row in kind(dims)
] + [*random_rows(2), *random_rows(3)]
