"""The growth suite: time against size, and compile time against the number of layers."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.compare import compilers, forward_work, measure
from benchmarks.latency import cold_and_second

ROWS = [2**n for n in range(2, 15, 2)]
COLS = 1024
LAYERS = [1, 4, 24]
MOST_LAYERS_OF_INDUCTOR = 4  # it takes minutes beyond
FUNCTIONS: dict[str, Callable] = {
    "gelu": F.gelu,
    "softmax": lambda x: F.softmax(x, dim=-1),
    "layer_norm": lambda x: F.layer_norm(x, (COLS,)),
}


def measure_growth(chosen: set[str], quick: bool, only: str, say: Callable[[dict], None]) -> list[dict]:
    records = []

    def add(name: str, size: str, mode: str, seconds: dict[str, float], nbytes: float = 0.0) -> None:
        record = {"suite": "growth", "name": name, "size": size, "mode": mode, "seconds": seconds}
        records.append(record | {"bytes": nbytes})
        say(records[-1])

    for name, function in FUNCTIONS.items():
        if only not in name:
            continue
        for rows in ROWS[: 4 if quick else None]:
            torch._dynamo.reset()
            x = torch.randn(rows, COLS)
            build = {
                key: partial(lambda compiler, x, f: forward_work(compiler(f), [x]), compiler, x, function)
                for key, compiler in compilers(chosen).items()
            }
            seconds = measure(build, budget=0.3)["seconds"]
            add(name, f"{rows}x{COLS}", "forward", seconds, 2.0 * x.nbytes)
    for layers in LAYERS[: 2 if quick else None]:
        if only in "compile demo_gpt":
            wanted = chosen if layers <= MOST_LAYERS_OF_INDUCTOR else chosen - {"inductor"}
            cold = cold_and_second(wanted, "demo_gpt", layers, second=False)["cold"]
            add("compile demo_gpt", f"{layers} layers", "cold", cold)
    return records
