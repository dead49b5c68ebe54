"""Shared by every test: quiet, deterministic, one thread a worker, and no state of Dynamo's left behind."""

import gc
import warnings
import weakref

import pytest
import torch
import torch._dynamo.guards

from parity_tests.cases import seed

# Dynamo measures how long a new graph's guards take, after it has flushed the processor's caches: 20 ms a graph.
torch._dynamo.guards.profile_guard_manager = lambda *_: 0.0

gc.disable()  # until collection is over: all that it makes, stays


def pytest_addoption(parser):
    parser.addoption("--rows", type=int, help="run at most so many rows of each test, spread over its table")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    limit = config.getoption("--rows")
    if not limit:
        return
    rows = {}
    for item in items:
        rows.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {row for table in rows.values() for row in table[:: -(-len(table) // limit)]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_collection_finish(session):
    """What imports and collection made stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def clean_state():
    """Start from a fixed seed; forget compiled graphs afterwards, so that none meets the recompile limit."""
    seed(0)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        yield
    torch._dynamo.reset()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # a kernel's assertion fails the test that made it, and not whoever comes next


@pytest.fixture
def graphs(monkeypatch):
    """(kind, graph module) of every graph compiled in the test."""
    from compiler_bridge import pipeline

    seen = []
    compile_graph = pipeline.compile_graph

    def record(gm, example_inputs, kind, options):
        seen.append((kind, gm))
        return compile_graph(gm, example_inputs, kind, options)

    monkeypatch.setattr(pipeline, "compile_graph", record)
    return seen


@pytest.fixture
def folds(monkeypatch):
    """A weak reference to what was folded, each time parameters were."""
    from compiler_bridge.capture import refold

    made = []

    class Counted(refold.Folded):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(refold, "Folded", Counted)
    return made
