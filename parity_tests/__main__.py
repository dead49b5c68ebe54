"""`python -m parity_tests`: measure every row; print op, executor, dtype, worst error of pynn and of C++."""

import argparse
from pathlib import Path

import torch
from rich.progress import track

import pynn
from parity_tests.cases import FLOATS, all_rows
from parity_tests.executors import EXECUTORS
from parity_tests.measure import measure
from parity_tests.report import print_table, summarise, write_html
from parity_tests.waiting import operations_without_lowering

DTYPES = [str(dtype).removeprefix("torch.") for dtype in FLOATS]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows whose name contains one of these (default: all)")
    parser.add_argument("--executor", action="append", choices=EXECUTORS, help="default: eager and numba")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: float32")
    parser.add_argument("--samples", type=int, help="at most this many samples a row")
    parser.add_argument("--html", type=Path, default=Path("parity_report.html"))
    arguments = parser.parse_args()
    for name in arguments.names:
        if not any(name in row.name for row in all_rows()):
            parser.error(
                f"no row's name contains {name!r}; rows are named like nn.GELU and functional.softmax"
            )
    return arguments


def main() -> int:
    arguments = parse()
    executors = arguments.executor or ["eager", "numba"]
    dtypes = [getattr(torch, name) for name in arguments.dtype or ["float32"]]
    chosen = [r for r in all_rows() if not arguments.names or any(n in r.name for n in arguments.names)]
    work = [
        (row.name, executor, dtype)
        for row in chosen
        if row.defined(pynn)
        for executor in executors
        if executor == "eager" or not operations_without_lowering(row.name)
        for dtype in dtypes
        if dtype in row.dtypes and not row.reason_to_skip(dtype)
    ]
    lines = [summarise(*job, measure(*job, arguments.samples)) for job in track(work, "measuring")]
    print_table(lines)
    write_html(lines, [row.name for row in chosen if not row.defined(pynn)], arguments.html)
    failing = sum(not line.worst.passed for line in lines)
    print(f"{len(lines)} lines, {failing} failing; also in {arguments.html}")
    return 1 if failing else 0


if __name__ == "__main__":
    raise SystemExit(main())
