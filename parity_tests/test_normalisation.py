"""Normalisation, beyond the rows: processes, transforms, strides, messages, weight normalisation."""

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

import pynn
from pynn.modules._batch_norm_functions import batch_norm
from pynn.modules._sync_batch_norm import sync_batch_norm

pytestmark = pytest.mark.slow  # `make check` leaves the whole file to `make test`

BOTH = pytest.mark.parametrize("nn", [torch.nn, pynn], ids=["torch", "pynn"])


def error_of(function: Callable[[], Any]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        function()
    return caught.type, str(caught.value)


# ---- messages --------------------------------------------------------------------------------------------

X, MEAN, VAR = torch.randn(4, 6, 5), torch.zeros(6), torch.ones(6)
HALF = X.bfloat16()
REFUSED: dict[str, Callable[[Any], Any]] = {
    "running_mean": lambda f: f.batch_norm(X, MEAN[:5], VAR),
    "running_var": lambda f: f.batch_norm(X, MEAN, VAR[:5], training=True),
    "weight": lambda f: f.batch_norm(X, MEAN, VAR, MEAN[:2]),
    "bias": lambda f: f.batch_norm(X, MEAN, VAR, MEAN, MEAN[:2]),
    "no statistics": lambda f: f.batch_norm(X, None, None),
    "no variance": lambda f: f.batch_norm(X, MEAN, None),
    "one statistic": lambda f: f.batch_norm(X, MEAN, None, training=True),
    "one value": lambda f: f.batch_norm(X[:1, :, 0], MEAN, VAR, training=True),
    "no channels": lambda f: f.batch_norm(X[0, 0], MEAN, VAR),
    "eps 0": lambda f: f.batch_norm(X, None, None, training=True, eps=0.0),
    "eps < 0": lambda f: f.batch_norm(X, MEAN, VAR, eps=-1.0),
    "integers": lambda f: f.batch_norm(X.int(), None, None, training=True),
    "float64 statistics": lambda f: f.batch_norm(X, MEAN.double(), VAR.double(), MEAN, MEAN),
    "float64 weight": lambda f: f.batch_norm(X, MEAN, VAR, MEAN.double()),
    "float64 beside 16 bits": lambda f: f.batch_norm(HALF, MEAN.double(), VAR.double(), MEAN),
    "16-bit weight": lambda f: f.batch_norm(HALF, MEAN, VAR, MEAN.bfloat16()),
    "float32 weight of 16-bit statistics": lambda f: f.batch_norm(HALF, HALF[0, :, 0], HALF[0, :, 0], MEAN),
    "float64 input": lambda f: f.batch_norm(X.double(), MEAN, VAR),
    "learned mean": lambda f: f.batch_norm(X, MEAN.clone().requires_grad_(), VAR),
    "learned variance": lambda f: f.batch_norm(X, MEAN, VAR.clone().requires_grad_(), training=True),
    "vmap": lambda f: vmap(lambda x: f.batch_norm(x, MEAN, VAR, training=True))(X[None]),
    "vmap of one": lambda f: vmap(lambda x, m: f.batch_norm(x, m, VAR, training=True))(X[None], MEAN[None]),
    "vmap of grad": lambda f: vmap(grad(lambda x: f.batch_norm(x, MEAN, VAR, training=True).sum()))(X[None]),
    "vmap of instances": lambda f: vmap(lambda x: f.instance_norm(x, MEAN, VAR))(X[None]),
    "instances' mean": lambda f: f.instance_norm(X, MEAN[:5], VAR),
    "instances' weight": lambda f: f.instance_norm(X, MEAN, VAR, MEAN[:5]),
    "instances' one statistic": lambda f: f.instance_norm(X, MEAN, None),
    "instances' statistics": lambda f: f.instance_norm(X, use_input_stats=False),
    "one place": lambda f: f.instance_norm(X[:, :, :1]),
    "groups": lambda f: f.group_norm(X, 4),
    "no groups": lambda f: f.group_norm(X, 0),
    "negative groups": lambda f: f.group_norm(X, -3),
    "groups' weight": lambda f: f.group_norm(X, 3, MEAN[:2]),
    "groups' matrix": lambda f: f.group_norm(X, 3, MEAN[:, None]),
    "groups' integers": lambda f: f.group_norm(X.int(), 3),
    "groups' float64 weight": lambda f: f.group_norm(X, 3, MEAN.double()),
    "groups of one": lambda f: f.group_norm(X[:1, :, 0], 6),
    "groups' dimensions": lambda f: f.group_norm(X[0, 0], 1),
    "response dimensions": lambda f: f.local_response_norm(X[0], 2),
    "response size": lambda f: f.local_response_norm(X, 0),
    "response size in an image": lambda f: f.local_response_norm(X[..., None], -1),
    "response of integers": lambda f: f.local_response_norm(X.int(), 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_function_refuses_in_torchs_words(name: str):
    function = REFUSED[name]
    assert error_of(lambda: function(pynn.functional)) == error_of(lambda: function(F))


REFUSED_BY_LAYERS: dict[str, Callable[[Any], Any]] = {
    **{
        f"BatchNorm{n}d": lambda nn, n=n: getattr(nn, f"BatchNorm{n}d")(6)(torch.ones([2] * 6))
        for n in (1, 2, 3)
    },
    **{
        f"InstanceNorm{n}d": lambda nn, n=n: getattr(nn, f"InstanceNorm{n}d")(6)(torch.ones(2))
        for n in (1, 2, 3)
    },
    "LazyBatchNorm2d": lambda nn: nn.LazyBatchNorm2d()(X),
    "SyncBatchNorm": lambda nn: nn.SyncBatchNorm(6)(X[0, 0]),
    "SyncBatchNorm without channels": lambda nn: nn.SyncBatchNorm(6)(X[:, :0]),
    "features": lambda nn: nn.InstanceNorm1d(5, affine=True)(X),
    "channels of groups": lambda nn: nn.GroupNorm(4, 6),
    "CrossMapLRN2d": lambda nn: nn.CrossMapLRN2d(3)(X),
}


@pytest.mark.parametrize("name", REFUSED_BY_LAYERS)
def test_layer_refuses_in_torchs_words(name: str):
    function = REFUSED_BY_LAYERS[name]
    assert error_of(lambda: function(pynn)) == error_of(lambda: function(torch.nn))


def test_unneeded_num_features_warns_as_torchs_does():
    caught = []
    for nn in (torch.nn, pynn):
        with pytest.warns(UserWarning) as seen:
            nn.InstanceNorm1d(5)(X)
        caught.append([str(w.message) for w in seen])
    assert caught[0] == caught[1]


# ---- strides ---------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "batch_norm in training": lambda f, x: f.batch_norm(x, None, None, training=True),
    "batch_norm": lambda f, x: f.batch_norm(x, MEAN, VAR),
    "instance_norm": lambda f, x: f.instance_norm(x),
    "group_norm": lambda f, x: f.group_norm(x, 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_strides_are_torchs(name: str):
    x = torch.randn(2, 6, 4, 5)
    volume = torch.randn(2, 6, 2, 3, 4)
    for layout in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3),
        x[:, :, ::2],
        volume.contiguous(memory_format=torch.channels_last_3d),
        x[..., 0].transpose(0, 1).contiguous().transpose(0, 1),
    ):
        leaves = [layout.detach().requires_grad_() for _ in range(2)]
        outs = [FUNCTIONS[name](f, leaf) for f, leaf in zip((pynn.functional, F), leaves, strict=True)]
        assert outs[0].stride() == outs[1].stride()
        grads = [torch.autograd.grad(out, leaf, out.detach()) for out, leaf in zip(outs, leaves, strict=True)]
        assert grads[0][0].stride() == grads[1][0].stride()


LARGE: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "batch_norm in training": lambda f, x, w: f.batch_norm(x, None, None, w, w, True),
    "batch_norm": lambda f, x, w: f.batch_norm(x, torch.ones_like(w), torch.ones_like(w), w, w),
    "batch_norm without weight": lambda f, x, w: f.batch_norm(x, None, None, None, w, True),
    "instance_norm": lambda f, x, w: f.instance_norm(x, None, None, w, w),
    "group_norm": lambda f, x, w: f.group_norm(x, 5, w, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LARGE)
def test_large_inputs_are_evaluated_in_slices(name: str, dtype: torch.dtype, monkeypatch):
    """Slices that do not come out even, of channels or of samples, give what the whole gives."""
    narrows = []
    narrow = Tensor.narrow
    monkeypatch.setattr(Tensor, "narrow", lambda x, *args: (narrows.append(args), narrow(x, *args))[1])
    x, weight, cotangent = torch.randn(7, 35, 60, 61), torch.randn(35), torch.randn(7, 35, 60, 61)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = []
        for f, wide in ((pynn.functional, dtype), (F, torch.float64)):
            leaves = [t.to(dtype).to(wide).contiguous(memory_format=m).requires_grad_()
                      for t, m in ((x, layout), (weight, torch.contiguous_format))]  # fmt: skip
            out = LARGE[name](f, *leaves)
            found.append([out, *torch.autograd.grad(out, leaves, cotangent.to(dtype).to(wide))])
        for own, exact in zip(*found, strict=True):
            scale = exact.abs().max() * (1e-5 if dtype is torch.float32 else torch.finfo(dtype).eps)
            assert own.dtype is dtype and (own.double() - exact).abs().max() <= scale
        assert found[0][0].stride() == found[1][0].stride() or name == "instance_norm"
    assert any(args[1] > 0 for args in narrows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_torchs(dtype: torch.dtype):
    functions = {**FUNCTIONS, "local_response_norm": lambda f, x: f.local_response_norm(x, 3)}
    for function in functions.values():
        for x in (X.to(dtype), X[..., None].expand(4, 6, 5, 2).to(dtype)):
            with torch.autocast("cpu", torch.bfloat16):
                own, theirs = function(pynn.functional, x), function(F, x)
            torch.testing.assert_close(own, theirs, rtol=2e-2, atol=2e-2)  # dtypes are what it is about


# ---- derivatives and transforms --------------------------------------------------------------------------

SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "batch_norm in training": lambda x: pynn.functional.batch_norm(x, None, None, x[0, :, 0], training=True),
    "batch_norm": lambda x: pynn.functional.batch_norm(x, MEAN.double(), VAR.double(), x[0, :, 0]),
    "group_norm": lambda x: pynn.functional.group_norm(x, 3, x[0, :, 0], x[0, :, 1]),
    "layer_norm": lambda x: pynn.functional.layer_norm(x, (6, 2), x[0], x[1]),
    "rms_norm": lambda x: pynn.functional.rms_norm(x, (6, 2), x[0]),
    "gelu": lambda x: pynn.functional.gelu(x),
    "local_response_norm": lambda x: pynn.functional.local_response_norm(x, 3, 0.5),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives_agree_however_they_are_taken(name: str):
    """By all pairs of reverse and forward mode, and by forward mode of a plain gradient."""
    x = torch.randn(2, 6, 2, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return SMOOTH[name](x).sin().sum()

    wanted = torch.autograd.functional.hessian(function, x)
    for outer, inner in itertools.product((jacrev, jacfwd), repeat=2):
        torch.testing.assert_close(outer(inner(function))(x), wanted)
    direction = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), direction)
        (gradient,) = torch.autograd.grad(function(dual), dual)
        product = forward_ad.unpack_dual(gradient).tangent
    torch.testing.assert_close(product, torch.einsum("abcdef,def->abc", wanted, direction))


@pytest.mark.parametrize("function", ["batch_norm", "instance_norm"])
def test_batched_running_statistics_move_under_vmap(function: str):
    x, mean, var = torch.randn(3, 4, 6, 5), torch.randn(3, 6), torch.rand(3, 6)
    expected = [mean.clone(), var.clone()]
    looped = torch.stack(
        [getattr(F, function)(x[i], *(s[i] for s in expected), MEAN, VAR, True) for i in range(3)]
    )
    own = getattr(pynn.functional, function)
    found = vmap(lambda x, m, v: own(x, m, v, MEAN, VAR, True))(x, mean, var)
    torch.testing.assert_close([found, mean, var], [looped, *expected])


def test_statistics_from_outside_move_in_a_gradient():
    """torch's operation writes into tensors that a transform of torch.func has captured."""
    expected, found = MEAN.clone(), MEAN.clone()
    var = VAR.clone(), VAR.clone()
    wanted = grad(lambda x: F.batch_norm(x, expected, var[0], training=True).cos().sum())(X)
    got = grad(lambda x: pynn.functional.batch_norm(x, found, var[1], training=True).cos().sum())(X)
    torch.testing.assert_close([got, found, var[1]], [wanted, expected, var[0]])


def test_gradients_of_each_sample():
    layer = pynn.BatchNorm1d(6, track_running_stats=False)
    x = torch.randn(3, 4, 6, 5)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    parameters = dict(layer.named_parameters())
    mapped = vmap(grad(loss), (None, 0))(parameters, x)
    for i in range(3):
        single = grad(loss)(parameters, x[i])
        torch.testing.assert_close({k: v[i] for k, v in mapped.items()}, single)


def test_training_between_evaluation_and_its_gradient():
    """torch's gradient is that of the statistics it finds at the time of the backward pass."""
    layer = pynn.BatchNorm1d(6).eval()
    x = X.clone().requires_grad_()
    out = layer(x)
    layer.train()(X * 7)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, (1 + 1e-5) ** -0.5))


def test_a_constant_channel_of_large_values():
    """Its variance is 0, roundings of the mean aside, and never negative."""
    x = torch.full((3, 2, 7), 12345678.0)
    var = torch.ones(2)
    out = pynn.functional.batch_norm(x, torch.zeros(2), var, training=True, momentum=1.0)
    assert torch.equal(out, torch.zeros_like(x)) and torch.equal(var, torch.zeros(2))


# ---- cross-map response normalisation --------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_cross_map_gradient_is_the_derivative(size: int):
    """torch's sums over windows one channel off (gradcheck fails), and raises for size 1."""
    x = torch.rand(2, 6, 1, 2, dtype=torch.float64, requires_grad=True)
    theirs, ours = (nn.CrossMapLRN2d(size, 0.5, 0.6, 1.5) for nn in (torch.nn, pynn))
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises((RuntimeError, GradcheckError)):
        torch.autograd.gradcheck(theirs, x)
    assert torch.autograd.gradcheck(ours, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, x)


# ---- over processes --------------------------------------------------------------------------------------

PARTS = (5, 3, 0)


def whole_batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, cotangent = (torch.randn(sum(PARTS), 4, 3, 2, generator=generator) for _ in range(2))
    weight, bias, running = (torch.rand(4, generator=generator) for _ in range(3))
    return x * 3 + 50, cotangent, weight, bias, running


def one_process(rank: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(PARTS))
    x, cotangent, weight, bias, running = whole_batch()
    mean, var = running.clone(), running.clone()
    x = x.split(PARTS)[rank].requires_grad_()
    weight.requires_grad_(), bias.requires_grad_()
    out = sync_batch_norm(x, weight, bias, mean, var, 1e-3, 0.3, distributed.group.WORLD)
    grads = torch.autograd.grad(out, (x, weight, bias), cotangent.split(PARTS)[rank])
    refused = []
    for nn in (torch.nn, pynn):
        refused.append(error_of(lambda nn=nn: nn.SyncBatchNorm(4)(torch.ones(2, 4))))
        nn.SyncBatchNorm(4).eval()(torch.ones(2, 4))
    results[rank] = ([t.detach().numpy() for t in (out, *grads, mean, var)], refused)
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")
def test_processes_normalise_as_one(tmp_path):
    """Parts of unequal sizes, one empty, give what the whole batch gives in one process."""
    with multiprocessing.Manager() as manager:
        shared = manager.dict()
        multiprocessing.spawn(one_process, (str(tmp_path / "store"), shared), nprocs=len(PARTS))
        results = [shared[rank] for rank in range(len(PARTS))]
    for _, refused in results:
        assert refused[0] == refused[1] and "to be on GPU" in refused[1][1]
    x, cotangent, weight, bias, running = whole_batch()
    mean, var = running.clone(), running.clone()
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    out = F.batch_norm(x, mean, var, weight, bias, True, 0.3, 1e-3)
    dx, *parameters = torch.autograd.grad(out, leaves, cotangent)
    found = [[torch.from_numpy(v) for v in values] for values, _ in results]
    torch.testing.assert_close(torch.cat([f[0] for f in found]), out.detach())
    torch.testing.assert_close(torch.cat([f[1] for f in found]), dx)
    torch.testing.assert_close(found[0][2] + found[1][2] + found[2][2], parameters[0])
    torch.testing.assert_close(found[0][3] + found[1][3] + found[2][3], parameters[1])
    for f in found:
        torch.testing.assert_close(f[4:], [mean, var])


@BOTH
def test_layers_become_synchronised_ones(nn: Any):
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.BatchNorm1d(6, momentum=0.3, bias=False)))
    model(torch.randn(5, 4))
    old = model[1][0].eval()
    new = pynn.SyncBatchNorm.convert_sync_batchnorm(model)[1][0]
    assert type(new) is pynn.SyncBatchNorm and new.weight is old.weight and new.bias is None
    assert new.running_mean is old.running_mean and new.num_batches_tracked is old.num_batches_tracked
    assert (new.training, new.momentum, new.process_group) == (False, 0.3, None)


# ---- weight normalisation --------------------------------------------------------------------------------


def normed(nn: Any, style: str, dim: int | None) -> torch.nn.Module:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = nn.utils if style == "hook" else nn.utils.parametrizations
        return utils.weight_norm(layer, dim=dim)


@pytest.mark.parametrize("dim", [0, 1, 3, -1, -2, None])
@pytest.mark.parametrize("style", ["hook", "parametrization"])
def test_weight_norm_is_torchs(style: str, dim: int | None):
    theirs, ours = (normed(nn, style, dim) for nn in (torch.nn, pynn))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5, 5)
    outs = [layer(x) for layer in (theirs, ours)]
    torch.testing.assert_close(outs[1], outs[0])
    for layer, out in zip((theirs, ours), outs, strict=True):
        out.square().sum().backward()
        assert dict(layer.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    for (name, p), (_, q) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
    if style == "parametrization":  # the hook leaves a weight that is no leaf, which torch does not copy
        torch.testing.assert_close(copy.deepcopy(ours)(x), outs[1])


def test_weight_norm_hooks_come_off_both_ways():
    for first, second in [(torch.nn, pynn), (pynn, torch.nn)]:
        layer = normed(first, "hook", 0)
        weight = layer.weight.detach().clone()
        assert "Cannot register two" in error_of(lambda layer=layer: pynn.utils.weight_norm(layer))[1]
        second.utils.remove_weight_norm(layer)
        torch.testing.assert_close(layer.weight.detach(), weight)
        assert isinstance(layer.weight, torch.nn.Parameter)
        assert error_of(lambda layer=layer: pynn.utils.remove_weight_norm(layer)) == error_of(
            lambda layer=layer: torch.nn.utils.remove_weight_norm(layer)
        )


def test_a_parametrization_loads_what_the_hook_saved():
    saved, other = normed(pynn, "hook", 0), normed(pynn, "parametrization", 0)
    with torch.no_grad():
        saved.weight_g.mul_(3)
    saved(torch.ones(1, 3, 2, 2))  # recomputes the weight
    other.load_state_dict(saved.state_dict())
    torch.testing.assert_close(other.weight, saved.weight)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_weight_norm_derivatives(dim: int):
    from pynn.utils.parametrizations import _WeightNorm

    layer = _WeightNorm(dim)
    v = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    g = layer.right_inverse(v)[0].detach().mul(2).requires_grad_()
    assert torch.autograd.gradcheck(layer, (g, v), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(layer, (g, v))
    torch.testing.assert_close(torch._weight_norm(v, g, dim), layer(g, v))


def test_functions_are_one():
    assert pynn.functional.batch_norm is batch_norm is pynn.modules.batchnorm.batch_norm
