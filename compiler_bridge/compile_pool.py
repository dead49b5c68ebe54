"""Compiling kernels in other processes, when many are missing from the cache.

Numba compiles under one lock, so only processes run in parallel. A worker is a fresh Python that imports
the kernel language, compiles what it is sent into the disk cache, and answers with a word; this process takes
part meanwhile and reads the workers' results from the disk cache afterwards. Whatever goes wrong with a
worker, the kernel is compiled here.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compiler_bridge import cache, settings

WORTH_A_WORKER = 4  # missing kernels; a worker takes about a second of processor time to start
MOST_WORKERS = 7
IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class GeneratedKernel:
    """A kernel of a generated module."""

    source: str
    name: str

    def compile(self) -> None:
        cache.load_kernels(self.source, [self.name], self.name)


@dataclass(frozen=True)
class LibraryKernel:
    """A kernel of a library, picklable, whose `address` compiles it."""

    kernel: Any

    def compile(self) -> None:
        _ = self.kernel.address


Task = GeneratedKernel | LibraryKernel


class Worker:
    """A process that compiles one task at a time."""

    def __init__(self) -> None:
        start = (
            f"import sys; sys.path[:] = {sys.path!r}; from compiler_bridge.compile_pool import serve; serve()"
        )
        environment = {**os.environ, "PYNN_CACHE_DIR": str(settings.CACHE_DIR), "PYNN_DEBUG": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.directory = str(settings.CACHE_DIR)
        self.is_ready = False
        self.in_use = threading.Lock()

    def is_alive(self) -> bool:
        return self.process.poll() is None and self.directory == str(settings.CACHE_DIR)

    def wait_until_ready(self) -> bool:
        """Blocks while the worker imports."""
        if not self.is_ready:
            self.is_ready = self._receive() == "ready"
        return self.is_ready

    def compile(self, payload: bytes) -> bool:
        """Whether the worker compiled a pickled task."""
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(len(payload).to_bytes(8, "little") + payload)
            self.process.stdin.flush()
        except OSError:
            return False
        return self._receive() == "done"

    def _receive(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def stop(self) -> None:
        """The worker leaves when its input ends."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except OSError:  # it has left already
            pass


_workers: list[Worker] = []
_lock = threading.Lock()


def _forget_workers() -> None:
    """In a forked child: they belong to the parent."""
    global _lock
    _workers.clear()
    _lock = threading.Lock()


@atexit.register
def stop_workers() -> None:
    """Idle workers leave at once; one that still compiles (for nobody now) is terminated."""
    for worker in _workers:
        worker.stop()
    for worker in _workers:
        try:
            worker.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            worker.process.terminate()
            worker.process.wait()
        if worker.process.stdout is not None:
            worker.process.stdout.close()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def processor_count() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_workers() -> list[Worker]:
    """The workers, started if need be: one per processor beside this process's own."""
    wanted = min(processor_count() - 1, MOST_WORKERS)
    with _lock:
        _workers[:] = [worker for worker in _workers if worker.is_alive()]
        try:
            while len(_workers) < wanted:
                _workers.append(Worker())
        except OSError:
            pass
        return list(_workers)


def compile_ahead(tasks: Callable[[], Sequence[Task]]) -> None:
    """With an empty cache there will be much to compile: let the workers import while the graph is traced, and
    begin with the tasks it is likely to need."""
    if settings.INTERPRET or not cache.directory_is_usable() or cache.holds_machine_code():
        return
    waiting = deque(payload for task in tasks() for payload in [_pickled(task)] if payload is not None)

    def feed(worker: Worker) -> None:
        with worker.in_use:
            while waiting and worker.wait_until_ready():
                try:
                    payload = waiting.popleft()
                except IndexError:  # another worker took the last one
                    return
                worker.compile(payload)

    for worker in start_workers():
        threading.Thread(target=feed, args=(worker,), daemon=True).start()


def compile_in_parallel(tasks: Sequence[Task], advance: Callable[[str], None] = lambda name: None) -> None:
    """Compile tasks into the disk cache here and in workers.

    An error is not reported: whoever needs that kernel compiles it again and raises.
    """
    if len(tasks) < WORTH_A_WORKER or not cache.directory_is_usable():
        return
    waiting = deque((task, payload) for task in tasks for payload in [_pickled(task)])

    def feed(worker: Worker) -> None:
        with worker.in_use:  # another thread may be compiling its own graph with it
            feed_in_turn(worker)

    def feed_in_turn(worker: Worker) -> None:
        while worker.wait_until_ready():
            try:
                task, payload = waiting.pop()
            except IndexError:
                return
            if payload is None:
                waiting.appendleft((task, payload))  # for this process only
                return
            if not worker.compile(payload) and not worker.is_alive():
                waiting.append((task, payload))
                return

    workers = start_workers()
    feeders = [threading.Thread(target=feed, args=(worker,), daemon=True) for worker in workers]
    for feeder in feeders:
        feeder.start()
    while waiting:
        try:
            task, _ = waiting.popleft()
        except IndexError:
            break
        advance(getattr(task, "name", "library kernel"))
        try:
            task.compile()
        except Exception:
            continue
    for feeder, worker in zip(feeders, workers):
        if worker.is_ready:  # else it is still importing and has nothing of ours
            feeder.join()


def _pickled(task: Task) -> bytes | None:
    try:
        return pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


def serve() -> None:
    """What a worker does: read a task, compile it into the cache, answer."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout = sys.stderr
    importlib.import_module("compiler_bridge.cpu.language")  # what kernels import
    gc.freeze()  # what the imports have left stays; the collector need not look at it again

    stop = threading.Timer(IDLE_SECONDS, os._exit, args=(0,))
    stop.daemon = True
    stop.start()
    answers.write("ready\n")
    while header := sys.stdin.buffer.read(8):
        stop.cancel()
        payload = sys.stdin.buffer.read(int.from_bytes(header, "little"))
        try:
            pickle.loads(payload).compile()
            answers.write("done\n")
        except Exception:
            answers.write("failed\n")
        stop = threading.Timer(IDLE_SECONDS, os._exit, args=(0,))
        stop.daemon = True
        stop.start()
