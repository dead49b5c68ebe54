"""The models suite: training steps and inference of whole models."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.compare import Work, compilers, measure
from benchmarks.models import BENCH, Batch, Workload, build

# name -> (batch, seq) of a training step. The three with an aim come first.
TRAINING = {"demo_gpt": (8, 128), "bert": (4, 128), "llama": (4, 128)}
OTHERS = {"gpt2": (4, 128), "vit": (4, 0), "t5": (4, 64), "transformer_encoder": (4, 128)}
INFERENCE_BATCHES = [1, 4]


def training_step(workload: Workload, compiler: Callable, batch: Batch) -> Work:
    """Zero the gradients, loss, backward, AdamW (fused, the same C++ for all)."""
    model = workload.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss_of = compiler(lambda batch: workload.loss(model, batch))

    def work() -> None:
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()

    return work


def inference(workload: Workload, compiler: Callable, batch: Batch) -> Work:
    model = workload.model.eval()
    infer = compiler(lambda batch: workload.infer(model, batch))

    def work() -> object:
        with torch.no_grad():
            return infer(batch)

    return work


def build_work(make: Callable, name: str, compiler: Callable, size: int, seq: int) -> Work:
    workload = build(name, BENCH)
    return make(workload, compiler, workload.draw(size, seq, 0))


def measure_models(chosen: set[str], quick: bool, only: str, say: Callable[[dict], None]) -> list[dict]:
    """Time every model; each contender has a model of its own with the same weights."""
    records = []
    for name, (batch_size, seq) in (TRAINING if quick else TRAINING | OTHERS).items():
        if only not in name:
            continue
        plans = [("training", batch_size, training_step)]
        plans += [("inference", size, inference) for size in INFERENCE_BATCHES]
        for mode, size, make in plans:
            torch._dynamo.reset()
            contenders = {
                contender: partial(build_work, make, name, compiler, size, seq)
                for contender, compiler in compilers(chosen).items()
            }
            record = {
                "suite": "models",
                "name": name,
                "size": f"batch {size}, seq {seq}" if seq else f"batch {size}",
                "mode": mode,
                **measure(contenders, budget=3.0 if quick else 8.0),
            }
            records.append(record)
            say(record)
    return records
