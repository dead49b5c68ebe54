"""Assertions about data, as `one_hot` makes them: a flag like that of an index out of range.

Where one fails, the graph runs again through ATen, which raises its message (`pipeline.with_checks`).
"""

from __future__ import annotations

from torch import fx

from compiler_bridge.lower.lowering import Lowering, NoLowering, apply, constant, lowers


@lowers("aten._assert_async")
def lower_assert(lowering: Lowering, node: fx.Node) -> None:
    """The condition has one element; any number but 0 is true."""
    if not lowering.checking:
        raise NoLowering("an assertion in a backward graph, which carries no flags")
    dtype = str(lowering.meta(node.args[0]).dtype).removeprefix("torch.")
    condition = lowering.operand(node.args[0], (), "bool" if dtype == "bool" else dtype)
    lowering.check(condition if dtype == "bool" else apply("ne", condition, constant(0, dtype)), ())
