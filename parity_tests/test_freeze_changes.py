"""freeze=True: parameters are folded again whenever one of them changes, and folded values go with their model."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from compiler_bridge import backend
from compiler_bridge.capture import refold
from parity_tests.frozen import assert_same, frozen, images, in_place, randomize, small_network


def copy_to_detached(model):
    model[0].weight.detach().copy_(images(8, 3, 3, 3))


def load(model):
    model.load_state_dict(randomize(small_network(), seed=5).state_dict())


def load_assigned(model):
    model.load_state_dict(randomize(small_network(), seed=5).state_dict(), assign=True)


def assign_data(model):
    model[1].weight.data = images(8)


def assign_data_and_keep_the_old(model):
    model.kept = model[1].weight.data
    model[1].weight.data = images(8)


def assign_data_twice(model):
    """The second value may lie where the first one was."""
    model[1].weight.data = images(8)
    model[1].weight.data = images(8) * 3


def replace_parameter(model):
    model[0].weight = nn.Parameter(images(8, 3, 3, 3))


def replace_sharing_memory(model):
    """Another parameter over the same memory, its own version as high as the old one's."""
    old = model[0].weight
    new = nn.Parameter(old.data)
    while new._version < old._version:
        new.data = new.data
        with torch.no_grad():
            new.mul_(1.5)
    model[0].weight = new
    model.kept = old


def replace_buffer(model):
    model[1].running_var = model[1].running_var * 4


def initialize(model):
    nn.init.normal_(model[4].weight)


def step(optimizer):
    def change(model):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer(model.parameters()).step()

    change.__name__ = getattr(optimizer, "__name__", "step")
    return change


def fused_step(parameters):
    """Writes without being counted by `_version`."""
    return torch.optim.AdamW(parameters, lr=0.1, fused=True)


class WritesData(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad.data)


def train_one_step(model):
    """Running statistics change, parameters don't."""
    model.train()
    model(images(4, 3, 6, 6))
    model.eval()


def in_inference_mode(model):
    with torch.inference_mode():
        model[0].weight.mul_(2)


@pytest.mark.parametrize("change", [
    in_place, load_assigned, assign_data, replace_parameter, replace_buffer, step(fused_step), train_one_step,
    in_inference_mode, *(pytest.param(change, marks=pytest.mark.slow) for change in (
        copy_to_detached, load, assign_data_and_keep_the_old, assign_data_twice, replace_sharing_memory, initialize,
        step(torch.optim.SGD), step(WritesData),
    )),
], ids=lambda change: change.__name__)  # fmt: skip
def test_a_change_is_noticed(change, folds):
    model = small_network()
    compiled = frozen(model)
    x = images()
    assert_same(compiled, model, x)
    with torch.no_grad():
        before = model(x)
    for _ in range(2):
        change(model)
        made = len(folds)
        assert_same(compiled, model, x)
        assert len(folds) == made + 1
        assert_same(compiled, model, x)
        assert len(folds) == made + 1
    with torch.no_grad():
        assert not torch.allclose(before, model(x))


def write_data(model):
    model[0].weight.data.mul_(2)


def write_numpy(model):
    model[0].weight.detach().numpy()[...] *= 2


@pytest.mark.parametrize("change", [write_data, write_numpy], ids=lambda change: change.__name__)
def test_what_torch_does_not_count_is_seen_after_the_next_counted_write(change):
    """As compile's docstring says."""
    model = small_network()
    compiled = frozen(model)
    x = images()
    with torch.no_grad():
        before = compiled(x)
        change(model)
        assert torch.equal(compiled(x), before)
        model[0].weight.mul_(1)
    assert_same(compiled, model, x)


@pytest.mark.slow
def test_unchanged_parameters_are_folded_once(folds):
    model = small_network()
    compiled = frozen(model)
    for size in (2, 3, 2):
        assert_same(compiled, model, images(size, 3, 6, 6))
    first = len(folds)
    for _ in range(3):
        assert_same(compiled, model, images())
    model.requires_grad_(False)
    assert_same(compiled, model, images())  # Dynamo may compile again: requires_grad is guarded
    model.requires_grad_(True)
    assert_same(compiled, model, images())
    assert len(folds) <= first + 2


def test_an_optimizer_of_another_model_changes_nothing(folds):
    model, other = small_network(), nn.Linear(3, 3)
    compiled = frozen(model)
    assert_same(compiled, model, images())
    other.weight.grad = torch.ones(3, 3)
    torch.optim.SGD(other.parameters()).step()
    assert_same(compiled, model, images())
    assert len(folds) == 1


@pytest.mark.slow
def test_compiled_optimizer_step():
    """The hook that notices steps doesn't get in Dynamo's way, nor does what Dynamo compiles go unnoticed."""
    model = small_network()
    compiled = frozen(model)
    assert_same(compiled, model, images())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.compile(optimizer.step, backend="aot_eager")()
    assert_same(compiled, model, images())


# ---------------------------------------------------------------- what stays of it


def test_folded_values_go_with_the_model(folds):
    model = small_network()
    compiled = frozen(model)
    assert_same(compiled, model, images())
    (folded,) = folds
    assert folded() is not None
    weight, dead = weakref.ref(folded().values[0]), weakref.ref(model)
    del model, compiled
    gc.collect()
    assert dead() is None and folded() is None and weight() is None


def test_values_of_replaced_parameters_go(folds):
    model = small_network()
    compiled = frozen(model)
    for seed in range(4):
        model.load_state_dict(randomize(small_network(), seed).state_dict(), assign=True)
        assert_same(compiled, model, images())
    gc.collect()
    assert [folded() is None for folded in folds] == [True] * 3 + [False]


def test_copies_and_pickles_hold_nothing_folded():
    sizes, attributes = [], []
    for compiled in (backend.compile(small_network()), frozen(model := small_network())):
        assert_same(compiled, compiled._orig_mod, images())
        sizes.append(len(pickle.dumps(compiled._orig_mod)))
        attributes.append([vars(parameter) for parameter in compiled.parameters()])
    assert sizes[0] == sizes[1] and attributes[0] == attributes[1]
    twin = copy.deepcopy(model)
    in_place(twin)
    assert_same(compiled, model, images())
    assert_same(frozen(twin), twin, images())


@pytest.mark.parametrize("function", [refold.references, refold.ids])
def test_identities(function):
    a, b = torch.zeros(1), torch.zeros(1)
    assert function((a, b)) == function((a, b)) and function(()) == function(())
    assert (
        len({function((a, b)), function((b, a)), function((a, a)), function((a,)), function((a, b, b))}) == 5
    )


def test_called_by_several_threads():
    from concurrent.futures import ThreadPoolExecutor

    model = small_network()
    compiled = frozen(model)
    assert_same(compiled, model, images())
    with torch.no_grad():
        expected = model(images())

    def call(_):
        with torch.no_grad():
            return compiled(images())

    in_place(model)
    in_place(model)
    with torch.no_grad():
        expected = model(images())
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(call, range(16)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
