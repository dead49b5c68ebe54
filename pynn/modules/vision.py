"""Sampling an image at given places: affine_grid makes the places, grid_sample takes the values there."""

import warnings

import torch.nn.functional as F
from torch import Tensor

from pynn.definitions import refuse_complex_gradient, traced_as, type_name
from pynn.modules._grid_sampling import AffineGrid, GridSample

__all__ = [
    "affine_grid",
    "grid_sample",
]

MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
PADDING_MODES = {"zeros": 0, "border": 1, "reflection": 2}
CHANGED_DEFAULT = (
    "Default grid_sample and affine_grid behavior has changed to align_corners=False since 1.3.0. Please specify "
    "align_corners=True if the old behavior is desired. See the documentation of grid_sample for details."
)


@traced_as(F.grid_sample)
def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """out[n, :, o] = input[n, :, ...] at the place grid[n, o], interpolated.

    Args:    mode: bilinear (of the 2 neighbours a dimension), nearest, bicubic (4 neighbours, images only)
             padding_mode: outside is 0, the border's value, or the image mirrored
             align_corners: -1 and 1 are the centres of the outer pixels, else their outer edges
    Shape:   input: [batch, channels, L...] with 2 or 3 spatial dimensions   grid: [batch, O..., dims], from -1 to 1,
             the last spatial dimension first   returns: [batch, channels, O...]
    dtype:   computes in float32 for 16-bit inputs
    Raises:  ValueError, RuntimeError when modes or sizes do not fit
    Source:  Jaderberg et al., Spatial transformer networks, 2015; aten/native/GridSampler.cpp
    """
    if mode not in MODES:
        raise ValueError(
            f"nn.functional.grid_sample(): expected mode to be 'bilinear', 'nearest' or 'bicubic', but got: '{mode}'"
        )
    if padding_mode not in PADDING_MODES:
        raise ValueError(
            "nn.functional.grid_sample(): expected padding_mode to be 'zeros', 'border', or 'reflection', but got: "
            f"'{padding_mode}'"
        )
    if align_corners is None:
        warnings.warn(CHANGED_DEFAULT, stacklevel=3)
        align_corners = False
    _check_samples(input, grid, mode)
    if not input.is_floating_point():  # of nothing
        refuse_complex_gradient("grid_sampler_2d", input, grid)
        return input.new_empty(*input.shape[:2], *grid.shape[1:-1])
    if grid.dtype != input.dtype:
        grid = (grid.real if grid.is_complex() else grid).to(input.dtype)
    # contiguous, so that the result is, as in C++
    return GridSample.apply(input, grid.contiguous(), MODES[mode], PADDING_MODES[padding_mode], align_corners)


def _check_samples(input: Tensor, grid: Tensor, mode: str) -> None:
    sizes = f"input with sizes {list(input.shape)} and grid with sizes {list(grid.shape)}"
    if input.size(0) != grid.size(0):
        raise RuntimeError(
            f"grid_sampler(): expected grid and input to have same batch size, but got {sizes}"
        )
    if grid.size(-1) != input.dim() - 2:
        raise RuntimeError(
            f"grid_sampler(): expected grid to have size {input.dim() - 2} in last dimension, but got grid with sizes "
            f"{list(grid.shape)}"
        )
    for dim in range(2, input.dim()):
        if input.size(dim) == 0:
            raise RuntimeError(
                "grid_sampler(): expected input to have non-empty spatial dimensions, but input has sizes "
                f"{list(input.shape)} with dimension {dim} being empty"
            )
    if input.dim() not in (4, 5) or input.dim() != grid.dim():
        expected = 4 if input.dim() == 4 else 5
        raise RuntimeError(
            f"grid_sampler(): expected {expected}D input and grid with same number of dimensions, but got {sizes}"
        )
    if input.dim() == 5 and mode == "bicubic":
        raise RuntimeError("grid_sampler(): bicubic interpolation only supports 4D input")
    is_of_nothing = 0 in (*input.shape[:2], *grid.shape[1:-1])  # where C++ looks at no dtype, but of volumes
    if not input.is_floating_point() and not (is_of_nothing and input.dim() == 4):
        kernel = "grid_sampler_2d_cpu_kernel_impl" if input.dim() == 4 else "grid_sampler3d_cpu"
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(input)}'")
    if input.dtype != grid.dtype and not is_of_nothing:
        raise RuntimeError(f"expected scalar type {type_name(input)} but found {type_name(grid)}")


@traced_as(F.affine_grid)
def affine_grid(theta: Tensor, size: list[int], align_corners: bool | None = None) -> Tensor:
    """grid[n, o] = theta[n] @ (x, y, [z,] 1), the places from which an affine map takes the output's pixels.

    Args:    size: [batch, channels, L...] of the output of grid_sample; align_corners: as there
    Shape:   theta: [batch, dims, dims + 1]   returns: [batch, L..., dims]
    dtype:   floating point, returned as theta's; computes in float32 for 16-bit inputs
    Raises:  ValueError for integers and shapes that do not fit size, NotImplementedError for a size of other
             than 4 or 5 numbers
    Source:  Jaderberg et al., Spatial transformer networks, 2015; aten/native/AffineGridGenerator.cpp
    """
    if align_corners is None:
        warnings.warn(CHANGED_DEFAULT, stacklevel=3)
        align_corners = False
    if not theta.is_floating_point():
        raise ValueError(f"Expected theta to have floating point type, but got {theta.dtype}")
    dims = len(size) - 2
    if dims not in (2, 3):
        raise NotImplementedError(
            "affine_grid only supports 4D and 5D sizes, for 2D and 3D affine transforms, respectively. "
            f"Got size {size}."
        )
    if theta.dim() != 3 or theta.shape[-2:] != (dims, dims + 1):
        raise ValueError(
            f"Expected a batch of {dims}D affine matrices of shape Nx{dims}x{dims + 1} for size {size}. Got "
            f"{theta.shape}."
        )
    if align_corners and min(size[2:]) == 1:
        warnings.warn(
            "Since version 1.3.0, affine_grid behavior has changed for unit-size grids when align_corners=True. This "
            "is not an intended use case of affine_grid. See the documentation of affine_grid for details.",
            stacklevel=3,
        )
    elif min(size) <= 0:
        raise ValueError(f"Expected non-zero, positive output size. Got {size}")
    if theta.size(0) != size[0]:
        raise RuntimeError(
            f"Expected size for first two dimensions of batch2 tensor to be: [{size[0]}, {dims + 1}] but got: "
            f"[{theta.size(0)}, {dims + 1}]."
        )
    return AffineGrid.apply(theta, list(size), align_corners)
