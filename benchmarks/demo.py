"""`python -m benchmarks.demo`: train one small GPT three ways, side by side.

The same source (benchmarks/gpt.py), seed, data and optimizer, as

    eager     torch.nn, torch's C++ kernels
    inductor  torch.nn, torch.compile (only where there is a C++ compiler; --no-inductor leaves it out)
    pynn      `import pynn as nn`, pynn.compile: Numba kernels, no C++ compiler

The three take turns, one step each, so that a busy moment of the machine falls on all of them. The first
steps are also run in float64: that says how far apart two float32 runs may be.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from benchmarks.data import batches, english_bytes
from benchmarks.gpt import GPTConfig, build_gpt, generate, gpt_loss
from benchmarks.machine import cxx_compiler, write_record

console = Console(highlight=False, width=110 if not Console().is_terminal else None)

# Training amplifies rounding: two correct float32 runs drift apart step by step. Over these first steps a
# run must be as near to float64 as torch's own, up to FACTOR, and LOSS_ULPS roundings of the loss itself.
CHECKED_STEPS = 10
FACTOR = 4
LOSS_ULPS = 8


@dataclass
class Runner:
    """One way of training: a model, its optimizer, and what was measured."""

    name: str
    namespace: object
    compiler: Callable
    dtype: torch.dtype = torch.float32
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    compile_seconds: float = 0.0

    def build(self, config: GPTConfig, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = build_gpt(self.namespace, config).to(self.dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
        nn, model = self.namespace, self.model
        self.loss = self.compiler(lambda tokens, targets: gpt_loss(nn, model, tokens, targets))

    def step(self, tokens: Tensor, targets: Tensor) -> None:
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.loss(tokens, targets)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - begin)

    def first_step(self, tokens: Tensor, targets: Tensor) -> None:
        """Take the step that compiles; its time past an ordinary step's is the compile time."""
        self.step(tokens, targets)
        self.compile_seconds = self.seconds.pop()

    @property
    def step_seconds(self) -> float:
        return median(self.seconds)


def make_runners(with_inductor: bool) -> list[Runner]:
    import pynn

    runners = [Runner("eager", torch.nn, lambda function: function)]
    if with_inductor and cxx_compiler():
        runners.append(Runner("inductor", torch.nn, torch.compile))
    elif with_inductor:
        console.print("No C++ compiler here, so Inductor is left out; pynn needs none.")
    # strict: a graph that did not become kernels must not pass as one that did.
    runners.append(Runner("pynn", pynn, partial(pynn.compile, strict=True)))
    return runners


def train(runners: list[Runner], config: GPTConfig, arguments: argparse.Namespace) -> Runner:
    """Train all runners in turn; returns the float64 twin of the first steps."""
    exact = Runner("float64", torch.nn, lambda function: function, dtype=torch.float64)
    for runner in [*runners, exact]:
        runner.build(config, arguments.seed)
    data = batches(english_bytes(), arguments.batch, config.seq, arguments.seed)
    with Progress(console=console) as progress:
        bar = progress.add_task("compile", total=arguments.steps)
        for step, (tokens, targets) in enumerate(itertools.islice(data, arguments.steps)):
            for runner in runners:
                if step == 0:
                    progress.update(bar, description=f"first step, compiles: {runner.name}")
                    runner.first_step(tokens, targets)
                else:
                    runner.step(tokens, targets)
            if step < CHECKED_STEPS:
                exact.step(tokens, targets)
            said = "  ".join(f"{runner.name} {runner.losses[-1]:.4f}" for runner in runners)
            progress.update(bar, advance=1, description=f"loss: {said}")
    return exact


def print_losses(runners: list[Runner]) -> None:
    table = Table(title="loss, nats per byte")
    for heading in ["step", *(runner.name for runner in runners), "|pynn - eager|"]:
        table.add_column(heading, justify="right")
    steps = len(runners[0].losses)
    shown = sorted({0, 1, 2, 5, 9, *range(24, steps, 25), steps - 1} & set(range(steps)))
    for step in shown:
        losses = [runner.losses[step] for runner in runners]
        table.add_row(str(step + 1), *(f"{x:.6f}" for x in losses), f"{abs(losses[-1] - losses[0]):.1e}")
    console.print(table)


def check_losses(runners: list[Runner], exact: Runner) -> bool:
    """Hold every run's first losses against float64; print and return whether they agree."""
    checked = len(exact.losses)

    def worst(runner: Runner) -> float:
        return max(abs(a - b) for a, b in zip(runner.losses[:checked], exact.losses, strict=True))

    noise = worst(runners[0])
    allowed = FACTOR * noise + LOSS_ULPS * torch.finfo(torch.float32).eps * max(exact.losses)
    agreed = True
    for runner in runners:
        error = worst(runner)
        agreed &= error <= allowed
        console.print(
            f"{runner.name:>9}: at most {error:.1e} from float64 over the first {checked} steps "
            f"(allowed {allowed:.1e}: {FACTOR} times eager's and {LOSS_ULPS} roundings)"
        )
    if agreed:
        console.print("[green]The losses are equal within float32 noise.[/green]")
    else:
        console.print("[bold red]The losses differ by more than float32 noise. That is a bug.[/bold red]")
    return agreed


def print_speed(runners: list[Runner]) -> None:
    table = Table(title=f"training step, {torch.get_num_threads()} threads, runs taking turns")
    for heading in ["", "median step", "eager / this", "first step (compiles)"]:
        table.add_column(heading, justify="right")
    for runner in runners:
        ratio = runners[0].step_seconds / runner.step_seconds
        step, first = f"{runner.step_seconds * 1e3:.1f} ms", f"{runner.compile_seconds:.1f} s"
        table.add_row(runner.name, step, f"{ratio:.2f} x", first)
    console.print(table)


def plot(runners: list[Runner], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (loss, speed) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for runner, style in zip(runners, ["-", "--", ":"], strict=False):
        loss.plot(runner.losses, style, label=runner.name)
    loss.set(xlabel="step", ylabel="loss, nats per byte", title="the same loss")
    loss.legend()
    names = [runner.name for runner in runners]
    speed.bar(names, [runner.step_seconds * 1e3 for runner in runners], color="steelblue")
    speed.set(ylabel="median training step, ms", title=f"{torch.get_num_threads()} threads")
    figure.savefig(path, dpi=120)


def kernel_directory() -> str:
    """Return where the generated kernels lie, as Python."""
    from compiler_bridge.cache import cache_directory

    return str(cache_directory() / "modules")


def write_sample(runner: Runner, config: GPTConfig) -> str:
    import pynn

    runner.model.eval()
    text = generate(pynn.compile(runner.model, strict=True), b"The import statement ", 200, config)
    return text.decode(errors="replace")


def save(runners: list[Runner], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    plot(runners, directory / "demo.png")
    entries = {
        runner.name: {
            "step_seconds": runner.step_seconds,
            "first_step_seconds": runner.compile_seconds,
            "losses": runner.losses,
        }
        for runner in runners
    }
    write_record(directory / "demo.json", entries)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-inductor", action="store_true", help="leave torch.compile's own backend out")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = GPTConfig()
    runners = make_runners(with_inductor=not arguments.no_inductor)
    console.print(
        f"A byte-level GPT ({config.layers} layers, {config.dim} wide, {config.seq} bytes, batch "
        f"{arguments.batch}) learns CPython's help texts, {arguments.steps} steps, "
        f"{' / '.join(runner.name for runner in runners)} taking turns."
    )
    exact = train(runners, config, arguments)
    print_losses(runners)
    agreed = check_losses(runners, exact)
    print_speed(runners)
    console.print("[bold]pynn's model writes:[/bold]")
    console.print(write_sample(runners[-1], config), markup=False)
    save(runners, arguments.output)
    console.print(f"generated kernels: {kernel_directory()}\nplot: {arguments.output / 'demo.png'}")
    return 0 if agreed else 1


if __name__ == "__main__":
    raise SystemExit(main())
