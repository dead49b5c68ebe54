"""The older tables that torch's test_nn.py runs from, `common_nn`: each entry with torch's layer and with pynn's."""

import copy
import types
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal import common_nn
from torch.utils._pytree import tree_leaves, tree_map

import pynn
from pynn.counterparts import function_pairs


def entries() -> dict[str, dict]:
    """name -> entry, each name once; the random inputs some entries hold are drawn under a seed."""
    torch.manual_seed(0)
    found: dict[str, dict] = {}
    for entry in (*common_nn.module_tests, *common_nn.get_new_module_tests(), *common_nn.criterion_tests):
        name = entry.get("fullname") or "_".join(filter(None, [entry["module_name"], entry.get("desc")]))
        while name in found:
            name += "_again"
        found[name] = entry
    return found


ENTRIES = entries()
# Where torch's float64 results are off themselves: how much, and why.
INEXACT_IN_TORCH = {
    "CrossMapLRN2d": 1e-5,  # its backward is not the derivative of its forward: gradcheck fails on it
    "Hardsigmoid_no_batch_dim": 1e-7,  # C++ multiplies by 1 / 6 rounded to float32
}


def drawn(entry: dict, what: str) -> Any:
    """The entry's input or target: given, made by a function, or normal numbers of a size."""
    if f"{what}_fn" in entry:
        return entry[f"{what}_fn"]()
    if f"{what}_size" in entry:
        return tree_map(
            lambda size: torch.randn(size), entry[f"{what}_size"], is_leaf=lambda s: isinstance(s, tuple)
        )
    return entry.get(what)


def constructed(entry: dict, own: bool) -> torch.nn.Module:
    constructor = entry.get("constructor") or getattr(pynn if own else torch.nn, entry["module_name"])
    args = (
        entry["constructor_args_fn"]()
        if "constructor_args_fn" in entry
        else entry.get("constructor_args", ())
    )
    layer = constructor(*args)
    function = getattr(layer.forward, "__func__", layer.forward)
    cells = function.__closure__ or ()
    if own and any(is_torch_function(cell.cell_contents) for cell in cells):
        # wrap_functional holds torch's function itself
        pairs = function_pairs()
        replaced = tuple(
            types.CellType(pairs[c.cell_contents] if is_torch_function(c.cell_contents) else c.cell_contents)
            for c in cells
        )
        code, names = function.__code__, function.__globals__
        layer.forward = types.MethodType(
            types.FunctionType(code, names, function.__name__, function.__defaults__, replaced), layer
        )
    return layer


def is_torch_function(value: Any) -> bool:
    return callable(value) and getattr(value, "__hash__", None) is not None and value in function_pairs()


def run(entry: dict, own: bool) -> list[Any]:
    """Outputs, and the gradients of inputs and parameters."""
    torch.manual_seed(1)
    layer = constructed(entry, own)
    torch.manual_seed(2)
    inputs, target = drawn(entry, "input"), drawn(entry, "target")
    inputs = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    inputs = copy.deepcopy(inputs)
    leaves = [
        t for t in tree_leaves(inputs) if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
    ]
    for leaf in leaves:
        leaf.requires_grad_()
    torch.manual_seed(3)
    out = layer(*inputs, *([] if target is None else [target]))
    outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    wanted = [*leaves, *layer.parameters()]
    reached = [t for t in outputs if t.requires_grad]
    gradients = ()
    if reached and wanted:
        torch.manual_seed(4)
        cotangents = [torch.randn_like(t) for t in reached]
        gradients = torch.autograd.grad(reached, wanted, cotangents, allow_unused=True)
    return [*outputs, *(None if g is None else g.to_dense() for g in gradients)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_entry_gives_what_torch_gives(name: str):
    entry = ENTRIES[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(entry.get("default_dtype", torch.float64))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = run(entry, False)
            with pynn.install():
                ours = run(entry, True)
    finally:
        torch.set_default_dtype(before)
    bound = INEXACT_IN_TORCH.get(name, 1e-9)
    for found, wanted in zip(ours, theirs, strict=True):
        if wanted is not None or found is not None:
            wanted = torch.zeros_like(found) if wanted is None else wanted
            found = torch.zeros_like(wanted) if found is None else found
            torch.testing.assert_close(found, wanted, rtol=bound, atol=bound, equal_nan=True)


def test_the_functions_held_by_entries_are_replaced():
    entry = ENTRIES["softmax_lastdim"]
    with pynn.install():
        layer = constructed(entry, True)
    own = [c.cell_contents for c in layer.forward.__func__.__closure__ if callable(c.cell_contents)]
    assert pynn.functional.softmax in own
