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


def test_meta_tensors_inside_autocast():
    """They know no autocast: shapes were refused with "unknown device type for autocast"."""
    x = torch.randn(3, 4, device="meta")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for call in (lambda nn: nn.functional.softmax(x, -1), lambda nn: nn.RNNCell(4, 4, device="meta")(x),
                     lambda nn: nn.LSTM(4, 4, device="meta")(x)[0]):  # fmt: skip
            ours, theirs = call(pynn), call(torch.nn)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)


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


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("uses_onednn", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_recurrent_layers_give_torchs_dtypes(name, options, uses_onednn, is_packed):
    """test_lstm of test_mkldnn.py: pynn's stayed float32."""
    is_cell = name.endswith("Cell")
    if (options and is_cell) or (is_cell and is_packed) or ("proj_size" in options and name != "LSTM"):
        return
    theirs = getattr(torch.nn, name)(3, 4, **options)
    own = getattr(pynn, name)(3, 4, **options)
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3) if is_cell else torch.randn(5, 2, 3)
    x = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 3]) if is_packed else x
    with torch.backends.mkldnn.flags(enabled=uses_onednn), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = (
            [t for t in tree_leaves(layer(x)) if t is not None and t.is_floating_point()]
            for layer in (theirs, own)
        )
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    sum(t.sum() for t in found).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in own.parameters())


def test_adaptive_log_softmax_keeps_the_dtype_of_its_input():
    """log_prob stayed bfloat16, where torch fills a tensor of the input's dtype; its forward raises there."""
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(4, 8, [2, 5])
    own = pynn.AdaptiveLogSoftmaxWithLoss(4, 8, [2, 5])
    own.load_state_dict(theirs.state_dict())
    x, target = torch.randn(3, 4), torch.tensor([1, 3, 7])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = theirs.log_prob(x), own.log_prob(x)
        with pytest.raises(RuntimeError, match="same dtype"):
            theirs(x, target)
        output = own(x, target).output
    assert found.dtype == output.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found.bfloat16(), expected.bfloat16())
    of_targets = expected.gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(output.bfloat16(), of_targets.bfloat16())
