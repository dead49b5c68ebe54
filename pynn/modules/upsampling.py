"""Interpolation: resize the spatial dimensions by nearest elements, weighted neighbours, or means."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import traced_as, type_name
from pynn.modules._average_pooling_functions import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
)
from pynn.modules._interpolation import Interpolation

__all__ = [
    "Upsample",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
    "interpolate",
    "upsample",
    "upsample_bilinear",
    "upsample_nearest",
]

# mode -> (number of spatial dimensions it is for, or None for any; the mode of one dimension)
MODES = {
    "nearest": (None, "nearest"), "nearest-exact": (None, "nearest-exact"), "area": (None, "area"),
    "linear": (1, "linear"), "bilinear": (2, "linear"), "trilinear": (3, "linear"), "bicubic": (2, "cubic"),
    "lanczos": (2, "lanczos"),
}  # fmt: skip
ANTIALIASED = ("bilinear", "bicubic", "lanczos")
AREA = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}


@traced_as(F.interpolate)
def interpolate(
    input: Tensor,
    size: int | None = None,
    scale_factor: list[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resize the spatial dimensions, one after the other:

        nearest         out[o] = x[floor(o * s)]                     s = size of input / size of output
        nearest-exact   out[o] = x[floor((o + 1/2) * s)]
        linear, ...     the 2 neighbours of (o + 1/2) * s - 1/2 by their distance: linear, bilinear, trilinear
        bicubic         4 neighbours by Keys' cubic, a = -3/4
        area            the mean of x[floor(o * s) : ceil((o + 1) * s)]
        lanczos         6 neighbours by a windowed sinc (with antialias only)

    Args:    size: of the output, or scale_factor, one number or one each; mode: see above, default nearest
             align_corners: positions are o * (L - 1) / (O - 1): the corners stay
             recompute_scale_factor: s from the sizes, not from scale_factor
             antialias: stretch the filter over all elements that an output stands for (bilinear, bicubic, lanczos)
    Shape:   input: [batch, channels, L...] with 1 to 3 spatial dimensions   returns: [batch, channels, O...]
    dtype:   computes in float32 for 16-bit inputs; uint8 in fixed point
    Raises:  ValueError, NotImplementedError, RuntimeError as torch for arguments that do not fit
    Source:  aten/native/UpSample.h; Keys, Cubic convolution interpolation for digital image processing, 1981
    """
    if mode in ("nearest", "area", "nearest-exact"):
        if align_corners is not None:
            raise ValueError(
                "align_corners option can only be set with the interpolating modes: linear | bilinear | bicubic | "
                "trilinear"
            )
    align_corners = bool(align_corners)
    counts, scales = _sizes(
        input, size, scale_factor, recompute_scale_factor or (mode == "area" and size is None)
    )
    if antialias and not (mode in ANTIALIASED and input.dim() == 4):
        raise ValueError(
            "Anti-alias option is restricted to bilinear, bicubic, and lanczos modes and requires a 4-D tensor as input"
        )
    dims = input.dim() - 2
    _check_mode(input, mode, align_corners, antialias)
    if mode == "area":
        return AREA[dims](input, counts if dims > 1 else counts[0])
    _check_input(input, mode, counts, antialias)
    kind = MODES[mode][1] + " antialias" * antialias
    return Interpolation.apply(input, kind, counts, align_corners, scales)


def _sizes(
    input: Tensor, size: Any, scale_factor: Any, recompute: bool
) -> tuple[list[Any], list[float | None]]:
    """The output sizes, and the scale factors that positions are computed with (None: from the sizes)."""
    dims = input.dim() - 2
    if size is not None and scale_factor is not None:
        raise ValueError("only one of size or scale_factor should be defined")
    if size is None and scale_factor is None:
        raise ValueError("either size or scale_factor should be defined")
    if size is not None:
        if isinstance(size, (list, tuple)):
            if len(size) != dims:
                raise ValueError(
                    "Input and output must have the same number of spatial dimensions, but got input with spatial "
                    f"dimensions of {list(input.shape[2:])} and output size of {size}. Please provide input tensor in "
                    "(N, C, d1, d2, ...,dK) format and output size in (o1, o2, ...,oK) format."
                )
            if not all(_is_integer(x) for x in size):
                raise TypeError(
                    "expected size to be one of int or Tuple[int] or Tuple[int, int] or Tuple[int, int, int], but got "
                    f"size with types {[type(x) for x in size]}"
                )
        if recompute:
            raise ValueError("recompute_scale_factor is not meaningful with an explicit size.")
        counts = list(size) if isinstance(size, (list, tuple)) else [size] * dims
        if not all(_is_integer(x) for x in counts):
            raise TypeError(f"interpolate(): expected an integer size, but got {size}")
        return [int(x) if isinstance(x, Tensor) else x for x in counts], [None] * dims
    factors = list(scale_factor) if isinstance(scale_factor, (list, tuple)) else [scale_factor] * dims
    if len(factors) != max(dims, 0):
        raise ValueError(
            f"Input and scale_factor must have the same number of spatial dimensions, but got input with spatial "
            f"dimensions of {list(input.shape[2:])} and scale_factor of shape {scale_factor}. Please provide input "
            "tensor in (N, C, d1, d2, ...,dK) format and scale_factor in (s1, s2, ...,sK) format."
        )
    if not recompute and not all(
        abs(length * factor) < 2**63 for length, factor in zip(input.shape[2:], factors)
    ):
        raise RuntimeError("value cannot be converted to type int64_t without overflow")
    counts = [int(length * factor) for length, factor in zip(input.shape[2:], factors)]
    return counts, [None] * dims if recompute else [float(factor) for factor in factors]


def _is_integer(x: Any) -> bool:
    is_integer = isinstance(x, (int, torch.SymInt)) or (
        type(x).__module__ == "numpy" and hasattr(x, "__index__")
    )
    return is_integer or (isinstance(x, Tensor) and not x.is_floating_point())


def _check_mode(input: Tensor, mode: str, align_corners: bool, antialias: bool) -> None:
    dims = input.dim() - 2
    if mode not in MODES or dims not in (1, 2, 3) or (mode in ("bicubic", "lanczos") and dims != 2):
        raise NotImplementedError(
            f"Input Error: Only 3D, 4D and 5D input Tensors supported (got {input.dim()}D) for the modes: nearest | "
            f"linear | bilinear | bicubic | trilinear | lanczos | area | nearest-exact (got {mode})"
        )
    wanted = MODES[mode][0]
    if wanted is not None and wanted != dims:
        raise NotImplementedError(f"Got {input.dim()}D input, but {mode} mode needs {wanted + 2}D input")
    if mode == "lanczos" and align_corners:
        raise ValueError("Lanczos mode does not support align_corners=True")
    if mode == "lanczos" and not antialias:
        raise ValueError("Lanczos mode requires antialias=True")


def _check_input(input: Tensor, mode: str, counts: Sequence[Any], antialias: bool) -> None:
    dims = input.dim() - 2
    if any(size <= 0 for size in (*input.shape[2:], *counts)):
        axes = "DHW"[-dims:]
        given, wanted = (
            ", ".join(f"{a}: {n}" for a, n in zip(axes, sizes)) for sizes in (input.shape[2:], counts)
        )
        link = "and output" if dims == 1 else "output"
        raise RuntimeError(
            f"Input and output sizes should be greater than 0, but got input ({given}) {link} ({wanted})"
        )
    if input.size(1) == 0:
        raise RuntimeError(
            f"Non-empty {dims + 2}D data tensor expected but got a tensor with sizes {list(input.shape)}"
        )
    takes_bytes = input.dtype == torch.uint8 and (dims == 2 or mode.startswith("nearest"))
    if antialias and input.dtype in (torch.float16, torch.bfloat16) and input.is_cpu:
        raise NotImplementedError(
            f"\"compute_index_ranges_weights\" not implemented for '{type_name(input)}'"
        )
    if not (input.is_floating_point() or takes_bytes):
        if antialias:
            kernel = "compute_index_ranges_weights"
        elif mode == "bicubic" or (dims != 2 and not mode.startswith("nearest")):
            kernel = f"compute_indices_weights_{MODES[mode][1]}"
        elif mode.startswith("nearest"):
            kernel = (
                f"upsample_nearest{dims}d_channels_last" if dims == 2 else "compute_indices_weights_nearest"
            )
        else:
            kernel = f"upsample_{mode}{dims}d_channels_last"
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")


@traced_as(F.upsample)
def upsample(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """The old name of `interpolate`.

    Shape:   input: [batch, channels, L...]   returns: [batch, channels, O...]
    """
    warnings.warn(
        "`nn.functional.upsample` is deprecated. Use `nn.functional.interpolate` instead.", stacklevel=3
    )
    return interpolate(input, size, scale_factor, mode, align_corners)


@traced_as(F.upsample_nearest)
def upsample_nearest(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """The old name of `interpolate` with mode nearest.

    Shape:   input: [batch, channels, L...]   returns: [batch, channels, O...]
    """
    warnings.warn(
        "`nn.functional.upsample_nearest` is deprecated. Use `nn.functional.interpolate` instead.",
        stacklevel=3,
    )
    return interpolate(input, size, scale_factor, mode="nearest")


@traced_as(F.upsample_bilinear)
def upsample_bilinear(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """The old name of `interpolate` with mode bilinear and align_corners.

    Shape:   input: [batch, channels, height, width]   returns: [batch, channels, O...]
    """
    warnings.warn(
        "`nn.functional.upsample_bilinear` is deprecated. Use `nn.functional.interpolate` instead.",
        stacklevel=3,
    )
    return interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)


# ---- classes ---------------------------------------------------------------------------------------------


class Upsample(torch.nn.Upsample):
    """Resize the spatial dimensions.

    Args:    size or scale_factor, one number or one a dimension; mode: default nearest
             align_corners, recompute_scale_factor: as `interpolate`'s
    Shape:   x: [batch, channels, L...]   returns: [batch, channels, O...]
    Raises:  as interpolate
    Source:  see `interpolate`
    """

    def forward(self, input: Tensor) -> Tensor:
        return interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            recompute_scale_factor=self.recompute_scale_factor,
        )


class UpsamplingNearest2d(Upsample, torch.nn.UpsamplingNearest2d):
    """Upsample with mode nearest.

    Args:    size or scale_factor: one number or two
    Shape:   x: [batch, channels, height, width]   returns: the last two resized
    Source:  see `interpolate`
    """


class UpsamplingBilinear2d(Upsample, torch.nn.UpsamplingBilinear2d):
    """Upsample with mode bilinear, corners aligned.

    Args:    size or scale_factor: one number or two
    Shape:   x: [batch, channels, height, width]   returns: the last two resized
    Source:  see `interpolate`
    """
