"""Recurrent layers beyond the table's rows: packed sequences, dropout, bad calls; and what torch's cannot do."""

import copy
import inspect

import pytest
import torch
from torch import Tensor
from torch.nn.utils import rnn as torch_rnn
from torch.utils._pytree import tree_leaves

import pynn

CONFIGURATIONS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "dropout": {"num_layers": 3, "dropout": 0.4},
    "no bias": {"bias": False, "bidirectional": True},
}
LAYERS = [(name, kind) for name in ("RNN", "GRU", "LSTM") for kind in CONFIGURATIONS]
LAYERS += [("LSTM", "projection"), ("RNN", "relu")]
CONFIGURATIONS |= {
    "projection": {"proj_size": 2, "num_layers": 2, "bidirectional": True},
    "relu": {"nonlinearity": "relu"},
}


def pair(name: str, kind: str = "plain") -> tuple[torch.nn.Module, torch.nn.Module]:
    """torch's layer and pynn's, from the same seed, in float64."""
    layers = []
    for nn in (torch.nn, pynn):
        torch.manual_seed(0)
        layers.append(getattr(nn, name)(3, 4, dtype=torch.float64, **CONFIGURATIONS[kind]))
    return layers[0], layers[1]


def seeded(function, *args):
    torch.manual_seed(1)
    return function(*args)


def assert_same(found, wanted) -> None:
    for ours, theirs in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        if isinstance(theirs, Tensor):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name, kind", LAYERS)
@pytest.mark.parametrize("is_sorted", [True, False])
def test_packed_sequences_give_torchs_values_and_gradients(name: str, kind: str, is_sorted: bool):
    theirs, ours = pair(name, kind)
    x = torch.randn(6, 6, 3, dtype=torch.float64)
    lengths = [6, 5, 5, 2, 1, 1] if is_sorted else [1, 5, 2, 6, 1, 5]
    packed = torch_rnn.pack_padded_sequence(x, lengths, theirs.batch_first, is_sorted)
    wanted, found = seeded(theirs, packed), seeded(ours, packed)
    assert isinstance(found[0], torch_rnn.PackedSequence)
    assert_same(found, wanted)
    gradients = [
        torch.autograd.grad(out[0].data.square().sum(), list(layer.parameters()))
        for out, layer in ((wanted, theirs), (found, ours))
    ]
    assert_same(gradients[1], gradients[0])
    again = seeded(theirs, packed, wanted[1]), seeded(ours, packed, found[1])
    assert_same(again[1], again[0])


@pytest.mark.parametrize("name, kind", LAYERS)
def test_equal_seeds_drop_the_same(name: str, kind: str):
    theirs, ours = pair(name, kind)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    for inputs in (x, x[0]):
        assert_same(seeded(ours, inputs), seeded(theirs, inputs))


zeros = torch.zeros
BAD_LAYER_CALLS = [
    lambda h: (zeros(5, 2, 2),), lambda h: (zeros(5),), lambda h: (zeros(5, 2, 3).double(),),
    lambda h: (zeros(5, 2, 3), h(1, 3, 4)), lambda h: (zeros(5, 2, 3), h(2, 4)), lambda h: (zeros(5, 3), h(1, 2, 4)),
    lambda h: (zeros(5, 2, 3), h(2, 2, 4)), lambda h: (zeros(0, 2, 3),),
]  # fmt: skip
BAD_CELL_CALLS = [
    lambda h: (zeros(2, 2),), lambda h: (zeros(5, 2, 3),), lambda h: (zeros(2, 3).double(),),
    lambda h: (zeros(2, 3), h(3, 4)), lambda h: (zeros(2, 3), h(2, 5)), lambda h: (zeros(2, 3), h(1, 2, 4)),
    lambda h: (zeros(3), h(1, 4)),
]  # fmt: skip


def outcome(function, *args) -> str:
    try:
        function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_bad_calls_raise_as_torchs(name: str):
    theirs, ours = (getattr(nn, name)(3, 4) for nn in (torch.nn, pynn))
    state = (
        (lambda *shape: (zeros(shape), zeros(shape)))
        if name.startswith("LSTM")
        else (lambda *shape: zeros(shape))
    )
    for make in BAD_CELL_CALLS if name.endswith("Cell") else BAD_LAYER_CALLS:
        wanted = outcome(theirs, *make(state))
        assert wanted != "no error" and outcome(ours, *make(state)) == wanted


NO_PAIRS = [
    lambda: zeros(2, 4), lambda: zeros(2, 2, 4), lambda: (), lambda: (zeros(2, 4),), lambda: (zeros(2, 4),) * 3,
]  # fmt: skip
NO_PAIRS_OF_LAYERS = [
    lambda: zeros(1, 2, 4),
    lambda: (),
    lambda: (zeros(1, 2, 4),),
    lambda: (zeros(1, 2, 4),) * 3,
]


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_lstm_refuses_a_state_that_is_no_pair(name: str):
    """A tensor (a common mistake) was asked for its truth value, or taken apart along its first dimension."""
    theirs, ours = (getattr(nn, name)(3, 4) for nn in (torch.nn, pynn))
    is_cell = name.endswith("Cell")
    for make in NO_PAIRS if is_cell else NO_PAIRS_OF_LAYERS:
        x = zeros(2, 3) if is_cell else zeros(5, 2, 3)
        wanted = outcome(theirs, x, make())
        assert wanted != "no error" and outcome(ours, x, make()) == wanted
    if is_cell:  # without a batch the parts are read by their index, so a tensor does
        assert outcome(theirs, zeros(3), zeros(2, 4)) == outcome(ours, zeros(3), zeros(2, 4)) == "no error"


# ---- where torch fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_vmap_works_where_torch_fails(name: str):
    theirs, ours = pair(name)
    x = torch.randn(7, 5, 2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda x: theirs(x)[0])(x)
    mapped = torch.func.vmap(lambda x: ours(x)[0])(x)
    assert_same(mapped, torch.stack([theirs(each)[0] for each in x]))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_per_sample_gradients(name: str):
    theirs, ours = pair(name)
    parameters = {key: value.detach() for key, value in ours.named_parameters()}
    x = torch.randn(4, 5, 3, dtype=torch.float64)

    def loss(parameters, sequence):
        return torch.func.functional_call(ours, parameters, (sequence,))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for number, sequence in enumerate(x):
        gradients = torch.autograd.grad(theirs(sequence)[0].square().sum(), list(theirs.parameters()))
        assert_same([found[key][number] for key in parameters], gradients)


def test_forward_mode_works_where_torchs_lstm_fails():
    theirs, ours = pair("LSTM")
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    tangent = torch.randn_like(x)
    _, found = torch.func.jvp(lambda x: ours(x)[0], (x,), (tangent,))
    step = 1e-6
    wanted = (theirs(x + step * tangent)[0] - theirs(x - step * tangent)[0]) / (2 * step)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_twice_differentiable(name: str):
    _, ours = pair(name, "deep")
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ours(x)[0], (x,), fast_mode=True)


# ---- what people do with layers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_weight_norm_deepcopy_and_compile(name: str):
    theirs, ours = pair(name)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    normed = [
        torch.nn.utils.parametrizations.weight_norm(copy.deepcopy(m), "weight_hh_l0") for m in (theirs, ours)
    ]
    assert_same(normed[1](x), normed[0](x))
    assert_same(pynn.compile(ours)(x), theirs(x))
    assert (
        inspect.signature(type(ours).forward).parameters.keys()
        == inspect.signature(type(theirs).forward).parameters.keys()
    )


# ---- packing ---------------------------------------------------------------------------------------------

ROWS = [torch.arange(8.0).view(4, 2), torch.arange(4.0).view(2, 2) + 10, torch.arange(2.0).view(1, 2) + 20]
PADDED = torch.arange(24.0).view(4, 3, 2)
PACKED = torch_rnn.pack_padded_sequence(PADDED, [1, 2, 4], enforce_sorted=False)
PACKING = {
    "pack": lambda rnn: rnn.pack_padded_sequence(PADDED, torch.tensor([4, 2, 1])),
    "pack unsorted": lambda rnn: rnn.pack_padded_sequence(PADDED, [2, 4, 1], enforce_sorted=False),
    "pack batch first": lambda rnn: rnn.pack_padded_sequence(PADDED.transpose(0, 1), [4, 4, 1], True),
    "pack vectors": lambda rnn: rnn.pack_padded_sequence(PADDED[:, :, 0].long(), [3, 2, 1]),
    "not sorted": lambda rnn: rnn.pack_padded_sequence(PADDED, [1, 2, 3]),
    "length 0": lambda rnn: rnn.pack_padded_sequence(PADDED, [2, 1, 0]),
    "too few lengths": lambda rnn: rnn.pack_padded_sequence(PADDED, [2, 1]),
    "empty": lambda rnn: rnn.pack_padded_sequence(PADDED[:0], [2, 1, 1]),
    "lengths in 2d": lambda rnn: rnn.pack_padded_sequence(PADDED, torch.tensor([[2, 1, 1]])),
    "unpack": lambda rnn: rnn.pad_packed_sequence(PACKED),
    "unpack longer": lambda rnn: rnn.pad_packed_sequence(PACKED, True, -1.0, 7),
    "unpack shorter": lambda rnn: rnn.pad_packed_sequence(PACKED, total_length=2),
    "unpack list": lambda rnn: rnn.unpack_sequence(PACKED),
    "pad": lambda rnn: rnn.pad_sequence(ROWS),
    "pad left": lambda rnn: rnn.pad_sequence(ROWS, True, 2.0, "left"),
    "pad a tensor": lambda rnn: rnn.pad_sequence(PADDED),
    "pad mixed dtypes": lambda rnn: rnn.pad_sequence([ROWS[0], ROWS[1].double()]),
    "pad nothing": lambda rnn: rnn.pad_sequence([]),
    "pad a number": lambda rnn: rnn.pad_sequence(3),
    "pad up": lambda rnn: rnn.pad_sequence(ROWS, padding_side="up"),
    "pad unequal": lambda rnn: rnn.pad_sequence([torch.ones(3, 2), torch.ones(2, 3)]),
    "pack list": lambda rnn: rnn.pack_sequence(ROWS),
    "pack list unsorted": lambda rnn: rnn.pack_sequence(ROWS[::-1], enforce_sorted=False),
    "pack list not sorted": lambda rnn: rnn.pack_sequence(ROWS[::-1]),
}


@pytest.mark.parametrize("case", PACKING)
def test_packing_does_what_torchs_does(case: str):
    results = []
    for rnn in (torch_rnn, pynn.utils.rnn):
        try:
            found = PACKING[case](rnn)
            results.append(
                [None if t is None else (t.tolist(), t.dtype, t.stride()) for t in tree_leaves(tuple(found))]
            )
        except Exception as error:
            results.append((type(error), str(error)))
    assert results[1] == results[0]


def test_packing_is_differentiable():
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)

    def round_trip(x):
        packed = pynn.utils.rnn.pack_padded_sequence(x, [4, 2, 1])
        return pynn.utils.rnn.pad_packed_sequence(packed)[0]

    assert torch.autograd.gradcheck(round_trip, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(round_trip, (x,))


# ---- what stands around a layer --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_dynamo_captures_no_more_than_of_torchs_layer(name: str):
    """Bug: Dynamo breaks at torch's forward, and then unrolled pynn's loop over time into a graph."""
    x, operations = torch.randn(5, 3, 4), []
    for nn in (torch.nn, pynn):
        torch._dynamo.reset()
        explained = torch._dynamo.explain(torch.nn.Sequential(getattr(nn, name)(4, 6, 2)))(x)
        operations.append(sum(len(graph.graph.nodes) for graph in explained.graphs))
    torch._dynamo.reset()
    assert operations[1] <= operations[0]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_replica_for_data_parallel(name: str):
    """Bug: a replica has its weights in _flat_weights alone, and pynn looked for the parameters."""
    layer, x = getattr(pynn, name)(4, 6, 2, bidirectional=True), torch.randn(5, 3, 4)
    assert torch.equal(layer._replicate_for_data_parallel()(x)[0], layer(x)[0])
