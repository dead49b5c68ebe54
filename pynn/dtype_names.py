"""What ATen's messages call a dtype: Float, torch.FloatTensor or float."""

import torch
from torch import Tensor

NAMED_BY_TENSOR = frozenset(
    {
        torch.float16,
        torch.float32,
        torch.float64,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    }
)

CPP_NAMES = {
    torch.float32: "float", torch.float64: "double", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half",
    torch.int64: "long int", torch.int32: "int", torch.int16: "short int", torch.int8: "signed char",
    torch.uint8: "unsigned char", torch.bool: "bool", torch.complex64: "c10::complex<float>",
    torch.complex128: "c10::complex<double>",
}  # fmt: skip


def type_name(x: Tensor) -> str:
    """Float for torch.FloatTensor: what ATen's messages call the dtype."""
    return x.type().rpartition(".")[2].removesuffix("Tensor")


def full_type_name(x: Tensor) -> str:
    """torch.FloatTensor for float32, CPUBoolType for bool: what was a type of tensor once, and what was not."""
    name = type_name(x)
    return f"torch.{name}Tensor" if x.dtype in NAMED_BY_TENSOR else f"CPU{name}Type"


def cpp_name(dtype: torch.dtype) -> str:
    """float for float32: the type in C++."""
    return CPP_NAMES.get(dtype, str(dtype))
