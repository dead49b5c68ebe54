"""Weight normalisation: a weight as its magnitude times its direction."""

import importlib
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter, UninitializedParameter
from typing_extensions import deprecated

from pynn.definitions import defines, is_traced, widen

__all__ = ["WeightNorm", "remove_weight_norm", "weight_norm"]

aten = torch.ops.aten
# torch.nn.utils.weight_norm is the function; it hides the module, where the hook's class is
_TorchWeightNorm: Any = importlib.import_module("torch.nn.utils.weight_norm").WeightNorm


# ---- definitions -----------------------------------------------------------------------------------------


def all_dims_but(dim: int, v: Tensor) -> list[int]:
    return [d for d in range(v.dim()) if d != dim % v.dim()]


def norm_except_dim(v: Tensor, dim: int) -> Tensor:
    """sqrt(sum(v^2)) over all dimensions but dim, kept as size 1; dim -1: over all, a single number."""
    if dim != -1:
        v.size(dim)  # raises IndexError where v has no such dimension
    values = widen(v)
    squares = values * values
    total = squares.sum() if dim == -1 else squares.sum(all_dims_but(dim, v), keepdim=True)
    return total.sqrt().to(v.dtype)


@defines(aten._weight_norm_interface.default)
def weight_norm_forward(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """v * (g / norm) and norm, the norm over all dimensions but dim.

    dtype:   computes in float32 for a 16-bit v, and leaves norm so
    """
    values = widen(v)
    norm = norm_except_dim(values, dim % v.dim())
    return (values * (widen(g) / norm)).to(v.dtype), norm


@defines(aten._weight_norm_interface_backward.default)
def weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norm: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """With sums over all dimensions but dim:

    dg = sum(grad * v) / norm,   dv = g / norm * (grad - v * sum(grad * v) / norm^2)
    """
    gradient, values, norm = widen(grad), widen(v), widen(norm)
    projection = (gradient * values).sum(all_dims_but(dim, v), keepdim=True) / norm
    dv = widen(g) / norm * (gradient - values * (projection / norm))
    return dv.to(v.dtype), projection.to(g.dtype)


# ---- the function, and the hook that applies it -----------------------------------------------------------


def normalised_weight(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """g * v / norm(v), the norm over all dimensions but dim (-1: over all).

    Shape:   v: [*]   g: size of v along dim, else 1; a single number for dim -1   returns: same as v
    dtype:   computes in float32 for 16-bit inputs
    Source:  Salimans and Kingma, Weight normalization, 2016; aten/native/WeightNorm.cpp
    """
    if is_traced():
        return torch._weight_norm(v, g, dim)
    # where ATen rounds the norm, so that g / norm is 1 for a g set from it, it is rounded here
    is_rounded = torch.float16 in (v.dtype, g.dtype) or dim not in (0, v.dim() - 1)
    norm = widen(norm_except_dim(v if is_rounded else widen(v), dim))
    return (widen(v) * (widen(g) / norm)).to(v.dtype)


class WeightNorm(_TorchWeightNorm):
    """The forward pre-hook that sets a module's weight from its magnitude `_g` and direction `_v`."""

    name: str
    dim: int

    def __init__(self, name: str, dim: int) -> None:
        self.name = name
        self.dim = -1 if dim is None else dim

    def compute_weight(self, module: Module) -> Any:
        g = getattr(module, self.name + "_g")
        v = getattr(module, self.name + "_v")
        return normalised_weight(v, g, self.dim)

    @staticmethod
    @deprecated(
        "`torch.nn.utils.weight_norm` is deprecated in favor of `torch.nn.utils.parametrizations.weight_norm`.",
        category=FutureWarning,
    )
    def apply(module: Module, name: str, dim: int) -> "WeightNorm":
        """Replace the parameter by `_g` and `_v`, and register the hook."""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _TorchWeightNorm) and hook.name == name:
                raise RuntimeError(f"Cannot register two weight_norm hooks on the same parameter {name}")
        hook = WeightNorm(name, dim)
        weight = getattr(module, name)
        if isinstance(weight, UninitializedParameter):
            raise ValueError(
                "The module passed to `WeightNorm` can't have uninitialized parameters. "
                "Make sure to run the dummy forward before applying weight normalization"
            )
        del module._parameters[name]
        with torch.no_grad():
            module.register_parameter(name + "_g", Parameter(norm_except_dim(weight, hook.dim)))
        module.register_parameter(name + "_v", Parameter(weight.data))
        setattr(module, name, hook.compute_weight(module))
        module.register_forward_pre_hook(hook)
        return hook

    def remove(self, module: Module) -> None:
        """Make the weight a parameter again."""
        weight = self.compute_weight(module)
        delattr(module, self.name)
        del module._parameters[self.name + "_g"]
        del module._parameters[self.name + "_v"]
        setattr(module, self.name, Parameter(weight.data))

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self.name, self.compute_weight(module))


T_module = TypeVar("T_module", bound=Module)


def weight_norm(module: T_module, name: str = "weight", dim: int = 0) -> T_module:
    """Replace a parameter by its magnitude `<name>_g` and direction `<name>_v`; weight = g * v / norm(v).

    Deprecated: `pynn.utils.parametrizations.weight_norm` does the same as a parametrization.

    Args:    name: of the parameter, default weight
             dim: the dimension that keeps a norm for each index, default 0; None: one norm of everything
    Shape:   <name>_v: as the weight
             <name>_g: the same with 1 in every dimension but dim, or [] for dim None
    Returns: the module, whose weight is recomputed before every forward
    dtype:   floating point; computes in float32 for 16-bit weights
    Raises:  RuntimeError when name has one already; ValueError for an uninitialized parameter; AttributeError
             when module has no such parameter; IndexError when the weight has no such dimension
    Source:  Salimans and Kingma, Weight normalization, 2016; aten/native/WeightNorm.cpp
    """
    WeightNorm.apply(module, name, dim)
    return module


def remove_weight_norm(module: T_module, name: str = "weight") -> T_module:
    """Undo weight_norm: the weight, as it is now, is a parameter again.

    Args:    name: of the parameter, default weight
    Shape:   <name>: as <name>_v   returns: module
    dtype:   that of <name>_v
    Raises:  ValueError when there is no such hook
    Source:  torch/nn/utils/weight_norm.py
    """
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, _TorchWeightNorm) and hook.name == name:
            hook.remove(module)
            del module._forward_pre_hooks[key]
            return module
    raise ValueError(f"weight_norm of '{name}' not found in {module}")
