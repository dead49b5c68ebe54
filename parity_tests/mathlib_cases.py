"""The rows of test_mathlib: each function, its reference, where it is defined, the ulp it promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np
import torch


class MathCase(NamedTuple):
    """One math word: float64 reference on tensors, mpmath reference, promised error in ulp per dtype."""

    name: str
    reference: Callable[..., Any]
    exact: Callable[..., Any]
    ulp_float32: float
    ulp_float64: float
    low: float = -np.inf
    high: float = np.inf


def _reciprocal_root(x: Any) -> Any:
    return 1 / mp.sqrt(x)


def _erfc(x: Any) -> Any:
    """mpmath's, which fails on huge arguments."""
    return mp.erfc(x) if abs(x) < 40 else mp.mpf(0 if x > 0 else 2)


CASES = (
    MathCase("exp", torch.exp, mp.exp, 1.0, 1.0),
    MathCase("exp2", torch.exp2, lambda x: mp.mpf(2) ** x, 1.0, 1.0),
    MathCase("expm1", torch.expm1, mp.expm1, 2.0, 2.0),
    MathCase("sigmoid", torch.sigmoid, lambda x: 1 / (1 + mp.exp(-x)), 2.5, 2.5),
    MathCase("log", torch.log, mp.log, 1.0, 1.0, low=0.0),
    MathCase("log1p", torch.log1p, mp.log1p, 2.0, 2.0, low=-1.0),
    MathCase("log2", torch.log2, lambda x: mp.log(x, 2), 1.0, 1.0, low=0.0),
    MathCase("log10", torch.log10, mp.log10, 2.0, 2.0, low=0.0),
    MathCase("tanh", torch.tanh, mp.tanh, 2.0, 2.0),
    MathCase("sinh", torch.sinh, mp.sinh, 2.0, 2.0),
    MathCase("cosh", torch.cosh, mp.cosh, 2.0, 2.0),
    MathCase("asinh", torch.asinh, mp.asinh, 3.0, 3.0),
    MathCase("acosh", torch.acosh, mp.acosh, 3.0, 3.0, low=1.0),
    MathCase("atanh", torch.atanh, mp.atanh, 3.0, 3.0, low=-1.0, high=1.0),
    MathCase("atan", torch.atan, mp.atan, 2.0, 2.0),
    MathCase("asin", torch.asin, mp.asin, 2.5, 2.5, low=-1.0, high=1.0),
    MathCase("acos", torch.acos, mp.acos, 2.0, 2.0, low=-1.0, high=1.0),
    MathCase("erf", torch.erf, mp.erf, 2.0, 2.0),
    MathCase("erfc", torch.erfc, _erfc, 4.0, 4.0),
    MathCase("erfinv", torch.erfinv, mp.erfinv, 4.0, 4.0, low=-1.0, high=1.0),
    MathCase("sin", torch.sin, mp.sin, 1.5, 1.5),
    MathCase("cos", torch.cos, mp.cos, 1.5, 1.5),
    MathCase("tan", torch.tan, mp.tan, 3.0, 3.0),
    MathCase("rsqrt", torch.rsqrt, _reciprocal_root, 1.5, 1.5, low=0.0),
)


class BinaryCase(NamedTuple):
    """A math word of two arguments; `samples(count, limit)` draws argument pairs."""

    name: str
    reference: Callable[..., Any]
    exact: Callable[..., Any]
    ulp_float32: float
    ulp_float64: float
    samples: Callable[[int, float], tuple[np.ndarray, np.ndarray]]


def _power_samples(count: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """x near 1 and of all sizes, y such that |y log x| < limit."""
    random = np.random.default_rng(6)
    x = np.exp(random.uniform(-80, 80, count)).astype(np.float32).astype(np.float64)
    x[::2] = np.exp(random.uniform(-1, 1, (count + 1) // 2)).astype(np.float32)
    y = random.uniform(-limit, limit, count) / np.maximum(np.abs(np.log(x)), 1e-3)
    return x, y


def _plane_samples(count: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of all directions and sizes."""
    random = np.random.default_rng(7)
    y, x = (np.exp(random.uniform(-20, 20, count)) * random.choice([-1.0, 1.0], count) for _ in range(2))
    y[::2] = x[::2] * np.exp(random.uniform(-2, 2, (count + 1) // 2))
    return y, x


BINARY_CASES = (
    BinaryCase("pow", torch.pow, lambda x, y: x**y, 1.0, 2.0, _power_samples),
    BinaryCase("atan2", torch.atan2, mp.atan2, 3.0, 3.0, _plane_samples),
)
