"""Outputs that nobody holds any more lend their memory to the next ones."""

from __future__ import annotations

import pytest
import torch

from compiler_bridge import memory

LARGE = (256, 128)


def new_output(pool):
    return pool.empty(LARGE, (128, 1), torch.float32, 256 * 128 * 4)


def test_an_output_nobody_holds_is_recycled():
    pool = memory.OutputPool(1 << 30)
    first = new_output(pool)
    address = first.data_ptr()
    del first
    again = new_output(pool)
    assert again.data_ptr() == address and again.shape == LARGE and not again.requires_grad
    assert new_output(pool).data_ptr() != address


def test_a_recycled_output_is_a_tensor_of_its_own():
    """Whatever was done to the tensor that had the memory before."""
    pool = memory.OutputPool(1 << 30)
    first = new_output(pool)
    address, first.mark = first.data_ptr(), 1
    first.fill_(1).requires_grad_().register_hook(lambda grad: grad)
    del first
    for strides, dtype in (((128, 1), torch.float32), ((1, 256), torch.float32), ((128, 1), torch.int32)):
        for _ in range(2):  # the second looks like the one before
            again = pool.empty(LARGE, strides, dtype, 256 * 128 * 4)
            assert again.data_ptr() == address
            assert (again.shape, again.stride(), again.dtype) == (LARGE, strides, dtype)
            assert again._version == 0 and not again.requires_grad and not again._is_view()
            assert not hasattr(again, "mark")
            del again


def test_an_output_is_recycled_in_and_out_of_inference_mode():
    pool = memory.OutputPool(1 << 30)
    address = new_output(pool).data_ptr()
    for inference in (True, True, False, False, True):
        with torch.inference_mode(inference):
            again = new_output(pool)
        assert again.data_ptr() == address and again.is_inference() == inference
        del again


def test_nothing_is_recycled_when_torch_does_not_tell_who_holds_it(monkeypatch):
    """Bug: without the private `_storage_Use_Count` the package could not be imported, and the public
    `empty_strided`, meant for a torch without Inductor's, was called with the dtype in the wrong place."""
    monkeypatch.setattr(memory, "_use_count", None)
    monkeypatch.setattr(memory, "EMPTY_STRIDED", memory._empty_strided)
    monkeypatch.setattr(memory, "_idle_references", memory.remember(memory._idle_references.__wrapped__))
    pool = memory.OutputPool(1 << 30)
    first = new_output(pool)
    assert memory._idle_references() is None and pool.idle_bytes() == 0
    view, address = first[0], first.data_ptr()
    del first
    again = new_output(pool)
    assert again.data_ptr() != address == view.data_ptr() and again.shape == LARGE


@pytest.mark.parametrize(
    "hold",
    [
        lambda t: t[3:5],
        lambda t: t.numpy(),
        lambda t: t.untyped_storage(),
        lambda t: t.detach(),
        lambda t: torch.utils.dlpack.to_dlpack(t),
        lambda t: memoryview(t.numpy()),
        lambda t: (t.view(-1).requires_grad_() * 2).grad_fn,
        lambda t: t.requires_grad_().exp().sum().grad_fn,
        lambda t: torch._lazy_clone(t),
    ],
)
def test_an_output_somebody_holds_is_not_recycled(hold):
    """Whatever way the memory can still be seen, nobody else writes into it."""
    pool = memory.OutputPool(1 << 30)
    first = new_output(pool).fill_(7)
    address = first.data_ptr()
    held = hold(first)
    del first
    for _ in range(3):
        new = new_output(pool).fill_(0)
        assert new.data_ptr() != address
    if isinstance(held, torch.Tensor):
        assert (held == 7).all()
    del held


def test_an_output_moved_to_shared_memory_is_not_recycled():
    pool = memory.OutputPool(1 << 30)
    first = new_output(pool).share_memory_()
    address = first.data_ptr()
    del first
    assert new_output(pool).data_ptr() != address


def test_idle_outputs_are_limited():
    pool = memory.OutputPool(idle_limit=600_000)
    held = [new_output(pool) for _ in range(8)]
    assert pool.idle_bytes() == 0
    held.clear()
    assert pool.idle_bytes() == 8 * 131072
    pool.empty((100, 128), (128, 1), torch.float32, 100 * 128 * 4)
    assert pool.idle_bytes() <= 600_000
