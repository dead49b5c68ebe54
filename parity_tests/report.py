"""The parity table: op, executor, dtype, worst error of pynn and of C++; for a terminal and as HTML."""

import html
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from parity_tests.measure import Finding
from parity_tests.tolerances import FACTOR, FLOOR_ULPS, Comparison, worst


@dataclass(frozen=True)
class Line:
    """One row of the table: the worst finding of an op on an executor in a dtype."""

    name: str
    executor: str
    dtype: str
    compared: int
    worst: Comparison
    where: str

    @property
    def verdict(self) -> str:
        if not self.compared:
            return "C++ has none"
        return "ok" if self.worst.passed else "FAILS"


def summarise(name: str, executor: str, dtype: torch.dtype, findings: list[Finding]) -> Line:
    comparison = worst([finding.comparison for finding in findings])
    where = next((f.what for f in findings if f.comparison is comparison), "")
    return Line(name, executor, str(dtype).removeprefix("torch."), len(findings), comparison, where)


def cells(line: Line) -> list[str]:
    own, cpp = line.worst.problem or f"{line.worst.pynn:.2f}", f"{line.worst.cpp:.2f}"
    return [line.name, line.executor, line.dtype, str(line.compared), own, cpp, line.where, line.verdict]


HEADINGS = ["op", "executor", "dtype", "compared", "worst pynn (ulp)", "C++ there (ulp)", "where", ""]
FLOAT64_NOTE = (
    "float64: where pynn and C++ are no further apart than the floor, their distance stands for the error, and 0 "
    "for that of C++"
)


def print_table(lines: list[Line]) -> None:
    table = Table(title="parity: errors against a wider type, in roundings", caption=FLOAT64_NOTE)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i in (3, 4, 5) else "left", overflow="fold")
    for line in lines:
        table.add_row(*cells(line), style=None if line.worst.passed else "red")
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = 140
    console.print(table)


STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em auto; max-width: 75em; }
table { border-collapse: collapse; }
td, th { padding: 2px 10px; border-bottom: 1px solid #ddd; text-align: left; }
th { position: sticky; top: 0; background: white; } tr.fails { background: #fdd; }
td:nth-child(4), td:nth-child(5), td:nth-child(6) { text-align: right; }
"""


def write_html(lines: list[Line], undefined: list[str], path: Path) -> None:
    """Write the table as one HTML file that needs nothing else."""
    failing = sum(not line.worst.passed for line in lines)
    headings = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    rows = []
    for line in lines:
        mark = "" if line.worst.passed else " class=fails"
        columns = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(line))
        rows.append(f"<tr{mark}>{columns}</tr>")
    path.write_text(
        "<!doctype html><meta charset=utf-8><title>pynn parity</title>"
        f"<style>{STYLE}</style><h1>pynn parity</h1>"
        f"<p>torch {torch.__version__}. {len(lines)} lines, {failing} failing. A line passes when "
        f"error(pynn) &le; {FACTOR:g} &times; error(C++) + {FLOOR_ULPS:g} roundings, both against "
        f"float64, or for float64 against long double. {FLOAT64_NOTE}.</p>"
        f"<table><tr>{headings}</tr>{''.join(rows)}</table>"
        f"<p>Not defined by pynn yet (torch's own is used): {html.escape(', '.join(undefined))}</p>"
    )
