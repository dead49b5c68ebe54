"""Linear maps by tables (`lower/taps.py`): the table of the transposed map is the transposed matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler_bridge.ir import Axis
from compiler_bridge.lower.taps import Table, adjoint, on_a_line


def matrix_of(table: Table, size: int) -> Tensor:
    """[outputs, size]: out = matrix @ x"""
    matrix = torch.zeros(table.count, size, dtype=torch.float64)
    for k in range(table.taps):
        for o in range(table.count):
            if table.exists is None or table.exists[k, o]:
                matrix[o, table.index[k, o]] += 1 if table.weights is None else table.weights[k, o].double()
    return matrix


def reads_of(table: Table) -> set[tuple[int, int]]:
    """(output, place read); a tap of weight 0 reads its place too, where NaN may lie."""
    taps = [(k, o) for k in range(table.taps) for o in range(table.count)]
    return {(o, int(table.index[k, o])) for k, o in taps if table.exists is None or table.exists[k, o]}


def random_table(taps: int, count: int, size: int, seed: int, weighted: bool, partial: bool) -> Table:
    """Whole weights, some of them 0; the same place may be read twice; places that don't exist are anywhere."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, size, (taps, count), generator=generator)
    weights = torch.randint(-1, 3, (taps, count), generator=generator).double() if weighted else None
    exists = torch.rand(taps, count, generator=generator) < 0.6 if partial else None
    if exists is not None:
        index = torch.where(exists, index, -7)
    return Table(index, weights, exists)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99), st.booleans(), st.booleans()
)
def test_adjoint_is_the_transposed_matrix(
    taps: int, count: int, size: int, seed: int, weighted: bool, partial: bool
):
    table = random_table(taps, count, size, seed, weighted, partial)
    transposed = adjoint(table, size)
    assert transposed.count == size
    assert torch.equal(matrix_of(transposed, count), matrix_of(table, size).t())
    assert reads_of(transposed) == {(place, output) for output, place in reads_of(table)}
    assert transposed.exists is not None and bool((transposed.index[transposed.exists] < count).all())


def test_adjoint_twice_is_the_map_itself():
    table = random_table(3, 6, 5, 0, weighted=True, partial=True)
    assert torch.equal(matrix_of(adjoint(adjoint(table, 5), 6), 5), matrix_of(table, 5))


def test_adjoint_where_nothing_is_read_or_written():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for table, size in (
        (Table(torch.zeros(2, 0, dtype=torch.int64)), 4),
        (Table(nothing.long(), None, nothing), 0),
    ):
        transposed = adjoint(table, size)
        assert transposed.count == size and not reads_of(transposed)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_the_interior_of_a_padded_image_needs_no_table(mode: str):
    """Its tap comes first in the gradient's table and lies on a line, whatever the borders add."""
    size, before, after = 12, 3, 2
    padded = torch.nn.functional.pad(torch.arange(float(size))[None, None], (before, after), mode)
    table = adjoint(Table(padded.long().view(1, -1)), size)
    axis = Axis("i", size)
    lines = [on_a_line(places, axis) for places in table.index]
    assert table.taps > 1 and lines[0] is not None
    assert lines[0].const == before and lines[0].coefficient("i") == 1
    assert not any(table.padded[:1]) and all(table.padded[1:])


def test_taps_on_a_line():
    axis = Axis("i", 4)
    line = on_a_line(torch.tensor([5, 6, 7, 8]), axis)
    assert line is not None and (line.const, line.coefficient("i")) == (5, 1)
    same = on_a_line(torch.tensor([3, 3, 3, 3]), axis)
    assert same is not None and (same.const, same.coefficient("i")) == (3, 0)
    assert on_a_line(torch.tensor([5, 6, 7, 9]), axis) is None
    assert on_a_line(torch.tensor([5, 7, 9, 11]), axis) is None  # a gather does as well
    assert on_a_line(torch.tensor([], dtype=torch.int64), axis) is None


def test_tables_of_ones_are_plain():
    index = torch.zeros(2, 3, dtype=torch.int64)
    some = torch.tensor([[True, True, True], [True, False, True]])
    halves = torch.where(some, 1.0, 0.5)
    assert Table(index).plain and Table(index, torch.ones(2, 3)).plain
    assert not Table(index, halves).plain and Table(index, halves, some).plain
    assert Table(index).padded == [False, False] and Table(index, None, some).padded == [False, True]
