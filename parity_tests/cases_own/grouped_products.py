"""Products of groups and of scaled 8-bit floats, which torch's tables lack."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import ScalingType

from parity_tests.cases import Sample
from parity_tests.cases_own.builders import function, tensor

FLOAT8 = torch.float8_e4m3fn
EACH, ROWS_EACH = ScalingType.TensorWise, ScalingType.RowWise


def groups_of(x: Tensor, dim: int, offs: Tensor) -> list[Tensor]:
    return [x.narrow(dim, a, b - a) for a, b in itertools.pairwise([0, *offs.tolist()])]


def one_by_one(a: Tensor, b: Tensor, *, offs: Tensor | None = None) -> Tensor:
    """grouped_mm by torch's own products."""
    if offs is None:
        return torch.bmm(a, b)
    if a.dim() == b.dim():
        return torch.stack([x @ y for x, y in zip(groups_of(a, 1, offs), groups_of(b, 0, offs), strict=True)])
    if a.dim() == 2:
        return torch.cat([x @ y for x, y in zip(groups_of(a, 0, offs), b, strict=True)])
    return torch.cat([x @ y for x, y in zip(a, groups_of(b, 1, offs), strict=True)], 1)


def torchs_grouped_mm(a: Tensor, b: Tensor, **kwargs) -> Tensor:
    """torch's kernel; where it has none (float64, gradients in float32) its products one by one."""
    has_kernel = a.dtype in (torch.bfloat16, torch.float16) or (
        a.dtype == torch.float32 and not a.requires_grad
    )
    return torch.nn.functional.grouped_mm(a, b, **kwargs) if has_kernel else one_by_one(a, b, **kwargs)


def grouped(a: tuple, b: tuple, *ends: int, grad=True) -> Callable[[], Sample]:
    offs = {"offs": torch.tensor(ends, dtype=torch.int32)} if ends else {}
    return lambda: Sample((tensor(*a, grad=grad), tensor(*b, grad=grad)), offs)


GROUPED = [
    draw
    for grad in (True, False)
    for draw in (
        grouped((12, 16), (3, 16, 8), 3, 8, 12, grad=grad),
        grouped((12, 16), (3, 16, 5), 3, 3, 12, grad=grad),  # a group of none, rows that need padding
        grouped((3, 4, 16), (16, 24), 4, 8, 24, grad=grad),
        grouped((16, 12), (12, 8), 3, 8, 12, grad=grad),
        grouped((3, 4, 16), (3, 16, 8), grad=grad),
        grouped((7, 4), (1, 4, 8), 7, grad=grad),
    )
]


def refused(message: str, *args, error: type = RuntimeError, **kwargs):
    return Sample(args, kwargs), error, message, "call"


def grouped_errors() -> list[tuple[Sample, type, str, str]]:
    a, b, ends = torch.randn(12, 16), torch.randn(3, 16, 8), torch.tensor([3, 8, 12], dtype=torch.int32)
    return [
        refused("Have to provide offsets if there is a 2d matrix", a, b),
        refused("or no offset if both matrices are 3d", torch.randn(3, 4, 16), b, offs=ends),
        refused("Offsets have to be int32", a, b, offs=ends.long()),
        refused("offs has to be 1D", a, b, offs=ends[None]),
        refused("matrix batch sizes have to match", a, b, offs=ends[:2]),
        refused("mat_a has to be 2 or 3d", a[0], b, offs=ends),
        refused("contraction dimension of mat_a and mat_b must match", a, b[:, :8], offs=ends),
        refused(
            "Expected mat_a to be Float32, BFloat16 or Float16 matrix, got Int", a.int(), b.int(), offs=ends
        ),
        refused("Bias not supported yet", a, b, offs=ends, bias=torch.randn(8)),
        refused(
            "Grouped gemm output dtype must match `mat_a` dtype", a, b, offs=ends, out_dtype=torch.float16
        ),
    ]


def in_float8(
    function: Callable, a: Tensor, b: Tensor, scale_a, recipe_a, scale_b, recipe_b, **kwargs
) -> Tensor:
    """Operands rounded to 8 bits, whatever dtype the row is run in; scales and offsets as the kernels want them."""
    scale_a, scale_b = scale_a.float(), scale_b.float()
    bias = kwargs.get("bias")
    if bias is not None and bias.dtype == torch.float64:
        kwargs["bias"] = bias.bfloat16()
    columns = b.transpose(-1, -2).contiguous().transpose(-1, -2)
    return function(a.to(FLOAT8), columns.to(FLOAT8), scale_a, recipe_a, scale_b, recipe_b, **kwargs)


def scaled(rows: int, inner: int, cols: int, recipe: ScalingType, dtype=torch.float32, bias=False):
    def draw() -> Sample:
        shapes = ((), ()) if recipe == EACH else ((rows, 1), (1, cols))
        scales = [tensor(*shape, low=0.1, high=2.0, grad=False) for shape in shapes]
        options = {"output_dtype": dtype} | ({"bias": torch.randn(cols).bfloat16()} if bias else {})
        a, b = tensor(rows, inner, grad=False), tensor(inner, cols, grad=False)
        return Sample((a, b, scales[0], recipe, scales[1], recipe), options)

    return draw


def scaled_errors() -> list[tuple[Sample, type, str, str]]:
    a, b, one = torch.randn(32, 64), torch.randn(64, 48), torch.ones(())
    rows, cols = torch.ones(32, 1), torch.ones(1, 48)

    def wrong(message, *args, error: type = ValueError, **kwargs):
        return refused(message, *args, error=error, **kwargs)

    return [
        wrong("mat_a must be a matrix", a[0], b, one, EACH, one, EACH),
        wrong(r"shapes cannot be multiplied \(32x32 and 64x48\)", a[:, :32], b, one, EACH, one, EACH),
        wrong("scale_a must have 1 Float element", a, b, rows, EACH, cols, EACH),
        wrong("Invalid scaling configuration", a, b, rows, ROWS_EACH, one, EACH),
        wrong("Invalid scaling configuration", a, b, rows[:8], ROWS_EACH, cols, ROWS_EACH),
        wrong("Dimension specified as 0 but tensor has no dimensions", a, b, one, ROWS_EACH, one, ROWS_EACH,
              error=IndexError),
        wrong("Bias must be size 48 but got 47", a, b, one, EACH, one, EACH, bias=torch.ones(47)),
        wrong("Bias must be Float32 or BFloat16 or Half, but got Long", a, b, one, EACH, one, EACH,
              bias=torch.ones(48).long()),
    ]  # fmt: skip


def scaled_grouped(a: tuple, b: tuple, scale_a: tuple, scale_b: tuple, *ends: int):
    def draw() -> Sample:
        scales = [tensor(*shape, low=0.1, high=2.0, grad=False) for shape in (scale_a, scale_b)]
        options = {"output_dtype": torch.float32}
        if ends:
            options["offs"] = torch.tensor(ends, dtype=torch.int32)
        operands = tensor(*a, grad=False), tensor(*b, grad=False)
        return Sample((*operands, scales[0], ROWS_EACH, scales[1], ROWS_EACH), options)

    return draw


def scaled_one_by_one(a, b, scale_a, _, scale_b, __, *, offs=None, output_dtype) -> Tensor:
    """scaled_grouped_mm by torch's products of the scaled operands; for groups of summands scaled afterwards."""
    a, b = a.float(), b.float()
    if a.dim() == b.dim() == 2:
        groups = len(offs)
        out = one_by_one(a, b, offs=offs)
        return out * scale_a.view(groups, -1, 1) * scale_b.view(groups, 1, -1)
    return one_by_one(a * scale_a[..., None], b * scale_b[..., None, :], offs=offs).to(output_dtype)


ROWS = [
    function("grouped_mm", *GROUPED, reference=torchs_grouped_mm, errors=grouped_errors),
    function("scaled_mm", scaled(32, 64, 48, EACH), scaled(32, 64, 48, EACH, torch.bfloat16, bias=True),
             scaled(5, 20, 7, EACH, torch.float16), scaled(32, 64, 48, ROWS_EACH),
             scaled(32, 64, 48, ROWS_EACH, torch.bfloat16), call=in_float8, dtypes=(torch.float32,),
             errors=scaled_errors),
    function("scaled_grouped_mm", scaled_grouped((12, 16), (3, 16, 8), (12,), (3, 8), 3, 8, 12),
             scaled_grouped((3, 4, 16), (16, 24), (3, 4), (24,), 4, 8, 24),
             scaled_grouped((3, 4, 16), (3, 16, 8), (3, 4), (3, 8)),
             scaled_grouped((16, 12), (12, 8), (48,), (24,), 3, 8, 12), call=in_float8, dtypes=(torch.float32,),
             reference=scaled_one_by_one),
]  # fmt: skip
