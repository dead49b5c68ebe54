"""The vision_models suite: training steps, frozen inference, peak memory and compile time of whole networks."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.compare import Work, compilers, measure
from benchmarks.latency import cold_and_second
from benchmarks.model_suite import inference, training_step
from benchmarks.peak_memory import can_measure, peaks
from benchmarks.vision_models import BENCH, BUILDERS, build_for

TRAINING_BATCH = 4
INFERENCE_BATCHES = (1, 8)
QUICK = ("resnet18", "mobilenet_v2", "unet")
# ResNet-50's stages cut to one block and whole: what is repeated should cost nothing.
COMPILED, BLOCKS = "resnet50", (1, 6)


def build_work(make: Callable, contender: str, compiler: Callable, name: str, size: int) -> Work:
    workload = build_for(contender, name, BENCH)
    return make(workload, compiler, workload.draw(size, 0, 0))


def speed_records(name: str, chosen: set[str], budget: float) -> Iterator[dict]:
    """Each contender has a model of its own with the same weights; inference is frozen."""
    plans = [("training", TRAINING_BATCH, training_step)]
    plans += [("inference", size, inference) for size in INFERENCE_BATCHES]
    for mode, size, make in plans:
        torch._dynamo.reset()
        contenders = {
            contender: partial(build_work, make, contender, compiler, name, size)
            for contender, compiler in compilers(chosen, freeze=mode == "inference").items()
        }
        yield {"name": name, "size": f"batch {size}", "mode": mode, **measure(contenders, budget)}


def memory_record(name: str, chosen: set[str]) -> dict:
    size = f"batch {TRAINING_BATCH}"
    peak = peaks(chosen, name, TRAINING_BATCH)
    return {"name": name, "size": size, "mode": "peak memory", "seconds": {}, "peak_bytes": peak}


def compile_records(chosen: set[str], blocks: int) -> Iterator[dict]:
    for mode, seconds in cold_and_second(chosen, COMPILED, blocks).items():
        size = f"{blocks} blocks" if blocks > 1 else "1 block"
        yield {"name": f"compile {COMPILED}", "size": size, "mode": f"compile, {mode}", "seconds": seconds}


def measure_vision_models(
    chosen: set[str], quick: bool, only: str, say: Callable[[dict], None]
) -> list[dict]:
    """Time every network; `say` is told each record as it comes."""
    records = []

    def add(record: dict) -> None:
        records.append({"suite": "vision_models", **record})
        say(records[-1])

    for name in QUICK if quick else BUILDERS:
        if only not in name:
            continue
        for record in speed_records(name, chosen, budget=2.0 if quick else 3.0):
            add(record)
        if can_measure():
            add(memory_record(name, chosen))
    for blocks in BLOCKS[:1] if quick else BLOCKS:
        if only in f"compile {COMPILED}":
            for record in compile_records(chosen, blocks):
                add(record)
    return records
