"""Shared by every test: quiet, deterministic, one thread a worker, and no state of Dynamo's left behind."""

import warnings

import pytest
import torch


@pytest.fixture(autouse=True)
def clean_state():
    """Start from a fixed seed; forget compiled graphs afterwards, so that none meets the recompile limit."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        yield
    torch._dynamo.reset()
