"""Norms, and the distances and similarities made of them."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.blocks import BLOCK
from pynn.construction import init_module
from pynn.definitions import Function, can_read_values, defines, traced_as, type_name, widen

__all__ = [
    "CosineSimilarity",
    "PairwiseDistance",
    "cosine_similarity",
    "normalize",
    "pairwise_distance",
    "pdist",
]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


def norm_of(x: Tensor, p: float, dim: list[int]) -> Tensor:
    """(sum |x|^p)^(1/p) over dim, kept as size 1.

    p = inf takes max |x|, p = -inf min |x|, and p = 0 counts the elements that are not 0.
    """
    if p != 0 and _is_one_element(x, dim):
        return x.abs()  # whose power may be too large
    if p == 2 and not x.is_complex():
        return torch.sqrt((x * x).sum(dim, keepdim=True))
    magnitudes = x.abs()
    if p == torch.inf:
        return magnitudes.amax(dim, keepdim=True)
    if p == -torch.inf:
        return magnitudes.amin(dim, keepdim=True)
    if p == 0:
        return (magnitudes != 0).to(magnitudes.dtype).sum(dim, keepdim=True)
    if p == 1:
        return magnitudes.sum(dim, keepdim=True)
    # pow(-2) would square first, which overflows where the square of the reciprocal does not
    powers = magnitudes.reciprocal().square() if p == -2 else magnitudes.pow(p)
    return powers.sum(dim, keepdim=True).pow(1 / p)


def _is_one_element(x: Tensor, dim: list[int]) -> bool:
    """Whether each norm over dim is of one element (a size that a compiler keeps open is none of 1)."""
    return x.dim() == 0 or all(type(x.size(d)) is int and x.size(d) == 1 for d in dim)


def norm_gradient(x: Tensor, norm: Tensor, p: float, dim: list[int]) -> Tensor:
    """d norm / d x = sgn(x) * (|x| / norm)^(p - 1), and 0 where norm is 0 (as ATen chooses).

    For p = inf and -inf the elements that attain the norm share it equally.
    """
    safe_norm = torch.where(norm == 0, 1, norm)
    if p == 2:
        return x / safe_norm
    if p == 0:
        return torch.zeros_like(x)
    if p == 1 or _is_one_element(x, dim):
        return x.sgn()
    magnitudes = x.abs()
    if p in (torch.inf, -torch.inf):
        attains = ((magnitudes == norm) | (magnitudes != magnitudes)).to(magnitudes.dtype)
        return x.sgn() * (attains / attains.sum(dim, keepdim=True))
    # where x is 0 a power below 1 would be infinite, or its derivative
    safe_magnitudes = torch.where(magnitudes == 0, 1, magnitudes)
    slope = x.sgn() * safe_magnitudes.pow(p - 1) / safe_norm.pow(p - 1)
    return torch.where((magnitudes == 0) | (norm == 0), 0, slope)


def _dims(x: Tensor, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, (tuple, list)) and len(dim) == 0):
        return list(range(x.dim()))
    return list(dim) if isinstance(dim, (tuple, list)) else [int(dim)]


def _without(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x if keepdim or x.dim() == 0 else x.squeeze(dim)


@defines(aten.linalg_vector_norm.default)
def linalg_vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """The ord-norm of x over dim (all dimensions by default)."""
    out_dtype = dtype or (x.dtype.to_real() if x.is_complex() else x.dtype)
    x = x if dtype is None else x.to(dtype)
    dims = _dims(x, dim)
    return _without(norm_of(widen(x), ord, dims), dims, keepdim).to(out_dtype)


@defines(aten.norm.ScalarOpt_dim)
def norm_over_dim(x: Tensor, p: float | None, dim: list[int], keepdim: bool = False) -> Tensor:
    """linalg_vector_norm with p = 2 by default."""
    return linalg_vector_norm(x, 2 if p is None else p, dim, keepdim)


@defines(aten.norm.Scalar)
def norm_of_all(x: Tensor, p: float = 2) -> Tensor:
    """linalg_vector_norm over all dimensions."""
    return linalg_vector_norm(x, p)


def pairs_of(rows: int, device: torch.device) -> Tensor:
    """Where the pairs (0, 1), (0, 2), ..., (1, 2), ... are in a matrix [rows, rows] read line by line: [pairs]."""
    steps = torch.ones(rows * (rows - 1) // 2, dtype=torch.int64, device=device)
    # one after the other, but i + 2 from the last of line i - 1, (i - 1, rows - 1), to the first of line i, (i, i + 1)
    line = torch.arange(1, max(rows - 1, 1), device=device)
    begins = (rows - line).cumsum(0)
    return steps.index_copy(0, begins, line + 2).cumsum(0)


def matrix_of(values: Tensor, rows: int) -> Tensor:
    """[pairs] -> [rows, rows], symmetric, 0 on the diagonal."""
    upper = torch.zeros(rows * rows, dtype=values.dtype, device=values.device)
    upper = upper.index_copy(0, pairs_of(rows, values.device), values).view(rows, rows)
    return upper + upper.t()


def pairs_in(matrix: Tensor) -> Tensor:
    """[rows, rows] -> [pairs]: what lies above the diagonal."""
    return matrix.reshape(-1).index_select(0, pairs_of(matrix.size(0), matrix.device))


def row_blocks(x: Tensor) -> list[tuple[int, int]]:
    """(begin, end) of the rows to hold against those from begin on at a time: as many as keep the differences in the
    cache.
    """
    rows, cols = x.shape
    ends = [0]
    while ends[-1] < rows:
        step = 4 * BLOCK // (cols * (rows - ends[-1]))
        ends.append(min(ends[-1] + max(step, 1), rows))
    return list(itertools.pairwise(ends))


def rows_of_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two rows of each pair i < j, as pairs_of counts them: [pairs] each.

    Line i begins at pair i (2 rows - 1 - i) / 2. Solved for i, the root is whole exactly where a line begins.
    """
    width = 2 * x.size(0) - 1
    pair = torch.arange(x.size(0) * (x.size(0) - 1) // 2, device=x.device)
    root = torch.sqrt((width * width - 8 * pair).to(torch.float64))
    first = torch.floor((width - root) / 2).to(torch.int64)
    begin = torch.div(first * (width - first), 2, rounding_mode="trunc")
    return first, pair - begin + first + 1


def unless_zero(x: Tensor, room: Tensor | None = None) -> Tensor:
    """0 where x is 0, else 1; but NaN stays NaN, which the comparison would lose. In room, if given."""
    return torch.clamp_max(torch.ceil(torch.abs(x, out=room), out=room), 1, out=room)


def pair_distance(difference: Tensor, p: float, room: Tensor | None = None) -> Tensor:
    """norm_of; but for p = 0 NaN stays NaN, as in ATen's kernel of pairs.

    Args:    room: where to write what is computed on the way; may be the difference itself
    Shape:   difference, room: [cols, *]   returns: [*]
    """
    if p == 2:
        return torch.mul(difference, difference, out=room).sum(0).sqrt()
    if p == 0:
        return unless_zero(difference, room).sum(0)
    magnitudes = torch.abs(difference, out=room)
    if p == torch.inf:
        return magnitudes.amax(0)
    if p == 1:
        return magnitudes.sum(0)
    return torch.pow(magnitudes, p, out=room).sum(0).pow(1 / p)


def pair_gradient(grad: Tensor, difference: Tensor, distance: Tensor, p: float) -> Tensor:
    """grad * norm_gradient; but NaN stays NaN, and for p = inf every element that attains the norm has slope 1.

    ATen's kernel decides that equal rows have no gradient, whatever grad is: not for p = 1 and inf.

    Shape:   difference: [cols, *]   grad, distance: [*]   returns: as difference
    """
    if p in (1, torch.inf):
        slope = grad * difference.sgn() * unless_zero(difference)
        if p == 1:
            return slope
        below = difference.abs() - distance  # 0 for an element that attains the norm, negative for others
        return slope * (below.floor().clamp_min(-1) + 1)
    is_flat = (distance == 0) if p > 1 else (difference == 0)
    return torch.where(is_flat, 0, grad * norm_gradient(difference, distance, p, [0]))


@defines(aten._pdist_forward.default)
def pdist_forward(x: Tensor, p: float = 2) -> Tensor:
    """||x[i] - x[j]||_p for i < j: [pairs]."""
    if x.size(0) <= 1 or x.size(1) == 0:
        return x.new_zeros(x.size(0) * max(x.size(0) - 1, 0) // 2)
    if not can_read_values(x):  # a compiler keeps no differences in memory
        first, second = rows_of_pairs(x)
        return pair_distance((x.index_select(0, first) - x.index_select(0, second)).t(), p)
    columns = x.t().contiguous()  # first, so that sums over them add whole planes
    lines = []
    for begin, end in row_blocks(x):
        # [cols, block, 1] - [cols, 1, rows from the block on] -> [block, rows from the block on]
        difference = columns[:, begin:end].unsqueeze(2) - columns[:, begin:].unsqueeze(1)
        lines.append(torch.constant_pad_nd(pair_distance(difference, p, difference), [begin, 0]))
    return pairs_in(torch.cat(lines))


@defines(aten._pdist_backward.default)
def pdist_backward(grad: Tensor, x: Tensor, p: float, pdist: Tensor) -> Tensor:
    """d x[i] = sum over j of pair_gradient(grad[i, j], x[i] - x[j])."""
    if p == 0 or x.size(0) <= 1 or x.size(1) == 0:
        return torch.zeros_like(x)
    if not can_read_values(x):
        first, second = rows_of_pairs(x)
        difference = (x.index_select(0, first) - x.index_select(0, second)).t()
        slope = pair_gradient(grad, difference, pdist, p).t()
        return torch.zeros_like(x).index_add(0, first, slope).index_add(0, second, -slope)
    if p == 2 and x.dtype == torch.float32:
        return euclidean_backward(grad, x, pdist)
    gradients, distances = matrix_of(grad, x.size(0)), matrix_of(pdist, x.size(0))
    columns = x.t().contiguous()
    # earlier: what pairs with earlier blocks give the rows from the block on
    lines, earlier = [], torch.zeros_like(columns)
    for begin, end in row_blocks(x):
        block = (slice(begin, end), slice(begin, None))
        # [cols, block, rows from the block on]
        difference = columns[:, block[0]].unsqueeze(2) - columns[:, block[1]].unsqueeze(1)
        slope = pair_gradient(gradients[block], difference, distances[block], p)
        slope.diagonal(dim1=1, dim2=2).zero_()  # no pairs: an infinite row minus itself is NaN
        lines.append(earlier[:, : end - begin] + slope.sum(2))
        # the pairs with later blocks count there as well, the other way round
        earlier = earlier[:, end - begin :] - slope[:, :, end - begin :].sum(1)
    return torch.cat(lines, 1).t().contiguous()


def euclidean_backward(grad: Tensor, x: Tensor, distance: Tensor) -> Tensor:
    """With w = grad / distance, 0 for equal rows: d x[i] = sum of w[i, j] * (x[i] - x[j]) over j, as one product.

        sum of w[i, j] over j * x[i] - (w @ x)[i]

    The two terms cancel by as much as the rows are alike. float64 has that many digits to spare for different
    float32 numbers: the roundings of w are the larger ones.
    """
    weights = torch.where(distance == 0, 0, grad / torch.where(distance == 0, 1, distance))
    weights, wide = matrix_of(weights.to(torch.float64), x.size(0)), x.to(torch.float64)
    return (weights.sum(1, keepdim=True) * wide - torch.mm(weights, wide)).to(x.dtype)


# ---- public functions ------------------------------------------------------------------------------------


class _Norm(Function):
    """norm_of with norm_gradient: keeps input and output."""

    @staticmethod
    def forward(x: Tensor, p: float, dim: list[int]) -> Tensor:
        return linalg_vector_norm(x, p, dim, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.p, ctx.dim = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        if ctx.p == 0:  # constant but for jumps
            return None, None, None
        x, norm = ctx.saved_tensors
        gradient = widen(grad) * norm_gradient(widen(x), widen(norm), ctx.p, ctx.dim)
        return gradient.to(x.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        x, norm = ctx.saved_tensors
        gradient, tangent = norm_gradient(widen(x), widen(norm), ctx.p, ctx.dim), widen(tangent)
        along = (gradient.conj() * tangent).real if x.is_complex() else gradient * tangent
        return along.sum(ctx.dim, keepdim=True).to(norm.dtype)


def vector_norm(x: Tensor, p: float, dim: Any, keepdim: bool = False) -> Tensor:
    """The p-norm of x over dim, differentiable also where it is 0."""
    dims = _dims(x, dim)
    if (p < 0 or p == torch.inf) and x.dim() > 0:
        empty = [d for d in dims if x.size(d) == 0]
        if empty:
            raise RuntimeError(
                f"linalg.vector_norm cannot compute the {p:g} norm on the dimension {empty[0] % x.dim()}because this "
                "dimension is empty and the operation does not have an identity"
            )
    return _without(_Norm.apply(x, p, dims), dims, keepdim)


@traced_as(F.normalize)
def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """out = input / max(||input||_p, eps), the norm along dim.

    Args:    p: of the norm, default 2; dim: default 1; eps: default 1e-12
             out: written to, without a gradient
    Shape:   input: [*]   returns: same as input
    dtype:   floating point or complex, returned as input's; 16 bits round the norm, then the quotient
    Raises:  RuntimeError for integers; IndexError when dim is out of range; NotImplementedError for 16-bit
             complex numbers
    Source:  torch.nn.functional
    """
    if not (input.is_floating_point() or input.is_complex()):
        raise RuntimeError(
            f"linalg.vector_norm: Expected a floating point or complex tensor as input. Got {type_name(input)}"
        )
    p = 2.0 if p is None else p
    denominator = vector_norm(input, p, dim, keepdim=True).clamp_min(eps).expand_as(input)
    return input / denominator if out is None else torch.div(input, denominator, out=out)


@traced_as(F.cosine_similarity)
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """out = sum(x1 / max(||x1||, eps) * x2 / max(||x2||, eps)) along dim.

    Args:    dim: default 1; eps: of the norms, default 1e-8
    Shape:   x1, x2: broadcastable   returns: their common shape without dim
    dtype:   floating point, promoted (one of the two may be integers); 16 bits round at every step
    Raises:  RuntimeError for integers, complex numbers, shapes that do not broadcast and a negative eps;
             IndexError when dim is out of range
    Source:  aten/native/Distance.cpp
    """
    dtype = torch.promote_types(x1.dtype, x2.dtype)
    if not dtype.is_floating_point:
        raise RuntimeError(
            f"expected common dtype to be floating point, yet common dtype is {type_name(x1.new_empty(0, dtype=dtype))}"
        )
    if not eps >= 0:  # NaN too
        raise RuntimeError(f"eps must be non-negative, got: {eps:g}")
    if eps > torch.finfo(dtype).max:
        eps = torch.inf
    x1, x2 = torch.broadcast_tensors(x1.to(dtype), x2.to(dtype))
    units = []
    for x in (x1, x2):
        norm = vector_norm(x, 2, dim, keepdim=True).clone()
        with torch.no_grad():  # the gradient is that of the norm even where eps replaces it
            norm.clamp_min_(eps)
        units.append(x / norm)
    return (units[0] * units[1]).sum(dim)


@traced_as(F.pairwise_distance)
def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """out = ||x1 - x2 + eps||_p along the last dimension.

    Args:    p: of the norm, default 2; eps: added to the difference, default 1e-6
             keepdim: keep the last dimension, as 1 (default False)
    Shape:   x1, x2: [*, cols], broadcastable   returns: [*] or [*, 1]
    dtype:   promoted; integers give float32, complex numbers real ones; 16 bits round the difference, whose
             norm is accumulated in float32
    Raises:  RuntimeError for bool and shapes that do not broadcast
    Source:  aten/native/Distance.cpp
    """
    return vector_norm(x1 - x2 + eps, p, -1, keepdim)


class _Pdist(Function):
    """pdist_forward with pdist_backward: keeps input and output."""

    @staticmethod
    def forward(x: Tensor, p: float) -> Tensor:
        return pdist_forward(x, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.p = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, distance = ctx.saved_tensors
        return pdist_backward(grad, x, ctx.p, distance), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        x, distance = ctx.saved_tensors
        if distance.numel() == 0 or x.size(1) == 0:
            return torch.zeros_like(distance)
        columns, moved = x.t(), tangent.t()
        difference = columns.unsqueeze(2) - columns.unsqueeze(1)  # [cols, rows, rows]
        slope = pair_gradient(torch.ones_like(x[0, 0]), difference, matrix_of(distance, x.size(0)), ctx.p)
        return pairs_in((slope * (moved.unsqueeze(2) - moved.unsqueeze(1))).sum(0))


@traced_as(F.pdist)
def pdist(input: Tensor, p: float = 2) -> Tensor:
    """out = ||input[i] - input[j]||_p for all i < j, row by row of the upper triangle.

    Args:    p: of the norm, from 0 to infinity, default 2
    Shape:   input: [rows, cols]   returns: [rows * (rows - 1) / 2]
    dtype:   float32 or float64, returned as input's
    Raises:  RuntimeError for another number of dimensions, integers or a negative p; NotImplementedError for
             16 bits
    Source:  aten/native/Distance.cpp
    """
    if input.dim() != 2:
        raise RuntimeError(f"pdist only supports 2D tensors, got: {input.dim()}D")
    if not input.is_floating_point():
        raise RuntimeError("pdist only supports floating-point dtypes")
    if not p >= 0:  # NaN too
        raise RuntimeError("pdist only supports non-negative p values")
    if input.dtype not in (torch.float32, torch.float64) and input.size(0) > 1 and input.size(1) > 0:
        raise NotImplementedError(f"\"pdist\" not implemented for '{type_name(input)}'")
    return _Pdist.apply(input, p)


# ---- classes ---------------------------------------------------------------------------------------------


class PairwiseDistance(torch.nn.PairwiseDistance):
    """out = ||x1 - x2 + eps||_p along the last dimension.

    Args:    p: of the norm, default 2; eps: added to the difference, default 1e-6
             keepdim: keep the last dimension, as 1 (default False)
    Shape:   x1, x2: [batch, cols] or [cols]   returns: [batch] or [], with keepdim [batch, 1] or [1]
    Source:  see `pairwise_distance`
    """

    __constants__ = ["norm", "eps", "keepdim"]

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> None:
        init_module(PairwiseDistance, self)
        self.norm = p
        self.eps = eps
        self.keepdim = keepdim

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)


class CosineSimilarity(torch.nn.CosineSimilarity):
    """out = x1 . x2 / (max(||x1||, eps) * max(||x2||, eps)) along dim.

    Args:    dim: default 1; eps: of the norms, default 1e-8
    Shape:   x1, x2: broadcastable   returns: their common shape without dim
    Raises:  RuntimeError for integers
    Source:  see `cosine_similarity`
    """

    __constants__ = ["dim", "eps"]

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        init_module(CosineSimilarity, self)
        self.dim = dim
        self.eps = eps

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return cosine_similarity(x1, x2, self.dim, self.eps)
