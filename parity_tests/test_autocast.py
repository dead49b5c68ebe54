"""Inside torch.autocast every function gives the dtype that torch's gives, and its gradients the inputs' dtypes."""

import warnings

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pynn
from parity_tests.cases import Row, Sample, defined_rows, seed
from parity_tests.devices import DEVICES

pytestmark = pytest.mark.slow  # `make check` leaves the whole file to `make test`

ROWS = [row for row in defined_rows() if not row.is_module and row.reference is None]


def outcome(row: Row, namespace, sample: Sample, device: str) -> list[torch.dtype] | Exception:
    seed(0)
    with warnings.catch_warnings(), torch.autocast(device, dtype=torch.bfloat16):
        warnings.simplefilter("ignore")
        try:
            out = row.build(namespace, sample)(*sample.args, **sample.kwargs)
        except Exception as error:  # torch refuses some mixtures: what pynn does there is its own affair
            return error
    return [t.dtype for t in tree_leaves(out) if isinstance(t, Tensor)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_dtypes_under_autocast(row: Row, device: str):
    for sample in row.draw(4):
        for dtype in (torch.float32, torch.bfloat16):
            if dtype not in row.dtypes and row.dtypes != (torch.float32,):
                continue
            cast = sample.cast(dtype).on(device)
            theirs = outcome(row, torch.nn, cast, device)
            if not isinstance(theirs, Exception):
                assert outcome(row, pynn, cast, device) == theirs, dtype


def test_inner_products_are_not_narrowed():
    """A function on no list computes as it does outside, also where it contracts."""
    x, a, b, w = torch.randn(6, 16), torch.randn(4, 5), torch.randn(4, 6), torch.randn(3, 5, 6)
    for name, arguments in (
        ("bilinear", (a, b, w)),
        ("pdist", (x,)),
        ("ctc_loss", (x[:, None], torch.tensor([[1, 2]]), (6,), (2,))),
    ):
        function = getattr(pynn.functional, name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = function(*arguments)
        assert torch.equal(found, function(*arguments)), name
