"""`python -m benchmarks [suite]...`: measure; `python -m benchmarks report`: write up.

Suites: gemm, layers, definitions, models, compile, growth, convolution, vision_layers, vision_models. Without
names, every suite runs. Results go to benchmarks/results/<suite>-<threads>.json with the machine and the
versions. Each thread count is a process of its own: compiled code may keep the count it began with.
`python -m benchmarks definitions --device cuda` runs the definitions on a CUDA device.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.report import SUITES, amounts_of, write_report

RESULTS = Path(__file__).parent / "results"
console = Console(highlight=False, soft_wrap=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", help=f"any of {', '.join(SUITES)} (default: all); or report")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="fewer cases, shorter timing")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    parser.add_argument("--contenders", default="eager,inductor,pynn")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: definitions only")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        if arguments.suites != ["definitions"]:
            parser.error(f"--device cuda with suites {arguments.suites}; required: definitions")
        arguments.threads = arguments.threads[:1]
    unknown = set(arguments.suites) - {*SUITES, "report"}
    if unknown:
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)} and report")
    return arguments


def say(record: dict) -> None:
    """Print one record as a line: medians, and how many times better than eager (or Inductor) pynn is."""
    amounts = amounts_of(record)
    show = format_bytes if "peak_bytes" in record else format_seconds
    medians = "  ".join(f"{name} {show(value)}" for name, value in amounts.items())
    ratios = "".join(
        f"  {amounts[peer] / amounts['pynn']:.2f}x {peer}"
        for peer in ("eager", "inductor")
        if peer in amounts and "pynn" in amounts
    )
    errors = "".join(f"  {name} fails: {error}" for name, error in record.get("errors", {}).items())
    if "externs" in record:
        errors += f"  left to ATen: {', '.join(record['externs'])}"
    title = f"{record['name']:<20} {record['size']:<14} {record['mode']:<17}"
    console.print(f"{title} {medians} {ratios}{errors}", markup=False)


def format_seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:8.2f} s "
    return f"{seconds * 1e3:8.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:8.2f} us"


def format_bytes(count: float) -> str:
    return f"{count / 2**20:8.1f} MiB"


def run_suite(suite: str, threads: int, arguments: argparse.Namespace) -> None:
    """Measure one suite in this process and write its JSON."""
    import torch

    from benchmarks.convolution import measure_convolutions
    from benchmarks.definitions import measure_definitions
    from benchmarks.gemm import measure_products
    from benchmarks.growth import measure_growth
    from benchmarks.latency import measure_latency
    from benchmarks.layers import measure_layers
    from benchmarks.machine import describe_machine, measure_peaks
    from benchmarks.model_suite import measure_models
    from benchmarks.vision_layers import measure_vision_layers
    from benchmarks.vision_suite import measure_vision_models

    torch.set_num_threads(threads)
    measure = {
        "gemm": measure_products,
        "layers": measure_layers,
        "definitions": measure_definitions,
        "models": measure_models,
        "compile": measure_latency,
        "growth": measure_growth,
        "convolution": measure_convolutions,
        "vision_layers": measure_vision_layers,
        "vision_models": measure_vision_models,
    }[suite]
    on_device = {"device": arguments.device} if arguments.device != "cpu" else {}
    place = arguments.device if on_device else f"{threads} thread{'s' * (threads > 1)}"
    console.print(f"[bold]{suite}, {place}[/bold]")
    peaks = measure_peaks(arguments.device)
    records = measure(set(arguments.contenders.split(",")), arguments.quick, arguments.only, say, **on_device)
    machine = describe_machine(arguments.device)
    result = {"suite": suite, "threads": threads, "quick": arguments.quick, "machine": machine}
    RESULTS.mkdir(exist_ok=True)
    if not arguments.only:  # a part of a suite would replace the whole
        path = RESULTS / f"{suite}-{arguments.device if on_device else threads}.json"
        path.write_text(json.dumps(result | {"peaks": peaks, "records": records}, indent=1) + "\n")
        console.print(f"written to {path}")


def main() -> int:
    arguments = parse()
    if "report" in arguments.suites:
        write_report(RESULTS)
        return 0
    runs = [(suite, n) for suite in arguments.suites or SUITES for n in arguments.threads]
    if len(runs) == 1:
        run_suite(*runs[0], arguments)
        return 0
    rest = ["--quick"] * arguments.quick + ["--only", arguments.only, "--contenders", arguments.contenders]
    codes = [
        subprocess.run([sys.executable, "-m", "benchmarks", suite, "--threads", str(n), *rest]).returncode
        for suite, n in runs
    ]
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
