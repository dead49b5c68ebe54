"""torch.export of a pynn layer gives torch's graph: the same ATen operations over the same symbolic sizes."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import attrgetter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

import pynn
from parity_tests.cases import Row, Sample, defined_rows
from parity_tests.elementary import is_elementary
from parity_tests.test_pynn_package import CONSTRUCTORS, PAIRS
from pynn.counterparts import torchs_objects

aten = torch.ops.aten

# Values of a tensor decide what these do (of the last one, a symbolic size), so that torch cannot export them.
TORCH_REFUSES = {
    "functional.ctc_loss", "functional.ctc_loss.impossible", "functional.ctc_loss.normalised",
    "functional.gaussian_nll_loss", "functional.one_hot", "nn.AdaptiveLogSoftmaxWithLoss",
    "nn.BatchNorm1d.averaged", "nn.BatchNorm2d.averaged", "nn.BatchNorm3d.averaged", "nn.CTCLoss",
    "nn.CTCLoss.own", "nn.GaussianNLLLoss", "functional.linear_cross_entropy.chunked",
}  # fmt: skip
# Python composites in torch too, written in other words here.
OWN_WORDS = {
    "functional.multi_head_attention_forward", "nn.CrossMapLRN2d", "nn.MultiheadAttention", "nn.Transformer",
    "nn.TransformerDecoder", "nn.TransformerDecoderLayer", "nn.TransformerEncoder", "nn.TransformerEncoderLayer",
}  # fmt: skip


class OfTensors(torch.nn.Module):
    """A layer or a function as a module of the tensors of a sample alone; everything else is fixed."""

    def __init__(self, subject: Callable, sample: Sample) -> None:
        super().__init__()
        self.subject = subject
        self.leaves, self.tree = tree_flatten((sample.args, sample.kwargs))
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self.example = tuple(self.leaves[i].detach() for i in self.places)
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]

    def forward(self, *tensors: Tensor):
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.tree)
        return self.subject(*args, **kwargs)


def exported(row: Row, nn, sample: Sample) -> ExportedProgram:
    """With every size of every input left open, as far as the layer allows."""
    sample = sample.cast(torch.float32)
    module = OfTensors(row.build(nn, sample), sample)
    sizes = tuple([Dim.AUTO] * x.dim() for x in module.example)
    return torch.export.export(module, module.example, dynamic_shapes={"tensors": sizes})


def input_shapes(program: ExportedProgram) -> list[str]:
    """Symbolic sizes as torch names them."""
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    return [str(getattr(value, "shape", value)) for value in values]


def fixed_sizes(program: ExportedProgram) -> int:
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    return sum(isinstance(size, int) for value in values if isinstance(value, Tensor) for size in value.shape)


def operations(program: ExportedProgram) -> set[OpOverload]:
    return {node.target for node in program.graph.nodes if isinstance(node.target, OpOverload)}


def functions_in(program: ExportedProgram) -> set[str]:
    """The operations that are functions of torch.nn; not pad, which only moves and which cat can do as well."""
    names = {overload.overloadpacket.__name__ for overload in operations(program)}
    return {name for name in names if hasattr(F, name) and not is_elementary(name)} - {"pad"}


def by_name(rows: list[Row]):
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in rows])


ROWS = [row for row in defined_rows() if row.reference is None]
EXPORTABLE = [row for row in ROWS if row.name not in TORCH_REFUSES]


@pytest.mark.slow
@by_name([row for row in EXPORTABLE if row.name not in OWN_WORDS])
def test_graph_is_torchs(row: Row):
    """Node by node, arguments included, and each size open that torch leaves open."""
    (sample,) = row.draw(1)
    theirs, ours = exported(row, torch.nn, sample), exported(row, pynn, sample)
    assert ours.graph_module.code == theirs.graph_module.code
    assert input_shapes(ours) == input_shapes(theirs)


@pytest.mark.slow
@by_name([row for row in EXPORTABLE if row.name in OWN_WORDS])
def test_composite_is_made_of_torchs_operations(row: Row):
    (sample,) = row.draw(1)
    theirs, ours = exported(row, torch.nn, sample), exported(row, pynn, sample)
    assert functions_in(ours) == functions_in(theirs)
    assert fixed_sizes(ours) <= fixed_sizes(theirs)


@pytest.mark.slow
@by_name([row for row in ROWS if row.name in TORCH_REFUSES])
def test_what_torch_refuses(row: Row):
    """So that the list names no row that could be compared."""
    with pytest.raises(Exception):  # noqa: B017
        exported(row, torch.nn, row.draw(1)[0])


def skip_what_torch_cannot_trace(module: torch.nn.Module) -> None:
    """Max-unpooling with sizes, say, whose checks torch hands tensors while tracing."""
    try:
        torch.jit.trace(module, module.example, check_trace=False, strict=False)
    except (TypeError, NotImplementedError) as error:
        pytest.skip(f"torch cannot trace it either: {error}")


@pytest.mark.slow
@by_name([row for row in EXPORTABLE if row.name not in OWN_WORDS])
def test_jit_trace_records_torchs_operations(row: Row):
    """Of a layer that looked at sizes, which are tensors here, the checks failed; others were recorded in parts."""
    (sample,) = row.draw(1)
    graphs = []
    for nn in (torch.nn, pynn):
        cast = sample.cast(torch.float32)
        module = OfTensors(row.build(nn, cast), cast)
        if nn is torch.nn:
            skip_what_torch_cannot_trace(module)
        traced = torch.jit.trace(module, module.example, check_trace=False, strict=False)
        graphs.append([node.kind() for node in traced.inlined_graph.nodes() if "aten" in node.kind()])
    assert graphs[0] == graphs[1]


# ---- one layer a family ----------------------------------------------------------------------------------


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape)


def below(bound: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(bound, shape)


@dataclass
class Family:
    """A layer, its operation, and inputs of two sizes: what differs between them is a symbol in the graph."""

    layer: str
    operation: OpOverload
    inputs: tuple[Callable[[], Tensor], ...]
    others: tuple[Callable[[], Tensor], ...]
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)

    def build(self, nn) -> torch.nn.Module:
        torch.manual_seed(0)
        args = self.args or CONSTRUCTORS.get(self.layer, ())
        return getattr(nn, self.layer)(*args, **self.kwargs).eval()

    def export(self, nn, strict: bool = False) -> ExportedProgram:
        torch.manual_seed(0)
        inputs = tuple(draw() for draw in self.inputs)
        return torch.export.export(self.build(nn), inputs, dynamic_shapes=self.open_sizes(), strict=strict)

    def open_sizes(self) -> tuple:
        """Dim.DYNAMIC, which raises where the layer would fix the size."""
        pairs = [(first().shape, second().shape) for first, second in zip(self.inputs, self.others)]
        return tuple({d: Dim.DYNAMIC for d, (m, n) in enumerate(zip(*pair)) if m != n} for pair in pairs)


def image(layer: str, operation: OpOverload, *args, channels=2, **kwargs) -> Family:
    shapes = normal(2, channels, 12, 16), normal(5, channels, 18, 10)
    return Family(layer, operation, shapes[:1], shapes[1:], args, kwargs)


def sequence(layer: str, operation: OpOverload, *args, cols=8, **kwargs) -> Family:
    return Family(layer, operation, (normal(4, 3, cols),), (normal(7, 2, cols),), args, kwargs)


# torch writes out the steps when it works out the shapes of an LSTM, so that only the batch is open.
STEPS = (normal(4, 3, 8),), (normal(4, 5, 8),)

FAMILIES = [
    sequence("GELU", aten.gelu.default),
    sequence("Softmax", aten.softmax.int, -1),
    Family("PReLU", aten.prelu.default, (normal(4, 3),), (normal(6, 3),), (3,)),
    image("BatchNorm2d", aten.batch_norm.default, channels=4),
    image("SyncBatchNorm", aten.batch_norm.default, channels=4),
    image("ChannelShuffle", aten.channel_shuffle.default, 2, channels=4),
    image("Conv2d", aten.conv2d.default),
    image("Conv2d", aten.pad.default, 2, 4, 3, padding=1, padding_mode="circular"),
    image("ConvTranspose2d", aten.conv_transpose2d.input),
    Family(
        "CosineSimilarity", aten.cosine_similarity.default, (normal(4, 3), normal(4, 3)), (normal(6, 3),) * 2
    ),
    sequence("Dropout", aten.dropout.default),
    image("Flatten", aten.flatten.using_ints, 2),
    Family("Fold", aten.col2im.default, (normal(2, 12, 9),), (normal(5, 12, 9),)),
    image("Unfold", aten.im2col.default),
    image("InstanceNorm2d", aten.instance_norm.default, channels=4),
    sequence("Linear", aten.linear.default, 8, 4),
    Family("Bilinear", aten.bilinear.default, (normal(4, 3), normal(4, 4)), (normal(6, 3), normal(6, 4))),
    Family(
        "CrossEntropyLoss",
        aten.cross_entropy_loss.default,
        (normal(4, 5), below(5, 4)),
        (normal(6, 5), below(5, 6)),
    ),
    Family("MSELoss", aten.mse_loss.default, (normal(4, 5), normal(4, 5)), (normal(6, 5), normal(6, 5))),
    sequence("LayerNorm", aten.layer_norm.default, 8),
    sequence("RMSNorm", aten.rms_norm.default, 8),
    image("GroupNorm", aten.group_norm.default, channels=6),
    image("LocalResponseNorm", aten.avg_pool3d.default, channels=3),
    image("ReflectionPad2d", aten.pad.default),
    image("PixelShuffle", aten.pixel_shuffle.default, 2, channels=4),
    image("MaxPool2d", aten.max_pool2d.default, 2),
    image("AvgPool2d", aten.avg_pool2d.default, 2),
    image("AdaptiveAvgPool2d", aten.adaptive_avg_pool2d.default),
    Family("LSTM", aten.lstm.input, *STEPS, (8, 4)),
    Family("GRU", aten.gru.input, *STEPS, (8, 4)),
    Family("RNN", aten.rnn_tanh.input, *STEPS, (8, 4)),
    Family("LSTMCell", aten.lstm_cell.default, (normal(4, 3),), (normal(6, 3),)),
    Family("Embedding", aten.embedding.default, (below(7, 4, 3),), (below(7, 6, 2),)),
    Family("EmbeddingBag", aten.embedding_bag.padding_idx, (below(7, 4, 3),), (below(7, 6, 2),)),
    Family("MultiheadAttention", aten.softmax.int, (normal(4, 3, 8),) * 3, (normal(7, 2, 8),) * 3, (8, 2)),
    sequence("TransformerEncoderLayer", aten.scaled_dot_product_attention.default, 8, 2, 12),
    image("Upsample", aten.upsample_bilinear2d.vec, scale_factor=2, mode="bilinear"),
    image("Upsample", aten.upsample_nearest2d.vec, scale_factor=1.5),
]
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.layer)
# One in three is exported by `make check`.
SOME_FAMILIES = pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.layer, marks=[] if number % 3 == 0 else [pytest.mark.slow])
        for number, family in enumerate(FAMILIES)
    ],
)
# What has no graph of its own to export.
WITHOUT_A_GRAPH = {
    "adaptive": "torch can't export it either",
    "container": "torch's own",
    "module": "torch's own",
}


def test_every_family_has_a_row():
    families = {own.__module__.rpartition(".")[2] for _, own in PAIRS.values()}
    listed = {getattr(pynn, family.layer).__module__.rpartition(".")[2] for family in FAMILIES}
    assert {name for name in families - listed if not name.startswith("_")} <= WITHOUT_A_GRAPH.keys()


@SOME_FAMILIES
def test_family_exports_as_its_operation(family: Family):
    """One graph for every size: it computes, at sizes it was not exported with, what torch's C++ computes."""
    program = family.export(pynn)
    assert family.operation in operations(program)
    inputs = [draw() for draw in family.others]
    torch.testing.assert_close(program.module()(*inputs), family.build(torch.nn)(*inputs))


@pytest.mark.slow
@EVERY_FAMILY
def test_family_exports_through_dynamo(family: Family):
    """strict=True, the front end of torch.compile."""
    theirs, ours = (family.export(nn, strict=True) for nn in (torch.nn, pynn))
    assert functions_in(ours) == functions_in(theirs) and family.operation in operations(ours)
    assert list(ours.state_dict) == list(theirs.state_dict)


# ---- programs on their way -------------------------------------------------------------------------------


def small_network(nn) -> torch.nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(8 * 16, 4), nn.LayerNorm(4), nn.GELU(), nn.Softmax(-1),
    ).eval()  # fmt: skip


IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def test_converted_network_exports_as_before():
    original = small_network(torch.nn)
    theirs = torch.export.export(original, (IMAGES,))
    ours = torch.export.export(pynn.convert(original), (IMAGES,))
    assert ours.graph_module.code == theirs.graph_module.code
    assert list(ours.state_dict) == list(theirs.state_dict)


LOAD = """
import io, sys, torch
sys.modules["pynn"] = None  # importing it fails
program = torch.export.load(io.BytesIO(sys.stdin.buffer.read()))
x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
print(program.module()(x).flatten().tolist())
"""


@pytest.mark.slow
def test_saved_program_loads_without_pynn():
    network, file = small_network(pynn), io.BytesIO()
    torch.export.save(torch.export.export(network, (IMAGES,)), file)
    run = subprocess.run([sys.executable, "-c", LOAD], input=file.getvalue(), capture_output=True, check=True)
    torch.testing.assert_close(torch.tensor(json.loads(run.stdout)).view(2, 4), network(IMAGES))


@pytest.mark.parametrize("name", ["Linear", "functional.relu", "functional.gelu", "functional.max_pool2d"])
@pytest.mark.parametrize("installed", [True, False])
def test_saved_program_keeps_the_sources_of_its_nodes(name, installed):  # torch's export/test_serialize.py
    get = attrgetter(name)
    program, file = torch.export.export(torch.nn.ReLU(), (IMAGES,)), io.BytesIO()
    with pynn.install() if installed else nullcontext():
        (node,) = (node for node in program.graph.nodes if node.op == "call_function")
        # as Dynamo notes if pynn was installed before it began
        node.meta["source_fn_stack"] = [("node", get(pynn))]
        torch.export.save(program, file)
        file.seek(0)
        (loaded,) = (node for node in torch.export.load(file).graph.nodes if node.op == "call_function")
        ((_, source),) = loaded.meta["source_fn_stack"]
        assert source is get(torch.nn) or source is torchs_objects()[get(pynn)]


@pytest.mark.slow
def test_onnx_sees_torchs_operators():
    pytest.importorskip("onnxscript")
    graphs = [
        torch.onnx.export(small_network(nn), (IMAGES,), dynamo=True, verbose=False).model.graph
        for nn in (torch.nn, pynn)
    ]
    theirs, ours = ([node.op_type for node in graph] for graph in graphs)
    assert ours == theirs and "LayerNormalization" in ours


def test_grouped_product_with_symbolic_sizes():
    """Which torch exports in bfloat16 only. The check of the numbers of groups put symbolic sizes into a set."""
    a, b, offs = torch.randn(6, 8), torch.randn(3, 8, 4), torch.tensor([2, 3, 6], dtype=torch.int32)
    module = OfTensors(pynn.functional.grouped_mm, Sample((a, b), {"offs": offs}))
    sizes = {0: Dim.DYNAMIC}, {0: Dim.AUTO}, {0: Dim.AUTO}
    program = torch.export.export(module, module.example, dynamic_shapes={"tensors": sizes})
    more, offs = torch.randn(9, 8), torch.tensor([1, 4, 9], dtype=torch.int32)
    torch.testing.assert_close(
        program.module()(more, b, offs), pynn.functional.grouped_mm(more, b, offs=offs)
    )
