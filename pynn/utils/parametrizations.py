"""Parametrizations: weight normalisation is written here, the others are shared with torch.

`orthogonal` is linear algebra (QR factors, the matrix exponential) in Python, and `spectral_norm` the power
method in Python, on matrix times vector, dot product and `normalize` (itself a composite of elementary
operations): no fused operation of torch.nn is beneath either of them.
"""

from typing import Any

import torch.nn.utils.parametrizations as _torch_parametrizations
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm

from pynn.construction import init_module
from pynn.utils.weight_norm import norm_except_dim, normalised_weight

__all__ = ["orthogonal", "spectral_norm", "weight_norm"]


class _WeightNorm(_torch_parametrizations._WeightNorm):
    """(g, v) -> g * v / norm(v), the norm over all dimensions but dim; None: over all."""

    def __init__(self, dim: int | None = 0) -> None:
        init_module(_WeightNorm, self)
        self.dim = -1 if dim is None else dim

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return normalised_weight(weight_v, weight_g, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight -> (norm(weight), weight)"""
        return norm_except_dim(weight, self.dim), weight


def weight_norm(module: Module, name: str = "weight", dim: int = 0) -> Module:
    """Parametrize a weight by its magnitude original0 and direction original1; weight = g * v / norm(v).

    Args:    name: of the parameter, default weight
             dim: the dimension that keeps a norm for each index, default 0; None: one norm of everything
    Shape:   original1: as the weight
             original0: the same with 1 in every dimension but dim, or [] for dim None
    Returns: the module; it also loads state_dicts of the older weight_norm (`<name>_g`, `<name>_v`)
    dtype:   floating point; computes in float32 for 16-bit weights
    Raises:  ValueError when module has no such parameter; RuntimeError for an uninitialized one; IndexError
             when the weight has no such dimension
    Source:  Salimans and Kingma, Weight normalization, 2016; aten/native/WeightNorm.cpp
    """
    parametrize.register_parametrization(module, name, _WeightNorm(dim), unsafe=True)

    def rename_older_keys(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        older = [f"{prefix}{name}_g", f"{prefix}{name}_v"]
        if all(key in state_dict for key in older):
            for number, key in enumerate(older):
                state_dict[f"{prefix}parametrizations.{name}.original{number}"] = state_dict.pop(key)

    module._register_load_state_dict_pre_hook(rename_older_keys)
    return module
