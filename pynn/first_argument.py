"""What is no tensor in the place of one: refused in the words of torch's argument parser.

torch's functions written in Python that look at their input themselves fail at that instead (AttributeError), and
pynn's definitions of these do as well; all others hand it to C++, whose parser raises a TypeError.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

LOOK_THEMSELVES = frozenset(
    """
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool2d_with_indices
    adaptive_max_pool3d adaptive_max_pool3d_with_indices affine_grid binary_cross_entropy
    binary_cross_entropy_with_logits dropout1d dropout2d dropout3d embedding_bag fractional_max_pool2d
    fractional_max_pool2d_with_indices fractional_max_pool3d fractional_max_pool3d_with_indices
    gaussian_nll_loss glu group_norm gumbel_softmax huber_loss instance_norm interpolate l1_loss
    linear_cross_entropy local_response_norm log_softmax lp_pool1d lp_pool2d lp_pool3d margin_ranking_loss
    max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d mse_loss normalize scaled_grouped_mm
    scaled_mm sigmoid smooth_l1_loss softmax softmin softsign tanh tanhshrink
    triplet_margin_with_distance_loss upsample upsample_bilinear upsample_nearest
    """.split()
)
"""Functions of torch that read something of their input, or refuse another argument, before C++ sees it."""

NAMES_IN_CPP = {
    "adaptive_max_pool1d_with_indices": "adaptive_max_pool1d",
    "cross_entropy": "cross_entropy_loss",
    "fold": "col2im",
    "grid_sample": "grid_sampler",
    "grouped_mm": "_grouped_mm",
    "logsigmoid": "log_sigmoid",
    "multilabel_soft_margin_loss": "log_sigmoid",
    "nll_loss": "nll_loss_nd",
    "unfold": "im2col",
}

PLACES_IN_CPP = {"embedding": "'indices' (position 2)", "grouped_mm": "'input' (position 1)"}


def refusal_of_others(definition: Callable, torch_function: Callable) -> Callable[[tuple, dict], None] | None:
    """A check of the arguments of this definition's public function; None where the definition fails by itself."""
    name = definition.__name__
    first = next(iter(inspect.signature(definition).parameters.values()), None)
    if name in LOOK_THEMSELVES or first is None or first.annotation not in (Tensor, "Tensor"):
        return None
    called = NAMES_IN_CPP.get(name, name)
    position = PLACES_IN_CPP.get(name, f"{first.name!r} (position 1)")
    # torch's functions written in Python pass it on by position
    keyword = position if inspect.isfunction(torch_function) else f"{first.name!r}"

    def refuse(args: tuple, kwargs: dict[str, Any]) -> None:
        if not args and first.name not in kwargs:
            return  # Python names what is missing
        value, place = (args[0], position) if args else (kwargs[first.name], keyword)
        if not isinstance(value, Tensor):
            raise TypeError(f"{called}(): argument {place} must be Tensor, not {type(value).__name__}")

    return refuse
