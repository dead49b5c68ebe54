"""The mathematics library: every function kernels may call, for float32 and float64, scalar and vector."""

from compiler_bridge.cpu.mathlib_error import erf, erfc, erfinv
from compiler_bridge.cpu.mathlib_exponential import exp, exp2, expm1, sigmoid
from compiler_bridge.cpu.mathlib_hyperbolic import acosh, asinh, atanh, cosh, sinh, tanh
from compiler_bridge.cpu.mathlib_inverse_trigonometric import acos, asin, atan, atan2
from compiler_bridge.cpu.mathlib_logarithm import log, log1p, log2, log10
from compiler_bridge.cpu.mathlib_power import pow, rsqrt
from compiler_bridge.cpu.mathlib_trigonometric import cos, sin, tan

__all__ = [
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh", "erf", "erfc", "erfinv", "exp",
    "exp2", "expm1", "log", "log1p", "log2", "log10", "pow", "rsqrt", "sigmoid", "sin", "sinh", "tan", "tanh",
]  # fmt: skip
