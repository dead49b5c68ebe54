"""What a tensor subclass sees of a definition: TestCompositeCompliance of torch's test_ops.py, for the functions that
wrote a subclass's values into plain tensors, or read or drew others for it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal import composite_compliance as compliance
from torch.testing._internal.distributed.fake_pg import FakeStore

import pynn.functional as F
from parity_tests.torch_version import IS_OLDER


def rrelu(x: torch.Tensor) -> torch.Tensor:
    """The same numbers as of a plain tensor: one for each that is not positive."""
    torch.manual_seed(0)
    return F.rrelu(x, 0.0, 1.0, training=True)


def statistics() -> list[torch.Tensor]:
    return [torch.zeros(3), torch.ones(3)]


def image(*size: int) -> torch.Tensor:
    return torch.randn(size, requires_grad=True)


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], tuple], dict[str, Any]]] = {
    "batch_norm": (F.batch_norm, lambda: (image(2, 3, 4), *statistics()), {"training": True}),
    "instance_norm": (F.instance_norm, lambda: (image(2, 3, 4), *statistics()), {}),
    "rrelu": (rrelu, lambda: (image(20),), {}),
    **{
        f"pdist, p = {p}": (F.pdist, lambda: (image(5, 4),), {"p": p})
        for p in (0.5, 1.0, 2.0, 3.0, torch.inf)
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_no_values_of_a_subclass_are_written_into_plain_tensors(name: str) -> None:
    function, draw, kwargs = CALLS[name]
    check = torch.testing.assert_close
    compliance.check_with_mode(function, draw(), kwargs, check)
    compliance.check_all_permutations(function, draw(), kwargs, check)


@pytest.mark.parametrize("name", CALLS)
def test_nor_in_derivatives(name: str) -> None:
    function, draw, kwargs = CALLS[name]
    check = torch.testing.assert_close
    compliance.check_backward_formula(function, draw(), kwargs, assert_equal_fn=check)
    compliance.check_forward_ad_formula(function, draw(), kwargs, assert_equal_fn=check)


def test_slopes_of_rrelu_are_drawn_inside_the_older_vmap() -> None:
    """test_forward_mode_AD_nn_functional_rrelu of test_ops_fwd_gradients.py."""
    x = image(20).double().detach().requires_grad_()
    assert torch.autograd.gradcheck(rrelu, x, check_forward_ad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_slopes_of_rrelu_under_vmap(randomness: str) -> None:
    """Which torch has no rule for: in the interval, equal or not from sample to sample."""
    x = -torch.ones(3, 50)
    slopes = -torch.vmap(lambda x: F.rrelu(x, 0.25, 0.5, training=True), randomness=randomness)(x)
    assert ((slopes >= 0.25) & (slopes < 0.5)).all()
    assert torch.equal(slopes[0], slopes[1]) == (randomness == "same")


# ---- distributed tensors ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Two processes, of which there is one: what is sent arrives nowhere."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


BATCH, WHOLE = [Shard(0)], [Replicate()]
DISTRIBUTED: dict[str, Callable[..., torch.Tensor]] = {
    "conv2d": lambda f, split: f.conv2d(
        split(torch.randn(4, 3, 6, 6)), split(torch.randn(4, 3, 3, 3), WHOLE), padding=1
    ),
    "max_pool2d": lambda f, split: f.max_pool2d(split(torch.randn(4, 3, 6, 6)), 2),
    "batch_norm": lambda f, split: f.batch_norm(
        split(torch.randn(4, 3, 6)), *[split(torch.ones(3), WHOLE, False) for _ in range(2)], training=True
    ),
    "pad": lambda f, split: f.pad(split(torch.randn(4, 3)), (1, 2)),
    "interpolate": lambda f, split: f.interpolate(split(torch.randn(4, 3, 6, 6)), scale_factor=2),
    "one_hot": lambda f, split: f.one_hot(split(torch.arange(4)), 5),
    "embedding": lambda f, split: f.embedding(split(torch.arange(4)), split(torch.randn(6, 4), [Shard(1)])),
    "cross_entropy": lambda f, split: f.cross_entropy(split(torch.randn(4, 5)), split(torch.arange(4))),
}


@pytest.mark.skipif(IS_OLDER, reason="torch 2.11 can't place most of these, or does it wrong")
@pytest.mark.parametrize("name", DISTRIBUTED)
def test_distributed_tensors_are_placed_as_torch_places_them(name: str, mesh: DeviceMesh) -> None:
    """distributed/tensor/test_convolution_ops.py, test_embedding_ops.py and others; gradients as well."""
    found = []
    for functions in (torch.nn.functional, F):
        torch.manual_seed(0)
        leaves = []

        def split(tensor: torch.Tensor, placements: list = BATCH, is_learned: bool = True) -> torch.Tensor:
            leaf = distribute_tensor(tensor, mesh, placements)
            leaves.append(leaf.requires_grad_(is_learned and leaf.is_floating_point()))  # noqa: B023
            return leaf

        results = [DISTRIBUTED[name](functions, split)]
        if results[0].requires_grad:
            results[0].sum().backward()
            results += [leaf.grad for leaf in leaves if leaf.grad is not None]
        found.append(results)
    assert len(found[0]) == len(found[1])
    for cpp, own in zip(*found, strict=True):
        assert own.placements == cpp.placements and own.shape == cpp.shape
        torch.testing.assert_close(own.to_local(), cpp.to_local())
