"""The run time on hand-written programs: plans, arenas, sizes, threads, fork.

The file runs natively, and once more with PYNN_INTERPRET=1 (test_everything_interpreted).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import sympy
import torch

from compiler_bridge import memory, settings
from compiler_bridge.cpu import threads as layout
from compiler_bridge.errors import InvalidInput, InvalidProgram
from compiler_bridge.program import (
    Buffer,
    DynamicPlan,
    DynamicStep,
    ExternStep,
    InputReference,
    KernelStep,
    PointerArgument,
    SizeArgument,
    SizeInput,
    TensorView,
    WorkspaceArgument,
    bind_symbols,
)
from compiler_bridge.runtime import CompiledGraph, load
from parity_tests.hand_written import native, reverse, reverse_program, reverse_steps


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
