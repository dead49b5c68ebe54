"""Which parts of the compiled graphs are ATen calls, and whether any of them computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compiler_bridge import pipeline

# ATen calls that move data and compute nothing. (The models of `benchmarks.models` need none of them.)
DATA_MOVEMENT = {"aten::clone", "aten::copy_", "aten::cat", "aten::index_select", "aten::as_strided"}


@contextmanager
def record_graphs() -> Iterator[list[Any]]:
    """Collect the records of the graphs compiled inside the block."""
    before = list(pipeline.records)  # old ones are dropped from there: their ids come back
    graphs: list[Any] = []
    yield graphs
    graphs += [record for record in pipeline.records if not any(record is old for old in before)]


def computing_externs(graphs: list[Any]) -> list[str]:
    """Name the Externs that are not data movement, whatever their dtype."""
    found = []
    for record in graphs:
        for node in record.externs:
            name = str(getattr(node.target, "name", lambda node=node: str(node.target))())
            if not any(name.startswith(moved) for moved in DATA_MOVEMENT):
                found.append(f"{name}: {node.reason}")
    return found
