"""What normalisations refuse, in torch's words."""

from typing import Any

import torch
from torch import Tensor

from pynn.definitions import require_no_gradient, type_name, widen


def require_several_values(size: Any) -> None:
    """One value per channel has no variance."""
    count = size[0]
    for extent in size[2:]:
        count = count * extent
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")


def check_parameter_dtypes(
    name: str, input: Tensor, *parameters: Tensor | None, takes_any_dtype: bool = False
) -> None:
    """All of input's dtype, or all float32 beside a 16-bit input. Raises as ATen's CPU kernels do."""
    given = [p for p in parameters if p is not None]
    if given and given[0].dtype != input.dtype:
        if any(p.dtype != torch.float32 for p in given):
            raise RuntimeError("mixed dtype (CPU): expect parameter to have scalar type of Float")
        if widen(input).dtype == input.dtype:
            raise RuntimeError("mixed dtype (CPU): all inputs must share same datatype.")
    if not (input.is_floating_point() or takes_any_dtype):
        raise NotImplementedError(f"\"{name}\" not implemented for '{type_name(input)}'")
    for p in given[1:]:
        if p.dtype != given[0].dtype:
            raise RuntimeError(f"expected scalar type {type_name(given[0])} but found {type_name(p)}")


def check_statistics(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool
) -> None:
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    require_no_gradient("native_batch_norm", running_mean=running_mean, running_var=running_var)
    for value in (running_mean, running_var):
        if value is not None and training and _is_batched(input) and not _is_batched(value):
            raise RuntimeError(
                "Batch norm got a batched tensor as input while the running_mean or running_var, which will be "
                "updated in place, were not batched.\nIf you are using a module and do not need eval mode, "
                "please set `track_running_stats` to be False.If you are using a prebuilt module and do not "
                "need eval mode, please see the functorch website for resources on how to patch your module to "
                "work with vmap"
            )


def _is_batched(x: Tensor) -> bool:
    """Whether vmap runs over x, be it outside of other transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False
