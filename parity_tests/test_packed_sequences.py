"""pynn.utils.rnn against torch.nn.utils.rnn: packing moves elements, so every result must be equal, not close.

Each test runs both modules on the same tensors. Where torch fails (forward-mode AD, vmap), it is shown to.
"""

import functools
import itertools
import subprocess
import sys
import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import rnn as theirs

import pynn
from parity_tests.elementary import is_elementary
from parity_tests.test_purity import Recorder
from pynn.utils import rnn as ours

pytestmark = pytest.mark.slow  # `make check` leaves the whole file to `make test`

BOTH = (theirs, ours)
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.int64,
    torch.bool,
)
# sequence lengths, trailing sizes
BATCHES = [
    ((4, 2, 2, 1), (3,)),
    ((1,), (3,)),
    ((3, 3), ()),
    ((2, 5, 1), (2, 3)),
    ((1, 1, 4, 2, 4), ()),
]


def values(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    numbers = torch.randn(shape, dtype=torch.float64) * 9
    return (numbers > 0) if dtype == torch.bool else numbers.to(dtype)


def assert_same(own, expected):
    """Values, dtypes, sizes and strides, through tuples, lists and packed sequences."""
    assert type(own) is type(expected)
    if isinstance(expected, (tuple, list)):
        assert len(own) == len(expected)
        for one, other in zip(own, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert own.dtype == expected.dtype and own.shape == expected.shape and own.device == expected.device
        assert own.stride() == expected.stride()
        assert own.is_meta or torch.equal(own, expected)
    else:
        assert own == expected


def padded_batch(lengths, trailing, batch_first, extra=1, dtype=torch.float64):
    time, batch = max(lengths) + extra, len(lengths)
    return values(*((batch, time) if batch_first else (time, batch)), *trailing, dtype=dtype)


# ---- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths, trailing", BATCHES, ids=str)
def test_packing_and_padding_move_what_torch_moves(lengths, trailing, batch_first, dtype):
    x = padded_batch(lengths, trailing, batch_first, dtype=dtype)
    is_sorted = lengths == tuple(sorted(lengths, reverse=True))
    for enforce_sorted in {False, is_sorted}:
        for given in (list(lengths), torch.tensor(lengths, dtype=torch.int32)):
            packed = [m.pack_padded_sequence(x, given, batch_first, enforce_sorted) for m in BOTH]
            assert_same(packed[1], packed[0])
        for back_first, value, total in itertools.product(
            (False, True), (0.0, 1.5), (None, max(lengths) + 2)
        ):
            arguments = (packed[0], back_first, value, total)
            assert_same(ours.pad_packed_sequence(*arguments), theirs.pad_packed_sequence(*arguments))
        assert_same(ours.unpack_sequence(packed[0]), theirs.unpack_sequence(packed[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths, trailing", BATCHES, ids=str)
def test_lists_of_sequences(lengths, trailing, dtype):
    sequences = [values(n, *trailing, dtype=dtype) for n in lengths]
    for batch_first, value, side in itertools.product((False, True), (0, -2.5), ("left", "right")):
        arguments = (sequences, batch_first, value, side)
        assert_same(ours.pad_sequence(*arguments), theirs.pad_sequence(*arguments))
    packed = [m.pack_sequence(sequences, enforce_sorted=False) for m in BOTH]
    assert_same(packed[1], packed[0])
    assert_same(ours.unpack_sequence(packed[1]), sequences)


ODD_LISTS = {
    "other dtypes": lambda: [values(3, 2, dtype=torch.int32), values(2, 2), values(1, 2, dtype=torch.bool)],
    "sizes that broadcast": lambda: [values(3, 2), values(2, 1), values(2), values(1, 2)],
    "an empty one": lambda: [values(0, 2), values(3, 2)],
    "all empty": lambda: [values(0, 2), values(0, 2)],
    "no features": lambda: [values(3, 0), values(2, 0)],
    "a tensor": lambda: values(2, 3, 2),
    "a generator": lambda: (values(n, 2) for n in (2, 3)),
    "strided": lambda: [values(2, 3).t(), values(4, 4)[::2, ::2]],
    "another device": lambda: [values(3, 2).to("meta"), values(2, 2)],
}


@pytest.mark.parametrize("name", ODD_LISTS)
def test_pad_sequence_takes_what_torch_takes(name):
    for batch_first, side in itertools.product((False, True), ("left", "right")):
        own, expected = (
            m.pad_sequence(ODD_LISTS[name](), batch_first, padding_side=side) for m in reversed(BOTH)
        )
        assert_same(own, expected)


def test_results_share_no_memory_with_the_inputs():
    x, batch = values(3, 2), values(3, 1, 2)
    padded = ours.pad_sequence([x])
    packed = ours.pack_padded_sequence(batch, [3])
    out, _ = ours.pad_packed_sequence(packed)
    pointers = {t.data_ptr() for t in (x, padded, batch, packed.data, out)}
    assert len(pointers) == 5


def test_input_that_ends_before_its_lengths():
    """Both cut data and keep batch_sizes; padding such a sequence again is refused."""
    packed = [m.pack_padded_sequence(values(3, 2), [5, 2]) for m in BOTH]
    assert_same(packed[1], packed[0])
    for module in BOTH:
        with pytest.raises(RuntimeError):
            module.pad_packed_sequence(packed[1])


def test_more_rows_than_batch_sizes_say():
    packed = theirs.PackedSequence(values(9, 2), torch.tensor([2, 1]))
    assert_same(ours.pad_packed_sequence(packed), theirs.pad_packed_sequence(packed))


def test_strided_input():
    x = values(2, 4, 3).transpose(0, 1)[:, :, ::2]
    assert_same(ours.pack_padded_sequence(x, [4, 2]), theirs.pack_padded_sequence(x, [4, 2]))


def test_meta_tensors():
    for enforce_sorted in (True, False):
        x = values(4, 2, 3).to("meta")
        packed = [m.pack_padded_sequence(x, torch.tensor([3, 2]), False, enforce_sorted) for m in BOTH]
        assert_same(packed[1], packed[0])
        if enforce_sorted:  # torch too needs the values of the order, to give back the lengths
            assert_same(ours.pad_packed_sequence(packed[1]), theirs.pad_packed_sequence(packed[0]))


# ---- derivatives and transforms --------------------------------------------------------------------------

LENGTHS, BATCH_SIZES = [3, 2, 2], torch.tensor([3, 3, 1])
OPERATIONS = {
    "pack": lambda m, x: m.pack_padded_sequence(x, LENGTHS).data,
    "pack batch first": lambda m, x: m.pack_padded_sequence(x, LENGTHS, batch_first=True).data,
    "pack unsorted": lambda m, x: m.pack_padded_sequence(x, LENGTHS[::-1], enforce_sorted=False).data,
    "pad": lambda m, x: m.pad_packed_sequence(m.PackedSequence(x, BATCH_SIZES), padding_value=2.0)[0],
    "pad reordered": lambda m, x: m.pad_packed_sequence(
        m.PackedSequence(x, BATCH_SIZES, torch.tensor([2, 0, 1])), batch_first=True, total_length=5
    )[0],
    "pad_sequence": lambda m, x: m.pad_sequence([x, x[:1] * x[1:2], x[1:]]),
    "pad_sequence left": lambda m, x: m.pad_sequence([x, x[:1], x[1:]], True, -1.0, "left"),
    "pack_sequence": lambda m, x: m.pack_sequence([x, x[:1], x[1:]], enforce_sorted=False).data,
    "unpack_sequence": lambda m, x: torch.cat(m.unpack_sequence(m.PackedSequence(x, BATCH_SIZES))),
}


def argument(name):
    return values(*((3, 3, 2) if name.startswith("pack") and name != "pack_sequence" else (7, 2)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients(name):
    x = argument(name).requires_grad_()
    own, expected = (OPERATIONS[name](m, x) for m in reversed(BOTH))
    weight = values(*own.shape)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (own, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)  # pad_sequence's rows are used twice: sums
    f = lambda x: OPERATIONS[name](ours, x) ** 2  # noqa: E731
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True)


@pytest.mark.filterwarnings("error:.*performance drop")
@pytest.mark.parametrize("name", OPERATIONS)
def test_vmap_and_gradients_per_sample(name):
    xs = torch.stack([argument(name) * n for n in (1, 2, 3, 4)])
    f = lambda x: OPERATIONS[name](ours, x)  # noqa: E731
    assert torch.equal(torch.func.vmap(f)(xs), torch.stack([f(x) for x in xs]))
    loss = lambda x: (f(x) ** 3).sum()  # noqa: E731
    each = torch.stack([torch.func.grad(loss)(x) for x in xs])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(xs), each)


@pytest.mark.parametrize("name", ["pack", "pack batch first", "pack unsorted", "pad", "pad reordered"])
def test_forward_mode_ad_where_torch_has_none(name):
    x = argument(name)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"forward AD|doesn't have storage"):
        torch.func.jvp(lambda x: OPERATIONS[name](theirs, x), (x,), (x,))
    _, tangent = torch.func.jvp(lambda x: OPERATIONS[name](ours, x) ** 2, (x,), (x,))
    y = OPERATIONS[name](ours, x)
    moved = y - OPERATIONS[name](ours, torch.zeros_like(x))  # without the padding, which is constant
    torch.testing.assert_close(tangent, 2 * y * moved)


@pytest.mark.parametrize("name", ["pad_sequence", "pad_sequence left", "pack_sequence"])
def test_vmap_where_torch_has_none(name):
    xs = torch.stack([argument(name)] * 2)
    with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::pad_sequence"):
        torch.func.vmap(lambda x: OPERATIONS[name](theirs, x))(xs)
    assert torch.func.vmap(lambda x: OPERATIONS[name](ours, x))(xs).size(0) == 2


# ---- what is called --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_outside_the_elementary_list_is_called(name):
    x = argument(name).requires_grad_()
    with Recorder() as recorder:
        OPERATIONS[name](ours, x).sum().backward()
    assert sorted(n for n in recorder.names if not is_elementary(n)) == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_graph_is_the_one_torch_records(name):
    """make_fx sees torch's operation, not the indices of one batch."""
    graphs = [make_fx(functools.partial(OPERATIONS[name], m))(argument(name)).code for m in BOTH]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("name", OPERATIONS)
def test_graph_while_installed(name):
    """TestJit.test_export_lstm of test_jit.py: torch's function is called, not its name, which pynn's has."""
    expected = make_fx(functools.partial(OPERATIONS[name], theirs))(argument(name)).code
    with pynn.install():
        graph = make_fx(functools.partial(OPERATIONS[name], torch.nn.utils.rnn))(argument(name))
    assert graph.code == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_no_worse_than_torchs(name):
    """The values, and no more graph breaks."""
    breaks, x = [], argument(name)
    for module in BOTH:
        torch._dynamo.reset()
        f = functools.partial(OPERATIONS[name], module)
        breaks.append(torch._dynamo.explain(f)(x).graph_break_count)
        assert torch.equal(torch.compile(f, backend="eager")(x), OPERATIONS[name](theirs, x))
    torch._dynamo.reset()
    assert breaks[1] <= breaks[0]


# ---- errors, sharing -------------------------------------------------------------------------------------

X, A, B = values(3, 2, 2), values(3, 2), values(2, 2)
PACKED = theirs.pack_padded_sequence(X, [3, 2])


def repacked(data=PACKED.data, batch_sizes=PACKED.batch_sizes):
    return theirs.PackedSequence(data, batch_sizes)


BAD_CALLS = {
    "not sorted": lambda m: m.pack_padded_sequence(X, [2, 3]),
    "too few lengths": lambda m: m.pack_padded_sequence(X, [2]),
    "too many lengths": lambda m: m.pack_padded_sequence(X, [3, 2, 2]),
    "length zero": lambda m: m.pack_padded_sequence(X, [2, 0]),
    "length below zero, unsorted": lambda m: m.pack_padded_sequence(X, [-1, 2], enforce_sorted=False),
    "nested lengths": lambda m: m.pack_padded_sequence(X, [[2, 1]]),
    "lengths on meta": lambda m: m.pack_padded_sequence(X, torch.tensor([2, 1], device="meta")),
    "length as a number": lambda m: m.pack_padded_sequence(X, torch.tensor(2)),
    "no time": lambda m: m.pack_padded_sequence(X[:0], [1, 1]),
    "no batch": lambda m: m.pack_padded_sequence(X[:, :0], []),
    "one dimension": lambda m: m.pack_padded_sequence(X[:, 0, 0], [1, 1]),
    "one dimension, batch first": lambda m: m.pack_padded_sequence(X[:, 0, 0], [1, 1], True),
    "more indices than batch": lambda m: m.pack_padded_sequence(X, [1, 2, 3], enforce_sorted=False),
    "a list as input": lambda m: m.pack_padded_sequence([1, 2], [1, 1]),
    "lengths in letters": lambda m: m.pack_padded_sequence(X, "ab"),
    "batch_first a number": lambda m: m.pack_padded_sequence(X, [3, 2], 1),
    "total_length": lambda m: m.pad_packed_sequence(PACKED, total_length=2),
    "not packed": lambda m: m.pad_packed_sequence(X),
    "batch_sizes of int32": lambda m: m.pad_packed_sequence(repacked(batch_sizes=PACKED.batch_sizes.int())),
    "batch_sizes in 2D": lambda m: m.pad_packed_sequence(repacked(batch_sizes=PACKED.batch_sizes[None])),
    "no batch_sizes": lambda m: m.pad_packed_sequence(repacked(batch_sizes=PACKED.batch_sizes[:0])),
    "padding in letters": lambda m: m.pad_packed_sequence(PACKED, padding_value="a"),
    "no sequences": lambda m: m.pad_sequence([]),
    "nothing to iterate": lambda m: m.pad_sequence(5),
    "numbers": lambda m: m.pad_sequence([1, 2]),
    "sizes that do not fit": lambda m: m.pad_sequence([A, values(2, 3)]),
    "one dimension too many": lambda m: m.pad_sequence([A, values(2, 1, 2)]),
    "a later scalar": lambda m: m.pad_sequence([A, values()]),
    "side": lambda m: m.pad_sequence([A, B], padding_side="middle"),
    "side a number": lambda m: m.pad_sequence([A, B], padding_side=1),
    "value in letters": lambda m: m.pad_sequence([A, B], padding_value="x"),
    "value None": lambda m: m.pad_sequence([A, B], padding_value=None),
    "value complex": lambda m: m.pad_sequence([A, B], padding_value=1j),
    "batch_first not a bool": lambda m: m.pad_sequence([A, B], 1),
    "pack nothing": lambda m: m.pack_sequence([]),
    "pack not sorted": lambda m: m.pack_sequence([B, A]),
    "pack an empty one": lambda m: m.pack_sequence([A, B[:0]]),
}
# torch's text speaks of its own C++ views
OWN_WORDS = {
    "too few rows": lambda m: m.pad_packed_sequence(repacked(PACKED.data[:4])),
    "batch_sizes that grow": lambda m: m.pad_packed_sequence(repacked(batch_sizes=torch.tensor([1, 2]))),
    "scalars": lambda m: m.pad_sequence([values(), values()]),
}


def error_of(call, module):
    try:
        call(module)
    except Exception as error:
        return type(error), str(error).splitlines()[0]
    return None


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_is_refused_in_torchs_words(name):
    own, expected = (error_of(BAD_CALLS[name], m) for m in reversed(BOTH))
    assert own == expected and expected is not None


@pytest.mark.parametrize("name", OWN_WORDS)
def test_bad_call_is_refused_with_torchs_exception(name):
    own, expected = (error_of(OWN_WORDS[name], m) for m in reversed(BOTH))
    assert own[0] is expected[0]


def test_names_and_the_class_are_torchs():
    assert ours.__all__ and set(ours.__all__) == set(theirs.__all__)
    assert ours.PackedSequence is theirs.PackedSequence
    assert isinstance(ours.pack_sequence([A]), theirs.PackedSequence)


def test_torchs_own_layers_take_what_pynn_packs():
    layer = torch.nn.GRU(2, 3, bidirectional=True, dtype=torch.float64)
    results = [m.pad_packed_sequence(layer(m.pack_padded_sequence(X, [3, 2]))[0]) for m in BOTH]
    assert_same(results[1], results[0])


@pytest.mark.slow
def test_import_in_a_fresh_process():
    code = "import pynn.utils.rnn as r; assert r.pad_sequence.__module__ == 'pynn.utils.rnn'"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_list_of_lengths_warns_while_torch_jit_traces():
    for module in BOTH:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.jit.trace(lambda x, m=module: m.pack_padded_sequence(x, [3, 2]).data, X, check_trace=False)
        assert any("Python list of sequence lengths" in str(w.message) for w in seen)
