"""Loops cut where conditions along their vectors change (`compiler_bridge/sections.py`)."""

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor

import pynn
from compiler_bridge.ir import Axis, Constant, Index, IndexValue, Map, Origin
from compiler_bridge.lower.lowering import apply
from compiler_bridge.sections import cut_of, cut_sections, merge_narrow

PLACE = Axis("j", 40)


@pytest.mark.parametrize("op", ["lt", "le", "gt", "ge"])
@pytest.mark.parametrize("step", [-3, -2, -1, 1, 2, 3])
@pytest.mark.parametrize("bound", [-7, 0, 1, 8, 60])
@pytest.mark.parametrize("start", [-5, 0, 4])
def test_the_first_place_where_a_comparison_changes(op: str, step: int, bound: int, start: int):
    condition = apply(op, IndexValue("int64", Index((("j", step),), start)), Constant("int64", bound))
    compare = {"lt": int.__lt__, "le": int.__le__, "gt": int.__gt__, "ge": int.__ge__}[op]
    holds = [compare(step * j + start, bound) for j in range(PLACE.extent)]  # pyright: ignore
    change = next((j for j in range(1, len(holds)) if holds[j] != holds[0]), None)
    cut = cut_of(condition, PLACE)
    assert cut is not None
    assert cut == change if change is not None else not 0 < cut < len(holds)


def test_narrow_sections_are_one_but_for_the_longest():
    assert merge_narrow([0, 1, 2, 57, 58]) == [0, 2, 57, 58]


PADS = {
    "reflect": lambda x: F.pad(x, (3, 2, 1, 2), mode="reflect"),
    "replicate": lambda x: F.pad(x, (3, 2, 1, 2), mode="replicate"),
    "circular": lambda x: F.pad(x, (3, 2, 1, 2), mode="circular"),
    "constant": lambda x: F.pad(x, (3, 2, 1, 2), value=2.5),
    "one side": lambda x: F.pad(x, (0, 5, 0, 0), mode="reflect"),
    "cat": lambda x: torch.cat([x, -x, x[..., :1]], -1),
}


SIZE = sympy.Symbol("n", integer=True, positive=True)


def within(first: sympy.Expr | int, end: sympy.Expr | int) -> Map:
    """out[j] = 1 where first <= j < end, else 0"""
    here = IndexValue("int64", Index((("j", 1),)))
    above, below = apply("ge", here, Constant("int64", first)), apply("lt", here, Constant("int64", end))
    value = apply(
        "where",
        apply("bitwise_and", above, below),
        Constant("float32", 1.0),
        apply("where", above, Constant("float32", 0.0), Constant("float32", 2.0)),
    )
    return Map("out", Origin(), (Axis("j", SIZE + 5),), Index((("j", 1),)), value)


def test_places_that_are_symbols_cut_where_their_order_is_known():
    cut = cut_sections([within(2, SIZE + 2)], Axis("j", SIZE + 5))
    assert [(axis.extent, nodes[0].value.value) for axis, nodes in cut] == [(2, 2.0), (SIZE, 1.0), (3, 0.0)]
    assert not cut_sections([within(2, SIZE)], Axis("j", SIZE + 5)), "n may be 1"
    assert not cut_sections([within(SIZE, 7)], Axis("j", SIZE + 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", PADS)
def test_values_of_loops_cut_at_sizes_known_at_run_time(name: str):
    torch._dynamo.reset()
    function = PADS[name]
    compiled = pynn.compile(function, strict=True, dynamic=True, fullgraph=True)
    for shape in ((2, 3, 5, 71), (3, 2, 9, 6), (2, 3, 4, 33), (2, 4, 6, 64)):
        for x in (torch.randn(shape), torch.randn(shape).contiguous(memory_format=torch.channels_last)):
            ours, theirs = compiled(x), function(x)
            assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


@pytest.mark.slow
@pytest.mark.parametrize("width", [6, 33, 64, 71])
@pytest.mark.parametrize("name", PADS)
def test_values_and_gradients_of_cut_loops(name: str, width: int, monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    cut = []

    def noting(nodes: list, axis: Axis) -> list:
        cut.append(cut_sections(nodes, axis))
        return cut[-1]

    monkeypatch.setattr("compiler_bridge.schedule.cut_sections", noting)
    x = torch.randn(2, 3, 5, width, requires_grad=True)
    function = PADS[name]
    ours, theirs = torch.compile(function, backend="pynn", fullgraph=True)(x), function(x)
    assert torch.equal(ours, theirs)
    cotangent = torch.randn_like(theirs)

    def gradient(out: Tensor) -> Tensor:
        return torch.autograd.grad(out, x, cotangent)[0]

    torch.testing.assert_close(gradient(ours), gradient(theirs))
    assert width == 6 or any(cut), "no loop was cut"
