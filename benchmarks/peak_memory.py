"""The most memory a process holds while a model takes a training step: parameters, gradients, AdamW's state,
activations, workspaces, and what an allocator or pool keeps between steps.

torch counts nothing on the CPU, and a count of tensors would miss the workspaces of oneDNN. Linux counts the
process's pages: its mark of the most resident memory (VmHWM) is put back once everything is compiled, three steps
are taken, the mark is read; then model, optimizer, compiled graphs and pools are let go of, and what the process
still holds (Python, torch, the compilers) is taken off. Each contender has a process of its own:

    python -m benchmarks.peak_memory CONTENDER MODEL BATCH
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from benchmarks import vision_models
from benchmarks.compare import compilers
from benchmarks.latency import answer_of
from benchmarks.model_suite import training_step

STEPS = 3
RESET_PEAK = "5"  # of /proc/PID/clear_refs, see proc(5)


def can_measure() -> bool:
    return Path("/proc/self/clear_refs").exists()


def resident_bytes(field: str) -> int:
    """VmRSS: now; VmHWM: the most since the mark was put back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field} in /proc/self/status")


def let_go() -> None:
    """Give back what nobody holds: Python's cycles and the C library's free pages."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def peak_of_steps(contender: str, model: str, batch: int) -> dict:
    """Run in the fresh process; returns {"bytes": ...}."""
    compiler = compilers({contender})[contender]
    workload = vision_models.build_for(contender, model, vision_models.BENCH)
    work = training_step(workload, compiler, workload.draw(batch, 0, 0))
    for _ in range(STEPS):
        work()
    let_go()
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    for _ in range(STEPS):
        work()
    peak = resident_bytes("VmHWM")
    del work, workload
    release_compiled()
    return {"bytes": peak - resident_bytes("VmRSS")}


def release_compiled() -> None:
    from compiler_bridge.memory import ARENAS, OUTPUTS

    torch._dynamo.reset()
    gc.collect()
    ARENAS.clear()
    OUTPUTS.clear()
    let_go()


def peaks(contenders: set[str], model: str, batch: int) -> dict[str, int]:
    """Each contender's bytes."""
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    found = {}
    for contender in compilers(contenders):
        arguments = ["benchmarks.peak_memory", contender, model, str(batch)]
        found[contender] = answer_of(arguments, environment)["bytes"]
    return found


if __name__ == "__main__":
    print(json.dumps(peak_of_steps(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
