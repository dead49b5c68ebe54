"""From the JSON results to the tables in README.md and the plots beside the results."""

import json
import math
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
SUITES = ("gemm", "layers", "definitions", "models", "compile", "growth", "convolution", "vision_layers",
          "vision_models")  # fmt: skip
COVERAGE_BEGIN, COVERAGE_END = "<!-- coverage: begin -->", "<!-- coverage: end -->"


def load_results(directory: Path) -> list[dict]:
    paths = sorted(path for path in directory.glob("*-[0-9]*.json") if is_suite(path))
    return [json.loads(path.read_text()) for path in paths]


def is_suite(path: Path) -> bool:
    """Other benchmarks keep files of their own shape in the same folder."""
    return path.name.rsplit("-", 1)[0] in SUITES


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def amounts_of(record: dict) -> dict[str, float]:
    """What was measured of each contender, less being better: seconds, or bytes where memory is the matter."""
    return record.get("peak_bytes") or record["seconds"]


def ratios(records: list[dict], peer: str) -> list[float]:
    """How many times faster (or smaller) than the peer pynn is, record by record."""
    both = [a for a in map(amounts_of, records) if peer in a and "pynn" in a]
    return [amounts[peer] / amounts["pynn"] for amounts in both]


def summary_cells(records: list[dict]) -> list[str]:
    cells = []
    for peer in ("eager", "inductor"):
        found = ratios(records, peer)
        cells += [f"{geomean(found):.2f}x", f"{min(found):.2f}x"] if found else ["", ""]
    return cells


def summary_table(results: list[dict]) -> list[str]:
    """One line a suite, thread count and mode: geometric mean and worst of the ratios."""
    lines = [
        "| suite | threads | what | cases | vs eager, geomean | worst | vs Inductor, geomean | worst |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if result["suite"] in ("growth", "definitions"):  # definitions has a table of its own
            continue
        failed = sum("pynn" in record.get("errors", {}) for record in result["records"])
        if failed:
            cells = [result["suite"], str(result["threads"]), "pynn fails to compile", str(failed)]
            lines.append(f"| {' | '.join(cells)} |||||")
        aten = sum("externs" in record for record in result["records"])
        if aten:
            cells = [
                result["suite"],
                str(result["threads"]),
                "pynn leaves ATen calls in the graph",
                str(aten),
            ]
            lines.append(f"| {' | '.join(cells)} |||||")
        for mode in dict.fromkeys(record["mode"] for record in result["records"]):
            records = [record for record in result["records"] if record["mode"] == mode]
            groups = {mode: records}
            if result["suite"] == "layers":
                groups |= by_size(mode, records)
            for name, some in groups.items():
                cells = [result["suite"], str(result["threads"]), name, str(len(some))]
                lines.append(f"| {' | '.join(cells + summary_cells(some))} |")
    return lines


def by_size(mode: str, records: list[dict]) -> dict[str, list[dict]]:
    """The records of the sizes that many layers share."""
    sizes = [record["size"] for record in records]
    shared = [size for size in dict.fromkeys(sizes) if sizes.count(size) >= 10]
    return {f"{mode}, {size}": [r for r in records if r["size"] == size] for size in shared}


def layer_lines(result: dict) -> list[str]:
    """Every record of one result, with the share of the machine's peak that pynn reaches."""
    measured = {name for record in result["records"] for name in amounts_of(record)}
    contenders = [name for name in ("eager", "inductor", "pynn") if name in measured]
    lines = [
        f"| {result['suite']} | size | mode | {' | '.join(f'{c}, ms' for c in contenders)} "
        "| vs eager | vs Inductor | of peak |",
        "|" + "---|" * (6 + len(contenders)),
    ]
    for record in result["records"]:
        amounts = amounts_of(record)
        mode = record["mode"] + ", ATen inside" * ("externs" in record)
        cells = [record["name"], record["size"], mode]
        cells += [cell_of(record, amounts[c]) if c in amounts else "" for c in contenders]
        for peer in ("eager", "inductor"):
            cells.append("".join(f"{ratio:.2f}x" for ratio in ratios([record], peer)))
        share = share_of_peak(record, result["peaks"])
        lines.append(f"| {' | '.join([*cells, f'{share:.0%}' if share else ''])} |")
    return lines


def cell_of(record: dict, amount: float) -> str:
    return f"{amount / 2**20:.1f} MiB" if "peak_bytes" in record else f"{amount * 1e3:.3f}"


def share_of_peak(record: dict, peaks: dict) -> float:
    """The least time the machine's measured peaks allow, over the time pynn took.

    Above 1 where the data stays in a cache that is faster than the memory the copy was measured on.
    """
    least = record.get("flops", 0.0) / peaks["flops"] + record.get("bytes", 0.0) / peaks["bytes"]
    return least / record["seconds"]["pynn"] if "pynn" in record["seconds"] else 0.0


def coverage_lines(results: list[dict]) -> list[str]:
    """What is Python, and what running it eagerly costs: times C++'s time, by the file of pynn/modules."""
    import pynn
    from pynn.coverage import PYTHON, QUANTISED, SHARED

    statuses = [entry.status for entry in pynn.coverage(show=False)]
    counts = {status: statuses.count(status) for status in (PYTHON, SHARED, QUANTISED)}
    lines = [
        f"Of {len(statuses)} public names {counts[PYTHON]} are defined here, {counts[SHARED]} are torch's own Python, "
        f"{counts[QUANTISED]} torch.ao's quantised layers under torch.nn's old paths.",
    ]
    records = [r for result in results if result["suite"] == "definitions" for r in result["records"]]
    threads = sorted({result["threads"] for result in results if result["suite"] == "definitions"})
    if not records:
        return lines
    lines += [
        "",
        f"Run eagerly, as multiples of C++ eager's time (`python -m benchmarks definitions`, {threads} thread(s)):",
        "",
        "| family | cases | forward, geomean | worst | forward+backward, geomean | worst |",
        "|---|---|---|---|---|---|",
    ]
    for family in [*dict.fromkeys(record["family"] for record in records), "all"]:
        chosen = [r for r in records if family in (r["family"], "all")]
        cells = [family, str(len(chosen) // 2)]
        for mode in ("forward", "forward+backward"):
            slower = [1 / ratio for ratio in ratios([r for r in chosen if r["mode"] == mode], "eager")]
            cells += [f"{geomean(slower):.2f}x", f"{max(slower):.1f}x"] if slower else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cuda_lines(directory: Path) -> list[str]:
    """The definitions on a CUDA device, in a sentence; none where they were never measured there."""
    path = directory / "definitions-cuda.json"
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    machine, found = result["machine"], []
    for mode in ("forward", "forward+backward"):
        records = [r for r in result["records"] if r["mode"] == mode]
        slower = [1 / ratio for ratio in ratios(records, "eager")]
        found.append(f"{mode} {geomean(slower):.2f}x (worst {max(slower):.0f}x)")
    count = len(result["records"]) // 2
    return [
        "",
        f"On one {machine['gpu']} (torch {machine['torch']}, commit {machine['commit']}; "
        f"`python -m benchmarks definitions --device cuda`) the {count} cases take, as multiples of the CUDA kernels' "
        f"time: {', '.join(found)}. At these sizes that is launches: a formula of ten operations is ten kernels.",
    ]


def replace_section(text: str, begin: str, end: str, lines: list[str]) -> str:
    before, after = text.split(begin)[0], text.split(end)[1]
    return before + "\n".join([begin, *lines, end]) + after


def machine_line(result: dict) -> str:
    m, peaks = result["machine"], result["peaks"]
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['capability']}; torch {m['torch']}, Numba {m['numba']}, Python "
        f"{m['python']}, C++ {m['cxx'] or 'none'}; commit {m['commit']}, {m['date']}; {result['threads']} "
        f"thread(s) reach {peaks['flops'] / 1e9:.0f} GFLOP/s in a matmul and copy "
        f"{peaks['bytes'] / 1e9:.1f} GB/s"
    )


def write_report(directory: Path) -> None:
    """Replace the benchmark section of README.md, write the full tables and the plots."""
    results = load_results(directory)
    if not results:
        print(f"no results in {directory}; run `python -m benchmarks` first")
        return
    full = ["# Every measurement", "", "Written by `python -m benchmarks report`.", ""]
    for result in results:
        full += [f"## {result['suite']}, {result['threads']} thread(s)", "", machine_line(result), ""]
        full += [*layer_lines(result), ""]
    (directory / "README.md").write_text("\n".join(full))
    machine = f"Measured on: {machine_line(results[-1])}. Each suite's commit stands in its file."
    section = [machine, "", *summary_table(results)]
    quick = sorted({result["suite"] for result in results if result["quick"]})
    if quick:
        section += ["", f"Taken with `--quick` (fewer cases or shorter timing): {', '.join(quick)}."]
    section += ["", "Every case: [benchmarks/results/README.md](benchmarks/results/README.md)."]
    text = replace_section(README.read_text(), BEGIN, END, section)
    coverage = [*coverage_lines(results), *cuda_lines(directory)]
    README.write_text(replace_section(text, COVERAGE_BEGIN, COVERAGE_END, coverage))
    plot_ratios(results, directory)


def plot_ratios(results: list[dict], directory: Path) -> None:
    """One plot a result: pynn's ratio to each peer, case by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for result in results:
        records = [r for r in result["records"] if "pynn" in amounts_of(r)]
        if not records:
            continue
        figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.16 * len(records)), layout="constrained")
        labels = [f"{r['name']} {r['size']} {r['mode']}" for r in records]
        for peer, marker in (("eager", "o"), ("inductor", "x")):
            points = [(ratio, i) for i, r in enumerate(records) for ratio in ratios([r], peer)]
            if points:
                axes.plot(*zip(*points), marker, label=f"{peer} / pynn")
        axes.axvline(1.0, color="grey", linewidth=1)
        axes.set_yticks(range(len(labels)), labels, fontsize=6)
        axes.invert_yaxis()
        title = f"{result['suite']}, {result['threads']} thread(s)"
        axes.set(xscale="log", xlabel="times faster", title=title)
        axes.legend()
        figure.savefig(directory / f"{result['suite']}-{result['threads']}.png", dpi=100)
        pyplot.close(figure)
