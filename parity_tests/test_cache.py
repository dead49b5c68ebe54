"""Machine code on disk: found by content, shared, written by workers, never trusted blindly."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch

from compiler_bridge import cache, compile_pool, settings
from compiler_bridge.cpu.kernels import LazyKernel
from compiler_bridge.errors import CacheWarning, CompileError
from compiler_bridge.runtime import load
from parity_tests.hand_written import SOURCE, native, reverse, reverse_program


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "CACHE_DIR", tmp_path / "cache")
    monkeypatch.setattr(cache, "_addresses", {})
    monkeypatch.setattr(cache, "_warned", set())
    return tmp_path / "cache"


def renamed(source):
    """The same kernels under other names, with other comments."""
    text = source.replace("k0_add_one", "k7_sum").replace("k1_double", "k8_twice").replace("out = x + 1", "?")
    return text.replace("@kernel", "# of layer 7\n@kernel")


def run_once(source=SOURCE):
    graph = load(reverse_program(9, source=source))
    x = torch.randn(9)
    assert torch.equal(graph(x)[0], reverse(x))


@pytest.mark.slow
@native
def test_equal_kernels_share_machine_code(empty_cache):
    first = cache.load_kernels(SOURCE, ["k0_add_one", "k1_double"])
    files = set(empty_cache.glob("machine/*.o"))
    second = cache.load_kernels(renamed(SOURCE), ["k7_sum", "k8_twice"])
    assert list(first.values()) == list(second.values())
    assert set(empty_cache.glob("machine/*.o")) == files and len(files) == 2


@native
def test_a_helper_is_part_of_the_key(empty_cache):
    first = cache.load_kernels(SOURCE, ["k0_add_one", "k1_double"])
    changed = SOURCE.replace("return x + x", "return x + x + x")
    second = cache.load_kernels(changed, ["k0_add_one", "k1_double"])
    assert first["k0_add_one"] == second["k0_add_one"] and first["k1_double"] != second["k1_double"]


@pytest.mark.slow
@native
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_machine_code_is_compiled_again(empty_cache, damage):
    run_once()
    for path in empty_cache.glob("machine/*.o"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    cache.forget_loaded_kernels()
    with pytest.warns(CacheWarning, match="damaged"):
        run_once()
    cache.forget_loaded_kernels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_once()


def test_damaged_module_is_replaced(empty_cache):
    path = cache.write_module(SOURCE)
    path.write_text("raise SystemExit")
    assert cache.write_module(SOURCE) == path and path.read_text() == SOURCE
    path.write_text("raise SystemExit")
    assert cache.import_module(SOURCE).k0_add_one is not None


@native
def test_unusable_directory(tmp_path, empty_cache, monkeypatch):
    """A file where the directory should be: one warning, correct results."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(settings, "CACHE_DIR", tmp_path / "file" / "cache")
    with pytest.warns(CacheWarning) as caught:
        run_once()
    assert len(caught) == 1


@native
def test_full_disk(empty_cache, monkeypatch):
    def refuse(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.warns(CacheWarning, match="No space left"):
        run_once()


@native
def test_compile_error_names_the_kernel(empty_cache):
    broken = SOURCE.replace("store(out, i, load(x, i) + f32(1))", "store(out, i, unknown_word(i))")
    with pytest.raises(CompileError, match="k0_add_one"):
        load(reverse_program(9, source=broken))


@native
@pytest.mark.slow
def test_second_process_compiles_nothing(tmp_path):
    """It does not even import Numba."""
    script = textwrap.dedent("""
        import sys, torch
        from parity_tests.test_cache import run_once
        run_once()
        print("numba" in sys.modules)
    """)
    environment = {**os.environ, "PYNN_CACHE_DIR": str(tmp_path), "PYNN_INTERPRET": "0"}
    command = [sys.executable, "-W", "error", "-c", script]
    answers = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert answers == ["True", "False"]


@native
@pytest.mark.slow
def test_racing_processes(tmp_path):
    environment = {**os.environ, "PYNN_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", "import parity_tests.test_cache as t; t.run_once()"]
    racing = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in racing] == [0, 0]
    assert not list(tmp_path.glob("*/.*"))  # no temporary file stays


@pytest.fixture
def one_worker(empty_cache, monkeypatch):
    """A worker on its way, whatever the number of processors."""
    monkeypatch.setattr(compile_pool, "processor_count", lambda: 2)
    monkeypatch.setattr(compile_pool, "_workers", [])
    (worker,) = compile_pool.start_workers()
    yield worker
    worker.stop()
    worker.process.wait(timeout=60)


NAMES = ("k0_add_one", "k1_double", "k2_reverse", "k3_thread", "k4_scratch")


@pytest.mark.slow
@native
def test_a_worker_fills_the_cache(one_worker, monkeypatch):
    """Kernels a worker compiled are found on disk; here nothing is compiled."""
    assert one_worker.wait_until_ready()
    tasks = [compile_pool.GeneratedKernel(SOURCE, name) for name in NAMES]

    def wait(task):
        deadline = time.monotonic() + 120
        while cache.missing_kernels(SOURCE, NAMES) and time.monotonic() < deadline:
            time.sleep(0.05)

    monkeypatch.setattr(compile_pool.GeneratedKernel, "compile", wait)
    compile_pool.compile_in_parallel(tasks * 2)
    assert cache.missing_kernels(SOURCE, NAMES) == []
    monkeypatch.setattr(cache, "_compile", None)
    assert all(cache.load_kernels(SOURCE, NAMES).values())


@pytest.mark.slow
@native
def test_a_broken_worker_costs_nothing_but_time(one_worker, monkeypatch):
    assert one_worker.wait_until_ready()
    one_worker.process.kill()
    one_worker.process.wait()
    monkeypatch.setattr(compile_pool, "start_workers", lambda: [one_worker])
    compile_pool.compile_in_parallel([compile_pool.GeneratedKernel(SOURCE, name) for name in NAMES])
    assert cache.missing_kernels(SOURCE, NAMES) == []


@native
def test_a_library_kernel_is_lazy(empty_cache):
    """Its address is the same in any process and needs no more than its name."""
    clear = LazyKernel("attention_backward", "attention_mask_clear")
    assert pickle.loads(pickle.dumps(clear)) == clear and clear.name == "attention_mask_clear"
    address = clear.address
    assert address and LazyKernel("attention_backward", "attention_mask_clear").address == address


@pytest.mark.slow
def test_functions_of_two_processes_never_share_a_name():
    """Numba counts functions from 1 in every process; helpers cached by one process and linked with another's
    replaced each other where the counts met (seen: three GEMM kernels that all ran the first one's closures)."""
    program = """
        import compiler_bridge.cpu.code_library
        from numba.core.bytecode import FunctionIdentity
        print(next(FunctionIdentity._unique_ids))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    numbers = [int(run.stdout) for run in runs]
    assert len(set(numbers)) == 2 and min(numbers) > 2**20
