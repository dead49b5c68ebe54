"""Numbers of the wrong type: refused in the words of torch's argument parser, before arithmetic fails on them."""

from typing import Any

import torch
from torch import Tensor


def is_int(value: Any) -> bool:
    """What the parser takes for an int: tensors of one integer too, but no bool."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not (value.is_floating_point() or value.is_complex())
    return hasattr(value, "__index__") and not isinstance(value, bool)


def require_int(function: str, position: int, name: str, value: Any) -> None:
    """Raises: TypeError"""
    if not is_int(value):
        _refuse(function, position, name, "int", value)


def require_float(function: str, position: int, name: str, value: Any) -> None:
    """Integers and bools will do. Raises: TypeError"""
    if not isinstance(value, (int, float, Tensor, torch.SymInt, torch.SymFloat)) and not hasattr(
        value, "__float__"
    ):
        _refuse(function, position, name, "float", value)


def require_tensor(function: str, position: int, name: str, value: Any) -> None:
    """Raises: TypeError"""
    if not isinstance(value, Tensor):
        _refuse(function, position, name, "Tensor", value)


def require_ints(function: str, **named: Any) -> None:
    """Each an int or a list of them, the first at position 2. Raises: TypeError"""
    for position, (name, value) in enumerate(named.items(), start=2):
        if not isinstance(value, (tuple, list)):
            if not is_int(value):
                _refuse(function, position, name, "tuple of ints", value)
            continue
        if value and not is_int(value[0]):
            kind = type(value[0]).__name__
            raise TypeError(
                f"{function}(): argument '{name}' (position {position}) must be tuple of ints, but found element of "
                f"type {kind} at pos 0"
            )
        for number, element in enumerate(value, start=1):  # the parser takes bools from the second on
            if not (is_int(element) or isinstance(element, bool)):
                raise TypeError(
                    f"{function}(): argument '{name}' failed to unpack the object at pos {number} with error "
                    f'"type must be tuple of ints,but got {type(element).__name__}"'
                )


def _refuse(function: str, position: int, name: str, wanted: str, value: Any) -> None:
    got = type(value).__name__
    raise TypeError(f"{function}(): argument '{name}' (position {position}) must be {wanted}, not {got}")
