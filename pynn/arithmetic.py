"""Definitions of ATen operations that are no layer: products with an addend, statistics, clamps, masks.

They reduce what autograd and user code put into graphs to the elementary operations that the compiler
lowers. A definition may return NotImplemented: the operation then stays as it is.
"""

from typing import Any

import torch
from torch import Tensor

from pynn.definitions import computes_in_float32, defines, widen

aten = torch.ops.aten


# ---- products --------------------------------------------------------------------------------------------


@defines(aten.addmm.default)
@computes_in_float32
def addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * a @ b; x is not read when beta is 0."""
    return _scaled_sum(x, torch.mm(a, b), beta, alpha)


@defines(aten.baddbmm.default)
@computes_in_float32
def baddbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * a @ b for each batch entry."""
    return _scaled_sum(x, torch.bmm(a, b), beta, alpha)


@defines(aten.addbmm.default)
@computes_in_float32
def addbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * sum over the batch of a @ b."""
    return _scaled_sum(x, torch.bmm(a, b).sum(0), beta, alpha)


@defines(aten.addmv.default)
@computes_in_float32
def addmv(x: Tensor, matrix: Tensor, vector: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * matrix @ vector."""
    return _scaled_sum(x, torch.mm(matrix, vector.unsqueeze(1)).squeeze(1), beta, alpha)


@defines(aten.addr.default)
@computes_in_float32
def addr(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * outer(a, b)."""
    return _scaled_sum(x, a.unsqueeze(1) * b, beta, alpha)


def _scaled_sum(x: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return (x if beta == 1 else x * beta) + product


@defines(aten.mv.default)
def mv(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix @ vector."""
    return torch.mm(matrix, vector.unsqueeze(1)).squeeze(1)


@defines(aten.dot.default)
@computes_in_float32
def dot(a: Tensor, b: Tensor) -> Tensor:
    """sum(a * b)."""
    return (a * b).sum()


# ---- pointwise -------------------------------------------------------------------------------------------


@defines(aten.pow.Tensor_Scalar)
def pow_scalar(x: Tensor, exponent: float) -> Tensor:
    """Small exponents as products and roots; any other stays a power."""
    if exponent == 2:
        return x * x
    if exponent == 3:
        return x * x * x if x.dtype not in (torch.float16, torch.bfloat16) else _cube(x)
    if exponent == 1:
        return x.clone()
    if x.is_floating_point():
        if exponent == 0.5:
            return torch.sqrt(x)
        if exponent == -0.5:
            return torch.rsqrt(x)
        if exponent == -1:
            return torch.reciprocal(x)
    return NotImplemented


@computes_in_float32
def _cube(x: Tensor) -> Tensor:
    return x * x * x


@defines(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(x: Tensor, other: Any, alpha: float = 1) -> Tensor:
    """other - alpha * x, as a negated term: Python's `other - x` would be this very operation."""
    return (-x if alpha == 1 else x * -alpha) + other


@defines(aten.addcmul.default)
@computes_in_float32
def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    """x + value * a * b."""
    return x + (a * b if value == 1 else value * a * b)


@defines(aten.addcdiv.default)
@computes_in_float32
def addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    """x + value * a / b."""
    return x + (a / b if value == 1 else value * a / b)


@defines(aten.lerp.Scalar)
@computes_in_float32
def lerp_scalar(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """start + weight * (end - start), taken from the nearer end so that weight 1 gives end exactly."""
    if abs(weight) < 0.5:
        return start + weight * (end - start)
    return end - (end - start) * (1 - weight)


@defines(aten.lerp.Tensor)
@computes_in_float32
def lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """start + weight * (end - start), taken from the nearer end."""
    difference = end - start
    return torch.where(weight.abs() < 0.5, start + weight * difference, end - difference * (1 - weight))


@defines(aten.clamp.default)
def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """min(max(x, min), max); NaN stays NaN."""
    if min is not None:
        x = torch.where(x < min, min, x)
    return x if max is None else torch.where(x > max, max, x)


@defines(aten.clamp_min.default)
def clamp_min(x: Tensor, min: float) -> Tensor:
    """max(x, min); NaN stays NaN."""
    return torch.where(x < min, min, x)


@defines(aten.clamp_max.default)
def clamp_max(x: Tensor, max: float) -> Tensor:
    """min(x, max); NaN stays NaN."""
    return torch.where(x > max, max, x)


@defines(aten.clamp.Tensor)
def clamp_tensor(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    """minimum(maximum(x, min), max)."""
    if min is not None:
        x = torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


@defines(aten.clamp_min.Tensor)
def clamp_min_tensor(x: Tensor, min: Tensor) -> Tensor:
    """maximum(x, min)."""
    return torch.maximum(x, min)


@defines(aten.clamp_max.Tensor)
def clamp_max_tensor(x: Tensor, max: Tensor) -> Tensor:
    """minimum(x, max)."""
    return torch.minimum(x, max)


@defines(aten.logaddexp.default)
@computes_in_float32
def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)) = max + log(1 + exp(-|a - b|)); a itself where both are the same infinity."""
    is_same_infinity = (a == b) & (a.abs() == torch.inf)
    return torch.where(is_same_infinity, a, torch.maximum(a, b) + torch.log1p(torch.exp(-(a - b).abs())))


@defines(aten.xlogy.Tensor)
@computes_in_float32
def xlogy(x: Tensor, y: Tensor) -> Tensor:
    """x * log(y), 0 where x is 0 unless y is NaN."""
    return torch.where(torch.isnan(y), y, torch.where(x == 0, 0, x * torch.log(y)))


@defines(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """value where mask, else x; the dtype of x."""
    return torch.where(mask, value, x).to(x.dtype)


@defines(aten.tril.default)
def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """x where col - row <= diagonal, else 0."""
    return torch.where(_diagonals(x) <= diagonal, x, 0).to(x.dtype)


@defines(aten.triu.default)
def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """x where col - row >= diagonal, else 0."""
    return torch.where(_diagonals(x) >= diagonal, x, 0).to(x.dtype)


def _diagonals(x: Tensor) -> Tensor:
    rows = torch.arange(x.size(-2), device=x.device)
    cols = torch.arange(x.size(-1), device=x.device)
    return cols - rows.unsqueeze(-1)


# ---- reductions ------------------------------------------------------------------------------------------


def _all_dims(x: Tensor, dim: Any) -> list[int]:
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return list(range(x.dim()))
    return [dim] if isinstance(dim, int) else list(dim)


def _count(x: Tensor, dims: list[int]) -> int:
    count = 1
    for dim in dims if x.dim() > 0 else []:
        count = count * x.size(dim)
    return count


@defines(aten.mean.default)
def mean_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """sum(x) / how many."""
    return mean_over_dim(x, None, dtype=dtype)


@defines(aten.mean.dim)
def mean_over_dim(x: Tensor, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """sum(x) / how many, over dim; sums in float32 for 16-bit inputs."""
    out_dtype = dtype or x.dtype
    dims = _all_dims(x, dim)
    return (widen(x.to(out_dtype)).sum(dims, keepdim=keepdim) / _count(x, dims)).to(out_dtype)


@defines(aten.var_mean.correction)
def var_mean(
    x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """sum((x - mean)^2) / (how many - correction), and the mean."""
    if x.is_complex():
        return NotImplemented
    dims = _all_dims(x, dim)
    count = _count(x, dims)
    values = widen(x)
    mean = values.sum(dims, keepdim=True) / count
    centred = values - mean
    freedom = count - (1 if correction is None else correction)
    variance = (centred * centred).sum(dims, keepdim=keepdim) / max(freedom, 0)
    mean = mean if keepdim or x.dim() == 0 else mean.squeeze(dims)
    return variance.to(x.dtype), mean.to(x.dtype)


@defines(aten.var.correction)
def var(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    """sum((x - mean)^2) / (how many - correction)."""
    if x.is_complex():
        return NotImplemented
    return var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


@defines(aten.std.correction)
def std(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    """sqrt(var)."""
    if x.is_complex():
        return NotImplemented
    return torch.sqrt(var_mean(widen(x), dim, correction=correction, keepdim=keepdim)[0]).to(x.dtype)


@defines(aten.logsumexp.default)
@computes_in_float32
def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """max + log(sum(exp(x - max))); an infinite max is not subtracted."""
    dims = _all_dims(x, dim)
    largest = x.amax(dims, keepdim=True)
    largest = torch.where(largest.abs() == torch.inf, 0, largest)
    total = torch.log(torch.exp(x - largest).sum(dims, keepdim=True)) + largest
    return total if keepdim or x.dim() == 0 else total.squeeze(dims)


# ---- scattering by index ---------------------------------------------------------------------------------


def _put(x: Tensor, dim: int, index: Tensor, values: Tensor, accumulate: bool) -> Tensor:
    if x.dim() == 0:
        return _put(x.unsqueeze(0), 0, index.reshape(1), values.reshape(1), accumulate).squeeze(0)
    indices = [None] * (dim % x.dim()) + [index.reshape(-1)]
    return aten.index_put.default(x, indices, values, accumulate)


@defines(aten.index_add.default)
def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """out[.., index[i], ..] = x[.., index[i], ..] + alpha * sum of source[.., i, ..]."""
    return _put(x, dim, index, source if alpha == 1 else source * alpha, accumulate=True)


@defines(aten.index_copy.default)
def index_copy(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """out[.., index[i], ..] = source[.., i, ..]."""
    return _put(x, dim, index, source, accumulate=False)
