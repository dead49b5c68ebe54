"""Show what the compiler made of a model: every stage as Python, every kernel with its cost and its origin.

pynn.explain(model, x)                    print to the terminal
pynn.explain(model, x, file="out.txt")    write to a file
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console, Group
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from torch.utils._pytree import tree_leaves

from compiler_bridge import cache, ir, pipeline
from compiler_bridge.cost import Cost, kernel_cost
from compiler_bridge.errors import FallbackWarning
from compiler_bridge.pipeline import GraphRecord
from compiler_bridge.printer import print_graph, print_node

WIDTH = 160  # columns of a file


@dataclass
class Explanation:
    """The graphs compiled for one call, and what fell back to ATen as a whole."""

    records: list[GraphRecord]
    fallbacks: list[str] = field(default_factory=list)

    def kernels(self) -> list[str]:
        return [kernel.name for record in self.records for kernel in record.kernels]


def explain(
    fn_or_model: Any,
    *inputs: Any,
    file: str | Path | TextIO | None = None,
    stages: bool = True,
    **options: Any,
) -> Explanation:
    """Compile a function or model for these inputs and print the stages, the kernels and what fell back.

    It runs once, forward and (where the result needs a gradient) backward; no `.grad` changes and torch's
    random state is put back, but what a forward pass updates itself (running statistics) is updated.

    Args:    fn_or_model: what torch.compile takes
             file: a path or an open text file; default the terminal
             stages: print the graph, both loop IRs and the generated module; else the tables alone
             options: as `compiler_bridge.backend.compile`'s
    Returns: the records, for those who want to look further
    """
    explanation = compile_and_record(fn_or_model, inputs, options)
    with console_for(file) as console:
        print_explanation(console, explanation, stages)
    return explanation


def compile_and_record(fn_or_model: Any, inputs: Sequence[Any], options: dict[str, Any]) -> Explanation:
    """Run it compiled; if Dynamo still knew it from before, forget everything and run again."""
    for attempt in range(2):
        if attempt:
            torch._dynamo.reset()
        before = {id(record) for record in pipeline.records}
        with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng(devices=[]):
            warnings.simplefilter("always")
            run_once(fn_or_model, inputs, options)
        records = [record for record in pipeline.records if id(record) not in before]
        fallbacks = [str(w.message) for w in caught if issubclass(w.category, FallbackWarning)]
        if records or fallbacks:
            return Explanation(records, fallbacks)
    return Explanation([])


def run_once(fn_or_model: Any, inputs: Sequence[Any], options: dict[str, Any]) -> None:
    from compiler_bridge.backend import compile

    result = compile(fn_or_model, **options)(*inputs)
    outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.requires_grad]
    parameters = fn_or_model.parameters() if isinstance(fn_or_model, torch.nn.Module) else []
    leaves = [
        x for x in [*parameters, *tree_leaves(inputs)] if isinstance(x, torch.Tensor) and x.requires_grad
    ]
    if outputs and leaves:
        torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs], allow_unused=True)


@contextlib.contextmanager
def console_for(file: str | Path | TextIO | None) -> Generator[Console, None, None]:
    if isinstance(file, (str, Path)):
        with open(file, "w", encoding="utf-8") as opened:
            yield Console(file=opened, width=WIDTH)
    else:
        yield Console(file=file, width=None if file is None else WIDTH)


# ---------------------------------------------------------------- printing


def print_explanation(console: Console, explanation: Explanation, stages: bool) -> None:
    if not explanation.records and not explanation.fallbacks:
        console.print("nothing was compiled: Dynamo found no tensor operation to capture")
    for reason in explanation.fallbacks:
        console.print(Text(f"fell back to ATen as a whole: {reason}", style="bold red"))
    for number, record in enumerate(explanation.records):
        console.rule(f"graph {number}: {record.kind}, compiled in {record.compile_seconds:.2f} s")
        if stages:
            print_stages(console, stage_texts(record))
        console.print(kernel_table(record))
        console.print(fusion_report(record))


def report_graph(record: GraphRecord, level: int) -> None:
    """What PYNN_DEBUG=level asks to see of a graph just compiled, on stderr: a level adds a stage, last one first.

    1 a line of times; 2 the kernels and what was fused; 3 the generated module; 4 the fused loop IR; 5 the
    loop IR as lowered; 6 the graph of ATen operations
    """
    console = Console(stderr=True)
    times = ", ".join(f"{name} {seconds:.2f}" for name, seconds in record.stages.items())
    line = f"pynn: {record.kind} graph, {len(record.kernels)} kernels, {len(record.externs)} left to ATen"
    console.print(Text(f"{line}; {record.compile_seconds:.2f} s ({times})  {module_of(record)}"))
    if level >= 3:
        stages = stage_texts(record)
        print_stages(console, stages[max(0, len(stages) + 2 - level) :])
    if level >= 2:
        console.print(kernel_table(record))
        console.print(fusion_report(record))


def print_stages(console: Console, stages: Sequence[tuple[str, str]]) -> None:
    for title, text in stages:
        console.rule(title, style="dim")
        console.print(Syntax(text, "python", word_wrap=True, background_color="default"))


def stage_texts(record: GraphRecord) -> list[tuple[str, str]]:
    """(title, Python) of every stage."""
    folding = [("computed once, of parameters", record.folding_text)] if record.folding_text else []
    return [
        *folding,
        ("FX graph of ATen operations", record.fx_text),
        ("loop IR", print_graph(record.graph)),
        ("fused loop IR, kernel by kernel", print_kernels(record)),
        (f"generated module  {module_of(record)}", record.program.source),
    ]


def module_of(record: GraphRecord) -> str:
    """The file that holds the generated module."""
    return record.path or str(cache.module_path(record.program.source))


def print_kernels(record: GraphRecord) -> str:
    """The fused graph's nodes, grouped by the kernel that runs them."""
    lines: list[str] = []
    for kernel in record.kernels:
        lines += ["", f"# {'-' * 20} {kernel.name}"]
        for node in kernel.nodes:
            lines += print_node(record.fused, node)
    return "\n".join(lines).strip()


def kernel_table(record: GraphRecord) -> Table:
    table = Table(title=f"{len(record.kernels)} kernels", title_justify="left", show_lines=True)
    table.add_column("kernel", no_wrap=True)
    table.add_column("layers and source lines", overflow="fold", ratio=1)
    for name in ("read", "written", "operations", "op/byte"):
        table.add_column(name, justify="right")
    total = Cost()
    for kernel in record.kernels:
        cost = kernel_cost(record.fused, kernel.nodes)
        total = total + cost
        table.add_row(kernel.name, "\n".join(origins(kernel.nodes)), *cost_cells(cost))
    table.add_row("total", "", *cost_cells(total), style="bold")
    return table


def cost_cells(cost: Cost) -> list[str]:
    moved = cost.read + cost.written
    intensity = f"{cost.operations / moved:.1f}" if moved else "-"
    return [amount(cost.read, "B"), amount(cost.written, "B"), amount(cost.operations, ""), intensity]


def amount(value: int, unit: str) -> str:
    """1234567 -> 1.23 M"""
    scaled = float(value)
    for prefix in ("", "k", "M", "G"):
        if scaled < 1000:
            return f"{scaled:.3g} {prefix}{unit}".rstrip()
        scaled /= 1000
    return f"{scaled:.3g} T{unit}"


def origins(nodes: Sequence[ir.Node]) -> list[str]:
    """One line for each layer and source line that nodes come from, in order."""
    lines: list[str] = []
    for node in nodes:
        operation = node.origin.op.removeprefix("aten.")
        line = "  ".join(part for part in (operation, node.origin.layer, node.origin.source) if part)
        if line not in lines:
            lines.append(line)
    return lines


def fusion_report(record: GraphRecord) -> Group:
    """How many loops became how many kernels, why no fewer, and what is left to ATen."""
    lowered, fused = len(record.graph.nodes), len(record.fused.nodes)
    lines = [
        f"{lowered} loops lowered, {lowered - fused} inlined into their consumers, "
        f"{fused} left in {len(record.kernels)} kernels"
    ]
    for kernel in record.kernels:
        if len(kernel.nodes) > 1:
            lines.append(f"{kernel.name}: fuses {len(kernel.nodes)} loops")
        lines += [f"{kernel.name}: {note}" for note in kernel.notes]
    lines += [f"extern {node.target}: {node.reason}" for node in record.externs] or [
        "nothing is left to ATen"
    ]
    lines.append(f"generated module: {module_of(record)}")
    return Group(*(Text(line) for line in lines))
