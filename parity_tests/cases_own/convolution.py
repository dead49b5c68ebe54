"""Convolutions at the edges of torch's tables: depthwise, wide dilation, channels-last, complex, time first."""

from parity_tests.cases import Sample
from parity_tests.cases_own.builders import built, channels_last, function, module, tensor


def call(x: tuple, weight: tuple, bias: int | None = None, **kwargs):
    return lambda: Sample((tensor(*x), tensor(*weight), None if bias is None else tensor(bias)), kwargs)


ROWS = [
    function("conv1d.edges", call((2, 3, 7), (4, 3, 3), 4, padding="same", dilation=2),
             call((0, 3, 7), (4, 3, 3), 4), call((3, 7), (4, 3, 7), None), call((2, 4, 9), (4, 1, 3), 4, groups=4)),
    function("conv2d.edges", call((2, 4, 7, 6), (4, 1, 3, 3), 4, groups=4, padding=1),
             call((2, 4, 7, 6), (8, 1, 3, 2), None, groups=4, stride=2),
             call((1, 4, 9, 9), (6, 2, 3, 3), 6, groups=2, dilation=3, padding=(3, 2)),
             call((2, 3, 8, 8), (5, 3, 1, 1), 5), call((0, 3, 8, 8), (5, 3, 3, 3), 5),
             call((3, 8, 8), (5, 3, 2, 4), 5, padding="same"),
             lambda: Sample((channels_last(2, 4, 6, 5), tensor(3, 4, 3, 3), tensor(3))),
             lambda: Sample((channels_last(2, 4, 6, 5), tensor(4, 1, 3, 3)), {"groups": 4, "padding": 1})),
    function("conv_transpose2d.edges", call((2, 4, 5, 4), (4, 1, 3, 3), 4, groups=4, stride=2, output_padding=1),
             call((2, 4, 5, 4), (4, 3, 2, 3), 6, groups=2, dilation=3, output_padding=2, padding=1),
             call((0, 4, 5, 4), (4, 3, 2, 2), None, stride=2), call((4, 5, 4), (4, 3, 3, 3), None)),
    function("conv_tbc", lambda: Sample((tensor(7, 2, 4), tensor(3, 4, 5), tensor(5), 1)),
             lambda: Sample((tensor(6, 1, 3), tensor(1, 3, 4), tensor(4)))),
    *(module(f"Conv{dims}d.{mode}", built(2, 3, 3, padding=2, padding_mode=mode,
                                          inputs=lambda dims=dims: (tensor(2, 2, *[5] * dims),)))
      for dims in (1, 2, 3) for mode in ("reflect", "replicate", "circular")),
]  # fmt: skip
