"""The run time on hand-written programs: plans, arenas, sizes, threads, fork, the cache.

The file runs natively, and once more with PYNN_INTERPRET=1 (test_everything_interpreted).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pytest
import sympy
import torch

from compiler_bridge import cache, compile_pool, memory, settings
from compiler_bridge.cpu import threads as layout
from compiler_bridge.cpu.kernels import LazyKernel
from compiler_bridge.errors import CacheWarning, CompileError, InvalidInput, InvalidProgram
from compiler_bridge.program import (
    Buffer,
    DynamicPlan,
    DynamicStep,
    ExternStep,
    InputReference,
    KernelStep,
    PointerArgument,
    Program,
    SizeArgument,
    SizeInput,
    TensorInput,
    TensorView,
    WorkspaceArgument,
    bind_symbols,
)
from compiler_bridge.runtime import CompiledGraph, load

SOURCE = '''
"""Hand-written kernels."""

from compiler_bridge.cpu.language import *


@helper
def double(x):
    return x + x


@kernel
def k0_add_one(tab, begin, end, thread):
    """out = x + 1"""
    x = pointer(tab, 0, "float32")
    out = pointer(tab, 1, "float32")
    for i in range(begin, end):
        store(out, i, load(x, i) + f32(1))


@kernel
def k1_double(tab, begin, end, thread):
    x = pointer(tab, 0, "float32")
    out = pointer(tab, 1, "float32")
    for i in range(begin, end):
        store(out, i, double(load(x, i)))


@kernel
def k2_reverse(tab, begin, end, thread):
    """out[i] = x[n - 1 - i]: reads what other threads wrote"""
    x = pointer(tab, 0, "float32")
    out = pointer(tab, 1, "float32")
    n = tab[2]
    for i in range(begin, end):
        store(out, i, load(x, n - 1 - i))


@kernel
def k3_thread(tab, begin, end, thread):
    """out[i] = number of the thread that computed it"""
    out = pointer(tab, 0, "float32")
    for i in range(begin, end):
        store(out, i, f32(thread))


@kernel
def k4_scratch(tab, begin, end, thread):
    """out = x + 1, by way of 16 elements of the thread's own scratch"""
    x = pointer(tab, 0, "float32")
    out = pointer(tab, 1, "float32")
    scratch = offset_pointer(pointer(tab, 2, "float32"), thread * 16)
    for i in range(begin, end):
        store(scratch, i % 16, load(x, i) + f32(1))
        store(out, i, load(scratch, i % 16))
'''


def reverse_steps(n, grain=1):
    """arena `a` = x + 1, arena `b` = 2 a, out = b reversed."""
    return [
        KernelStep("k0_add_one", [PointerArgument("x"), PointerArgument("a")], n, grain),
        KernelStep("k1_double", [PointerArgument("a"), PointerArgument("b")], n, grain),
        KernelStep("k2_reverse", [PointerArgument("b"), PointerArgument("out"), SizeArgument(n)], n, grain),
    ]


def reverse_program(n, grain=1, steps=None, source=SOURCE):
    inputs = [TensorInput("x", torch.float32, (n,), (1,))]
    return Program(
        source,
        [
            Buffer("x", torch.float32, n, "input"),
            Buffer("a", torch.float32, n, "arena"),
            Buffer("b", torch.float32, n, "arena"),
            Buffer("out", torch.float32, n, "output"),
        ],
        steps or reverse_steps(n, grain),
        inputs,
        [TensorView("out", (n,), (1,), 0, torch.float32)],
        bind_symbols(inputs),
    )


def reverse(x):
    return ((x + 1) * 2).flip(0)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_chain_of_kernels(two_threads):
    graph = load(reverse_program(37))
    x = torch.randn(37)
    for _ in range(3):
        torch.testing.assert_close(graph(x)[0], reverse(x), rtol=0, atol=0)


def test_outputs_are_fresh_each_call():
    graph = load(reverse_program(8))
    first, second = graph(torch.zeros(8))[0], graph(torch.ones(8))[0]
    assert first.data_ptr() != second.data_ptr()
    assert first.tolist() == [2.0] * 8


def test_symbolic_sizes(two_threads):
    n = sympy.Symbol("s0", integer=True, positive=True)
    graph = load(reverse_program(n))
    for size in (5, 64, 1, 5, 1000):
        x = torch.randn(size)
        torch.testing.assert_close(graph(x)[0], reverse(x), rtol=0, atol=0)
    assert len(graph._specialized) == 4  # 5 was remembered


def test_zero_length():
    n = sympy.Symbol("s0", integer=True)
    assert load(reverse_program(n))(torch.randn(0))[0].shape == (0,)


def test_sizes_come_from_integer_inputs():
    s = sympy.Symbol("s0", integer=True)
    program = reverse_program(2 * s)
    program.inputs.append(SizeInput("s", s))
    program.symbols = bind_symbols(program.inputs)
    program.outputs += [3 * s + 1, None, InputReference(0)]
    x = torch.randn(6)
    out, number, nothing, same = load(program)(x, 3)
    torch.testing.assert_close(out, reverse(x), rtol=0, atol=0)
    assert number == 10 and nothing is None and same is x


def test_segments_around_aten_calls(two_threads):
    n = 50
    steps = reverse_steps(n)
    a, b = (TensorView(name, (n,), (1,), 0, torch.float32) for name in "ab")
    c = TensorView("c", (n,), (1,), 0, torch.float32)
    steps[1] = ExternStep(torch.add, (a, a), {}, [c], "for the test")
    steps[2] = KernelStep("k2_reverse", [PointerArgument("c"), PointerArgument("out"), SizeArgument(n)], n)
    d = TensorView("d", (n,), (1,), 0, torch.float32)
    steps.append(ExternStep(torch.sub, (c, b), {"alpha": 0}, [d], "for the test"))
    program = reverse_program(n, steps=steps)
    program.buffers += [Buffer(name, torch.float32, n, "extern") for name in "cd"]
    program.buffers[2].kind = "constant"
    program.buffers[2].value = torch.ones(n)
    program.outputs.append(d)
    x = torch.randn(n)
    out, extern = load(program)(x)
    torch.testing.assert_close(out, reverse(x), rtol=0, atol=0)
    torch.testing.assert_close(extern, (x + 1) * 2, rtol=0, atol=0)


def test_seeds_are_drawn_at_once_and_first():
    """The same numbers as one draw after the other, and one native segment less for each."""
    import compiler_bridge.capture.random  # noqa: F401  (registers pynn::seed)

    program = reverse_program(8)
    views = [TensorView(name, (), (), 0, torch.int64) for name in ("s", "t")]
    for position, view in zip((1, 3), views):
        program.steps.insert(position, ExternStep(torch.ops.pynn.seed.default, (), {}, [view], "test"))
        program.buffers.append(Buffer(view.buffer_name, torch.int64, 1, "extern"))
    program.outputs += views
    graph = load(program)
    torch.manual_seed(5)
    expected = [torch.ops.pynn.seed() for _ in range(2)]
    torch.manual_seed(5)
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    out, *seeds = graph(x)
    assert torch.equal(out, reverse(x)) and torch.equal(torch.stack(seeds), torch.stack(expected))
    assert len(next(iter(graph._specialized.values())).segments) == 2


def test_extern_result_in_other_strides():
    """A result of ATen in another layout than the graph was planned for is copied into the planned one."""
    x = TensorView("x", (2, 3), (3, 1), 0, torch.float32)
    steps = [ExternStep(torch.clone, (x,), {}, [TensorView("c", (2, 3), (1, 2), 0, torch.float32)], "test")]
    program = reverse_program(6, steps=steps)
    program.buffers = [program.buffers[0], Buffer("c", torch.float32, 6, "extern")]
    program.outputs = [TensorView("c", (2, 3), (1, 2), 0, torch.float32)]
    value = torch.randn(2, 3)
    (out,) = load(program)(value)
    assert out.stride() == (1, 2) and torch.equal(out, value)


def test_two_outputs_of_one_buffer():
    program = reverse_program(8)
    program.outputs = [
        TensorView("out", (4,), (2,), 1, torch.float32),
        TensorView("out", (2, 2), (2, 1), 4, torch.float32),
        TensorView("x", (2,), (1,), 3, torch.float32),
    ]
    x = torch.randn(8)
    odd, tail, of_input = load(program)(x)
    assert torch.equal(odd, reverse(x)[1::2]) and torch.equal(tail, reverse(x)[4:].view(2, 2))
    assert of_input.data_ptr() == x[3:].data_ptr()


def test_dynamic_step_with_workspace(two_threads):
    asked = []

    def plan(values, threads):
        asked.append((dict(values), threads))
        n = values[s]
        return DynamicPlan(
            [
                KernelStep("k0_add_one", [PointerArgument("x"), WorkspaceArgument(64)], n),
                KernelStep("k1_double", [WorkspaceArgument(64), PointerArgument("b")], n),
            ],
            64 + 4 * n,
        )

    s = sympy.Symbol("s0", integer=True)
    program = reverse_program(s)
    program.steps[:2] = [DynamicStep(plan, ["x", "b"], ["k0_add_one", "k1_double"])]
    graph = load(program)
    for size in (12, 12, 7):
        x = torch.randn(size)
        torch.testing.assert_close(graph(x)[0], reverse(x), rtol=0, atol=0)
    assert asked == [({s: 12}, 2), ({s: 7}, 2)]


def test_scratch_of_each_thread(two_threads):
    n = 1000
    arguments = [PointerArgument("x"), PointerArgument("out"), PointerArgument("scratch")]
    program = reverse_program(n, steps=[KernelStep("k4_scratch", arguments, n)])
    program.buffers.append(Buffer("scratch", torch.float32, 16, "thread_scratch"))
    x = torch.randn(n)
    assert torch.equal(load(program)(x)[0], x + 1)
    program.buffers[-1].numel = 17
    with pytest.raises(InvalidProgram, match="multiple of 64"):
        load(program)


@pytest.mark.parametrize(("threads", "grain", "expected"), [(2, 1, 2), (1, 1, 1), (2, 60, 1), (2, 50, 2)])
def test_threads_and_grain_are_respected(threads, grain, expected):
    program = reverse_program(100, steps=[KernelStep("k3_thread", [PointerArgument("out")], 100, grain)])
    graph = load(program)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        used = graph(torch.zeros(100))[0]
    finally:
        torch.set_num_threads(before)
    assert used.tolist() == sorted(used.tolist())  # contiguous shares
    assert used.unique().numel() == expected


def test_many_python_threads(two_threads):
    """Concurrent calls of one graph have their own arenas and argument tables."""
    n = 3000
    graph = load(reverse_program(n))
    wrong = []

    def work(seed):
        x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
        for _ in range(1 if settings.INTERPRET else 200):
            if not torch.equal(graph(x)[0], reverse(x)):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_runs_serially(two_threads):
    """A DataLoader worker forked after OpenMP was used must not wait for threads that don't exist in it."""
    n = 3000
    graph = load(reverse_program(n))
    x = torch.randn(n)
    graph(x)
    child = os.fork()
    if child == 0:
        correct = layout.thread_count() == 1 and torch.equal(graph(x)[0], reverse(x))
        os._exit(0 if correct else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert layout.thread_count() == 2
    assert torch.equal(graph(x)[0], reverse(x))


def test_inputs_are_checked_in_debug_mode(monkeypatch):
    graph = load(reverse_program(8))
    monkeypatch.setattr(settings, "DEBUG", 1)
    for wrong in (torch.zeros(9), torch.zeros(8, dtype=torch.float64), torch.zeros(16)[::2]):
        with pytest.raises(InvalidInput):
            graph(wrong)
    graph(torch.zeros(8))


def test_buffers_must_be_known():
    program = reverse_program(8)
    del program.buffers[1]
    with pytest.raises(InvalidProgram, match="buffer a"):
        load(program)


# ------------------------------------------------------------------------------------------------- memory
def test_arena_plan_never_overlaps_in_time():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        draw = torch.randint(0, 20, (30, 3), generator=generator).tolist()
        items = [
            memory.Lifetime(f"t{i}", 50 * size, min(a, b), max(a, b)) for i, (size, a, b) in enumerate(draw)
        ]
        plan = memory.plan_arena(items)
        for i, one in enumerate(items):
            begin = plan.offsets[one.name]
            assert begin % memory.ALIGNMENT == 0 and begin + one.nbytes <= plan.nbytes
            for other in items[:i]:
                if one.meets(other):
                    there = plan.offsets[other.name]
                    assert begin + one.nbytes <= there or there + other.nbytes <= begin
        assert plan.nbytes <= sum(memory.align(item.nbytes) for item in items)


def test_a_chain_needs_two_slots():
    chain = [memory.Lifetime(f"t{i}", 1024, i, i + 1) for i in range(20)]
    assert memory.plan_arena(chain).nbytes == 2048


def test_arenas_are_reused():
    pool = memory.ArenaPool()
    first = pool.take(1000)
    second = pool.take(1000)
    assert first.data_ptr() != second.data_ptr()
    pool.give_back(first)
    assert pool.take(500) is first
    pool.give_back(second)
    assert pool.take(5000).numel() == 5000


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


# -------------------------------------------------------------------------------------------------- cache
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


native = pytest.mark.skipif(settings.INTERPRET, reason="nothing is compiled")


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
        from parity_tests.test_runtime import run_once
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
    command = [sys.executable, "-W", "error", "-c", "import parity_tests.test_runtime as t; t.run_once()"]
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


@native
@pytest.mark.slow
def test_everything_interpreted():
    """Every test above that needs no machine code, as plain Python."""
    environment = {**os.environ, "PYNN_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_graph_prints():
    text = str(reverse_program(8))
    assert "k2_reverse(b, out, 8) for [0, 8)" in text
    assert isinstance(load(reverse_program(8)), CompiledGraph)


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
