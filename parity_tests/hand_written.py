"""A small program of hand-written kernels: out = reversed (x + 1) * 2, for the tests of the run time and its cache."""

import pytest
import torch

from compiler_bridge import settings
from compiler_bridge.program import (
    Buffer,
    KernelStep,
    PointerArgument,
    Program,
    SizeArgument,
    TensorInput,
    TensorView,
    bind_symbols,
)

native = pytest.mark.skipif(settings.INTERPRET, reason="nothing is compiled")

SOURCE = '''
"""Hand-written kernels."""

from compiler_bridge.cpu.language import *


@helper
def double(x):
    return x + x


@kernel
def k0_add_one(tab, begin, end, thread):
    """out = x + 1"""
    x = pointer(tab, 0, "float32")
    out = pointer(tab, 1, "float32")
    for i in range(begin, end):
        store(out, i, load(x, i) + f32(1))


@kernel
def k1_double(tab, begin, end, thread):
    x = pointer(tab, 0, "float32")
    out = pointer(tab, 1, "float32")
    for i in range(begin, end):
        store(out, i, double(load(x, i)))


@kernel
def k2_reverse(tab, begin, end, thread):
    """out[i] = x[n - 1 - i]: reads what other threads wrote"""
    x = pointer(tab, 0, "float32")
    out = pointer(tab, 1, "float32")
    n = tab[2]
    for i in range(begin, end):
        store(out, i, load(x, n - 1 - i))


@kernel
def k3_thread(tab, begin, end, thread):
    """out[i] = number of the thread that computed it"""
    out = pointer(tab, 0, "float32")
    for i in range(begin, end):
        store(out, i, f32(thread))


@kernel
def k4_scratch(tab, begin, end, thread):
    """out = x + 1, by way of 16 elements of the thread's own scratch"""
    x = pointer(tab, 0, "float32")
    out = pointer(tab, 1, "float32")
    scratch = offset_pointer(pointer(tab, 2, "float32"), thread * 16)
    for i in range(begin, end):
        store(scratch, i % 16, load(x, i) + f32(1))
        store(out, i, load(scratch, i % 16))
'''


def reverse_steps(n, grain=1):
    """arena `a` = x + 1, arena `b` = 2 a, out = b reversed."""
    return [
        KernelStep("k0_add_one", [PointerArgument("x"), PointerArgument("a")], n, grain),
        KernelStep("k1_double", [PointerArgument("a"), PointerArgument("b")], n, grain),
        KernelStep("k2_reverse", [PointerArgument("b"), PointerArgument("out"), SizeArgument(n)], n, grain),
    ]


def reverse_program(n, grain=1, steps=None, source=SOURCE):
    inputs = [TensorInput("x", torch.float32, (n,), (1,))]
    return Program(
        source,
        [
            Buffer("x", torch.float32, n, "input"),
            Buffer("a", torch.float32, n, "arena"),
            Buffer("b", torch.float32, n, "arena"),
            Buffer("out", torch.float32, n, "output"),
        ],
        steps or reverse_steps(n, grain),
        inputs,
        [TensorView("out", (n,), (1,), 0, torch.float32)],
        bind_symbols(inputs),
    )


def reverse(x):
    return ((x + 1) * 2).flip(0)
