"""The definitions, run eagerly on a CUDA device, against C++'s CUDA kernels: the rows of the table, and habits.

Exact results are those of the CPU in float64 (and, for float64, in long double), as everywhere: tolerances.py.
Compiled graphs are for the CPU so far; what happens to one on a CUDA device is tested here too.
"""

import copy
import inspect
import warnings

import pytest
import torch
from torch import Tensor

import pynn
from compiler_bridge import backend
from compiler_bridge.errors import FallbackWarning
from parity_tests.cases import FLOATS, Row, defined_rows, seed
from parity_tests.cases_torch import function_errors
from parity_tests.measure import compare_sample, tensors_of
from parity_tests.torch_version import IS_OLDER

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytestmark = pytest.mark.slow

ROWS = defined_rows()
MODULES = [row for row in ROWS if row.is_module]
MOST_SAMPLES = 8
# Gradients that cancel, of key biases and of single keys: what is left is rounding, ours up to 2.9 times C++'s on an
# H200. Values are compared there too; on the CPU the gradients pass as well.
CANCELLING = {
    ("functional.multi_head_attention_forward", torch.float64),
    ("functional.multi_head_attention_forward", torch.bfloat16),
    ("nn.MultiheadAttention", torch.float64),
}


def by_name(rows: list[Row]):
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])


@pytest.fixture(autouse=True)
def full_float32():
    """cuDNN may otherwise round float32 operands to 10 bits, against which any definition would pass."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def draws_random_numbers(row: Row) -> bool:
    """Other masks than C++'s kernels, which draw by thread; equal ones are promised on the CPU."""
    return row.random or any(sample.kwargs.get("dropout_p", 0.0) > 0 for sample in row.draw(MOST_SAMPLES))


@pytest.mark.parametrize("dtype", FLOATS, ids=[str(dtype).removeprefix("torch.") for dtype in FLOATS])
@by_name([row for row in ROWS if not draws_random_numbers(row)])
def test_no_less_accurate_than_cpp(row: Row, dtype: torch.dtype):
    """In every dtype that C++ takes here; the rows' own list is the CPU's."""
    if reason := row.reason_to_skip(dtype):
        pytest.skip(reason)
    left_out = "grads" if (row.name, dtype) in CANCELLING else "nothing"
    failed = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, sample in enumerate(row.draw(MOST_SAMPLES)):
            for finding in compare_sample(row, sample, dtype, "eager", device="cuda") or []:
                if not finding.comparison.passed and not finding.what.startswith(left_out):
                    failed.append(f"sample {number} {finding.what}: {finding.comparison}")
    assert not failed, "\n".join(failed)


@by_name([row for row in ROWS if draws_random_numbers(row)])
def test_random_draws(row: Row):
    """Shapes, dtypes and devices of C++, and the same numbers again from the same seed."""
    for sample in row.draw(MOST_SAMPLES):
        results = []
        for nn in (torch.nn, pynn, pynn):
            cast = sample.cast(torch.float32).on("cuda")
            subject = row.build(nn, cast, "cuda")
            torch.cuda.manual_seed(0)
            results.append(tensors_of(subject(*cast.args, **cast.kwargs)))
        described = [[(t.shape, t.dtype, t.device) for t in tensors] for tensors in results]
        assert described[0] == described[1] == described[2]
        for first, second in zip(*results[1:], strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@by_name([row for row in MODULES if "device" in inspect.signature(row.look_up(torch.nn)).parameters])
def test_parameters_are_made_on_the_device(row: Row):
    for sample in row.draw(2):
        args, kwargs = copy.deepcopy(sample.constructor)
        found = []
        for nn in (torch.nn, pynn):
            module = row.look_up(nn)(*args, **{**kwargs, "device": "cuda"})
            found.append({name: value.device for name, value in module.state_dict(keep_vars=True).items()})
        assert found[0] == found[1]


@by_name([row for row in ROWS if getattr(row.errors, "func", None) is function_errors])
def test_bad_input_raises_as_torch_does(row: Row):
    for sample, exception, message, _ in row.errors(device="cuda"):
        with pytest.raises(exception, match="" if IS_OLDER else message):
            row.build(pynn, sample)(*sample.args, **sample.kwargs)


MIXED = [
    ("linear", [(3, 4), (5, 4), (5,)]),
    ("conv2d", [(1, 2, 5, 5), (3, 2, 3, 3), (3,)]),
    ("layer_norm", [(3, 4), (4,), (4,), (4,)]),
    ("batch_norm", [(3, 4), (4,), (4,)]),
    ("prelu", [(3, 4), (4,)]),
    ("mse_loss", [(3, 4), (3, 4)]),
    ("scaled_dot_product_attention", [(1, 1, 2, 4)] * 3),
]


@pytest.mark.parametrize("name, shapes", MIXED, ids=[name for name, _ in MIXED])
def test_tensors_on_two_devices_are_refused(name: str, shapes: list):
    tensors = [torch.randn(shape) for shape in shapes]
    arguments = [tensors[0].cuda(), *tensors[1:]]
    if name == "layer_norm":
        arguments[1] = shapes[1]
    for nn in (torch.nn, pynn):
        with pytest.raises(RuntimeError, match=r"device|torch\.cuda\.FloatTensor"):
            getattr(nn.functional, name)(*arguments)


def small_network(nn) -> torch.nn.Module:
    seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(2),
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), nn.LayerNorm(16), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


def train(model: torch.nn.Module, steps: int, amp: bool) -> list[float]:
    """SGD on the device, with GradScaler where `amp`; the loss of each step."""
    seed(1)
    x, target = torch.randn(16, 3, 8, 8).cuda(), torch.randint(10, (16,)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=amp)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16, enabled=amp):
            loss = torch.nn.functional.cross_entropy(model(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast and GradScaler"])
def test_training_follows_torchs(amp: bool):
    theirs, ours = small_network(torch.nn).cuda(), small_network(pynn).cuda()
    expected, found = train(theirs, 5, amp), train(ours, 5, amp)
    assert expected[-1] < expected[0] * 0.9
    torch.testing.assert_close(found, expected, rtol=2e-2 if amp else 1e-4, atol=0)
    theirs.load_state_dict(ours.state_dict())


def test_cuda_graph_of_definitions():
    """A definition reads no value back, so that its kernels can be captured and replayed with other numbers."""
    model, x = small_network(pynn).cuda().eval(), torch.randn(4, 3, 8, 8, device="cuda")
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
        x.copy_(torch.randn(4, 3, 8, 8))
        graph.replay()
        torch.testing.assert_close(out, model(x))


def test_compiled_for_cuda_falls_back_with_one_warning(monkeypatch):
    monkeypatch.setattr(backend, "_warned", set())
    model = small_network(pynn).cuda()
    x = torch.randn(4, 3, 8, 8, device="cuda", requires_grad=True)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pynn.compile(copy.deepcopy(model))(x)
        (found_gradient,) = torch.autograd.grad(found.sum(), x)
    assert len([w for w in caught if w.category is FallbackWarning]) == 1
    assert all("cuda" in str(w.message) for w in caught if w.category is FallbackWarning)
    torch.testing.assert_close([found, found_gradient], [expected, gradient], rtol=1e-4, atol=1e-4)


def test_strict_refuses_cuda():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="UnsupportedDevice: device cuda:0"):
        pynn.compile(lambda x: x * 2, strict=True)(torch.ones(3, device="cuda"))


def test_installed_in_place_of_torch_nn():
    """Models built and moved under pynn.install() compute on the device what torch.nn's do."""
    theirs = small_network(torch.nn).cuda().eval()
    x = torch.randn(4, 3, 8, 8, device="cuda")
    expected = theirs(x)
    pynn.install()
    try:
        ours = small_network(torch.nn).cuda().eval()
        found: Tensor = ours(x)
    finally:
        pynn.uninstall()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
