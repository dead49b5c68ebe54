"""Rows read off torch's own test tables: `op_db` for the functions, `module_db` for the modules."""

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.testing._internal.common_utils import SEED

from parity_tests.cases import Row, Sample, seed

# op_db lists these without the nn.functional prefix.
UNPREFIXED = {"softmax", "log_softmax", "sigmoid", "tanh"}

POINTWISE = {
    "celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu",
    "logsigmoid", "mish", "prelu", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softshrink",
    "softsign", "tanh", "threshold",
    "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish",
    "PReLU", "ReLU", "ReLU6", "SELU", "Sigmoid", "SiLU", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Threshold",
}  # fmt: skip

RANDOM = {
    "dropout", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "rrelu", "RReLU",
    "fractional_max_pool2d", "fractional_max_pool3d", "FractionalMaxPool2d", "FractionalMaxPool3d",
}  # fmt: skip

# pynn takes real numbers only; the entry without cuDNN has no dtype on the CPU.
LEFT_OUT = {"silu.complex", "batch_norm.without_cudnn"}

# op_db's entry for these calls a lambda with the arguments in another order.
REORDERED: dict[str, Callable] = {
    "embedding": lambda function, weight, indices, **kwargs: function(indices, weight, **kwargs),
}

NORMS = ("Batch", "Instance")
# Checks that cannot apply to an entry, and why.
SKIPPED_CHECKS = {
    "one_hot": {"meta": "the number of classes depends on the data"},
    "embedding": {"vmap": "vmap over a weight that max_norm renormalises in place is no function"},
    **{
        f"max_unpool{dims}d": {
            "forward_ad": "windows overlap, and C++ reads one gradient for several elements"
        }
        for dims in (1, 2, 3)
    },
    **{f"max_unpool{dims}d.grad": {} for dims in (1, 2, 3)},
    **{
        name: {"vmap": "torch refuses running statistics that are not batched; rows of our own go without"}
        for name in ["batch_norm", "instance_norm", *(f"{kind}Norm{n}d" for n in "123" for kind in NORMS)]
    },
}


def function_rows() -> list[Row]:
    """One row per nn.functional entry of op_db."""
    rows = []
    for entry in op_db:
        symbol = entry.name.removeprefix("nn.functional.")
        if symbol == entry.name and symbol not in UNPREFIXED:
            continue
        name = ".".join(filter(None, [symbol, entry.variant_test_name]))
        if name in LEFT_OUT:
            continue
        rows.append(
            Row(
                name=f"functional.{name}",
                samples=partial(function_samples, entry),
                errors=partial(function_errors, entry),
                dtypes=usable_dtypes(entry.dtypes),
                pointwise=symbol in POINTWISE,
                random=symbol in RANDOM,
                call=REORDERED.get(symbol),
                skip=SKIPPED_CHECKS.get(name, SKIPPED_CHECKS.get(symbol, {})),
            )
        )
    return rows


def usable_dtypes(supported) -> tuple[torch.dtype, ...]:
    """Floating-point dtypes of the entry; one_hot takes integers alone, which float32 stands for."""
    floats = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return tuple(d for d in floats if d in supported) or (torch.float32,)


def each_seeded(drawn: Iterable) -> Iterator:
    """Each as `OpInfo.sample_inputs` gives it, which seeds before each, but ten times as fast: torch.manual_seed
    formats a stack trace for each absent device, and the iterator looks through the stack for a test case."""
    drawn = iter(drawn)
    while True:
        seed(SEED)
        random.seed(SEED)
        numpy.random.seed(SEED)
        try:
            item = next(drawn)
        except StopIteration:
            return
        yield item


def function_samples(entry) -> list[Sample]:
    dtype = torch.float32 if torch.float32 in entry.dtypes else torch.int64
    drawn = each_seeded(entry.sample_inputs_func(entry, "cpu", dtype, dtype.is_floating_point))
    return [Sample((s.input, *s.args), s.kwargs) for s in drawn]


def function_errors(entry, device: str = "cpu") -> list[tuple[Sample, type, str, str]]:
    if entry.error_inputs_func is None:
        return []
    found = []
    for error in each_seeded(entry.error_inputs_func(entry, device)):
        s = error.sample_input
        found.append((Sample((s.input, *s.args), s.kwargs), error.error_type, error.error_regex, "call"))
    return found


def module_rows() -> list[Row]:
    """One row per module of module_db."""
    rows = []
    for entry in module_db:
        symbol = entry.module_cls.__name__
        rows.append(
            Row(
                name=f"nn.{symbol}",
                samples=partial(module_samples, entry),
                errors=partial(module_errors, entry),
                pointwise=symbol in POINTWISE,
                random=symbol in RANDOM,
                skip=SKIPPED_CHECKS.get(symbol, {}),
            )
        )
    return rows


def module_samples(entry) -> list[Sample]:
    samples = []
    for training in (True, False) if entry.train_and_eval_differ else (True,):
        drawn = entry.module_inputs_func(
            entry, device="cpu", dtype=torch.float32, requires_grad=True, training=training
        )
        for s in drawn:
            construct = (s.constructor_input.args, s.constructor_input.kwargs)
            samples.append(Sample(s.forward_input.args, s.forward_input.kwargs, construct, training))
    return samples


def module_errors(entry) -> list[tuple[Sample, type, str, str]]:
    if entry.module_error_inputs_func is None:
        return []
    found = []
    drawn = entry.module_error_inputs_func(
        entry, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    for error in drawn:
        s = error.module_error_input
        construct = (s.constructor_input.args, s.constructor_input.kwargs)
        forward = s.forward_input
        sample = Sample(forward.args, forward.kwargs, construct) if forward else Sample((), {}, construct)
        where = "constructor" if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR else "call"
        found.append((sample, error.error_type, error.error_regex, where))
    return found
