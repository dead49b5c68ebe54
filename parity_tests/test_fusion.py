"""What fuses with what: the number of passes over memory that layers take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pynn
from compiler_bridge import pipeline
from compiler_bridge.epilogue import join_all
from compiler_bridge.group import single
from compiler_bridge.ir import Map, Reduce, all_axes, node_reads, size_product
from compiler_bridge.schedule import schedule_group

ROWS, COLS = 96, 160


def large_kernels(record: Any) -> list[list[Any]]:
    """The loops of each kernel that goes through a [ROWS, COLS] buffer."""

    def is_large(name: str) -> bool:
        buffer = record.fused.buffers.get(name)
        return buffer is not None and len(buffer.shape) == 2

    loops = [kernel.nodes for kernel in record.kernels if isinstance(kernel.nodes[0], (Map, Reduce))]
    return [nodes for nodes in loops if any(is_large(n) for node in nodes for n in node_reads(node))]


def compiled_records(function: Callable, inputs: list[Tensor], kinds: tuple[str, ...]) -> dict[str, Any]:
    torch._dynamo.reset()
    pipeline.records.clear()
    out = pynn.compile(function, dynamic=False, strict=True)(*inputs)
    out.backward(torch.ones_like(out))
    found = {record.kind: record for record in pipeline.records}
    return {kind: found[kind] for kind in kinds}


def rows(count: int = 1) -> list[Tensor]:
    return [torch.randn(ROWS, COLS, requires_grad=True) for _ in range(count)]


def affine() -> list[Tensor]:
    return [torch.randn(COLS, requires_grad=True), torch.randn(COLS, requires_grad=True)]


ONE_PASS: dict[str, tuple[Callable, Callable[[], list[Any]]]] = {
    "softmax": (lambda x: F.softmax(x, -1), rows),
    "log_softmax": (lambda x: F.log_softmax(x, -1), rows),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (COLS,), w, b), lambda: rows() + affine()),
    "rms_norm": (lambda x, w: F.rms_norm(x, (COLS,), w), lambda: rows() + affine()[:1]),
    "add and layer_norm": (lambda x, y, w, b: F.layer_norm(x + y, (COLS,), w, b), lambda: rows(2) + affine()),
    "swiglu": (lambda x, y: F.silu(x) * y, lambda: rows(2)),
}


@pytest.mark.parametrize("name", ONE_PASS)
def test_one_kernel_forward_and_one_backward(name: str) -> None:
    """Layer norm's backward once took two: weight * grad went through memory (`Grouper.merge_sources`)."""
    function, inputs = ONE_PASS[name]
    for record in compiled_records(function, inputs(), ("forward", "backward")).values():
        assert len(large_kernels(record)) == 1, record.program


def test_cross_entropy_does_not_write_its_log_probabilities() -> None:
    """The gather of the target's log-probability reads the logits (`fuse.solve_data`); the sum of a one-hot
    row is no loop (`rules.choose_one_hot`)."""
    target = torch.randint(COLS, (ROWS,))
    records = compiled_records(lambda x: F.cross_entropy(x, target), rows(), ("forward", "backward"))
    written = [
        b.name for b in records["forward"].program.buffers if b.numel == ROWS * COLS and b.kind != "input"
    ]
    assert written == []
    backward = [node for nodes in large_kernels(records["backward"]) for node in nodes]
    assert not any(isinstance(node, Reduce) for node in backward)


@pytest.mark.slow
@pytest.mark.parametrize("ignored", (-100, 3))
def test_cross_entropy_through_the_fused_gather(ignored: int) -> None:
    target = torch.randint(COLS, (ROWS,))
    target[::7] = ignored
    (x,) = rows()

    def function(x: Tensor) -> Tensor:
        return F.cross_entropy(x, target, ignore_index=ignored)

    compiled = torch.autograd.grad(pynn.compile(function, strict=True)(x), x)[0]
    exact = torch.autograd.grad(function(x.double()), x)[0]
    eager = torch.autograd.grad(function(x), x)[0]
    error, allowed = ((t - exact).abs().max().item() for t in (compiled, eager))
    assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize("position", (0, 4, -1, 5))
def test_the_sum_of_a_one_hot_row_is_its_term_if_in_range(position: int) -> None:
    def function(t: Tensor, a: Tensor) -> Tensor:
        return torch.where(torch.arange(5) == t[:, None], a[:, None], 0.0).sum(-1)

    t, a = torch.full((3,), position), torch.tensor([1.5, torch.inf, torch.nan])
    torch.testing.assert_close(
        pynn.compile(function, strict=True)(t, a), function(t, a), equal_nan=True, rtol=0, atol=0
    )


# ---- contractions ----


def gemm_kernels(record: Any) -> list[str]:
    return [kernel.name for kernel in record.kernels if kernel.name.startswith("gemm")]


def assert_no_worse(function: Callable, inputs: list[Tensor]) -> None:
    """Values and gradients of the compiled function against eager, both held against float64."""
    out = function(*inputs)
    cotangent = torch.randn(out.shape)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = function(*exact_inputs)
    truth = [exact, *torch.autograd.grad(exact, exact_inputs, cotangent.double())]
    eager = [out, *torch.autograd.grad(out, inputs, cotangent)]
    compiled_out = pynn.compile(function, dynamic=False, strict=True)(*inputs)
    compiled = [compiled_out, *torch.autograd.grad(compiled_out, inputs, cotangent)]
    for ours, theirs, true in zip(compiled, eager, truth):
        unit = torch.finfo(torch.float32).eps * true.abs().max().item()
        error, allowed = ((t.double() - true).abs().max().item() for t in (ours, theirs))
        assert error <= 2 * allowed + 4 * unit


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


EPILOGUES: dict[str, tuple[Callable, list[tuple[int, ...]]]] = {
    "bias": (F.linear, [(6, 33, 40), (70, 40), (70,)]),
    "bias and gelu": (lambda x, w, b: F.gelu(F.linear(x, w, b)), [(130, 40), (70, 40), (70,)]),
    "residual": (lambda x, w, r: F.linear(x, w) + r, [(6, 33, 40), (70, 40), (6, 33, 70)]),
    "batched": (lambda a, b, c: torch.relu(a @ b + c), [(3, 5, 9, 20), (3, 5, 20, 17), (17,)]),
    "per row": (lambda a, b, c: (a @ b) * c, [(9, 20), (20, 17), (9, 1)]),
    "few columns": (lambda a, b, c: torch.tanh(a @ b + c), [(64, 20), (20, 3), (3,)]),
    "few rows": (lambda a, b, c: torch.tanh(a @ b + c), [(2, 20), (20, 300), (300,)]),
    "dropout of nothing": (lambda x, w, b: F.dropout(F.linear(x, w, b), 0.0), [(8, 16), (24, 16), (24,)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EPILOGUES)
def test_pointwise_loops_after_a_product_are_its_epilogue(name: str) -> None:
    function, shapes = EPILOGUES[name]
    inputs = [leaf(*shape) for shape in shapes]
    torch._dynamo.reset()
    pipeline.records.clear()
    with torch.no_grad():
        pynn.compile(function, dynamic=False, strict=True)(*inputs)
    (record,) = pipeline.records
    assert len(record.kernels) == 1 and gemm_kernels(record)[0].startswith("gemm + k0_"), record.program
    assert_no_worse(function, inputs)


@pytest.mark.parametrize("rows", [4, 8, 12])
@pytest.mark.parametrize("columns", [160, 256])
def test_epilogue_of_few_rows_reaches_every_column(rows: int, columns: int) -> None:
    """Few rows are multiplied in column blocks cut evenly, 80 of 160 here: what was past the last whole vector of a
    block went without its epilogue (the bias) where the columns as a whole are whole vectors."""
    x, weight, bias = torch.randn(rows, 40), torch.randn(columns, 40), 100 + torch.randn(columns)
    with torch.no_grad():
        out = pynn.compile(F.linear, strict=True)(x, weight, bias)
    assert torch.allclose(out, F.linear(x, weight, bias))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "padded": ((2, 3, 9, 10), (5, 3, 3, 3), {"padding": 1}),
    "strided": ((2, 4, 8, 8), (6, 4, 3, 3), {"stride": 2, "padding": 1}),
    "no padding": ((2, 3, 9, 9), (4, 3, 3, 3), {}),
    "dilated": ((1, 2, 12, 11), (40, 2, 3, 3), {"padding": 2, "dilation": 2}),
    "patches": ((2, 3, 16, 16), (8, 3, 4, 4), {"stride": 4}),
    "unequal": ((2, 3, 12, 9), (4, 3, 3, 1), {"stride": (2, 1)}),
    "1 x 1": ((2, 8, 7, 7), (5, 8, 1, 1), {}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_an_implicit_gemm(name: str) -> None:
    """No buffer holds the windows (im2col): each is larger than everything else here."""
    x_shape, w_shape, options = CONVOLUTIONS[name]
    inputs = [leaf(*x_shape), leaf(*w_shape), leaf(w_shape[0])]

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.relu(F.conv2d(x, w, b, **options))

    records = compiled_records(function, inputs, ("forward", "backward"))
    spread = 4 if "stride" in options else 1  # the gradient with zeros between, where there is a stride
    for record in records.values():
        largest = max(b.numel for b in record.program.buffers if b.kind != "arena")
        for buffer in record.program.buffers:
            assert buffer.kind != "arena" or buffer.numel <= largest * spread * 2, record.program
    assert_no_worse(function, inputs)


@pytest.mark.slow
def test_group_norm_of_contiguous_images_is_one_kernel_and_keeps_no_differences() -> None:
    """Groups are rows: one kernel forward. Backward, x - mean is computed again where it once went to memory."""
    shape = (2, 16, 9, 11)
    inputs = [torch.randn(shape, requires_grad=True), *(torch.randn(16, requires_grad=True) for _ in "wb")]
    records = compiled_records(lambda x, w, b: F.group_norm(x, 4, w, b), inputs, ("forward", "backward"))
    assert len(records["forward"].kernels) == 1
    for record in records.values():
        made = [b for b in record.program.buffers if b.numel == inputs[0].numel() and b.kind != "input"]
        assert len(made) == 1, record.program  # the result alone


def test_sums_of_a_group_run_through_its_channels_as_one_line() -> None:
    """Nine places a channel would fill no vector; the group's 36 values lie side by side (`schedule.run_of`)."""
    inputs = [torch.randn(2, 16, 3, 3, requires_grad=True), torch.randn(16, requires_grad=True)]
    record = compiled_records(lambda x, w: F.group_norm(x, 4, w), inputs, ("forward",))["forward"]
    (kernel,) = record.kernels
    schedule = schedule_group(join_all(single(kernel.nodes[0], {}), kernel.nodes[1:], {}), set(), {})
    assert {level for level, run in schedule.runs.items() if run.vector.extent == 36} >= {0, 1}


def test_what_needs_inputs_alone_waits_for_its_reader() -> None:
    """The weights of a deep network in another layout were all made first, and held until their layer's turn."""
    inputs = [torch.randn(1, 8, 6, 6, requires_grad=True)]
    inputs += [torch.randn(8, 8, 3, 3, requires_grad=True) for _ in range(4)]

    def chain(x: Tensor, *weights: Tensor) -> Tensor:
        for weight in weights:
            x = torch.tanh(F.conv2d(x, weight, padding=1))
        return x

    program = compiled_records(chain, inputs, ("backward",))["backward"].program
    kind = {buffer.name: buffer.kind for buffer in program.buffers}
    steps = [set(step.buffer_names()) for step in program.steps]
    arena = [{name for name in names if kind[name] == "arena"} for names in steps]
    copies = [
        index
        for index, made in enumerate(arena)
        if made and steps[index] - made and not made & set().union(*arena[:index])
        if {kind[name] for name in steps[index] - made} == {"input"}
    ]
    assert len(copies) >= 4
    for index in copies:
        reader = next(i for i in range(index + 1, len(steps)) if arena[i] & arena[index])
        assert set(range(index, reader)) <= set(copies), program


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 8])
def test_vectors_run_through_the_channels_of_all_groups(groups: int) -> None:
    """Channels-last: a group's mean, copied to each of its channels, is read from memory. Computed in place it would
    confine vectors to the channels of one group, and went to memory as x - mean."""
    inputs = [torch.randn(2, 16, 9, 11).to(memory_format=torch.channels_last).requires_grad_()]
    inputs += [torch.randn(16, requires_grad=True) for _ in "wb"]
    kinds = ("forward", "backward")
    records = compiled_records(lambda x, w, b: F.group_norm(x, groups, w, b), inputs, kinds)
    for record in records.values():
        large = [n for n in record.fused.nodes if size_product(a.extent for a in all_axes(n)) == 2 * 16 * 99]
        assert large and all(16 in [axis.extent for axis in all_axes(node)] for node in large)
        made = [b for b in record.program.buffers if b.numel == inputs[0].numel() and b.kind != "input"]
        assert len(made) == 1, record.program  # the result alone


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [7, 8])
def test_max_pooling_finds_elements_and_their_places_in_one_kernel(
    size: int, layout: torch.memory_format
) -> None:
    """Windows that begin where data says, too: nothing but where they store tells that both loops are alike."""
    for pool in (lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.adaptive_max_pool2d(x, 5)):
        x = torch.randn(2, 20, size, size).to(memory_format=layout).requires_grad_()
        record = compiled_records(pool, [x], ("forward",))["forward"]
        assert len(record.kernels) == 1
        assert [b.dtype for b in record.program.buffers if b.kind != "input"] == [torch.float32, torch.int16]


def test_vectors_of_pairs_are_no_gathers() -> None:
    """Max pooling of 28 pixels to 14 ran one element after the other: 5 times as long."""
    pool = compiled_records(
        lambda x: F.max_pool2d(x, 2), [torch.randn(1, 4, 28, 28, requires_grad=True)], ("forward",)
    )
    (kernel,) = pool["forward"].kernels
    schedule = schedule_group(join_all(single(kernel.nodes[0], {}), kernel.nodes[1:], {}), set(), {})
    assert schedule.vector is not None and schedule.vector.extent == 14


def test_pixels_and_channels_of_a_padded_image_are_one_axis() -> None:
    """Vectors of three channels made the copy 17 times as long."""
    x = torch.randn(2, 3, 9, 11).to(memory_format=torch.channels_last)
    record = compiled_records(lambda x: F.pad(x, (2, 1, 3, 0)), [x.requires_grad_()], ("forward",))["forward"]
    (kernel,) = record.kernels
    schedule = schedule_group(single(kernel.nodes[0], {}), set(), {})
    assert schedule.vector is not None and schedule.vector.extent == (11 + 3) * 3
    assert_no_worse(lambda x: F.pad(x, (2, 1, 3, 0), value=0.5), [x])


@pytest.mark.slow
def test_values_that_are_used_again_and_again_are_looked_at_once() -> None:
    """Each step uses the one before four times: as a tree 4**24 operations. In training that never ended."""

    def steps(x: Tensor) -> Tensor:
        for i in range(24):
            x = torch.where(x > 0.1 * i, x * 1.01, x - 0.3 * x)
        return x

    x = torch.randn(100, requires_grad=True)
    compiled_records(steps, [x], ("forward", "backward"))
    assert_no_worse(steps, [x])
