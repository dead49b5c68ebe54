"""Sampling: affine grids, grid_sample at awkward places, old names of interpolate, antialiasing."""

import torch

from parity_tests.cases import Sample
from parity_tests.cases_own.builders import built, function, module, tensor


def places(*shape: int) -> torch.Tensor:
    """From well outside of the image to well inside, not on a boundary."""
    return ((torch.rand(shape) * 2 - 1) * 1.7).requires_grad_()


def sampled(image: tuple, grid: tuple, **kwargs):
    return lambda: Sample((tensor(*image), places(*grid)), {"align_corners": False, **kwargs})


EVERY_WAY = [
    sampled((2, 3, 5, 6), (2, 4, 3, 2), mode=mode, padding_mode=padding, align_corners=corners)
    for mode in ("bilinear", "nearest", "bicubic")
    for padding in ("zeros", "border", "reflection")
    for corners in (False, True)
]
IN_SPACE = [
    sampled((2, 2, 3, 4, 5), (2, 2, 3, 2, 3), mode=mode, padding_mode=padding)
    for mode in ("bilinear", "nearest")
    for padding in ("zeros", "border", "reflection")
]


def image() -> tuple:
    return (tensor(2, 3, 5, 4),)


HAS_LANCZOS = hasattr(torch._C._nn, "_upsample_lanczos2d_aa")  # torch 2.11 lacks it
LANCZOS = [{"size": (3, 3), "mode": "lanczos"}] if HAS_LANCZOS else []

ROWS = [
    function("affine_grid", *(lambda size=size, corners=corners: Sample(
        (tensor(2, len(size) - 2, len(size) - 1), list(size)), {"align_corners": corners})
        for size in ((2, 3, 4, 5), (2, 1, 3, 2, 4)) for corners in (False, True))),
    function("grid_sample.images", *EVERY_WAY), function("grid_sample.volumes", *IN_SPACE),
    function("upsample", lambda: Sample(image(), {"scale_factor": 2})),
    function("upsample_nearest", lambda: Sample(image(), {"size": (7, 9)})),
    function("upsample_bilinear", lambda: Sample(image(), {"scale_factor": 1.7})),
    function("interpolate.antialias", *(lambda how=how: Sample(image(), {"antialias": True, **how}) for how in (
        {"size": (3, 2), "mode": "bilinear"}, {"size": (2, 9), "mode": "bicubic"},
        {"scale_factor": 0.6, "mode": "bicubic", "align_corners": True}, *LANCZOS)),
        dtypes=(torch.float32, torch.float64)),
    module("Upsample", built(scale_factor=2, inputs=image), built((3, 7), mode="bilinear", inputs=image),
           built(scale_factor=(0.6, 1.5), mode="bicubic", align_corners=True, inputs=image)),
    module("UpsamplingNearest2d", built((7, 3), inputs=image), built(scale_factor=3, inputs=image)),
    module("UpsamplingBilinear2d", built((7, 3), inputs=image), built(scale_factor=3, inputs=image)),
]  # fmt: skip
