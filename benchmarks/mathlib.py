"""The mathematics library inside generated kernels, against ATen's C++, alternating in one process, one thread.

    python -m benchmarks.mathlib [--only erf,gelu] [--elements 65536] [--dtype float32] [--seconds 0.2]

Each row compiles one function, takes the kernel out of the compiled graph and runs it on tensors that stay in
the second-level cache. torch's op writes to a given tensor (`out=`), so neither side allocates. Prints
nanoseconds per element of both (medians) and how many times faster the kernel is.
"""

from __future__ import annotations

import argparse
import ctypes
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import pynn  # noqa: F401  (its definitions register themselves)
from benchmarks.compare import Work, take_turns
from compiler_bridge import cache
from compiler_bridge.explain import compile_and_record
from compiler_bridge.program import KernelStep, PointerArgument, Program

aten = torch.ops.aten
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Row(NamedTuple):
    """One function of `arity` tensors; `options` come after them. low, high: where the elements are drawn."""

    name: str
    function: Callable[..., Tensor]
    out: Callable[..., Any]
    options: tuple[object, ...] = ()
    arity: int = 1
    low: float = -4.0
    high: float = 4.0


def word(name: str, low: float = -4.0, high: float = 4.0, arity: int = 1) -> Row:
    return Row(name, getattr(torch, name), getattr(torch, name), (), arity, low, high)


def backward(name: str, *options: object) -> Row:
    """The ATen op of (grad, x)."""
    op = getattr(aten, f"{name}_backward")
    return Row(f"{name} backward", op.default, op.grad_input, options, 2)


def approximate_gelu(grad: Tensor, x: Tensor, **out: Tensor) -> Tensor:
    """gelu_backward of the approximation by tanh."""
    overload = aten.gelu_backward.grad_input if out else aten.gelu_backward.default
    return overload(grad, x, approximate="tanh", **out)


ROWS = (
    word("exp"), word("exp2"), word("expm1"), word("log", 1e-3, 8.0), word("log1p", -0.9, 8.0),
    word("log2", 1e-3, 8.0), word("tanh"), word("sigmoid"), word("erf"), word("erfc"), word("erfinv", -0.99, 0.99),
    word("sin"), word("cos"), word("tan"), word("atan"), word("asin", -1.0, 1.0), word("sinh"), word("cosh"),
    word("rsqrt", 1e-3, 8.0), word("pow", 0.1, 4.0, arity=2),
    Row("gelu", aten.gelu.default, aten.gelu.out),
    Row("gelu tanh", lambda x: aten.gelu.default(x, approximate="tanh"),
        lambda x, out: aten.gelu.out(x, approximate="tanh", out=out)),
    Row("silu", aten.silu.default, aten.silu.out),
    Row("mish", aten.mish.default, aten.mish.out),
    Row("softplus", aten.softplus.default, aten.softplus.out),
    Row("elu", aten.elu.default, aten.elu.out),
    Row("log_sigmoid", lambda x: aten.log_sigmoid_forward.default(x)[0], aten.log_sigmoid.out),
    backward("gelu"), Row("gelu tanh backward", approximate_gelu, approximate_gelu, (), 2), backward("silu"),
    Row("mish backward", aten.mish_backward.default, aten.mish_backward.default, (), 2),
    backward("softplus", 1.0, 20.0),
    Row("elu backward", lambda g, x: aten.elu_backward.default(g, 1.0, 1.0, 1.0, False, x),
        lambda g, x, grad_input: aten.elu_backward.grad_input(g, 1.0, 1.0, 1.0, False, x, grad_input=grad_input),
        (), 2),
)  # fmt: skip


def kernel_of(function: Callable[..., Tensor], inputs: list[Tensor], output: Tensor) -> Work:
    """A call of the one kernel that the function compiles to, on these tensors."""
    torch._dynamo.reset()
    (record,) = compile_and_record(function, inputs, {"strict": True}).records
    program: Program = record.program
    (step,) = program.steps
    assert isinstance(step, KernelStep) and isinstance(step.kernel, str)
    tensors = {spec.name: tensor for spec, tensor in zip(program.inputs, inputs, strict=True)}
    names = [a.buffer_name for a in step.arguments if isinstance(a, PointerArgument)]
    table = np.array([tensors.get(name, output).data_ptr() for name in names], np.int64)
    address = cache.load_kernels(program.source, [step.kernel], program.name)[step.kernel]
    call, where, length = CALLBACK(address), table.ctypes.data, step.length

    def run() -> object:
        call(where, 0, length, 0)
        return table  # kept alive

    return run


def torch_call(row: Row, inputs: list[Tensor], output: Tensor) -> Work:
    """torch's own op into `output`; mish_backward alone has no such form and allocates its result."""
    if row.out is aten.mish_backward.default:
        return lambda: output.set_(row.out(*inputs))
    name = "grad_input" if row.name.endswith("backward") else "out"
    return lambda: row.out(*inputs, *row.options, **{name: output})


def measure(row: Row, elements: int, dtype: torch.dtype, seconds: float) -> tuple[float, float]:
    """ns per element of the kernel and of torch."""
    inputs = [torch.empty(elements, dtype=dtype).uniform_(row.low, row.high) for _ in range(row.arity)]
    ours, theirs = torch.empty(elements, dtype=dtype), torch.empty(elements, dtype=dtype)
    run = kernel_of(lambda *tensors: row.function(*tensors, *row.options), inputs, ours)
    run_torch = torch_call(row, inputs, theirs)
    run()
    run_torch()
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    if not difference < 1e-5:
        raise AssertionError(f"{row.name}: results differ by {difference:.1e}")
    taken = take_turns({"ours": run, "torch": run_torch}, seconds)
    return taken["ours"] / elements * 1e9, taken["torch"] / elements * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="names, separated by commas; default all")
    parser.add_argument("--elements", type=int, default=1 << 16)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--seconds", type=float, default=0.2, help="per row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [name.strip() for name in options.only.split(",") if name.strip()]
    ratios: list[float] = []
    print(f"{options.elements} x {options.dtype}, one thread; ns per element: kernel, torch, torch / kernel")
    for row in ROWS:
        if not wanted or row.name in wanted:
            ours, theirs = measure(row, options.elements, getattr(torch, options.dtype), options.seconds)
            ratios.append(theirs / ours)
            print(f"{row.name:>20}  {ours:6.3f}  {theirs:6.3f}  {ratios[-1]:5.2f}", flush=True)
    print(f"rows {len(ratios)}  geomean {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}")


if __name__ == "__main__":
    main()
