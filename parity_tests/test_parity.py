"""Every row of the table: accuracy on every executor, and what a torch user expects of a layer."""

import copy
import inspect
import pickle
import types
import warnings

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import pynn
from parity_tests.cases import FLOATS, Row, Sample, defined_rows, seed
from parity_tests.executors import EXECUTORS
from parity_tests.long_double import IS_WIDER
from parity_tests.measure import compare_sample, evaluate, measure, tensors_of
from parity_tests.torch_version import IS_OLDER, assert_torchs_parameters, shown
from parity_tests.waiting import operations_without_lowering

ROWS = defined_rows()
MODULES = [row for row in ROWS if row.is_module]
# Rows whose kernels `make check` compiles (test_ops runs generated code as plain Python); the others wait for
# `make test`.
FAST = {"functional.softmax", "functional.gelu", "functional.layer_norm", "functional.linear"}
# Modules made of layers that have rows of their own.
STACKS = {"nn.Transformer", "nn.TransformerEncoder", "nn.TransformerDecoder"}
# What the compiled executors are asked for; eager takes every dtype a row has.
FLOAT32 = (torch.float32,)
COMPILED_DTYPES = {"ir": FLOAT32, "python": FLOAT32, "numba": (torch.float32, torch.bfloat16)}
# A module compiles to its function's kernels; those have rows of their own.
COMPILED_DTYPES_OF_MODULES = {"ir": (), "python": (), "numba": FLOAT32}

NEEDS_LONG_DOUBLE = pytest.mark.skipif(not IS_WIDER, reason="long double is no wider than float64 here")


def accuracy_parameters() -> list:
    parameters = []
    for row in ROWS:
        compiled = COMPILED_DTYPES_OF_MODULES if row.is_module else COMPILED_DTYPES
        for executor in EXECUTORS:
            for dtype in compiled.get(executor, FLOATS):
                if dtype not in row.dtypes:
                    continue
                fast = dtype is torch.float32 and (
                    (executor == "eager" and row.name.count(".") == 1 and row.name not in STACKS)
                    or (executor in ("ir", "numba") and row.name in FAST)
                )
                name = f"{row.name}-{executor}-{str(dtype).removeprefix('torch.')}"
                marks = [] if fast else [pytest.mark.slow]
                if dtype is torch.float64:
                    marks.append(NEEDS_LONG_DOUBLE)
                if reason := row.reason_to_skip(dtype):
                    marks.append(pytest.mark.skip(reason=reason))
                parameters.append(pytest.param(row.name, executor, dtype, id=name, marks=marks))
    return parameters


def by_name(rows: list[Row], check: str = ""):
    """One test a row; skipped, with the reason, where the row says that the check does not apply."""
    marks = [[pytest.mark.skip(reason=row.skip[check])] if check in row.skip else [] for row in rows]
    return pytest.mark.parametrize(
        "row", [pytest.param(row, id=row.name, marks=mark) for row, mark in zip(rows, marks)]
    )


@pytest.mark.parametrize("name, executor, dtype", accuracy_parameters())
def test_no_less_accurate_than_cpp(name: str, executor: str, dtype: torch.dtype):
    if executor != "eager" and (waiting := operations_without_lowering(name)):
        pytest.skip(f"no lowering yet: {', '.join(waiting)}")
    failed = [f"{f.what}: {f.comparison}" for f in measure(name, executor, dtype) if not f.comparison.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize(
    "dtype, part",
    [(torch.float32, 3e-6), pytest.param(torch.float64, 3e-14, marks=[NEEDS_LONG_DOUBLE, pytest.mark.slow])],
    ids=["float32", "float64"],
)
def test_a_slightly_wrong_definition_is_caught(dtype: torch.dtype, part: float):
    """The harness itself: an error of some tens of roundings, in values or in gradients, must not pass."""

    class WrongGelu:
        @staticmethod
        def gelu(x: Tensor, approximate: str = "none") -> Tensor:
            return torch.nn.functional.gelu(x, approximate=approximate) * (1 + part)

    class WrongGradient:
        @staticmethod
        def gelu(x: Tensor, approximate: str = "none") -> Tensor:
            exact = torch.nn.functional.gelu(x, approximate=approximate)
            return exact + (part * x - (part * x).detach())

    row = next(row for row in ROWS if row.name == "functional.gelu")
    for wrong, what in [(WrongGelu, "values"), (WrongGradient, "grads")]:
        namespace = types.SimpleNamespace(functional=wrong)
        compared = [compare_sample(row, s, dtype, "eager", namespace) or [] for s in row.draw(24)]
        findings = [f for sample in compared for f in sample if f.what.startswith(what)]
        assert any(not f.comparison.passed for f in findings), findings


def same_seed_pair(row: Row, sample: Sample) -> tuple[torch.nn.Module, torch.nn.Module]:
    return row.build(torch.nn, sample), row.build(pynn, sample)


@by_name(MODULES)
def test_same_seed_gives_equal_parameters(row: Row):
    for sample in row.draw(6):
        theirs, ours = same_seed_pair(row, sample)
        expected, found = theirs.state_dict(), ours.state_dict()
        assert list(expected) == list(found)
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


@pytest.mark.slow
@by_name(MODULES)
def test_state_dict_loads_both_ways(row: Row):
    for sample in row.draw(6):
        theirs, ours = same_seed_pair(row, sample)
        theirs.load_state_dict(ours.state_dict())  # strict: raises on a missing or unexpected key
        ours.load_state_dict(theirs.state_dict())


@by_name(MODULES)
def test_repr_and_training_flag(row: Row):
    for sample in row.draw(6):
        theirs, ours = same_seed_pair(row, sample)
        if row.reference is None:
            assert shown(ours) == shown(theirs)
            assert isinstance(ours, type(theirs))
        assert [m.training for m in ours.modules()] == [m.training for m in theirs.modules()]


@by_name([row for row in ROWS if row.reference is None])
def test_signature(row: Row):
    ours, theirs = row.look_up(pynn), row.look_up(torch.nn)
    try:
        inspect.signature(theirs)
    except ValueError:
        pytest.skip("torch's function is a C++ builtin without a signature")
    assert_torchs_parameters(ours, theirs)


@pytest.mark.slow
@by_name(MODULES)
def test_pickle_and_deepcopy(row: Row):
    for sample in row.draw(2):
        module = row.build(pynn, sample)
        for copied in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert type(copied) is type(module) and repr(copied) == repr(module)
            for name, value in module.state_dict().items():
                assert torch.equal(value, copied.state_dict()[name]), name


def gradcheck_samples(row: Row) -> list[Sample]:
    """Small float64 samples with finite results: finite differences cost a call per input element."""
    samples = [sample.cast(torch.float64) for sample in row.draw(24)]
    small = [s for s in samples if 0 < sum(t.numel() for t in s.differentiable()) <= 300]

    def is_finite(sample: Sample) -> bool:
        return all(t.isfinite().all() for t in evaluate(row, torch.nn, sample, torch.float64).values)

    usable = [sample for sample in small if is_finite(sample)]
    return usable[:: max(1, len(usable) // 3)][:3]


def as_function_of_inputs(row: Row, sample: Sample):
    """Return a function of the differentiable inputs and parameters alone, seeded, and those inputs."""
    subject = row.build(pynn, sample)
    parameters = {}
    if isinstance(subject, torch.nn.Module):
        subject.to(torch.float64)
        parameters = dict(subject.named_parameters())
    leaves, tree = tree_flatten((sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]

    def function(*tensors: Tensor):
        filled = list(leaves)
        for place, tensor in zip(places, tensors):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, tree)
        seed(0)
        if isinstance(subject, torch.nn.Module):
            values = dict(zip(parameters, tensors[len(places) :]))
            result = torch.func.functional_call(subject, values, args, kwargs)
        else:
            result = subject(*args, **kwargs)
        return tuple(t for t in tensors_of(result) if t.dtype.is_floating_point)

    return function, (*(leaves[i] for i in places), *parameters.values())


@pytest.mark.slow
@by_name(ROWS, "forward_ad")
def test_forward_mode_and_reverse_mode_gradients(row: Row):
    for sample in gradcheck_samples(row):
        function, inputs = as_function_of_inputs(row, sample)
        if any(t.requires_grad for t in function(*inputs)):
            assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.slow
@by_name(ROWS, "gradgrad")
def test_double_backward(row: Row):
    for sample in gradcheck_samples(row):
        function, inputs = as_function_of_inputs(row, sample)
        if any(t.requires_grad for t in function(*inputs)):
            assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.slow
@by_name([row for row in ROWS if not row.random], "vmap")
def test_vmap_equals_a_loop(row: Row):
    for sample in gradcheck_samples(row):
        function, inputs = as_function_of_inputs(row, sample)
        stacked = [torch.stack([t, t * 0.9, t * 0.8]).detach() for t in inputs]
        mapped = torch.func.vmap(function, randomness="same")(*stacked)
        looped = [function(*(t[i] for t in stacked)) for i in range(3)]
        for got, *wanted in zip(mapped, *looped):
            torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.slow
@by_name([row for row in ROWS if not row.random], "vmap")
def test_gradient_of_vmap_equals_gradients_of_a_loop(row: Row):
    """The vmap has ended where the backward pass begins (test_vjpvmap of functorch/test_ops.py)."""
    for sample in gradcheck_samples(row):
        function, inputs = as_function_of_inputs(row, sample)
        if not any(t.requires_grad for t in function(*inputs)):
            continue
        stacked = [torch.stack([t, t * 0.9]).detach() for t in inputs]
        gradients = gradients_in(torch.func.vmap(function, randomness="same"), stacked)
        looped = [gradients_in(function, [t[i] for t in stacked]) for i in range(2)]
        for got, *wanted in zip(gradients, *looped, strict=True):
            torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-10, atol=1e-12, equal_nan=True)


def gradients_in(function, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of the sum of all results; of copies, since some functions write into what they are given."""
    results, pull_back = torch.func.vjp(lambda *tensors: function(*map(torch.clone, tensors)), *inputs)
    return pull_back(tuple(torch.ones_like(t) for t in results))


@pytest.mark.slow
@by_name(ROWS, "meta")
def test_meta_tensors_have_the_real_shapes(row: Row):
    def to_meta(value):
        return value.to("meta") if isinstance(value, Tensor) else value

    for sample in row.draw(6):
        real = evaluate(row, pynn, sample, torch.float32).values
        subject = row.build(pynn, sample)
        if isinstance(subject, torch.nn.Module):
            subject.to("meta")
        args, kwargs = tree_map(to_meta, (sample.args, sample.kwargs))
        with torch.no_grad():
            found = tensors_of(subject(*args, **kwargs))
        assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in real]
        assert all(t.is_meta for t in found)


@by_name([row for row in ROWS if row.errors is not list])
def test_bad_input_raises_as_torch_does(row: Row):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = row.errors()
    if IS_OLDER:  # in other words, and some by its kernels, as RuntimeError
        errors = [(sample, (exception, ValueError), "", where) for sample, exception, _, where in errors]
    for sample, exception, message, where in errors:
        if where == "constructor":
            with pytest.raises(exception, match=message):
                row.build(pynn, sample)
        else:
            subject = row.build(pynn, sample)
            with pytest.raises(exception, match=message):
                subject(*sample.args, **sample.kwargs)


WRITES_TO_ITS_INPUTS = ("functional.embedding", "functional.batch_norm", "functional.instance_norm")


@pytest.mark.slow
@by_name(ROWS)
def test_inputs_are_left_alone(row: Row):
    """A function that is not in-place must not write to its inputs."""
    if row.name.endswith("_") or row.name in WRITES_TO_ITS_INPUTS:
        pytest.skip("writes to its input by contract (in-place, max_norm, running statistics)")
    for sample in row.draw(6):
        if any(value is True for value in sample.constructor[0]) or sample.kwargs.get("inplace"):
            continue  # in-place modules
        cast = sample.cast(torch.float32)
        subject = row.build(pynn, cast)
        with torch.no_grad():
            subject(*cast.args, **cast.kwargs)
        pairs = zip(tree_leaves(sample.args), tree_leaves(cast.args))
        assert all(torch.equal(a, b) or a.isnan().any() for a, b in pairs if isinstance(a, Tensor))


def writable(function, sample: Sample) -> list[bool]:
    """Whether each differentiable result may be written in place, as ReLU(inplace=True) after a layer does."""
    seed(0)
    result = function(*sample.args, **sample.kwargs)
    found = []
    for out in tree_leaves(result):
        if isinstance(out, Tensor) and out.requires_grad:
            try:
                out.add_(0)
                found.append(True)
            except RuntimeError:
                found.append(False)
    return found


@pytest.mark.slow
@by_name(ROWS)
def test_results_may_be_written_in_place_where_those_of_cpp_may(row: Row):
    """A bias-free conv2d followed by ReLU(inplace=True) raised: its result was a view made in a Function."""
    for sample in row.draw(8):
        theirs, ours = (writable(row.build(nn, cast), cast) for nn in (torch.nn, pynn)
                        for cast in [sample.cast(torch.float32)])  # fmt: skip
        assert len(ours) == len(theirs)
        assert all(mine or not other for mine, other in zip(ours, theirs))
