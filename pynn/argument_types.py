"""Numbers of the wrong type: refused in the words of torch's argument parser, before arithmetic fails on them."""

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from pynn.dtype_names import cpp_name


def is_number_like(value: Any) -> bool:
    """Whether a tensor stands for a number, as far as the parser looks: one without dimensions or gradient."""
    return isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad


def is_int(value: Any) -> bool:
    """What the parser takes for an int: tensors of one integer too, but no bool."""
    return is_size(value) and not (isinstance(value, Tensor) and value.dtype == torch.bool)


def is_size(value: Any) -> bool:
    """What it takes for an int that may be symbolic: tensors of one bool too."""
    if isinstance(value, Tensor):
        return is_number_like(value) and not (value.is_floating_point() or value.is_complex())
    return isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)


def is_float(value: Any) -> bool:
    """Integers and bools will do, and tensors of one number."""
    return isinstance(value, (Real, torch.SymInt, torch.SymFloat)) or is_number_like(value)


def is_bool(value: Any) -> bool:
    return isinstance(value, (bool, torch.SymBool))


def is_ints(value: Any) -> bool:
    """As far as the parser looks at once: bools will do from the second element on."""
    if not isinstance(value, (tuple, list)):
        return False
    for i, x in enumerate(value):
        if type(x) is not int and not is_size(x) and not (i > 0 and isinstance(x, bool)):
            return False
    return True


def require_range(value: Any, dtype: torch.dtype) -> None:
    """Raise what C++ raises when it turns a number, complex or too large, into that dtype."""
    is_outside = isinstance(value, complex)
    if isinstance(value, (float, int)):
        is_outside = torch.finfo(dtype).max < abs(value) < torch.inf
    if is_outside:
        raise RuntimeError(f"value cannot be converted to type {cpp_name(dtype)} without overflow")


KINDS = {
    **dict.fromkeys(
        ("Double", "Number", "Value"), lambda value: is_float(value) or isinstance(value, complex)
    ),
    "Tensor": lambda value: isinstance(value, Tensor),
    "bool": is_bool,
    "dtype": lambda value: isinstance(value, torch.dtype),
    "float": is_float,
    "int": is_int,
    "ints": is_ints,
    "pair": lambda value: is_ints(_pair(value)),
    "size": is_size,
    "sizes": lambda value: is_size(value) or is_ints(value),
    "str": lambda value: isinstance(value, str),
}
"""Whether the parser takes a value, by the kind's name in `pynn.argument_kinds`."""

NAMES = {
    "size": "int",
    "ints": "tuple of ints",
    "sizes": "tuple of ints",
    "dtype": "torch.dtype",
    "Double": "Number",
    "Value": "Number",
}


def require_int(function: str, position: int, name: str, value: Any) -> None:
    """Raises: TypeError"""
    if not is_int(value):
        refuse(function, position, name, "int", value)


def require_float(function: str, position: int, name: str, value: Any) -> None:
    """Raises: TypeError"""
    if not is_float(value):
        refuse(function, position, name, "float", value)


def require_tensor(function: str, position: int, name: str, value: Any) -> None:
    """Raises: TypeError"""
    if not isinstance(value, Tensor):
        refuse(function, position, name, "Tensor", value)


def require_ints(function: str, **named: Any) -> None:
    """Each an int or a list of them, the first at position 2. Raises: TypeError"""
    for position, (name, value) in enumerate(named.items(), start=2):
        if not KINDS["sizes"](value):
            refuse(function, position, name, "sizes", value)


def refuse_elements(function: str, position: int | None, name: str, value: Any) -> None:
    """The words for a list or tuple that is not of ints."""
    if value and not is_size(value[0]):
        kind = name_of_type(value[0])
        if position is None:
            _refuse_type(function, position, name, "ints", value)
        raise TypeError(
            f"{function}(): argument '{name}' (position {position}) must be tuple of ints, but found element of type "
            f"{kind} at pos 0"
        )
    for number, element in enumerate(value, start=1):
        if not (is_size(element) or isinstance(element, bool)):
            raise TypeError(
                f"{function}(): argument '{name}' failed to unpack the object at pos {number} with error "
                f'"type must be tuple of ints,but got {name_of_type(element)}"'
            )


def refuse(function: str, position: int | None, name: str, kind: str, value: Any) -> None:
    """Raise the parser's TypeError for a value that is not of that kind."""
    if kind == "pair":
        kind, value = "ints", _pair(value)
    if NAMES.get(kind) == "tuple of ints" and isinstance(value, (tuple, list)):
        refuse_elements(function, position, name, value)
    _refuse_type(function, position, name, kind, value)


def name_of_type(value: Any) -> str:
    """As C knows it: torch.dtype and numpy.ndarray with their modules, Tensor and what else is of Python without."""
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)):
        return f"torch.{type(value).__name__}"
    return "numpy." * (type(value).__module__ == "numpy") + type(value).__name__


def _refuse_type(function: str, position: int | None, name: str, kind: str, value: Any) -> None:
    place, got = "" if position is None else f" (position {position})", name_of_type(value)
    raise TypeError(f"{function}(): argument '{name}'{place} must be {NAMES.get(kind, kind)}, not {got}")
