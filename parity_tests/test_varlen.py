"""varlen_attn against one C++ attention per sequence, and its derivatives; torch has none of it on the CPU."""

import math

import pytest
import torch
import torch.nn.attention.varlen as torch_varlen
import torch.nn.functional as F

from parity_tests.tolerances import compare
from parity_tests.torch_version import IS_OLDER
from pynn.attention import varlen

HEADS, DIM = 4, 8
pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = {
    "even": ((4, 4), (4, 4)),
    "uneven": ((3, 5, 1), (3, 5, 1)),
    "more keys": ((2, 1, 4), (5, 4, 4)),
    "fewer keys": ((5, 3), (2, 3)),
    "an empty sequence": ((3, 0, 2), (3, 2, 0)),
}
WINDOWS = [(-1, -1), (-1, 0), (2, 0), (1, 1), (0, -1)]


def starts(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def packed(q_lengths, k_lengths, shared_heads=HEADS, dtype=torch.float32):
    shapes = [(sum(q_lengths), HEADS, DIM), *[(sum(k_lengths), shared_heads, DIM)] * 2]
    args = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return args, (starts(q_lengths), starts(k_lengths), max(q_lengths), max(k_lengths))


def one_by_one(q, k, v, begin_q, begin_k, window, attend=F.scaled_dot_product_attention):
    """One C++ attention per sequence, its window a boolean mask."""
    outs = []
    for n in range(len(begin_q) - 1):
        parts = [
            x[begin[n] : begin[n + 1]].transpose(0, 1)
            for x, begin in ((q, begin_q), (k, begin_k), (v, begin_k))
        ]
        queries, keys = parts[0].shape[1], parts[1].shape[1]
        distance = torch.arange(keys) - torch.arange(queries).unsqueeze(-1) - (keys - queries)
        mask = torch.ones(queries, keys, dtype=torch.bool)
        for limit, within in zip(window, (distance >= -window[0], distance <= window[1]), strict=True):
            mask = mask if limit < 0 else mask & within
        outs.append(attend(*parts, attn_mask=mask, enable_gqa=True).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("shared_heads", [HEADS, 2])
def test_varlen_is_attention_in_each_sequence(lengths, window, shared_heads):
    torch.manual_seed(0)
    args, sizes = packed(*LENGTHS[lengths], shared_heads)
    own = varlen.varlen_attn(*args, *sizes, window_size=window, enable_gqa=shared_heads != HEADS)
    cpp = one_by_one(*args, *sizes[:2], window)
    wide = [x.detach().double().requires_grad_() for x in args]
    exact = one_by_one(*wide, *sizes[:2], window)
    weight = torch.randn_like(own)
    triples = [(own, cpp, exact)]
    grads = [
        torch.autograd.grad((out * weight).sum(), of) for out, of in ((own, args), (cpp, args), (exact, wide))
    ]
    for value, theirs, reference in triples + list(zip(*grads, strict=True)):
        comparison = compare(value, theirs, reference, each=False)
        assert comparison.passed, str(comparison)


def test_varlen_lse_and_out():
    args, sizes = packed((3, 0, 2), (3, 2, 4))
    out, lse = varlen.varlen_attn(*args, *sizes, return_aux=varlen.AuxRequest(lse=True))
    assert lse.shape == (HEADS, 5)
    q, k = args[0][3:], args[1][5:]
    expected = torch.logsumexp(torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(DIM), -1)
    torch.testing.assert_close(lse[:, 3:], expected)
    place = torch.empty_like(out)
    with torch.no_grad():
        assert varlen.varlen_attn_out(place, *args, *sizes) is place
    assert torch.equal(place, out)


def test_varlen_pages_and_used_keys():
    """Keys in pages of 2, in any order, of which the last is half used: as if they lay end to end."""
    torch.manual_seed(0)
    (q, k, v), sizes = packed((2, 1), (3, 4))
    table, used = torch.tensor([[4, 0], [1, 3]], dtype=torch.int32), torch.tensor([3, 4], dtype=torch.int32)
    pages = [torch.full((5, 2, HEADS, DIM), math.nan) for _ in range(2)]
    with torch.no_grad():
        for paged, tokens in zip(pages, (k, v), strict=True):
            for sequence, (begin, count) in enumerate(((0, 3), (3, 4))):
                for place in range(count):
                    paged[table[sequence, place // 2], place % 2] = tokens[begin + place]
    own = varlen.varlen_attn(
        q, *pages, sizes[0], None, 2, 4, seqused_k=used, block_table=table, window_size=(-1, 0)
    )
    torch.testing.assert_close(own, varlen.varlen_attn(q, k, v, *sizes, window_size=(-1, 0)))
    shorter = varlen.varlen_attn(q, k, v, *sizes, seqused_k=torch.tensor([2, 4]))
    fewer = varlen.varlen_attn(
        q, torch.cat([k[:2], k[3:]]), torch.cat([v[:2], v[3:]]), sizes[0], starts((2, 4)), 2, 4
    )
    torch.testing.assert_close(shorter, fewer)


def test_varlen_all_derivatives():
    args, sizes = packed((2, 3), (2, 1), dtype=torch.float64)

    def attend(q, k, v):
        return varlen.varlen_attn(q, k, v, *sizes, window_size=(-1, 0))

    small_args = [x[..., :1, :2].detach().requires_grad_() for x in args]
    assert torch.autograd.gradcheck(attend, small_args, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(attend, small_args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_varlen_in_16_bits_computes_in_float32(dtype):
    args, sizes = packed((3, 5), (3, 5), dtype=dtype)
    own = varlen.varlen_attn(*args, *sizes)
    assert torch.equal(own, varlen.varlen_attn(*[x.float() for x in args], *sizes).to(dtype))


def test_torch_has_no_varlen_on_the_cpu():
    args, sizes = packed((3, 5), (3, 5))
    with pytest.raises(NotImplementedError):
        torch_varlen.varlen_attn(*args, *sizes)
    assert varlen.varlen_attn(*args, *sizes).shape == args[0].shape


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow), "pynn"])
def test_varlen_compiled(backend):
    torch._dynamo.reset()
    args, sizes = packed((3, 5, 1), (3, 5, 1))
    own = torch.compile(varlen.varlen_attn, backend=backend)(*args, *sizes)
    expected = varlen.varlen_attn(*args, *sizes)
    torch.testing.assert_close(own, expected)
    grads = [torch.autograd.grad(out.square().sum(), args) for out in (own, expected)]
    torch.testing.assert_close(*grads)


def test_varlen_of_nothing():
    """No tokens at all, no keys, and tokens that no sequence holds."""
    (q, k, v), _ = packed((3, 2), (3, 2))
    assert varlen.varlen_attn(q[:0], k[:0], v[:0], starts((0,)), starts((0,)), 0, 0).shape == q[:0].shape
    no_keys = (starts((3, 2)), starts((0, 0)), 3, 0)
    out, lse = varlen.varlen_attn(q, k[:0], v[:0], *no_keys, return_aux=varlen.AuxRequest(lse=True))
    assert torch.equal(out, torch.zeros_like(q)) and torch.equal(lse, torch.full((HEADS, 5), -math.inf))
    out = varlen.varlen_attn(q, k, v, starts((3,)), starts((3,)), 3, 3)
    assert torch.equal(out[3:], torch.zeros_like(q[3:])) and out[:3].abs().min() > 0


def test_varlen_under_transforms():
    (q, k, v), sizes = packed((3, 2), (3, 2))
    many = torch.stack([q, q + 1])
    together = torch.vmap(lambda q: varlen.varlen_attn(q, k, v, *sizes))(many)
    torch.testing.assert_close(together[1], varlen.varlen_attn(q + 1, k, v, *sizes))
    on_meta = [x.to("meta") for x in (q, k, v, *sizes[:2])]
    assert varlen.varlen_attn(*on_meta, *sizes[2:]).shape == q.shape


class Packed(torch.nn.Module):
    def forward(self, q, k, v, begin_q, begin_k):
        return varlen.varlen_attn(q, k, v, begin_q, begin_k, 5, 5, window_size=(-1, 0))


def test_export():
    args, sizes = packed((3, 5), (3, 5))
    args = [x.detach() for x in args]
    exported = torch.export.export(Packed(), (*args, *sizes[:2])).module()
    torch.testing.assert_close(exported(*args, *sizes[:2]), Packed()(*args, *sizes[:2]))


@pytest.mark.parametrize("options", [{}, {"enable_gqa": True}, {"window_size": (1, 2, 3)}], ids=str)
def test_varlen_bad_input(options):
    heads = HEADS if "window_size" in options else 3
    if IS_OLDER and heads == 3:
        pytest.skip("torch 2.11 has no enable_gqa and leaves the heads to its kernel")
    args, sizes = packed((3,), (3,), heads)
    raised = []
    for function in (torch_varlen.varlen_attn, varlen.varlen_attn):
        with pytest.raises(ValueError) as error:
            function(*args, *sizes, **options)
        raised.append(str(error.value))
    assert raised[0] == raised[1]
