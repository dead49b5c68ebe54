"""flex_attention: values against torch's, and what torch's cannot do on the CPU; names of torch.nn.attention.

torch's eager flex_attention runs forward only; the gradients are held against autograd of the formula with
every score written out in float64.
"""

import inspect
import math

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
import torch.nn.attention.varlen as torch_varlen
import torch.nn.functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask

import pynn
from parity_tests.elementary import is_elementary
from parity_tests.test_purity import Recorder
from parity_tests.test_varlen import packed
from parity_tests.tolerances import compare
from parity_tests.torch_version import IS_OLDER, assert_torchs_parameters, words
from pynn.attention import bias, flex_attention, varlen

BATCH, HEADS, QUERIES, KEYS, DIM = 2, 4, 7, 9, 8
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def torch_runs_directly(monkeypatch):
    """torch's function hands the operation to Dynamo, which gives it back as it was: a quarter of a second a call."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


# ---- score functions and masks: (table, score, b, h, q, k) -> score and (b, h, q, k) -> bool --------------

DOCUMENT_OF = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
SCORES = {
    "none": None,
    "relative": lambda table, s, b, h, q, k: s + (q - k),
    "alibi": lambda table, s, b, h, q, k: s + torch.exp2(-(h + 1) * 8.0 / HEADS) * (k - q),
    "soft_cap": lambda table, s, b, h, q, k: 3 * torch.tanh(s / 3),
    "learned_bias": lambda table, s, b, h, q, k: s + table[h, q - k + KEYS],
    "learned_first_row": lambda table, s, b, h, q, k: s * table[0, k],
    "batch_bias": lambda table, s, b, h, q, k: s + table[b, h],
    "causal": lambda table, s, b, h, q, k: torch.where(q >= k, s, -math.inf),
}
MASKS = {
    "none": None,
    "causal": lambda b, h, q, k: q >= k,
    "window": lambda b, h, q, k: (q - k).abs() <= 2,
    "document": lambda b, h, q, k: DOCUMENT_OF[q] == DOCUMENT_OF[k],
    "empty_rows": lambda b, h, q, k: (q >= k) & (q != 2) & (b == 0),
    "prefix_or_causal": torch_flex.or_masks(lambda b, h, q, k: k < 3, lambda b, h, q, k: q >= k),
    "by_head": torch_flex.and_masks(lambda b, h, q, k: h != 1, lambda b, h, q, k: q >= k),
}
TABLE = torch.linspace(-1, 1, HEADS * 2 * KEYS).reshape(HEADS, 2 * KEYS)


def inputs(dtype=torch.float32, batch=BATCH, shared_heads=HEADS, **options):
    shapes = [(batch, HEADS, QUERIES, DIM), (batch, shared_heads, KEYS, DIM), (batch, shared_heads, KEYS, 5)]
    return [torch.randn(shape).to(dtype).requires_grad_(**options) for shape in shapes]


def block_mask(name):
    if MASKS[name] is None:
        return None
    return create_block_mask(MASKS[name], BATCH, HEADS, QUERIES, KEYS, device="cpu", BLOCK_SIZE=4)


def with_table(name, table):
    score = SCORES[name]
    return None if score is None else lambda *args: score(table.to(args[0].dtype), *args)


def score_by_score(q, k, v, score_mod, mask_mod):
    """The formula, with one call of score_mod and mask_mod for each score, and softmax as its definition."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    products = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    rows = []
    for b, h, i in torch.cartesian_prod(*map(torch.arange, products.shape[:3])):
        scores = []
        for j in torch.arange(products.shape[3]):
            score = products[b, h, i, j]
            score = score if score_mod is None else score_mod(score, b, h, i, j)
            visible = mask_mod is None or bool(mask_mod(b, h, i, j))
            scores.append(torch.exp(score) if visible else torch.zeros_like(score))
        weights = torch.stack(scores)
        total = weights.sum()
        rows.append((weights / torch.where(total == 0, 1.0, total)) @ v[b, h])
    return torch.stack(rows).reshape(*products.shape[:3], -1)


PAIRS = [(score, "none") for score in SCORES] + [("learned_bias", mask) for mask in MASKS if mask != "none"]
pairs = pytest.mark.parametrize("score, mask", PAIRS)


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_values_and_lse_are_torchs(score, mask, dtype, torch_runs_directly):
    torch.manual_seed(0)
    args = [x.detach() for x in inputs(dtype)]
    options = {"block_mask": block_mask(mask), "return_aux": AuxRequest(lse=True)}
    if mask == "empty_rows":
        assert options["block_mask"].mask_mod(*map(torch.tensor, (1, 0, 3, 3))).item() is False
    mod = with_table(score, TABLE)
    own, cpp = (f(*args, mod, **options) for f in (flex_attention.flex_attention, torch_flex.flex_attention))
    exact = torch_flex.flex_attention(*[x.double() for x in args], mod, **options)
    for value, theirs, reference in zip((own[0], own[1].lse), (cpp[0], cpp[1].lse), (exact[0], exact[1].lse)):
        assert value.dtype == theirs.dtype and value.stride() == theirs.stride()
        comparison = compare(value, theirs, reference, each=False)
        assert comparison.passed, str(comparison)


def test_torch_running_directly_computes_the_same(request):
    """What the test above takes for torch's values."""
    args = [*(x.detach() for x in inputs()), with_table("learned_bias", TABLE), block_mask("causal")]
    options = {"return_aux": AuxRequest(lse=True)}
    expected, aux = torch_flex.flex_attention(*args, **options)
    request.getfixturevalue("torch_runs_directly")
    found, own_aux = torch_flex.flex_attention(*args, **options)
    assert torch.equal(found, expected) and torch.equal(own_aux.lse, aux.lse)


@pairs
@pytest.mark.parametrize("shared_heads", [HEADS, 1])
def test_gradients_are_those_of_the_formula(score, mask, shared_heads):
    torch.manual_seed(0)
    leaves = [*inputs(torch.float64, shared_heads=shared_heads), TABLE.double().requires_grad_()]
    weight = torch.randn(BATCH, HEADS, QUERIES, 5, dtype=torch.float64)

    def gradients(out):
        grads = torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]

    q, k, v, table = leaves
    own = flex_attention.flex_attention(
        q, k, v, with_table(score, table), block_mask(mask), enable_gqa=shared_heads != HEADS
    )
    formula = score_by_score(q, k, v, with_table(score, table), MASKS[mask])
    torch.testing.assert_close(own, formula)
    torch.testing.assert_close(gradients(own), gradients(formula))


def attend_with_table(q, k, v, table):
    mask = create_block_mask(MASKS["empty_rows"], None, None, 4, 5, device="cpu")
    result, aux = flex_attention.flex_attention(
        q, k, v, lambda s, b, h, i, j: s + table[h, i - j + 5], mask, return_aux=AuxRequest(True, True)
    )
    return result, aux.lse[:1, :, :2], aux.max_scores[:1, :, :2]  # rows that see a key


def small():
    shapes = [(1, 2, 4, 3), (1, 2, 5, 3), (1, 2, 5, 2), (2, 10)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.slow
def test_all_derivatives():
    torch.manual_seed(0)
    options = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(attend_with_table, small(), **options)
    assert torch.autograd.gradgradcheck(attend_with_table, small())


def test_vmap():
    torch.manual_seed(0)
    many = [torch.stack([x, x + 1]).detach() for x in small()]
    together = torch.vmap(attend_with_table)(*many)
    for i in range(2):
        for value, alone in zip(together, attend_with_table(*[x[i] for x in many]), strict=True):
            torch.testing.assert_close(value[i], alone)
    grads = torch.vmap(torch.func.grad(lambda *args: attend_with_table(*args)[0].sum(), argnums=(0, 3)))(
        *many
    )
    assert grads[0].shape == many[0].shape and grads[1].shape == many[3].shape


def test_torch_refuses_the_gradient_on_the_cpu():
    """... and pynn has it, also where a tracer follows."""
    q, k, v = inputs()
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        torch_flex.flex_attention(q, k, v)
    with pytest.raises(NotImplementedError, match="max scores is not supported on CPU"):
        torch_flex.flex_attention(q.detach(), k.detach(), v.detach(), return_aux=AuxRequest(max_scores=True))
    flex_attention.flex_attention(q, k, v).sum().backward()
    assert all(x.grad is not None for x in (q, k, v))


SLOW_BACKENDS = [pytest.param(name, marks=pytest.mark.slow) for name in ("eager", "aot_eager")]


@pytest.mark.slow
@pytest.mark.parametrize("backend", [*SLOW_BACKENDS, "pynn"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_compiled(backend, requires_grad):
    torch._dynamo.reset()
    torch.manual_seed(0)
    q, k, v = inputs(torch.float64, requires_grad=requires_grad)
    mask, mod = block_mask("causal"), with_table("learned_bias", TABLE)

    def attend(q, k, v):
        return flex_attention.flex_attention(q, k, v, mod, mask)

    own, expected = torch.compile(attend, backend=backend)(q, k, v), attend(q, k, v)
    torch.testing.assert_close(own, expected)
    if requires_grad:
        grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (own, expected)]
        torch.testing.assert_close(*grads)


def test_meta_and_no_scores():
    q, k, v = inputs()
    out = flex_attention.flex_attention(*[x.to("meta") for x in (q, k, v)], lambda s, b, h, i, j: s * 2)
    assert out.is_meta and out.shape == (BATCH, HEADS, QUERIES, 5)
    nothing = flex_attention.flex_attention(q[:0], k[:0], v[:0], with_table("relative", TABLE))
    assert nothing.shape == (0, HEADS, QUERIES, 5)


def distance_added(s, b, h, q, k):
    return s + (q - k)


class Flexible(torch.nn.Module):
    def forward(self, q, k, v):
        return flex_attention.flex_attention(q, k, v, distance_added)


def test_export():
    """As the operation that torch exports."""
    args = [x.detach() for x in inputs()]
    exported = torch.export.export(Flexible(), tuple(args))
    assert "flex_attention" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(*args), Flexible()(*args))


def test_one_batch_of_keys_for_many():
    q, k, v = (x.detach() for x in inputs())
    args = (q, k[:1], v[:1], None, block_mask("causal"))
    torch.testing.assert_close(flex_attention.flex_attention(*args), torch_flex.flex_attention(*args))


def test_autocast_is_torchs():
    q, k, v = (x.detach() for x in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        own, theirs = flex_attention.flex_attention(q, k, v), torch_flex.flex_attention(q, k, v)
    exact = torch_flex.flex_attention(*[x.bfloat16().double() for x in (q, k, v)])
    comparison = compare(own, theirs, exact, each=False)
    assert own.dtype == torch.bfloat16 and comparison.passed, str(comparison)


def test_layout_is_the_querys():
    q, k, v = (x.detach() for x in inputs())
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert flex_attention.flex_attention(q, k, v).stride() == torch_flex.flex_attention(q, k, v).stride()


SLICED = create_block_mask(lambda b, h, q, k: q >= k, BATCH, 1, 256, 256, device="cpu")
X = torch.zeros(2, 4, 7, 8)
BAD_INPUT = {
    "3 axes": ((X[0], X[0], X[0]), {}),
    "widths": ((X, X[..., :4], X), {}),
    "heads": ((X, X[:, :2], X[:, :2]), {}),
    "shared heads": ((X, X[:, :3], X[:, :3]), {"enable_gqa": True}),
    "batches": ((X, X[:1], X[:1]), {}),
    "batches of the mask": ((X, X[:1], X[:1]), {"block_mask": SLICED[:1]}),
    "sliced mask": ((X, X, X), {"block_mask": SLICED[:, :, :1]}),
    "mask too long": ((X, X, X), {"block_mask": SLICED}),
    "mask too short": ((torch.zeros(2, 4, 300, 8), X, X), {"block_mask": SLICED}),
    "lse twice": ((X, X, X), {"return_lse": True, "return_aux": AuxRequest()}),
    "backend": ((X, X, X), {"kernel_options": {"BACKEND": "no such"}}),
    "backend twice": ((X, X, X), {"kernel_options": {"BACKEND": "AUTO", "FORCE_USE_FLEX_ATTENTION": True}}),
    "devices": ((X, X.to("meta"), X), {}),
    "nested": ((torch.nested.nested_tensor([X[0], X[0]]), X, X), {}),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_raises_what_torch_raises(case):
    args, kwargs = BAD_INPUT[case]
    raised = []
    for function in (torch_flex.flex_attention, flex_attention.flex_attention):
        with pytest.raises(Exception) as error:
            function(*args, **kwargs)
        raised.append((error.type, " ".join(words(error.value).split())))
    if case == "nested" and IS_OLDER:
        raised[0] = (NotImplementedError, "")  # torch 2.11 leaves it to Dynamo to fail
    assert raised[0] == raised[1]


# ---- flex_attention and varlen_attn ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flex_attention", "varlen_attn"])
def test_source(name):
    assert f"def {name}(" in pynn.source(name, show=False)


@pytest.mark.parametrize("name", ["flex_attention", "varlen_attn"])
def test_nothing_outside_the_elementary_list_is_called(name):
    with Recorder() as recorder:
        if name == "flex_attention":
            q, k, v = inputs()
            table = TABLE.clone().requires_grad_()
            mask = block_mask("empty_rows")
            recorder.names.clear()  # create_block_mask is torch's
            out, aux = flex_attention.flex_attention(
                q, k, v, with_table("learned_bias", table), mask, return_aux=AuxRequest(True, True)
            )
            (out.sum() + aux.lse.sum() + aux.max_scores.sum()).backward()
        else:
            args, sizes = packed((3, 0, 2), (3, 2, 4), 2)
            aux = varlen.AuxRequest(lse=True)
            out, lse = varlen.varlen_attn(*args, *sizes, return_aux=aux, enable_gqa=True, window_size=(1, 0))
            (out.sum() + lse.sum()).backward()
    assert sorted(n for n in recorder.names if not is_elementary(n)) == []


@pytest.mark.parametrize(
    "own, theirs",
    [(flex_attention, torch_flex), (varlen, torch_varlen), (bias, torch.nn.attention.bias)],
    ids=["flex_attention", "varlen", "bias"],
)
def test_names_and_signatures_are_torchs(own, theirs):
    assert sorted(own.__all__) == sorted(theirs.__all__)
    for name in theirs.__all__:
        mine, other = getattr(own, name), getattr(theirs, name)
        if inspect.isclass(other):
            assert mine is other
        elif mine is not other:
            assert_torchs_parameters(mine, other)
    assert flex_attention._score_mod_signature is torch_flex._score_mod_signature
    assert isinstance(block_mask("causal"), BlockMask) and flex_attention.BlockMask is BlockMask


# ---- masks written as rules ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [bias.causal_upper_left, bias.causal_lower_right])
@pytest.mark.parametrize("sizes", [(5, 5), (3, 7), (7, 3)], ids=str)
def test_causal_bias(rule, sizes):
    queries, keys = sizes
    q, k, v = torch.randn(2, 3, queries, 8), torch.randn(2, 3, keys, 8), torch.randn(2, 3, keys, 8)
    args = (q, k, v, rule(queries, keys))
    own = pynn.functional.scaled_dot_product_attention(*args)
    torch.testing.assert_close(own, F.scaled_dot_product_attention(*args))
    raised = []
    for function in (F.scaled_dot_product_attention, pynn.functional.scaled_dot_product_attention):
        with pytest.raises(ValueError) as error:
            function(*args, is_causal=True)
        raised.append(str(error.value))
    assert raised[0] == raised[1]


def test_backends_select_no_other_values():
    q = torch.randn(2, 3, 5, 8)
    expected = pynn.functional.scaled_dot_product_attention(q, q, q)
    with pynn.attention.sdpa_kernel([pynn.attention.SDPBackend.MATH]):
        assert torch.equal(pynn.functional.scaled_dot_product_attention(q, q, q), expected)
