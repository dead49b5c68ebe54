"""`python -m benchmarks.demo_vision`: train one small convolutional network on real images, two ways side by side.

The same source (`build_cnn`), seed, data and optimizer, as

    eager     torch.nn, torch's C++ kernels
    pynn      `import pynn as nn`, pynn.compile: Numba kernels, no C++ compiler

The images are the UCI handwritten digits that scikit-learn ships. The two take turns, one epoch each, so that a busy
moment of the machine falls on both. The first steps are also run in float64: that says how far apart two float32
runs may be (see `demo.py`). Ends with an error when pynn's test accuracy is not over 97%, or the losses disagree.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType

import torch
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from benchmarks.demo import CHECKED_STEPS, Runner, check_losses, console, kernel_directory
from benchmarks.machine import write_record
from benchmarks.vision_nets import conv_norm_relu

WANTED_ACCURACY = 0.97
TEST_IMAGES = 360  # of 1797


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training pixels, training labels, test pixels and test labels, shuffled.

    Shape:   pixels [images, 1, 8, 8] from 0 to 1, labels [images]
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, training = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return pixels[training], labels[training], pixels[test], labels[test]


def epoch_batches(pixels: Tensor, labels: Tensor, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches in a seeded order; the few images over are left out of this epoch."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for rows in order[: len(order) // batch * batch].split(batch):
        yield pixels[rows], labels[rows]


def build_cnn(nn: ModuleType, width: int):
    """Build three 3x3 convolutions with batch norm, max-pooling between them, and a linear classifier.

    Shape:   pixels [batch, 1, 8, 8] -> logits [batch, 10]
    """
    return nn.Sequential(
        conv_norm_relu(nn, 1, width),
        conv_norm_relu(nn, width, width),
        nn.MaxPool2d(2),  # [batch, width, 4, 4]
        conv_norm_relu(nn, width, 2 * width),
        nn.MaxPool2d(2),  # [batch, 2 * width, 2, 2]
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


@dataclass
class DigitRunner(Runner):
    """A way of training the digits' network; `seconds` are those of steps, as for the text demo."""

    epoch_seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def build_network(self, width: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = build_cnn(self.namespace, width).to(self.dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
        model, cross_entropy = self.model, self.namespace.functional.cross_entropy
        self.loss = self.compiler(lambda pixels, labels: cross_entropy(model(pixels), labels))
        self.predict = self.compiler(lambda pixels: model(pixels).argmax(1))

    def train_epoch(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.model.train()
        begin = time.perf_counter()
        for pixels, labels in batches:
            self.step(pixels.to(self.dtype), labels)
        self.epoch_seconds.append(time.perf_counter() - begin)

    def test(self, pixels: Tensor, labels: Tensor) -> None:
        self.model.eval()
        with torch.no_grad():
            self.accuracies.append((self.predict(pixels) == labels).float().mean().item())

    @property
    def usual_epoch(self) -> float:
        """Median seconds of an epoch after the first, which compiles."""
        return median(self.epoch_seconds[1:] or self.epoch_seconds)


def make_runners() -> list[DigitRunner]:
    import pynn

    return [
        DigitRunner("eager", torch.nn, lambda function: function),
        # strict: a graph that did not become kernels must not pass as one that did.
        DigitRunner("pynn", pynn, partial(pynn.compile, strict=True)),
    ]


def train(runners: list[DigitRunner], arguments: argparse.Namespace) -> DigitRunner:
    """Train all runners in turn; returns the float64 twin of the first steps."""
    exact = DigitRunner("float64", torch.nn, lambda function: function, dtype=torch.float64)
    for runner in [*runners, exact]:
        runner.build_network(arguments.width, arguments.seed)
    pixels, labels, test_pixels, test_labels = digits(arguments.seed)
    with Progress(console=console) as progress:
        bar = progress.add_task("the first epoch compiles", total=arguments.epochs)
        for epoch in range(arguments.epochs):
            batches = list(epoch_batches(pixels, labels, arguments.batch, arguments.seed + epoch))
            for runner in runners:
                runner.train_epoch(batches)
                runner.test(test_pixels, test_labels)
            if epoch == 0:
                exact.train_epoch(batches[:CHECKED_STEPS])
            said = "  ".join(f"{runner.name} {runner.accuracies[-1]:.2%}" for runner in runners)
            progress.update(bar, advance=1, description=f"test accuracy: {said}")
    return exact


def print_epochs(runners: list[DigitRunner]) -> None:
    table = Table(title="test accuracy and seconds of each epoch")
    table.add_column("epoch", justify="right")
    for runner in runners:
        for heading in ("loss", "accuracy", "time"):
            table.add_column(f"{runner.name} {heading}", justify="right")
    epochs = len(runners[0].epoch_seconds)
    steps = len(runners[0].losses) // epochs
    for epoch in range(epochs):
        cells = []
        for runner in runners:
            loss = sum(runner.losses[epoch * steps : (epoch + 1) * steps]) / steps
            note = " (compiles)" if epoch == 0 and runner.name != "eager" else ""
            cells += [
                f"{loss:.4f}",
                f"{runner.accuracies[epoch]:.2%}",
                f"{runner.epoch_seconds[epoch]:.3f} s{note}",
            ]
        table.add_row(str(epoch + 1), *cells)
    console.print(table)


def print_summary(runners: list[DigitRunner]) -> None:
    table = Table(title=f"an epoch, {torch.get_num_threads()} threads, runs taking turns")
    for heading in ["", "median epoch", "eager / this", "first epoch (compiles)", "test accuracy"]:
        table.add_column(heading, justify="right")
    for runner in runners:
        ratio = runners[0].usual_epoch / runner.usual_epoch
        times = [f"{runner.usual_epoch * 1e3:.0f} ms", f"{ratio:.2f} x", f"{runner.epoch_seconds[0]:.1f} s"]
        table.add_row(runner.name, *times, f"{runner.accuracies[-1]:.2%}")
    console.print(table)


def print_what_is_left_to_aten() -> None:
    from compiler_bridge import pipeline

    left = sorted({str(node.target) for record in pipeline.records for node in record.externs})
    console.print(f"ATen calls in pynn's graphs: {', '.join(left) or 'none'}", markup=False)


def plot(runners: list[DigitRunner], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (accuracy, speed) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for runner, style in zip(runners, ["-", "--"], strict=True):
        epochs = range(1, len(runner.accuracies) + 1)
        accuracy.plot(epochs, [100 * x for x in runner.accuracies], style, label=runner.name)
    accuracy.axhline(100 * WANTED_ACCURACY, color="grey", linewidth=1)
    accuracy.set(xlabel="epoch", ylabel="test accuracy, %", title="UCI digits")
    accuracy.legend()
    times = [runner.usual_epoch * 1e3 for runner in runners]
    speed.bar([runner.name for runner in runners], times, color="steelblue")
    speed.set(ylabel="median epoch, ms", title=f"{torch.get_num_threads()} threads")
    figure.savefig(path, dpi=120)


def save(runners: list[DigitRunner], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    plot(runners, directory / "demo_vision.png")
    entries = {
        runner.name: {
            "epoch_seconds": runner.epoch_seconds,
            "accuracies": runner.accuracies,
            "losses": runner.losses,
        }
        for runner in runners
    }
    write_record(directory / "demo_vision.json", entries)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=32, help="channels of the first convolutions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runners = make_runners()
    console.print(
        f"A small convolutional network (3 convolutions, {arguments.width} and {2 * arguments.width} channels, batch "
        f"{arguments.batch}) learns the UCI digits, {arguments.epochs} epochs, "
        f"{' / '.join(runner.name for runner in runners)} taking turns."
    )
    exact = train(runners, arguments)
    print_epochs(runners)
    agreed = check_losses(runners, exact)
    print_summary(runners)
    print_what_is_left_to_aten()
    save(runners, arguments.output)
    console.print(f"generated kernels: {kernel_directory()}\nplot: {arguments.output / 'demo_vision.png'}")
    learned = runners[-1].accuracies[-1] > WANTED_ACCURACY
    if not learned:
        console.print(f"[bold red]pynn's test accuracy is not over {WANTED_ACCURACY:.0%}.[/bold red]")
    return 0 if agreed and learned else 1


if __name__ == "__main__":
    raise SystemExit(main())
