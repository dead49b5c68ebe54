"""fold and unfold: padding, stride, dilation, without batch, channels-last."""

from parity_tests.cases import Sample
from parity_tests.cases_own.builders import built, channels_last, function, module, tensor

ROWS = [
    function("fold", lambda: Sample((tensor(2, 12, 20), (5, 6), 2)),
             lambda: Sample((tensor(12, 12), (7, 6), (2, 3)), {"stride": (2, 1), "dilation": (2, 1)}),
             lambda: Sample((tensor(2, 18, 9), (5, 5), 3), {"padding": 1, "stride": 2}),
             lambda: Sample((tensor(0, 12, 20), (5, 6), 2))),
    # more windows over an element than are written out
    function("fold.wide", lambda: Sample((tensor(1, 81, 64), (8, 8), 9), {"padding": 4}),
             lambda: Sample((tensor(2, 180, 16), (10, 11), (9, 10)), {"stride": (1, 2), "padding": (1, 3)}),
             lambda: Sample((tensor(50, 49), (11, 11), 5), {"stride": 1, "dilation": 2, "padding": 2}),
             lambda: Sample((tensor(1, 81, 9), (17, 17), 9), {"stride": 3, "dilation": 2, "padding": 4}),
             lambda: Sample((tensor(0, 81, 64), (8, 8), 9), {"padding": 4})),
    function("unfold.edges", lambda: Sample((tensor(3, 5, 6), 3), {"padding": (1, 2), "stride": 2}),
             lambda: Sample((tensor(2, 3, 7, 6), (2, 3)), {"dilation": (3, 1)}),
             lambda: Sample((tensor(0, 3, 5, 6), 2)),
             lambda: Sample((channels_last(2, 4, 5, 6), 2))),
    module("Fold", built((4, 5), (2, 3), inputs=lambda: (tensor(2, 12, 9),))),
    module("Unfold", built(2, padding=1, inputs=lambda: (tensor(2, 3, 4, 5),))),
]  # fmt: skip
