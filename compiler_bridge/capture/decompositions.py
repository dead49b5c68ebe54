"""What AOTAutograd replaces while it traces: composite ATen operations by their pynn definitions.

The one table of meanings is `pynn.definitions.DEFINITIONS`. Beside it stand the random draws (unless the
user asked for torch's own numbers) and a short, named list of torch's decompositions that only move or
reshape data or are plain algebra on operations we do lower; no computation a layer is about comes from there.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch._ops import OpOverload

from compiler_bridge.capture import channels_last, run_time_sizes, sparse
from pynn.definitions import DEFINITIONS

aten = torch.ops.aten

Decompositions = dict[OpOverload, Callable[..., Any]]

_POOLING = (
    f"{name}{dims}d{suffix}"
    for dims in (2, 3)
    for name, suffixes in {
        "max_pool": ("_with_indices", "_with_indices_backward"),
        "avg_pool": ("", "_backward"),
        "adaptive_max_pool": ("", "_backward"),
        "_adaptive_avg_pool": ("", "_backward"),
        "fractional_max_pool": ("", "_backward"),
    }.items()
    for suffix in suffixes
)

_INTERPOLATION = [
    f"{name}{suffix}"
    for name in (
        *(f"upsample_nearest{dims}d" for dims in (1, 2, 3)),
        *(f"_upsample_nearest_exact{dims}d" for dims in (1, 2, 3)),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
        *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa"),
    )
    for suffix in ("", "_backward")
]

KEPT_WHOLE: frozenset[OpOverload] = frozenset(
    {
        aten.convolution.default,
        aten.convolution_backward.default,
        *(getattr(aten, name).default for name in _POOLING),
        aten.im2col.default,
        aten.col2im.default,
        *(getattr(aten, name).default for name in _INTERPOLATION if hasattr(aten, name)),
        *run_time_sizes.PADDING,
    }
)
"""Operations with a definition that the lowering takes whole: its kernels know more than the definition."""

TORCHS_TEXTS: frozenset[OpOverload] = frozenset(
    {
        aten.hardshrink.default,
        aten.softshrink.default,
        aten.multi_margin_loss.default,
        aten.multilabel_margin_loss_forward.default,
    }
)
"""Operations that torch itself takes apart in Python, as a graph is traced and before any table is asked, where ours
are the definitions: torch 2.13's text of multilabel_margin_loss takes labels that are padding for class 0. (Batch norm
it makes functional so, before it is ours.)"""

WAITS_FOR_LOWERING: frozenset[OpOverload] = frozenset(
    {
        # loops over time; Dynamo breaks the graph at them anyway, unless it is told to capture sizes that are data
        aten._ctc_loss.default,
        aten._ctc_loss.Tensor,
        aten._ctc_loss_backward.default,
        aten._ctc_loss_backward.Tensor,
        # a product for each group, where offsets say which rows: the definition, which can't read them, would
        # multiply all rows by each matrix
        aten._grouped_mm.default,
    }
)
"""Operations with a definition from which today's stages would make poor kernels, or too many.

Until they have a lowering they stay ATen calls: Externs, counted and shown. Their rows of the parity tests are
skipped, by this list, on the executors that compile.
"""

DATA_MOVEMENT: tuple[Any, ...] = (
    aten.slice_backward,
    aten.select_backward,
    aten.unfold_backward,
    aten.diagonal_backward,
    aten._unsafe_index,
    aten._unsafe_index_put,
    aten.new_empty,
    aten.new_full,
    aten.new_ones,
    aten.new_zeros,
    aten.ones_like,
    aten.zeros_like,
    aten.empty_like,
    aten.eye,
    aten.linspace,
    aten.narrow_copy,
    aten.stack,
    aten.roll,
    aten.rot90,
    aten.tril,
    aten.triu,
    aten.unbind,
    aten.trace,
    aten.split_with_sizes_copy,
    aten.transpose.int,
    aten.t,
    aten._reshape_alias,
    aten.expand_copy,
    aten.view_copy,
    aten.unsqueeze_copy,
    aten.squeeze_copy,
    aten.permute_copy,
    aten.masked_fill,
)
"""Views, fills and copies: torch's decompositions of these state shapes and strides only."""

ALGEBRA: tuple[Any, ...] = (
    aten.rsub,
    aten.addcmul,
    aten.addcdiv,
    aten.lerp,
    aten.addmv,
    aten.baddbmm,
    aten.linalg_vector_norm,
    aten.dot,
    aten.vdot,
    aten.std,
    aten.std_mean,
    aten.var,
    aten.var_mean,
    aten.logsumexp,
    aten.clamp_min,
    aten.clamp_max,
    aten.frac,
    aten.xlogy,
    aten.sgn,
    aten.heaviside,
    aten.nan_to_num,
    aten.logical_xor,
    aten.logit,
    aten.logit_backward,
    aten.isneginf,
    aten.isposinf,
    aten.aminmax,
    aten.index_add,
    aten.index_copy,
    aten.index_fill,
    aten.take,
)
"""General tensor algebra, not of torch.nn: written out in pointwise operations, reductions and products."""


def grouped_product(a: Any, b: Any, offs: Any = None, *rest: Any, **named: Any) -> Any:
    """Without offsets a batch of products, by the definition; else the operation as it is."""
    if offs is not None:
        return NotImplemented
    return DEFINITIONS[aten._grouped_mm.default](a, b, offs, *rest, **named)


@functools.cache
def decompositions(eager_random: bool) -> Decompositions:
    """The table for aot_autograd: torch's glue, then ours over it."""
    table: dict[Any, Callable[..., Any]] = dict(get_decompositions([*DATA_MOVEMENT, *ALGEBRA]))
    table.update(_optional_table("pynn.definitions", "DEFINITIONS"))
    random = "EAGER_DECOMPOSITIONS" if eager_random else "DECOMPOSITIONS"
    table.update(_optional_table("compiler_bridge.capture.random", random))
    for operation in KEPT_WHOLE | WAITS_FOR_LOWERING:
        table.pop(operation, None)
    table[aten._grouped_mm.default] = grouped_product
    return {**table, **channels_last.DECOMPOSITIONS, **run_time_sizes.DECOMPOSITIONS, **sparse.DECOMPOSITIONS}


def _optional_table(module: str, name: str) -> Decompositions:
    """A table of another module; the definitions fill theirs as pynn is imported."""
    if module.startswith("pynn."):
        importlib.import_module("pynn")
    return dict(getattr(importlib.import_module(module), name, {}))
