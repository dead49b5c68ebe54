"""The ways a definition can be run. Only this file knows how the compiler is told which one.

eager    the pynn definition as it stands, on torch's elementary operations
ir       compiled down to the loop IR, which the IR's interpreter then runs
python   compiled to generated Python, run un-jitted (a process of its own with PYNN_INTERPRET=1)
numba    compiled to generated Python, jitted by Numba
"""

import atexit
import multiprocessing
import os
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import torch

EXECUTORS = ("eager", "ir", "python", "numba")


def prepare(executor: str, function: Callable) -> Callable:
    """Return `function` as the named executor runs it.

    Raises:  ValueError when the executor is unknown
    """
    if executor not in EXECUTORS:
        raise ValueError(f"executor {executor!r}: expected one of {', '.join(EXECUTORS)}")
    if executor == "eager":
        return function
    import pynn

    torch._dynamo.reset()
    if executor == "ir":
        return torch.compile(function, backend=loop_ir_backend, dynamic=False)
    return pynn.compile(function, strict=True, eager_random=True, dynamic=False)


def loop_ir_backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable:
    """A Dynamo backend that stops at the loop IR and has it interpreted."""
    from compiler_bridge.backend import boxed, make_options
    from compiler_bridge.capture.capture import capture
    from compiler_bridge.interpret import interpret
    from compiler_bridge.lower import lower_graph
    from compiler_bridge.verify import verify

    def interpreted(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], kind: Any, options: Any):
        graph = lower_graph(gm)
        verify(graph)
        return boxed(lambda *inputs: interpret(graph, inputs))

    options = make_options({"strict": True, "eager_random": True})
    return capture(gm, example_inputs, options, interpreted)


def in_executor_process(executor: str, function: Callable, *arguments: Any) -> Any:
    """Call a module-level function where the executor can run: here, or in the interpreting process."""
    if executor != "python" or os.environ.get("PYNN_INTERPRET") == "1":
        return function(*arguments)
    pipe = interpreting_process()
    pipe.send((function, arguments))
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


@cache
def interpreting_process() -> Connection:
    """Start one worker whose kernels run as plain Python (the kernel language is chosen at import)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    os.environ["PYNN_INTERPRET"] = "1"
    try:
        process = context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()  # inherits the environment
    finally:
        del os.environ["PYNN_INTERPRET"]
    theirs.close()

    def finish() -> None:
        """Let it end by itself, so that what it holds is given back; a daemon would be killed."""
        ours.close()
        process.join(timeout=5)

    atexit.register(finish)
    return ours


def serve(pipe: Connection) -> None:
    """Answer calls until the other end is closed."""
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(*arguments))
        except Exception as error:
            pipe.send(RuntimeError(f"in the interpreting process: {type(error).__name__}: {error}"))
