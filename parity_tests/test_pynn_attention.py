"""Attention against torch's C++: the options of MultiheadAttention, the ATen operators, the errors.

Accuracy is held as everywhere here: float32 against the C++ op's float64 result, no worse than C++.
"""

import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

import pynn
from parity_tests.tolerances import compare
from pynn.definitions import DEFINITIONS

aten = torch.ops.aten
SDPA = pynn.functional.scaled_dot_product_attention
EMBED, HEADS, QUERIES, KEYS, BATCH = 8, 2, 4, 5, 3


def tensor(*shape):
    return torch.randn(*shape)


def in_float64(tree):
    def widen(x):
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return tree_map(widen, tree)


def hold(own, cpp, args, kwargs):
    """Run both on the same arguments and compare every tensor they return."""
    results = [f(*args, **kwargs) for f in (own, cpp)] + [cpp(*in_float64(args), **in_float64(kwargs))]
    for value, theirs, exact in zip(*map(tree_leaves, results), strict=True):
        if theirs is None:
            assert value is None
        else:
            comparison = compare(value, theirs, exact, each=False)
            assert comparison.passed, str(comparison)


# ---- MultiheadAttention ----------------------------------------------------------------------------------

LAYERS = [
    {
        "kdim": kdim,
        "vdim": kdim,
        "bias": bias,
        "add_bias_kv": bias_kv,
        "add_zero_attn": zero,
        "batch_first": first,
    }
    for kdim, bias, bias_kv, zero, first in itertools.product(
        (None, 6), (True, False), (True, False), (True, False), (True, False)
    )
]
CALLS = [
    {"key_padding": padding, "mask": mask, "need_weights": weights, "average_attn_weights": average}
    for padding, mask, weights, average in itertools.product(
        (None, "bool", "float"), (None, "bool", "float"), (True, False), (True, False)
    )
    if weights or average
]


def described(options):
    return "-".join(f"{name}={value}" for name, value in options.items())


def masks(padding, mask, batched):
    """Masks in which every query still sees the first key."""
    rows = BATCH if batched else 1
    hidden = torch.rand(rows, KEYS) > 0.6
    hidden[:, 0] = False
    above = torch.rand(QUERIES, KEYS) > 0.6
    above[:, 0] = False
    found = {}
    if padding:
        hidden = hidden if batched else hidden[0]
        found["key_padding_mask"] = hidden if padding == "bool" else torch.where(hidden, -2.0, 0.5)
    if mask:
        found["attn_mask"] = above if mask == "bool" else tensor(rows * HEADS, QUERIES, KEYS)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", LAYERS, ids=described)
def test_multihead_attention_under_every_option(layer):
    torch.backends.mha.set_fastpath_enabled(False)  # the C++ path of evaluation has its own rows below
    torch.manual_seed(0)
    cpp = torch.nn.MultiheadAttention(EMBED, HEADS, **layer)
    torch.manual_seed(0)
    own = pynn.MultiheadAttention(EMBED, HEADS, **layer)
    wide = torch.nn.MultiheadAttention(EMBED, HEADS, **layer, dtype=torch.float64)
    wide.load_state_dict(cpp.state_dict())

    def reference(*args, **kwargs):
        return (wide if args[0].dtype == torch.float64 else cpp)(*args, **kwargs)

    width = layer["kdim"] or EMBED
    try:
        for call, batched in itertools.product(CALLS, (True, False)):
            options = {k: v for k, v in call.items() if k not in ("key_padding", "mask")}
            shapes = [(QUERIES, EMBED), (KEYS, width), (KEYS, width)]
            if batched:
                shapes = [(BATCH, n, e) if layer["batch_first"] else (n, BATCH, e) for n, e in shapes]
            args = [tensor(*shape) for shape in shapes]
            hold(own, reference, args, options | masks(call["key_padding"], call["mask"], batched))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


# ---- ATen operators --------------------------------------------------------------------------------------

CAUSAL = torch.ones(QUERIES, QUERIES).triu(1).bool()
PADDING = torch.tensor([[False, False, True, True]] * BATCH)
NATIVE_MASKS = [
    (None, None),
    (CAUSAL, 0),
    (PADDING, 1),
    (PADDING | True, 1),  # nothing to attend: NaN
    (CAUSAL.expand(BATCH, HEADS, QUERIES, QUERIES), 2),
    (torch.where(CAUSAL, -math.inf, 0.0).expand(BATCH, HEADS, QUERIES, QUERIES), 2),
]


def projections():
    return tensor(3 * EMBED, EMBED), tensor(3 * EMBED), tensor(EMBED, EMBED), tensor(EMBED)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mask, mask_type", NATIVE_MASKS)
def test_native_multi_head_attention(mask, mask_type):
    op = aten._native_multi_head_attention.default
    x = tensor(BATCH, QUERIES, EMBED)
    for need_weights, average in itertools.product((True, False), (True, False)):
        args = (x, x, x, EMBED, HEADS, *projections(), mask, need_weights, average, mask_type)
        hold(DEFINITIONS[op], op, args, {})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mask, mask_type", NATIVE_MASKS)
def test_transformer_encoder_layer_forward(mask, mask_type):
    op = aten._transformer_encoder_layer_fwd.default
    norms = [tensor(EMBED) for _ in range(4)]
    feed_forward = [tensor(12, EMBED), tensor(12), tensor(EMBED, 12), tensor(EMBED)]
    for gelu, norm_first in itertools.product((True, False), (True, False)):
        x = tensor(BATCH, QUERIES, EMBED)
        args = (
            x,
            EMBED,
            HEADS,
            *projections(),
            gelu,
            norm_first,
            1e-5,
            *norms,
            *feed_forward,
            mask,
            mask_type,
        )
        hold(DEFINITIONS[op], op, args, {})


ROW_OF_NOTHING = torch.zeros(4, 5)
ROW_OF_NOTHING[1] = -math.inf
SDPA_OPTIONS = [
    {},
    {"is_causal": True},
    {"scale": 0.3},
    {"scale": -0.3},
    {"attn_mask": tensor(4, 5)},
    {"attn_mask": ROW_OF_NOTHING},
]


@pytest.mark.parametrize("options", SDPA_OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_flash_attention_and_its_backward(options, kv_heads):
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    q, k, v = tensor(2, 4, 4, 8), tensor(2, kv_heads, 5, 8), tensor(2, kv_heads, 5, 8)
    hold(DEFINITIONS[forward], forward, (q, k, v), options)
    if kv_heads == 4:  # C++ has no backward for shared heads here: autograd expands them before
        out, logsumexp = forward(q, k, v, **options)
        causal = options.get("is_causal", False)
        rest = {name: value for name, value in options.items() if name != "is_causal"}
        args = (tensor(2, 4, 4, 8), q, k, v, out, logsumexp, 0.0, causal)
        hold(DEFINITIONS[backward], backward, args, rest)


@pytest.mark.parametrize("options", SDPA_OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_attention_math(options):
    op = aten._scaled_dot_product_attention_math.default
    q, k, v = tensor(2, 4, 4, 8), tensor(2, 2, 5, 8), tensor(2, 2, 5, 8)
    hold(DEFINITIONS[op], op, (q, k, v), {**options, "enable_gqa": True})
    keep = torch.rand(2, 4, 4, 5) > 0.3
    dropped = {**options, "enable_gqa": True, "dropout_p": 0.3, "dropout_mask": keep}
    hold(DEFINITIONS[op], op, (q, k, v), dropped)


# ---- scaled_dot_product_attention ------------------------------------------------------------------------


def test_dropout_draws_torchs_numbers():
    q, k, v = (tensor(2, 3, 4, 8) for _ in range(3))
    torch.manual_seed(1)
    expected = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
    torch.manual_seed(1)
    own = pynn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
    assert torch.equal(own == 0, expected == 0)
    torch.testing.assert_close(own, expected)


def projected(seq, heads=2, batch=2):
    """[batch, heads, seq, 4], of a projection [batch, seq, heads * 4] that was only transposed."""
    return tensor(batch, seq, heads, 4).transpose(1, 2)


LAYOUTS = {
    "plain": lambda: (projected(3), projected(5), projected(5), {}),
    "causal": lambda: (projected(3), projected(5), projected(5), {"is_causal": True}),
    "masked": lambda: (projected(3), projected(5), projected(5), {"attn_mask": tensor(2, 1, 1, 5)}),
    "three-dimensional mask": lambda: (
        projected(3),
        projected(5),
        projected(5),
        {"attn_mask": tensor(2, 3, 5)},
    ),
    "learned mask": lambda: (
        projected(3),
        projected(5),
        projected(5),
        {"attn_mask": tensor(3, 5).requires_grad_()},
    ),
    "shared heads": lambda: (projected(3, 4), projected(5), projected(5), {"enable_gqa": True}),
    "broadcast keys": lambda: (projected(3), projected(5, batch=1), projected(5, batch=1), {}),
    "wider values": lambda: (projected(3), projected(5), tensor(2, 2, 5, 6), {}),
    "dropout": lambda: (projected(3), projected(5), projected(5), {"dropout_p": 0.5}),
    "half": lambda: tuple(projected(n).half() for n in (3, 5, 5)) + ({},),
    "expanded": lambda: (tensor(1, 2, 3, 4).expand(2, -1, -1, -1), projected(5), projected(5), {}),
    "one projection for three": lambda: (*tensor(2, 3, 3, 2, 4).permute(2, 0, 3, 1, 4), {}),
    "sliced": lambda: (tensor(2, 2, 3, 8)[..., ::2], projected(5), projected(5), {}),
    "no batch": lambda: (projected(3)[0], projected(5)[0], projected(5)[0], {}),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_answers_lie_in_memory_as_torchs(case):
    """Its flash kernel answers in the query's order: out.transpose(1, 2).view(batch, seq, -1) works there."""
    q, k, v, options = LAYOUTS[case]()
    theirs, ours = (f(q, k, v, **options) for f in (F.scaled_dot_product_attention, SDPA))
    assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_multihead_attention_lies_in_memory_as_torchs(with_gradients, batch_first):
    """Of torch's fast path in one piece, elsewhere transposed."""
    x = tensor(3, 2, EMBED)
    layers = [nn.MultiheadAttention(EMBED, HEADS, batch_first=batch_first).eval() for nn in (torch.nn, pynn)]
    with torch.set_grad_enabled(with_gradients):
        theirs, ours = (layer(x, x, x)[0] for layer in layers)
    assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("shape", [(0, 8), (2, 3, 0, 8)])
def test_no_keys_give_zeros(shape):
    q, k = tensor(*shape[:-2], 4, 8), tensor(*shape)
    assert torch.equal(pynn.functional.scaled_dot_product_attention(q, k, k), torch.zeros_like(q))


@pytest.mark.slow
def test_all_derivatives():
    q, k, v = (torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])

    def attend(q, k, v):
        return pynn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(attend, (q, k, v), **options)
    assert torch.autograd.gradgradcheck(attend, (q, k, v))


BAD_INPUT = {
    "one axis": ((tensor(3), tensor(3), tensor(3)), {}),
    "mixed dtypes": ((tensor(3, 4), tensor(5, 4).double(), tensor(5, 4)), {}),
    "mixed devices": ((tensor(3, 4), tensor(5, 4).to("meta"), tensor(5, 4)), {}),
    "mask and causal": ((tensor(3, 4),) * 3, {"attn_mask": torch.zeros(3, 3), "is_causal": True}),
    "integer mask": ((tensor(3, 4),) * 3, {"attn_mask": torch.ones(3, 3, dtype=torch.int32)}),
    "double mask": ((tensor(3, 4),) * 3, {"attn_mask": torch.ones(3, 3, dtype=torch.float64)}),
    "dropout above 1": ((tensor(3, 4),) * 3, {"dropout_p": 1.5}),
    "head counts": ((tensor(1, 4, 3, 4), tensor(1, 3, 5, 4), tensor(1, 3, 5, 4)), {"enable_gqa": True}),
    "no head axis": ((tensor(3, 4),) * 3, {"enable_gqa": True}),
    "widths": ((tensor(3, 4), tensor(5, 6), tensor(5, 4)), {}),
    "mask shape": ((tensor(3, 4), tensor(5, 4), tensor(5, 4)), {"attn_mask": torch.zeros(4, 5)}),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_raises_what_torch_raises(case):
    args, kwargs = BAD_INPUT[case]
    raised = []
    for function in (F.scaled_dot_product_attention, pynn.functional.scaled_dot_product_attention):
        with pytest.raises((RuntimeError, IndexError)) as error:
            function(*args, **kwargs)
        raised.append((error.type, str(error.value).removesuffix("query")))
    if case not in ("widths", "mask shape"):  # there the words are matmul's and add's
        assert raised[0] == raised[1]


HEADS_OF_4 = (tensor(2, 3, 5, 4),) * 3
FOR_KERNELS = {
    "plain": HEADS_OF_4,
    "broadcast": (*HEADS_OF_4[:2], tensor(1, 3, 5, 4)),
    "no heads": (tensor(3, 5, 4),) * 3,
    "half": (tensor(2, 3, 5, 4).half(),) * 3,
    "a mask that learns": (*HEADS_OF_4, torch.zeros(5, 5, requires_grad=True)),
    "dropout": (*HEADS_OF_4, None, 0.5),
    "no queries": (tensor(2, 3, 0, 4),) * 3,
}


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "ERROR"])
@pytest.mark.parametrize("case", FOR_KERNELS)
@pytest.mark.filterwarnings("ignore")
def test_what_no_kernel_that_is_asked_for_takes_is_refused(case, backend):
    """TestSDPAFailureModes of torch's test_transformers.py: within sdpa_kernel, in the same words."""
    found = []
    with pynn.attention.sdpa_kernel(pynn.attention.SDPBackend.__members__[backend]):
        for function in (F.scaled_dot_product_attention, pynn.functional.scaled_dot_product_attention):
            try:
                found.append(function(*FOR_KERNELS[case]).shape)
            except RuntimeError as error:
                found.append(str(error))
    assert found[0] == found[1]


def bad_calls():
    """Keyword arguments of multi_head_attention_forward that do not fit."""
    q, k = tensor(QUERIES, BATCH, EMBED), tensor(KEYS, BATCH, EMBED)
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    yield {"query": tensor(2, QUERIES, BATCH, EMBED)}
    yield {"key": tensor(KEYS, EMBED)}
    yield {"key_padding_mask": padding[0]}
    yield {"key_padding_mask": padding[:, :2]}
    yield {"key_padding_mask": padding.int()}
    yield {"attn_mask": torch.zeros(KEYS)}
    yield {"attn_mask": torch.zeros(QUERIES, 2)}
    yield {"attn_mask": torch.zeros(2, QUERIES, KEYS)}
    yield {"query": q[:, 0], "key": k[:, 0], "value": k[:, 0], "attn_mask": torch.zeros(3, QUERIES, KEYS)}
    yield {"is_causal": True}
    yield {"embed_dim_to_check": 6}
    yield {"num_heads": 3}
    yield {"value": tensor(KEYS, BATCH, 6)}
    yield {"in_proj_weight": None}
    yield {"use_separate_proj_weight": True}
    yield {"bias_k": tensor(1, 1, EMBED)}
    yield {"bias_v": tensor(1, 1, EMBED)}
    yield {"bias_k": tensor(1, 1, EMBED), "bias_v": tensor(1, 1, EMBED), "static_k": k}
    yield {"static_k": tensor(2, KEYS, 4)}
    yield {"static_v": tensor(BATCH * HEADS, KEYS, 3)}


@pytest.mark.parametrize("changed", bad_calls(), ids="-".join)
def test_multi_head_attention_forward_refuses_what_torch_refuses(changed):
    arguments = dict(
        query=tensor(QUERIES, BATCH, EMBED),
        key=tensor(KEYS, BATCH, EMBED),
        value=tensor(KEYS, BATCH, EMBED),
        embed_dim_to_check=EMBED,
        num_heads=HEADS,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        **dict(zip(("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias"), projections())),
    )
    raised = []
    for function in (F.multi_head_attention_forward, pynn.functional.multi_head_attention_forward):
        with warnings.catch_warnings(), pytest.raises(Exception) as error:
            warnings.simplefilter("ignore")
            function(**arguments | changed)
        raised.append((error.type, str(error.value)))
    assert raised[0] == raised[1]
