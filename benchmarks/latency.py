"""The compile suite: how long the first training step takes, in a process with empty caches and in a second.

Each figure comes from a fresh process (`python -m benchmarks.latency CONTENDER MODEL LAYERS`), which prints
the first step's seconds less an ordinary step's. Importing torch and building the model are not counted.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from benchmarks import vision_models
from benchmarks.compare import compilers
from benchmarks.model_suite import training_step
from benchmarks.models import BENCH, Workload, build

MODELS = [("demo_gpt", 4), ("bert", 4)]


def workload_of(model: str, layers: int) -> Workload:
    """A model of that many layers; of a vision model's stages, at most that many blocks each."""
    if model in vision_models.BUILDERS:
        return vision_models.build(model, replace(vision_models.BENCH, blocks=layers))
    return build(model, replace(BENCH, layers=layers))


def first_step_seconds(contender: str, model: str, layers: int) -> dict:
    """Run in the fresh process: time the first step and a few ordinary ones."""
    workload = workload_of(model, layers)
    batch = workload.draw(2, 64, 0)
    work = training_step(workload, compilers({contender})[contender], batch)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    step = median(times[2:])
    return {"compile": times[0] - step, "step": step}


def in_fresh_process(contender: str, model: str, layers: int, cache: str, threads: int) -> dict:
    """Measure in a process of its own, its disk caches in `cache`."""
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "inductor"),
        "TRITON_CACHE_DIR": os.path.join(cache, "triton"),
        "PYNN_CACHE_DIR": os.path.join(cache, "pynn"),
        "OMP_NUM_THREADS": str(threads),
    }
    return answer_of(["benchmarks.latency", contender, model, str(layers)], environment)


def answer_of(module_and_arguments: list[str], environment: dict[str, str]) -> dict:
    """Run `python -m ...` with these variables too; what it prints last is JSON.

    Raises:  RuntimeError with its error output, when it fails
    """
    command = [sys.executable, "-m", *module_and_arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def cold_and_second(contenders: set[str], model: str, layers: int, second: bool = True) -> dict[str, dict]:
    """Return, for "cold" and "second process", each contender's compile seconds."""
    found: dict[str, dict] = {"cold": {}, "second process": {}} if second else {"cold": {}}
    for contender in sorted(contenders - {"eager"}):
        if contender not in compilers(contenders):
            continue
        with tempfile.TemporaryDirectory() as cache:
            for mode in found:
                run = in_fresh_process(contender, model, layers, cache, torch.get_num_threads())
                found[mode][contender] = run["compile"]
    return found


def measure_latency(chosen: set[str], quick: bool, only: str, say: Callable[[dict], None]) -> list[dict]:
    records = []
    for model, layers in MODELS[:1] if quick else MODELS:
        if only not in model:
            continue
        for mode, seconds in cold_and_second(chosen, model, layers).items():
            size = f"{layers} layers"
            record = {"suite": "compile", "name": model, "size": size, "mode": mode, "seconds": seconds}
            records.append(record)
            say(record)
    return records


if __name__ == "__main__":
    print(json.dumps(first_step_seconds(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
