"""Matrix products of groups (mixture-of-experts layers) and of scaled 8-bit floats."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from pynn.definitions import can_read_values, defines, traced_as, type_name

__all__ = ["grouped_mm", "scaled_grouped_mm", "scaled_mm"]

aten = torch.ops.aten

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
TENSORWISE, ROWWISE = (ScalingType.TensorWise.value, ScalingType.RowWise.value)


# ---- definitions -----------------------------------------------------------------------------------------


def in_groups(x: Tensor, dim: int, offs: Tensor) -> list[Tensor]:
    """The slices of x along dim that end at offs: group g is x[offs[g-1]:offs[g]].

    Where offs can't be read (meta tensors, tracing) each group is all of x with zeros outside the group, which is
    as good wherever the dimension is summed over, or the groups' results are added up.
    """
    if not torch.compiler.is_compiling() and can_read_values(offs):
        ends = offs.tolist()
        return [
            x.narrow(dim, a, max(b - a, 0)) for a, b in itertools.pairwise([0, *_within(ends, x.size(dim))])
        ]
    place = torch.arange(x.size(dim), device=x.device)
    place = place.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
    begins = torch.cat([torch.zeros_like(offs[:1]), offs[:-1]])
    groups = range(offs.size(0))
    return [torch.where((place >= begins[g]) & (place < offs[g]), x, 0) for g in groups]


def _within(ends: list[int], size: int) -> list[int]:
    return [min(end, size) for end in ends]


def joined(parts: list[Tensor], dim: int, size: int) -> Tensor:
    """Groups side by side along dim, zeros after them up to size; groups of full size lie over each other."""
    if len(parts) > 1 and all(part.size(dim) == size for part in parts):
        return torch.stack(parts).sum(0)
    rest = max(size - sum(part.size(dim) for part in parts), 0)
    shape = list(parts[0].shape)
    shape[dim] = rest
    return torch.cat([*parts, parts[0].new_zeros(shape)], dim)


def grouped_product(a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor:
    """One product for each group; which dimension has the groups depends on the operands:

    [m, k] @ [g, k, n]:  rows offs[g-1]:offs[g] of a, times b[g]                          -> [m, n]
    [g, m, k] @ [k, n]:  a[g], times columns offs[g-1]:offs[g] of b                       -> [m, n]
    [m, k] @ [k, n]:     columns offs[g-1]:offs[g] of a, times those rows of b            -> [g, m, n]
    [g, m, k] @ [g, k, n]:  a[g] @ b[g], without offs                                     -> [g, m, n]
    """
    if offs is None:
        return a @ b
    if a.dim() == 2 and b.dim() == 2:
        groups = zip(in_groups(a, 1, offs), in_groups(b, 0, offs), strict=True)
        return torch.stack([x @ y for x, y in groups])
    if a.dim() == 2:
        return joined([x @ y for x, y in zip(in_groups(a, 0, offs), b.unbind(0), strict=True)], 0, a.size(0))
    return joined([x @ y for x, y in zip(a.unbind(0), in_groups(b, 1, offs), strict=True)], 1, b.size(1))


def with_aligned_rows(x: Tensor) -> Tensor:
    """The same numbers with rows that begin at multiples of 16 bytes, as ATen lays them out."""
    cols, unit = x.size(-1), 16 // x.element_size()
    return x if cols % unit == 0 else torch.constant_pad_nd(x, (0, -cols % unit))[..., :cols]


@defines(aten._grouped_mm.default)
def grouped_mm_forward(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """grouped_product in a's dtype."""
    return with_aligned_rows(grouped_product(a, b, offs))


def scaled_product(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(a @ b) * scale_a * scale_b + bias in float32, rounded once.

    Shape:   a: [m, k]   b: [k, n]   scale_a: [] or [m, 1]   scale_b: [] or [1, n]   bias: [n]
    """
    product = (a.to(torch.float32) @ b.to(torch.float32)) * scale_a * scale_b
    return (product if bias is None else product + bias.to(torch.float32)).to(dtype)


# ---- public functions ------------------------------------------------------------------------------------


# torch's shapes for tracers know bfloat16 only
@traced_as(F.grouped_mm, has_kernel=lambda mat_a, *_, **__: mat_a.dtype == torch.bfloat16)
def grouped_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Products of groups of rows, columns or summands with matrices of their own.

        [m, k] @ [g, k, n]:  rows offs[g-1]:offs[g] of mat_a, times mat_b[g]              -> [m, n]
        [g, m, k] @ [k, n]:  mat_a[g], times columns offs[g-1]:offs[g] of mat_b           -> [m, n]
        [m, k] @ [k, n]:     columns offs[g-1]:offs[g] of mat_a, times those rows         -> [g, m, n]
        [g, m, k] @ [g, k, n]:  mat_a[g] @ mat_b[g], without offs                         -> [g, m, n]

    Args:    offs: where each group ends, int32
             bias: not supported, as in torch   out_dtype: mat_a's
    Shape:   as above; rows of the result begin at multiples of 16 bytes
    dtype:   float32, float64 or 16 bits, mat_b the same, returned so; accumulates in float32 for 16-bit
             inputs
    Raises:  RuntimeError for shapes, offsets and dtypes that do not fit, and for a bias
    Source:  aten/native/GroupedMMUtils.h. differs from torch in: what lies past offs[-1] is 0, where ATen leaves
             memory as it was; float64 has a result, and float32 a gradient
    """
    for name, matrix in (("mat_a", mat_a), ("mat_b", mat_b)):
        if matrix.dtype not in (*FLOATS, torch.float64):
            raise RuntimeError(
                f"Expected {name} to be Float32, BFloat16 or Float16 matrix, got {type_name(matrix)}"
            )
    _check_groups(mat_a, mat_b, offs)
    if bias is not None:
        raise RuntimeError("Bias not supported yet")
    if out_dtype not in (None, mat_a.dtype):
        raise RuntimeError("Grouped gemm output dtype must match `mat_a` dtype")
    return grouped_mm_forward(mat_a, mat_b, offs)


def _check_groups(a: Tensor, b: Tensor, offs: Tensor | None) -> None:
    for name, matrix in (("mat_a", a), ("mat_b", b)):
        if matrix.dim() not in (2, 3):
            raise RuntimeError(f"{name} has to be 2 or 3d")
    if a.size(-1) != b.size(-2):
        raise RuntimeError("contraction dimension of mat_a and mat_b must match")
    if (offs is None) != (a.dim() == 3 and b.dim() == 3):
        raise RuntimeError(
            "Have to provide offsets if there is a 2d matrix, or no offset if both matrices are 3d"
        )
    groups = [matrix.size(0) for matrix in (a, b) if matrix.dim() == 3]
    if offs is not None:
        if offs.dim() != 1:
            raise RuntimeError("offs has to be 1D")
        if offs.dtype != torch.int32:
            raise RuntimeError("Offsets have to be int32")
        groups.append(offs.size(0))
    if any(g != groups[0] for g in groups[1:]):
        raise RuntimeError("matrix batch sizes have to match")


@traced_as(F.scaled_mm)
def scaled_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    scale_a: Tensor | list[Tensor],
    scale_recipe_a: ScalingType | list[ScalingType],
    scale_b: Tensor | list[Tensor],
    scale_recipe_b: ScalingType | list[ScalingType],
    swizzle_a: SwizzleType | list[SwizzleType] | None = None,
    swizzle_b: SwizzleType | list[SwizzleType] | None = None,
    bias: Tensor | None = None,
    output_dtype: torch.dtype | None = torch.bfloat16,
    contraction_dim: list[int] | tuple[int, ...] = (),
    use_fast_accum: bool = False,
) -> Tensor:
    """out = (mat_a @ mat_b) * scale_a * scale_b + bias, for 8-bit floats with a factor each, or one for each row.

    Args:    scale_recipe_a, scale_recipe_b: TensorWise: scales of one element; RowWise: [m, 1] and [1, n]
             output_dtype: None for mat_a's
             swizzle_a, swizzle_b, contraction_dim, use_fast_accum: for GPUs, without effect
    Shape:   mat_a: [m, k]   mat_b: [k, n]   bias: [n]   returns: [m, n]
    dtype:   computes in float32
    Raises:  ValueError for anything else, block-wise scales too, as torch on the CPU
    Source:  aten/native/Blas.cpp
    """
    scales_a, recipes_a = _listed(scale_a), _numbers(scale_recipe_a)
    scales_b, recipes_b = _listed(scale_b), _numbers(scale_recipe_b)
    for name, matrix in (("mat_a", mat_a), ("mat_b", mat_b)):
        if matrix.dim() != 2:
            raise ValueError(f"{name} must be a matrix")
    (m, k), (rows, n) = mat_a.shape, mat_b.shape
    if k != rows:
        raise ValueError(f"mat_a and mat_b shapes cannot be multiplied ({m}x{k} and {rows}x{n})")
    if bias is not None:
        if bias.numel() != n:
            raise ValueError(f"Bias must be size {n} but got {bias.numel()}")
        if bias.dtype not in FLOATS:
            raise ValueError(f"Bias must be Float32 or BFloat16 or Half, but got {type_name(bias)}")
    scales_fit = len(scales_a) == 1 and len(scales_b) == 1 and recipes_a == recipes_b
    is_float8 = mat_a.dtype in FLOAT8 and mat_b.dtype in FLOAT8
    is_float = all(scale.dtype == torch.float32 for scale in (*scales_a, *scales_b))
    if not (scales_fit and is_float8 and is_float and recipes_a in ([TENSORWISE], [ROWWISE])):
        raise _wrong_scaling(mat_a, mat_b, scales_a[0], scales_b[0])
    a, b = scales_a[0], scales_b[0]
    if recipes_a == [TENSORWISE]:
        for name, scale in (("scale_a", a), ("scale_b", b)):
            if scale.numel() != 1:
                raise ValueError(f"{name} must have 1 Float element")
        a, b = a.reshape(()), b.reshape(())
    elif (a.size(0), a.size(1), b.size(0), b.size(1)) != (m, 1, 1, n):
        raise _wrong_scaling(mat_a, mat_b, a, b)
    bias = None if bias is None else bias.reshape(n)
    return scaled_product(mat_a, mat_b, a, b, bias, output_dtype or mat_a.dtype)


def _wrong_scaling(mat_a: Tensor, mat_b: Tensor, scale_a: Tensor, scale_b: Tensor) -> ValueError:
    m, n = mat_a.size(0), mat_b.size(1)
    return ValueError(
        "Invalid scaling configuration.\n"
        "- For TensorWise scaling, a and b should be float8, scales should be float and singletons.\n"
        "- For RowWise scaling, a and b should be float8, scales should be float, scale_a should be "
        f"({m}, 1) and scale_b should be (1, {n}), and both should be contiguous.\n"
        f"Got mat_a.dtype()={mat_a.dtype}, scale_a.dtype()={scale_a.dtype}, scale_a.size()={list(scale_a.shape)}, "
        f"mat_b.dtype()={mat_b.dtype}, scale_b.dtype()={scale_b.dtype} and scale_b.size()={list(scale_b.shape)}"
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _numbers(recipes: Any) -> list[int]:
    return [recipe.value for recipe in _listed(recipes)]


@traced_as(F.scaled_grouped_mm, has_kernel=lambda mat_a, *_, **__: mat_a.is_cuda)
def scaled_grouped_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    scale_a: Tensor | list[Tensor],
    scale_recipe_a: ScalingType | list[ScalingType],
    scale_b: Tensor | list[Tensor],
    scale_recipe_b: ScalingType | list[ScalingType],
    swizzle_a: SwizzleType | list[SwizzleType] | None = None,
    swizzle_b: SwizzleType | list[SwizzleType] | None = None,
    bias: Tensor | None = None,
    offs: Tensor | None = None,
    output_dtype: torch.dtype | None = torch.bfloat16,
    contraction_dim: list[int] | tuple[int, ...] = (),
    use_fast_accum: bool = False,
) -> Tensor:
    """grouped_mm of 8-bit floats, each row of mat_a and column of mat_b times a factor of its own.

        out = grouped_product(mat_a * scale_a, mat_b * scale_b)

    Args:    scale_recipe_a, scale_recipe_b: RowWise
             bias: not supported, as in torch; offs: where each group ends; output_dtype: None for bfloat16
             swizzle_a, swizzle_b, contraction_dim, use_fast_accum: for GPUs, without effect
    Shape:   mat_a, mat_b, offs: as in `grouped_mm`
             scale_a: [m] for [m, k], [g, m] for [g, m, k]   scale_b: [n] for [k, n], [g, n] for [g, k, n]
             where both are 2-d, each group has scales of its own: [g * m] and [g * n]
    dtype:   computes in float32
    Raises:  RuntimeError for shapes that do not fit, NotImplementedError for other recipes
    Source:  torch.nn.functional. differs from torch in: torch has no kernel for the CPU
    """
    if _numbers(scale_recipe_a) != [ROWWISE] or _numbers(scale_recipe_b) != [ROWWISE]:
        raise NotImplementedError("scaled_grouped_mm: only RowWise scales have a definition for the CPU")
    if mat_a.dtype not in FLOAT8 or mat_b.dtype not in FLOAT8:
        raise ValueError(f"expected 8-bit floats, got {mat_a.dtype} and {mat_b.dtype}")
    if bias is not None:
        raise RuntimeError("Bias not supported yet")
    _check_groups(mat_a, mat_b, offs)
    (scale_a,), (scale_b,) = _listed(scale_a), _listed(scale_b)
    a, b = mat_a.to(torch.float32), mat_b.to(torch.float32)
    if a.dim() == 2 and b.dim() == 2:
        groups = offs.size(0)
        out = grouped_product(a, b, offs)  # [g, m, n]
        out = out * scale_a.reshape(groups, -1, 1) * scale_b.reshape(groups, 1, -1)
    else:
        out = grouped_product(a * scale_a.unsqueeze(-1), b * scale_b.unsqueeze(-2), offs)
    return with_aligned_rows(out.to(output_dtype or torch.bfloat16))
