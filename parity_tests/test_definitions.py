"""Every definition against the ATen operation it stands for, on the arguments that torch's tables lead to.

A dispatch mode runs torch's own functions, forward and backward, and holds each ATen call that has a
definition against it, and so sees every operation with the arguments it really gets. Errors are measured as
in tolerances.py: against float64, no worse than C++.
"""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import pynn.functional  # noqa: F401  (fills the table)
from parity_tests.cases import defined_rows, seed
from parity_tests.tolerances import compare
from parity_tests.waiting import Overloads
from pynn.definitions import DEFINITIONS

aten = torch.ops.aten
MOST_CALLS = 24

# Draws random numbers elsewhere than the CPU kernel (documented with the definition).
OTHER_RANDOM_NUMBERS = {aten.rrelu_with_noise_functional.default}
# ATen's CPU kernel rounds the statistics to 16 bits, the definition keeps float32.
WIDER_STATISTICS = {
    aten.native_layer_norm.default,
    aten.native_layer_norm_backward.default,
    aten._fused_rms_norm.default,
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_functional.default,
    aten._batch_norm_with_update.default,
    aten._batch_norm_with_update_functional.default,
    aten.native_group_norm.default,
}
# Outputs for the gradient alone, which is compared: ATen leaves what lies past CTC's lengths unwritten, and what
# its kernels of embedding_bag don't need empty.
BOOKKEEPING = {
    aten._ctc_loss.default: (1,),
    aten._ctc_loss.Tensor: (1,),
    aten._embedding_bag.default: (1, 2, 3),
    aten._embedding_bag_forward_only.default: (1, 2, 3),
}

# ATen has no kernel in float64: its own results are the reference.
NO_FLOAT64 = {aten._grouped_mm.default}


def tensor(*shape: int, **options: Any) -> Tensor:
    return torch.randn(*shape, **options)


def own_calls() -> list[tuple[OpOverload, tuple, dict]]:
    """Calls that no row of the tables makes."""
    x, a, b = tensor(3, 4), tensor(3, 5), tensor(5, 4)
    index = torch.tensor([0, 2, 2])
    image, volume = tensor(1, 2, 4, 5), tensor(1, 2, 3, 4, 5)
    rows: list[tuple[OpOverload, tuple, dict]] = [
        (aten.relu.default, (x,), {}),
        (aten.selu.default, (x,), {}),
        (aten.l1_loss.default, (x, x.flip(0)), {}),
        (aten._trilinear.default, (a, tensor(2, 5, 4), x, [1, 3], [0], [1, 2], [2, 3]), {}),
        (aten.embedding_dense_backward.default, (tensor(3, 4), index, 5, 2, False), {}),
        (aten.embedding_dense_backward.default, (tensor(3, 4), index, 5, -1, True), {}),
        (aten.linear.default, (a, b.t(), x[0]), {}),
        (aten.addmm.default, (x, a, b), {}),
        (aten.addmm.default, (x[0], a, b), {"beta": 0.5, "alpha": 2}),
        (aten.addmm.default, (torch.full_like(x, torch.nan), a, b), {"beta": 0}),
        (aten.baddbmm.default, (x, a[None], b[None]), {}),
        (aten.addbmm.default, (x, a[None], b[None]), {}),
        (aten.addmv.default, (x[:, 0], a, b[:, 0]), {}),
        (aten.addr.default, (x, x[:, 0], x[0]), {}),
        (aten.dot.default, (x[0], x[1]), {}),
        (aten.mv.default, (a, b[:, 0]), {}),
        (aten.rsub.Scalar, (x, 2, 3), {}),
        (aten.rsub.Tensor, (x, x * x), {}),
        (aten.addcmul.default, (x, x, x), {"value": 2}),
        (aten.addcdiv.default, (x, x, x), {"value": 2}),
        (aten.lerp.Scalar, (x, x * 2, 0.7), {}),
        (aten.lerp.Tensor, (x, x * 2, x), {}),
        (aten.clamp.default, (x, -0.5, 0.5), {}),
        (aten.clamp.default, (torch.tensor([torch.nan, 1.0]), -0.5, 0.5), {}),
        (aten.clamp.Tensor, (x, x[0]), {}),
        (aten.clamp_min.Tensor, (x, x[0]), {}),
        (aten.clamp_max.Tensor, (x, x[0]), {}),
        (aten.clamp_min.default, (x, 0), {}),
        (aten.clamp_max.default, (x, 0), {}),
        (aten.logaddexp.default, (x, x * 3), {}),
        (aten.logaddexp.default, (torch.tensor([torch.inf, -torch.inf]),) * 2, {}),
        (aten.xlogy.Tensor, (torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 2, torch.nan])), {}),
        (aten.masked_fill.Scalar, (x, x > 0, -torch.inf), {}),
        (aten.masked_fill.Tensor, (x, x > 0, torch.tensor(3.0)), {}),
        (aten.tril.default, (x, 1), {}),
        (aten.triu.default, (x,), {}),
        (aten.mean.default, (x,), {}),
        (aten.mean.dim, (x, [1], True), {}),
        (aten.var_mean.correction, (x,), {}),
        (aten.var.correction, (x, [1]), {"correction": 0, "keepdim": True}),
        (aten.std.correction, (x, [0]), {}),
        (aten.logsumexp.default, (x, [1]), {}),
        (aten.logsumexp.default, (torch.full((2, 3), -torch.inf), [1], True), {}),
        (aten.index_add.default, (x, 0, index, x), {"alpha": 2}),
        (aten.index_copy.default, (x, -1, index[:2], x[:, :2]), {}),
        (aten.native_dropout.default, (x, 0.3, True), {}),
        (aten.native_dropout_backward.default, (x, x > 0, 1.5), {}),
        (aten.norm.ScalarOpt_dim, (x, 3, [1], True), {}),
        (aten.norm.Scalar, (x,), {}),
        (aten._safe_softmax.default, (torch.tensor([[1.0, 2.0], [-torch.inf, -torch.inf]]), -1), {}),
        (aten._fused_rms_norm.default, (x, [4], x[0], None), {}),
        (aten._fused_rms_norm.default, (x, [3, 4], None, 1e-3), {}),
        (aten.native_channel_shuffle.default, (image, 2), {}),
        (aten.channel_shuffle.default, (image, 2), {}),
        (aten.native_layer_norm.default, (tensor(2, 3, 4) * 3 + 5, [3, 4], x, None, 1e-5), {}),
        *batch_norm_calls(),
        (aten._weight_norm_interface.default, (x, x[:, :1], 0), {}),
        (aten._weight_norm_interface.default, (image, image[:1, :1, :1], 3), {}),
        (aten._weight_norm_interface_backward.default, (x * x, x, x[:, :1], x[:, 1:2].abs(), 0), {}),
    ]
    rows += [(aten.pow.Tensor_Scalar, (x.abs(), e), {}) for e in (2, 3, 1, 0.5, -0.5, -1)]
    for mode in ("reflection", "replication"):
        pads = (image[0], [1, 2]), (image, [1, 2, 2, 0]), (volume, [1, 0, 2, 1, 1, 1])
        for dims, (x, padding) in enumerate(pads, start=1):
            operation = getattr(aten, f"{mode}_pad{dims}d")
            grad = torch.randn_like(operation(x, padding))
            rows.append((operation.default, (x, padding), {}))
            rows.append((getattr(aten, f"{mode}_pad{dims}d_backward").default, (grad, x, padding), {}))
    return rows


def batch_norm_calls() -> list[tuple[OpOverload, tuple, dict]]:
    """The overloads that only AOTAutograd's graphs hold."""
    x, weight, bias = tensor(4, 3, 5) * 2 + 1, tensor(3), tensor(3)
    mean, var = tensor(3), tensor(3).abs() + 0.5
    plain, running = (x, weight, bias), (mean, var, 0.2, 1e-3)
    grads = [tensor(4, 3, 5), x, weight, mean, var, x.mean((0, 2)), x.var((0, 2)).rsqrt()]
    reserve = torch.empty(0, dtype=torch.uint8)
    return [
        (aten._native_batch_norm_legit_functional.default, (*plain, mean, var, True, 0.2, 1e-3), {}),
        (aten._native_batch_norm_legit_functional.default, (*plain, mean, var, False, 0.2, 1e-3), {}),
        (aten._native_batch_norm_legit.default, (*plain, mean, var, True, 0.2, 1e-3), {}),
        (aten._native_batch_norm_legit.no_stats, (x, None, None, True, 0.2, 1e-3), {}),
        (aten._native_batch_norm_legit_no_training.default, (*plain, *running), {}),
        (aten._batch_norm_with_update.default, (*plain, *running), {}),
        (aten._batch_norm_with_update_functional.default, (*plain, *running), {}),
        (aten._batch_norm_no_update.default, (*plain, *running), {}),
        (aten.native_batch_norm_backward.default, (*grads, False, 1e-3, [True, True, True]), {}),
        (aten.batch_norm_backward.default, (*grads, True, 1e-3, [True, True, True], reserve), {}),
    ]


class Collector(TorchDispatchMode):
    """Keeps the arguments of the ATen calls that have a definition."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[OpOverload, list[tuple[tuple, dict]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        seen = self.calls.setdefault(func, [])
        if func in DEFINITIONS and len(seen) < MOST_CALLS and is_small_float32((args, kwargs)):
            keep = functools.partial(tree_map, lambda v: v.detach().clone() if isinstance(v, Tensor) else v)
            seen.append((keep(args), keep(kwargs)))
        return func(*args, **kwargs)


def is_small_float32(arguments: tuple) -> bool:
    leaves = tree_leaves(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    dtypes = {t.dtype for t in tensors} | {leaf for leaf in leaves if isinstance(leaf, torch.dtype)}
    floats = {dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex}
    return floats <= {torch.float32} and all(t.numel() <= 4096 for t in tensors)


@functools.cache
def recorded_calls() -> dict[OpOverload, list[tuple[tuple, dict]]]:
    """ATen call -> its arguments, over the float32 samples of every function row, forward and backward."""
    collector = Collector()
    for row in defined_rows():
        if row.is_module:
            continue
        for sample in row.draw(5):
            seed(0)
            sample = sample.cast(torch.float32)
            try:
                with collector:
                    out = row.build(torch.nn, sample)(*sample.args, **sample.kwargs)
                    outs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
                    if outs:
                        grads = [torch.randn_like(t) for t in outs]
                        torch.autograd.grad(outs, sample.differentiable(), grads, allow_unused=True)
            except (RuntimeError, NotImplementedError):
                continue  # nothing to learn from a call that torch itself refuses
    calls = {operation: list(seen) for operation, seen in collector.calls.items() if operation in DEFINITIONS}
    for operation, args, kwargs in own_calls():
        calls.setdefault(operation, []).append((args, kwargs))
    return calls


def cast(value: Any, dtype: torch.dtype) -> Any:
    def change(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.to(dtype)
        return dtype if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    return tree_map(change, value)


def results(operation: Any, args: tuple, kwargs: dict, dtype: torch.dtype) -> list:
    seed(1)
    out = operation(*cast(args, dtype), **cast(kwargs, dtype))
    return list(out) if isinstance(out, (tuple, list)) else [out]


def problems(operation: OpOverload, args: tuple, kwargs: dict, dtype: torch.dtype) -> list[str]:
    try:
        cpp = results(operation, args, kwargs, dtype)
    except (RuntimeError, NotImplementedError):
        return []  # C++ has no such dtype
    found = results(DEFINITIONS[operation], args, kwargs, dtype)
    if found[0] is NotImplemented:
        return []
    # the rounded inputs, exactly
    wide = dtype if operation in NO_FLOAT64 else torch.float64
    exact = results(operation, *cast((args, kwargs), dtype), wide)
    texts = []
    for index, (value, wanted, precise) in enumerate(zip(found, cpp, exact, strict=True)):
        if operation in WIDER_STATISTICS and index > 0 and value is not None:
            value = value.to(wanted.dtype)
        if value is None or index in BOOKKEEPING.get(operation, ()):
            continue  # masked out; C++ may return zeros or nothing
        comparison = compare(value, wanted, precise if value.is_floating_point() else None, False)
        if not comparison.passed:
            texts.append(f"output {index}, {dtype}: {comparison}")
    return texts


# by a text of its own, before a decomposition table is asked
TORCH_DECOMPOSES = {aten.upsample_bilinear2d.default, aten.multilabel_margin_loss_forward.default}
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.mv.default, aten.addcmul.default}
OPERATIONS = sorted(set(DEFINITIONS) - OTHER_RANDOM_NUMBERS, key=str)


@pytest.mark.parametrize("operation", OPERATIONS, ids=[str(o).removeprefix("aten.") for o in OPERATIONS])
def test_definition_is_no_less_accurate_than_aten(operation: OpOverload):
    calls = recorded_calls().get(operation, [])
    if not calls:
        pytest.skip("no row of the tables reaches it on the CPU")
    texts = []
    for args, kwargs in calls:
        for dtype in (torch.float32, torch.bfloat16):
            texts += problems(operation, args, kwargs, dtype)
    assert not texts, "\n".join(texts[:10])


def test_rms_norm_backward_is_the_gradient_of_its_forward():
    """ATen has no CPU kernel of it: held against autograd through torch's rms_norm."""
    x, weight, grad = tensor(5, 3, 8).double(), tensor(3, 8).double(), tensor(5, 3, 8).double()
    _, rrms = DEFINITIONS[aten._fused_rms_norm.default](x, [3, 8], weight, 1e-3)
    backward = DEFINITIONS[aten._fused_rms_norm_backward.default]
    found = backward(grad, x, [3, 8], rrms, weight, [True, True])
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = torch.nn.functional.rms_norm(leaves[0], [3, 8], leaves[1], 1e-3)
    torch.testing.assert_close(found, torch.autograd.grad(out, leaves, grad))
    assert backward(grad, x, [3, 8], rrms, weight, [False, False]) == (None, None)


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(o, id=str(o).removeprefix("aten."), marks=[] if number % 24 == 0 else [pytest.mark.slow])
        for number, o in enumerate(OPERATIONS)
    ],
)
def test_definition_traces_with_symbolic_sizes(operation: OpOverload):
    calls = recorded_calls().get(operation, [])
    if not calls:
        pytest.skip("no row of the tables reaches it on the CPU")
    args, kwargs = calls[-1]
    leaves, structure = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def call(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, value in zip(places, tensors, strict=True):
            filled[place] = value
        new_args, new_kwargs = tree_unflatten(filled, structure)
        return operation(*new_args, **new_kwargs)

    tensors = [leaves[i] for i in places]
    graph = make_fx(call, decomposition_table=DEFINITIONS, tracing_mode="symbolic")(*tensors)
    left = {node.target for node in graph.graph.nodes if node.target in DEFINITIONS}
    assert not left or left == {aten.pow.Tensor_Scalar}, f"not decomposed: {left}"
    seed(1)
    found = graph(*tensors)
    seed(1)
    with Overloads() as overloads:
        wanted = DEFINITIONS[operation](*args, **kwargs)
    if wanted is not NotImplemented:
        # the trace may hand a matrix product another layout, and BLAS then adds in another order; addcmul comes apart
        exactly = {} if overloads.seen & PRODUCTS or operation in TORCH_DECOMPOSES else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(found, wanted, **exactly, equal_nan=True)
