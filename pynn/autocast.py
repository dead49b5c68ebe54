"""torch.autocast: which functions compute in float32, which in 16 bits, as torch's C++ lists have it.

torch casts the arguments of the operations on its lists and runs them with autocast off; an operation on no list
sees its arguments as they are. So do the functions here. Those that torch writes in Python are on no list: autocast
stays on for the functions that they call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

# aten/src/ATen/autocast_mode.cpp, by the names of torch.nn.functional
FLOAT32_LOSSES = frozenset(
    """
    cosine_embedding_loss hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss
    multi_margin_loss multilabel_margin_loss nll_loss poisson_nll_loss smooth_l1_loss soft_margin_loss
    triplet_margin_loss binary_cross_entropy_with_logits
    """.split()
)
FLOAT32 = {
    "cpu": FLOAT32_LOSSES
    | frozenset(
        """
        adaptive_avg_pool3d adaptive_max_pool3d adaptive_max_pool3d_with_indices avg_pool3d binary_cross_entropy
        cross_entropy ctc_loss fractional_max_pool2d fractional_max_pool2d_with_indices fractional_max_pool3d
        fractional_max_pool3d_with_indices grid_sample max_unpool1d max_unpool2d max_unpool3d
        """.split()
    ),
    "cuda": FLOAT32_LOSSES
    | frozenset(
        """
        cosine_similarity cross_entropy group_norm layer_norm log_softmax normalize pairwise_distance pdist softmax
        softmin softplus
        """.split()
    ),
}
# float32 for some arguments only
FLOAT32_IF: dict[str, dict[str, Callable[..., bool]]] = {
    "cpu": {
        "pad": lambda input, pad, mode="constant", value=None: (
            mode == "replicate" or (mode == "reflect" and len(pad) < 6)
        ),
        "max_pool3d": lambda *args, return_indices=False, **_: (
            not (args[6] if len(args) > 6 else return_indices)
        ),
        "local_response_norm": lambda input, *_, **__: input.dim() > 3,  # made of avg_pool3d there
    },
    "cuda": {
        "interpolate": lambda input, size=None, scale_factor=None, mode="nearest", *_, **__: mode != "area",
        "local_response_norm": lambda input, *_, **__: input.numel() > 0,
    },
}
NARROW = frozenset(
    """
    affine_grid conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d linear prelu
    scaled_dot_product_attention
    """.split()
)
COMPOSED = frozenset(
    """
    gaussian_nll_loss gumbel_softmax interpolate linear_cross_entropy lp_pool1d lp_pool2d lp_pool3d
    multi_head_attention_forward multilabel_soft_margin_loss normalize triplet_margin_with_distance_loss upsample
    upsample_bilinear upsample_nearest
    """.split()
)


def is_autocast_on(device: str) -> bool:
    """Whether autocast is on for tensors of a device; meta tensors, say, know none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def under_autocast(definition: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call a definition as torch calls its function inside torch.autocast."""
    name = definition.__name__
    device = next((x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), "cpu")
    if not is_autocast_on(device):
        return definition(*args, **kwargs)
    dtype, condition = None, FLOAT32_IF.get(device, {}).get(name)
    if name in FLOAT32.get(device, ()) or (condition and condition(*args, **kwargs)):
        dtype = torch.float32
    elif name in COMPOSED:
        return definition(*args, **kwargs)
    elif name in NARROW:
        dtype = torch.get_autocast_dtype(device)

    def cast(x: Any) -> Any:
        is_eligible = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if is_eligible and x.device.type == device else x

    if dtype is not None:
        args, kwargs = tree_map(cast, (args, kwargs))
    with torch.autocast(device, enabled=False):
        return definition(*args, **kwargs)
