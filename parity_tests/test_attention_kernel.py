"""The attention kernels against float64 and torch's C++, and the operator inside torch.compile."""

from __future__ import annotations

import timeit
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from compiler_bridge.capture.attention import (
    attention_backward_definition,
    attention_definition,
)
from compiler_bridge.capture.attention_rewrite import rewrite_attention
from compiler_bridge.capture.random import philox_words, random_uniform
from compiler_bridge.cpu.attention_plan import TensorLayout, plan_attention_backward, plan_attention_forward
from compiler_bridge.cpu.attention_run import attention_backward, attention_forward
from parity_tests.tolerances import FACTOR, FLOOR_ULPS, compare


@dataclass(frozen=True)
class Case:
    """One problem; mask is the shape of a mask, `layout` how q, k and v lie in memory."""

    batch: int = 2
    heads: int = 2
    seq: int = 16
    head_dim: int = 32
    kv_seq: int | None = None
    kv_heads: int | None = None
    value_dim: int | None = None
    causal: bool = False
    scale: float | None = None
    mask: tuple[int, ...] | None = None
    bool_mask: bool = False
    layout: str = "heads first"
    dtype: torch.dtype = torch.float32
    threads: int = 1

    def __str__(self) -> str:
        default = Case()
        changed = {n: v for n, v in vars(self).items() if v != getattr(default, n)}
        return " ".join(f"{n}={v}" for n, v in changed.items()).replace("torch.", "") or "plain"

    def tensor(self, heads: int, seq: int, dim: int) -> Tensor:
        """A random [batch, heads, seq, dim] laid out as the case asks."""
        if self.layout == "heads first":
            x = torch.randn(self.batch, heads, seq, dim)
        elif self.layout == "packed":  # one of three, as q, k and v of one projection
            x = torch.randn(self.batch, seq, 3, heads, dim)[:, :, 1].transpose(1, 2)
        elif self.layout == "dim first":  # columns of a head are apart
            x = torch.randn(self.batch, heads, dim, seq).transpose(2, 3)
        else:  # expanded: one batch entry for all
            x = torch.randn(1, heads, seq, dim).expand(self.batch, -1, -1, -1)
        return x.to(self.dtype)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """q, k, v, grad_out and the mask."""
        kv_heads, kv_seq = self.kv_heads or self.heads, self.seq if self.kv_seq is None else self.kv_seq
        value_dim = self.value_dim or self.head_dim
        q, k = self.tensor(self.heads, self.seq, self.head_dim), self.tensor(kv_heads, kv_seq, self.head_dim)
        v = self.tensor(kv_heads, kv_seq, value_dim)
        grad_out = torch.randn(self.batch, self.heads, self.seq, value_dim).to(self.dtype)
        mask = None
        if self.mask is not None:
            mask = torch.rand(self.mask) > 0.3 if self.bool_mask else torch.randn(self.mask).to(self.dtype)
        return q, k, v, grad_out, mask


CASES = [
    Case(),
    Case(batch=1, heads=1, seq=1, kv_seq=3),
    Case(seq=70, kv_seq=100),
    Case(seq=130, kv_seq=97, head_dim=64),
    Case(seq=128, head_dim=32, batch=4, heads=8, threads=2),
    Case(seq=200, head_dim=64, causal=True, threads=2),
    Case(seq=150, kv_seq=90, causal=True),
    Case(seq=90, kv_seq=150, causal=True),
    Case(seq=33, head_dim=80),
    Case(seq=33, head_dim=128),
    Case(seq=67, head_dim=7, value_dim=3),
    Case(seq=67, head_dim=24, value_dim=40),
    Case(seq=40, scale=0.7),
    Case(seq=40, scale=0.0),
    Case(seq=65, heads=6, kv_heads=2, causal=True),
    Case(seq=65, heads=4, kv_heads=1, threads=3),
    Case(seq=65, layout="packed"),
    Case(seq=65, layout="dim first"),
    Case(seq=65, layout="expanded"),
    Case(seq=65, mask=(2, 2, 65, 65)),
    Case(seq=65, kv_seq=34, mask=(1, 2, 65, 34), threads=2),
    Case(seq=65, mask=(1, 1, 65, 65), causal=True, threads=2),
    Case(seq=65, mask=(2, 1, 1, 65)),
    Case(seq=65, mask=(2, 1, 1, 65), bool_mask=True),
    Case(seq=65, mask=(1, 1, 65, 65), bool_mask=True, heads=4, kv_heads=2),
    Case(seq=65, mask=(2, 2, 65, 1), bool_mask=True),
    Case(seq=65, head_dim=33, dtype=torch.float16, causal=True),
    Case(seq=65, head_dim=32, dtype=torch.bfloat16, mask=(1, 2, 65, 65)),
    Case(seq=65, head_dim=32, dtype=torch.bfloat16, mask=(2, 2, 65, 65), layout="packed"),
]


def reference(case: Case, tensors: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """out, dq, dk, dv (and dmask) of torch's C++ in `dtype`."""
    q, k, v, grad_out, mask = tensors
    leaves = [x.to(dtype, copy=True).contiguous().requires_grad_() for x in (q, k, v)]
    bias = torch.zeros(1, 1, q.shape[2], k.shape[2], dtype=dtype)
    if case.causal:
        bias.masked_fill_(torch.ones(bias.shape[2:], dtype=torch.bool).triu(1), float("-inf"))
    if mask is not None and case.bool_mask:
        bias = bias + torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))
    elif mask is not None:
        leaves.append(mask.to(dtype, copy=True).requires_grad_())
        bias = bias + leaves[-1]
    out = F.scaled_dot_product_attention(*leaves[:3], attn_mask=bias, scale=case.scale, enable_gqa=True)
    out.backward(grad_out.to(dtype))
    return [out.detach(), *[leaf.grad for leaf in leaves]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_as_exact_as_torch(case):
    tensors = case.tensors()
    q, k, v, grad_out, mask = tensors
    mask_grad = mask is not None and not case.bool_mask
    options: dict[str, Any] = dict(mask=mask, causal=case.causal, scale=case.scale, threads=case.threads)
    out, logsumexp = attention_forward(q, k, v, **options)
    wide = grad_out.to(out.dtype)  # the kernels hand out, and take the gradient of, what is not yet rounded
    gradients = attention_backward(wide, q, k, v, out, logsumexp, mask_grad=mask_grad, **options)
    out = out.to(case.dtype)
    results = [out, *gradients] if mask_grad else [out, *gradients[:3]]
    cpp, exact = reference(case, tensors, case.dtype), reference(case, tensors, torch.float64)
    for name, value, other, true in zip(("out", "dq", "dk", "dv", "dmask"), results, cpp, exact):
        comparison = compare(value, other, true, False)
        assert comparison.passed, f"{name}: {comparison}"


@pytest.mark.parametrize("shape", [(2, 1, 65, 1), (1, 1, 65, 1), (1, 2, 1, 1), (2, 2, 1, 1)], ids=str)
def test_gradient_of_a_mask_constant_along_the_keys_vanishes(shape):
    """softmax(x + c) = softmax(x). What rounding leaves is held against the sum of the terms' sizes."""
    case = Case(seq=65, mask=shape)
    tensors = case.tensors()
    q, k, v, grad_out, mask = tensors
    assert mask is not None
    out, logsumexp = attention_forward(q, k, v, mask=mask)
    dmask = attention_backward(grad_out, q, k, v, out, logsumexp, mask=mask, mask_grad=True)[3]
    whole = mask.expand(2, 2, 65, 65)
    terms = attention_backward_definition(
        grad_out, q, k, v, whole, None, out, logsumexp, 0.0, False, case.head_dim**-0.5, False, True
    )[3]
    size = terms.abs().sum_to_size(shape)
    cpp = reference(case, tensors, torch.float32)[-1]
    unit = torch.finfo(torch.float32).eps * size.max()
    assert dmask.abs().max() <= FACTOR * cpp.abs().max() + FLOOR_ULPS * unit


SOME_CASES = [Case(seq=70, head_dim=16), Case(seq=40, kv_seq=99, causal=True, heads=4, kv_heads=2)]


@pytest.mark.parametrize("case", SOME_CASES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_kernels_equal_the_definition(case, dropout):
    """Dropout included: the same weights are dropped in both, forward and backward."""
    q, k, v, grad_out, _ = case.tensors()
    seed = torch.tensor(-(2**40) - 12345)
    scale = case.head_dim**-0.5
    options: dict[str, Any] = dict(seed=seed, dropout=dropout, causal=case.causal)
    out, logsumexp = attention_forward(q, k, v, **options)
    gradients = attention_backward(grad_out, q, k, v, out, logsumexp, **options)
    fixed = (dropout, case.causal, scale, True)
    defined = attention_definition(q, k, v, None, seed, *fixed)
    defined_gradients = attention_backward_definition(grad_out, q, k, v, None, seed, *defined, *fixed, False)
    for value, expected in zip((out, logsumexp, *gradients), (*defined, *defined_gradients), strict=True):
        assert value.stride() == expected.stride()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_definition_backward_is_the_derivative():
    """The written-out backward equals autograd through the definition, with mask, groups and dropout."""
    q, k, v, grad_out, mask = (
        x.double() for x in Case(seq=5, kv_seq=7, heads=4, kv_heads=2, mask=(1, 4, 5, 7)).tensors()
    )
    seed = torch.tensor(3)
    fixed = (0.25, True, 0.4, True)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, mask)]
    out, logsumexp = attention_definition(*leaves, seed, *fixed)
    expected = torch.autograd.grad(out, leaves, grad_out)
    out = out.detach()
    actual = attention_backward_definition(grad_out, q, k, v, mask, seed, out, logsumexp, *fixed, True)
    for value, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, other)


@pytest.mark.parametrize("run", [attention_forward, None], ids=["kernel", "definition"])
def test_rows_without_any_key_give_zero(run):
    q, k, v, grad_out, _ = Case(seq=20).tensors()
    mask = torch.zeros(1, 1, 20, 20)
    mask[0, 0, 3] = float("-inf")
    mask[:, :, :, 5] = float("-inf")
    fixed = (0.0, False, 32**-0.5, False)
    if run is None:
        out, logsumexp = attention_definition(q, k, v, mask, None, *fixed)
        saved = (out, logsumexp)
        gradients = attention_backward_definition(grad_out, q, k, v, mask, None, *saved, *fixed, False)
    else:
        out, logsumexp = run(q, k, v, mask=mask)
        gradients = attention_backward(grad_out, q, k, v, out, logsumexp, mask=mask)
    assert torch.equal(out[:, :, 3], torch.zeros(2, 2, 32)) and (logsumexp[:, :, 3] == 0).all()
    dq, dk, dv, _ = gradients
    assert (dq[:, :, 3] == 0).all() and (dk[:, :, 5] == 0).all() and (dv[:, :, 5] == 0).all()
    assert all(torch.isfinite(g).all() for g in (dq, dk, dv))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_and_infinity_spread_as_in_torch(value, where):
    q, k, v, _, _ = Case(batch=1, heads=1, seq=20).tensors()
    {"q": q, "k": k, "v": v}[where][0, 0, 17, 2] = value
    out, _ = attention_forward(q, k, v)
    expected = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())


@pytest.mark.parametrize("seq, kv_seq, batch", [(0, 5, 2), (5, 0, 2), (0, 0, 1), (5, 5, 0)])
def test_empty_sequences(seq, kv_seq, batch):
    q, k, v, grad_out, _ = Case(batch=batch, seq=seq, kv_seq=kv_seq).tensors()
    out, logsumexp = attention_forward(q, k, v)
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))
    dq, dk, dv, _ = attention_backward(grad_out, q, k, v, out, logsumexp)
    if seq == 0 or kv_seq == 0:
        assert all((gradient == 0).all() for gradient in (dq, dk, dv))


def test_threads_do_not_change_the_result():
    """Forward bit for bit on any number of threads; backward whenever the chunks are the same."""
    q, k, v, grad_out, _ = Case(heads=4, seq=150, causal=True).tensors()
    runs = []
    for threads in (1, 2):
        out, logsumexp = attention_forward(q, k, v, causal=True, threads=threads)
        gradients = attention_backward(grad_out, q, k, v, out, logsumexp, causal=True, threads=threads)
        runs.append((out, *gradients[:3]))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_plain_problems_take_one_step():
    """Nothing to pack, clear or add up; prints what planning costs."""
    layout = TensorLayout((4, 8, 128, 32), (32768, 4096, 32, 1), torch.float32)

    def forward() -> Any:
        return plan_attention_forward(layout, layout, layout, None, layout, False, 1.0, 0.0, 2)

    def backward() -> Any:
        layouts, gradients = [layout] * 4, [layout] * 4
        return plan_attention_backward(*layouts, None, *gradients, False, False, 1.0, 0.0, 2)

    assert len(forward().steps) == len(backward().steps) == 1
    for plan in (forward, backward):
        print(plan.__name__, timeit.timeit(plan, number=100) / 100)


# ---- the operator in graphs -------------------------------------------------------------------------------


def compile_counting(module: nn.Module) -> tuple[Any, list[str]]:
    """The module under torch.compile with attention rewritten, and the operators of the compiled graphs."""
    operators: list[str] = []

    def record(gm: torch.fx.GraphModule, _: Any) -> Any:
        operators.extend(str(node.target) for node in gm.graph.nodes if node.op == "call_function")
        return gm

    compile_graph = aot_autograd(fw_compiler=record, bw_compiler=record)

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        return compile_graph(rewrite_attention(gm), inputs)

    return torch.compile(module, backend=backend), operators


class Attend(nn.Module):
    """scaled_dot_product_attention with fixed options."""

    def __init__(self, **options: Any):
        super().__init__()
        self.options = options

    def forward(self, *tensors: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*tensors, **self.options)


def mask_for(shape: tuple[int, ...], grad: bool = True) -> Tensor:
    return torch.randn(shape).requires_grad_(grad)


REWRITTEN = {
    "plain": (Attend(), [(2, 3, 8, 16)] * 3),
    "causal": (Attend(is_causal=True, scale=0.3), [(2, 3, 8, 16)] * 3),
    "three dimensions": (Attend(), [(3, 8, 16), (3, 9, 16), (3, 9, 12)]),
    "five dimensions": (Attend(), [(2, 2, 3, 8, 16)] * 3 + [(2, 1, 1, 1, 8)]),
    "broadcast heads": (Attend(), [(2, 3, 8, 16), (2, 1, 8, 16), (1, 3, 8, 16)]),
    "groups": (Attend(enable_gqa=True), [(2, 4, 8, 16), (2, 2, 8, 16), (2, 2, 8, 16)]),
    "position bias": (Attend(), [(2, 3, 8, 16)] * 3 + [(1, 3, 8, 8)]),
    "two-dimensional mask": (Attend(), [(2, 3, 8, 16)] * 3 + [(8, 8)]),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewriting_keeps_values_and_gradients(name):
    module, shapes = REWRITTEN[name]
    compiled, operators = compile_counting(module)
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    expected, actual = module(*inputs), compiled(*inputs)
    grad = torch.randn_like(expected)
    actual_gradients = torch.autograd.grad(actual, inputs, grad)
    for value, other in zip(actual_gradients, torch.autograd.grad(expected, inputs, grad)):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert operators.count("pynn.attention.default") == 1
    assert operators.count("pynn.attention_backward.default") == 1


def test_float64_becomes_elementary_operations():
    compiled, operators = compile_counting(Attend(is_causal=True))
    inputs = [torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    torch.testing.assert_close(compiled(*inputs), F.scaled_dot_product_attention(*inputs, is_causal=True))
    assert not [o for o in operators if "attention" in o]


def layers() -> dict[str, tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]]:
    x = torch.randn(2, 6, 16)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    norm_first = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    decoder = nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return {
        "attention": (nn.MultiheadAttention(16, 2, batch_first=True), (x, x, x), dict(need_weights=False)),
        "encoder layer": (layer, (x,), {}),
        "encoder layer, causal": (layer, (x, causal), dict(is_causal=True)),
        # The fast path hides every key whose mask is not 0; a second copy of its formula added the numbers.
        "encoder layer, finite mask": (layer, (x, causal.nan_to_num(neginf=-1.5)), {}),
        "encoder layer, padding": (norm_first, (x,), dict(src_key_padding_mask=padding)),
        "encoder": (encoder, (x,), dict(src_key_padding_mask=padding)),
        "decoder layer": (decoder, (x, x), {}),
    }


FAST_LAYERS = {"attention", "encoder layer"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST_LAYERS else [pytest.mark.slow]) for name in layers()]
)
@pytest.mark.parametrize("mode", ["train", "no_grad"])
def test_attention_inside_torch_layers_is_found(name, mode):
    """Dynamo keeps multi_head_attention_forward and the encoder layer's fast path whole; both are found."""
    module, inputs, options = layers()[name]
    module.train(mode == "train")
    compiled, operators = compile_counting(module)
    with torch.set_grad_enabled(mode == "train"):
        expected, actual = module(*inputs, **options), compiled(*inputs, **options)
    expected, actual = (x[0] if isinstance(x, tuple) else x for x in (expected, actual))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert "pynn.attention.default" in operators
    assert not [o for o in operators if "scaled_dot_product" in o or "transformer_encoder" in o]


def test_dropout_draws_a_seed_and_repeats_it_backward():
    module = Attend(dropout_p=0.5)
    compiled, operators = compile_counting(module)
    inputs = [torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3)]
    torch.manual_seed(1)
    first = compiled(*inputs)
    second = compiled(*inputs)
    torch.manual_seed(1)
    again = compiled(*inputs)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert operators.count("pynn.seed.default") == 1
    # out is linear in v; its gradient must be the transposed weights of this very call
    v = inputs[2]
    (dv,) = torch.autograd.grad(first, v, torch.ones_like(first))
    torch.testing.assert_close((dv * v).sum(), first.sum(), rtol=1e-4, atol=1e-4)


# ---- random numbers -------------------------------------------------------------------------------------


def test_philox_known_answers():
    """Random123's kat_vectors: philox4x32-10 of all zeros."""
    words = philox_words(torch.tensor(0), torch.tensor([0]))
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_uniform_is_a_function_of_seed_and_position():
    seed = torch.tensor(2**40 + 17)
    whole = random_uniform(seed, [7, 13])
    assert torch.equal(whole.flatten()[:50], random_uniform(seed, [50]))
    assert torch.equal(torch.ops.pynn.uniform(seed, [7, 13]), whole)
    assert not torch.equal(whole, random_uniform(seed + 1, [7, 13]))
    many = random_uniform(seed, [200_000])
    assert 0 <= many.min() and many.max() < 1
    assert abs(many.mean() - 0.5) < 0.004 and abs(many.var() - 1 / 12) < 0.001


def test_seed_is_neither_merged_nor_shared():
    def two_seeds(x: Tensor) -> Tensor:
        return x * torch.ops.pynn.seed() + torch.ops.pynn.seed()

    compiled, operators = compile_counting(two_seeds)
    compiled(torch.zeros((), dtype=torch.int64))
    assert operators.count("pynn.seed.default") == 2
    torch.manual_seed(5)
    first = int(torch.ops.pynn.seed())
    torch.manual_seed(5)
    assert int(torch.ops.pynn.seed()) == first != int(torch.ops.pynn.seed())
