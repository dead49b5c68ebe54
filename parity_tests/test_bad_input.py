"""Bad input, as a user meets it: what can't be compiled, what torch refuses, a cache directory in disorder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pynn
from compiler_bridge import backend, settings
from compiler_bridge.errors import FallbackWarning
from parity_tests.torch_version import IS_OLDER, words

# ---------------------------------------------------------------- what can't be compiled


@pytest.fixture
def nothing_warned_of(monkeypatch):
    monkeypatch.setattr(backend, "_warned", set())


def either_way(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


def test_unsupported_op_warns_once_and_computes(nothing_warned_of):
    """Forward and backward fail for the same reason: one warning for both."""
    x = torch.ones(3, requires_grad=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = pynn.compile(either_way)(x)
        y.sum().backward()
    (message,) = [str(w.message) for w in caught if w.category is FallbackWarning]
    assert "operation cond" in message and "not an ATen operation" in message
    torch.testing.assert_close(y, x.sin())
    torch.testing.assert_close(x.grad, x.cos())


def test_strict_raises_for_an_unsupported_op():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="UnsupportedOp: operation cond"):
        pynn.compile(either_way, strict=True)(torch.ones(3))


def test_unsupported_device(nothing_warned_of):
    def function(x: Tensor) -> Tensor:
        return x * 2

    x = torch.empty(3, 2, device="meta")
    with pytest.warns(FallbackWarning, match="device meta"):
        y = pynn.compile(function)(x)
    assert y.is_meta and y.shape == (3, 2)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="UnsupportedDevice: device meta"):
        torch._dynamo.reset()
        pynn.compile(function, strict=True)(x)


UNUSUAL: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "complex": (lambda x: x * 2 + 1, lambda: torch.randn(3, dtype=torch.complex64)),
    "complex inside": (lambda x: torch.fft.fft(x).abs().relu() * 2, lambda: torch.randn(8)),
    "float8": (lambda x: x.float() * 2, lambda: torch.randn(3).to(torch.float8_e4m3fn)),
    "uint16": (lambda x: x.int() * 2, lambda: torch.tensor([1, 2], dtype=torch.uint16)),
    "sparse": (lambda x: x @ torch.ones(3, 2), lambda: torch.eye(3).to_sparse()),
    "sparse rows": (lambda x: x @ torch.ones(3, 2), lambda: torch.eye(3).to_sparse_csr()),
    "quantized": (
        lambda x: x.dequantize() * 2,
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_tensors_without_a_kernel_go_through_aten(name: str):
    """Single operations on them are ATen calls within the graph, or leave it: nothing to warn of."""
    function, draw = UNUSUAL[name]
    x = draw()
    torch.testing.assert_close(pynn.compile(function, strict=True)(x), function(x))


# ---------------------------------------------------------------- what torch refuses

X = torch.ones(2, 3)
REFUSED: dict[str, Callable[[], Any]] = {
    "matmul": lambda: X @ torch.ones(4, 2),
    "matmul of two dtypes": lambda: X @ torch.ones(3, 2, dtype=torch.float64),
    "linear of two dtypes": lambda: F.linear(X, torch.ones(2, 3, dtype=torch.float64)),
    "add": lambda: X + torch.ones(4),
    "view": lambda: X.view(5),
    "cat": lambda: torch.cat([X, torch.ones(3, 3)], 1),
    "dimension": lambda: X.cumsum(4),
    "layer norm": lambda: F.layer_norm(X, (4,)),
    "convolution": lambda: F.conv2d(torch.ones(1, 4, 8, 8), torch.ones(2, 3, 3, 3)),
    "attention": lambda: F.scaled_dot_product_attention(X[None], torch.ones(1, 3, 7), X[None]),
    "embedding of floats": lambda: F.embedding(torch.tensor([1.0]), X),
    "embedding out of range": lambda: F.embedding(torch.tensor([5]), X),
    "gather out of range": lambda: X.gather(1, torch.tensor([[7], [0]])),
    "cross entropy": lambda: F.cross_entropy(X, torch.tensor([1, 0, 1])),
}


def error_of(function: Callable[[], Any]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        function()
    torch._dynamo.reset()
    return caught.type, re.sub(r"0x[0-9a-f]+", "0x", words(caught.value))


@pytest.mark.parametrize("name", REFUSED)
def test_errors_are_torchs_own(name: str):
    """The same type and words as under torch.compile with a backend that runs the graph eagerly."""
    function = REFUSED[name]
    eager: Any = torch.compile(function, backend="eager")
    strict = not (IS_OLDER and name == "embedding of floats")  # which 2.11 leaves to the operation itself
    assert error_of(pynn.compile(function, strict=strict)) == error_of(eager)


# ---------------------------------------------------------------- the cache directory

PROGRAM = """
import resource, sys, warnings
import torch, pynn
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))  # every larger file is refused, as on a full disk
x = torch.randn(5, 6, requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    pynn.compile(lambda x: x.tanh().cumsum(1), strict=True)(x).sum().backward()
found, x.grad = x.grad, None
x.tanh().cumsum(1).sum().backward()
torch.testing.assert_close(found, x.grad)
print(sorted({str(w.message).split("pynn-user")[1] for w in caught if "pynn-user" in str(w.message)}))
"""

native = pytest.mark.skipif(settings.INTERPRET, reason="nothing is compiled")


def run_as_user(cache_directory: Path, condition: str = "") -> list[str]:
    """Warnings about the directory of a process that checks its results itself."""
    environment = {**os.environ, "PYNN_CACHE_DIR": str(cache_directory)}
    command = [sys.executable, "-c", PROGRAM, condition]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return eval(ran.stdout.splitlines()[-1])


@native
@pytest.mark.slow
def test_damaged_cache(tmp_path):
    directory = tmp_path / "pynn-user"
    assert run_as_user(directory) == []
    files = [*directory.glob("machine/*.o"), *directory.glob("modules/*.py")]
    assert len(files) >= 3
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    (message,) = run_as_user(directory)
    assert "damaged" in message
    assert run_as_user(directory) == []  # the files are whole again


@native
@pytest.mark.slow
def test_full_disk(tmp_path):
    messages = run_as_user(tmp_path / "pynn-user", "full")
    assert messages and all("File too large" in message for message in messages)


@native
@pytest.mark.slow
def test_cache_that_is_no_directory(tmp_path):
    (tmp_path / "pynn-user").write_text("")
    (message,) = run_as_user(tmp_path / "pynn-user")
    assert "Not a directory" in message


@native
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_cache(tmp_path):
    directory = tmp_path / "pynn-user"
    run_as_user(directory)
    for folder in (directory, *directory.iterdir()):
        folder.chmod(0o555)
    (message,) = run_as_user(directory)
    assert "not writable" in message


@pytest.mark.skipif(IS_OLDER, reason="torch 2.11 does not order effects of _linalg_check_errors")
def test_an_operation_with_ordered_effects_is_named() -> None:
    """It once was called "with_effects", torch's wrapper."""
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"operation aten\._linalg_check_errors"):
        pynn.compile(torch.linalg.inv, strict=True)(torch.eye(3))
