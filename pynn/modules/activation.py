"""Activation layers. The mathematics is in _rectifiers, _smooth_activations and _softmax, by kind."""

import warnings

import torch
from torch import Tensor
from torch.nn import Parameter

from pynn.construction import init_module
from pynn.modules import _rectifiers, _smooth_activations, _softmax
from pynn.modules._rectifiers import *  # noqa: F403
from pynn.modules._smooth_activations import *  # noqa: F403
from pynn.modules._softmax import *  # noqa: F403
from pynn.torch_version import SINCE_2_14

__all__ = [
    *_rectifiers.__all__,
    *_smooth_activations.__all__,
    *_softmax.__all__,
    "Threshold",
    "ReLU",
    "RReLU",
    "Hardtanh",
    "ReLU6",
    "Sigmoid",
    "Hardsigmoid",
    "Tanh",
    "SiLU",
    "Mish",
    "Hardswish",
    "ELU",
    "CELU",
    "SELU",
    "GLU",
    "GELU",
    "Hardshrink",
    "LeakyReLU",
    "LogSigmoid",
    "Softplus",
    "Softshrink",
    "PReLU",
    "Softsign",
    "Tanhshrink",
    "Softmin",
    "Softmax",
    "Softmax2d",
    "LogSoftmax",
]


def _inplace_suffix(inplace: bool) -> str:
    return ", inplace=True" if inplace else ""


class Threshold(torch.nn.Threshold):
    """out = x where x > threshold, else value.

    Args:    threshold: what an element must exceed to stay; value: what the others become
             inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `threshold`
    """

    __constants__ = ["threshold", "value", "inplace"]

    def __init__(self, threshold: float, value: float, inplace: bool = False) -> None:
        init_module(Threshold, self)
        self.threshold = threshold
        self.value = value
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.threshold(input, self.threshold, self.value, self.inplace)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, value={self.value}{_inplace_suffix(self.inplace)}"


class ReLU(torch.nn.ReLU):
    """out = max(x, 0).

    Args:    inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `relu`
    """

    __constants__ = ["inplace"]

    def __init__(self, inplace: bool = False) -> None:
        init_module(ReLU, self)
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.relu(input, self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class RReLU(torch.nn.RReLU):
    """out = x where x > 0, else slope * x; slope ~ uniform [lower, upper) in training, else their middle.

    Args:    lower, upper: bounds of the slope, default 1/8 and 1/3; inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `rrelu`
    """

    __constants__ = ["lower", "upper", "inplace"]

    def __init__(self, lower: float = 1.0 / 8, upper: float = 1.0 / 3, inplace: bool = False) -> None:
        init_module(RReLU, self)
        self.lower = lower
        self.upper = upper
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.rrelu(input, self.lower, self.upper, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"lower={self.lower}, upper={self.upper}{_inplace_suffix(self.inplace)}"


class Hardtanh(torch.nn.Hardtanh):
    """out = min(max(x, min_val), max_val).

    Args:    min_val, max_val: the bounds, default -1 and 1; min_value, max_value: their deprecated names
             inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Raises:  AssertionError unless min_val < max_val
    Source:  see `hardtanh`
    """

    __constants__ = ["min_val", "max_val", "inplace"]

    def __init__(
        self,
        min_val: float = -1.0,
        max_val: float = 1.0,
        inplace: bool = False,
        min_value: float | None = None,
        max_value: float | None = None,
    ) -> None:
        init_module(Hardtanh, self)
        if min_value is not None:
            _warn_renamed("min_value", "min_val")
            min_val = min_value
        if max_value is not None:
            _warn_renamed("max_value", "max_val")
            max_val = max_value
        self.min_val = min_val
        self.max_val = max_val
        self.inplace = inplace
        if self.max_val <= self.min_val:
            raise AssertionError(f"max_val ({self.max_val}) must be greater than min_val ({self.min_val})")

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.hardtanh(input, self.min_val, self.max_val, self.inplace)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}{_inplace_suffix(self.inplace)}"


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(
        f"keyword argument `{old}` is deprecated and renamed to `{new}`", FutureWarning, stacklevel=3
    )


class ReLU6(Hardtanh, torch.nn.ReLU6):
    """out = min(max(x, 0), 6).

    Args:    inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `relu6`
    """

    def __init__(self, inplace: bool = False) -> None:
        Hardtanh.__init__(self, 0.0, 6.0, inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class Sigmoid(torch.nn.Sigmoid):
    """out = 1 / (1 + exp(-x)).

    Shape:   x: [*]   returns: same as x
    Source:  see `sigmoid`
    """

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.sigmoid(input)


class Hardsigmoid(torch.nn.Hardsigmoid):
    """out = min(max(x + 3, 0), 6) / 6.

    Args:    inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `hardsigmoid`
    """

    __constants__ = ["inplace"]

    def __init__(self, inplace: bool = False) -> None:
        init_module(Hardsigmoid, self)
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.hardsigmoid(input, self.inplace)


class Tanh(torch.nn.Tanh):
    """out = tanh(x).

    Shape:   x: [*]   returns: same as x
    Source:  see `tanh`
    """

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.tanh(input)


class SiLU(torch.nn.SiLU):
    """out = x * sigmoid(x).

    Args:    inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `silu`
    """

    __constants__ = ["inplace"]

    def __init__(self, inplace: bool = False) -> None:
        init_module(SiLU, self)
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.silu(input, self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class Mish(torch.nn.Mish):
    """out = x * tanh(softplus(x)).

    Args:    inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `mish`
    """

    __constants__ = ["inplace"]

    def __init__(self, inplace: bool = False) -> None:
        init_module(Mish, self)
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.mish(input, self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class Hardswish(torch.nn.Hardswish):
    """out = x * min(max(x + 3, 0), 6) / 6.

    Args:    inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `hardswish`
    """

    __constants__ = ["inplace"]

    def __init__(self, inplace: bool = False) -> None:
        init_module(Hardswish, self)
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.hardswish(input, self.inplace)


class ELU(torch.nn.ELU):
    """out = x where x > 0, else alpha * (exp(x) - 1).

    Args:    alpha: the limit is -alpha, default 1; inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `elu`
    """

    __constants__ = ["alpha", "inplace"]

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        init_module(ELU, self)
        self.alpha = alpha
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.elu(input, self.alpha, self.inplace)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}{_inplace_suffix(self.inplace)}"


class CELU(torch.nn.CELU):
    """out = max(x, 0) + min(0, alpha * (exp(x / alpha) - 1)).

    Args:    alpha: the limit is -alpha, default 1; inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `celu`
    """

    __constants__ = ["alpha", "inplace"]

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        init_module(CELU, self)
        self.alpha = alpha
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.celu(input, self.alpha, self.inplace)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}{_inplace_suffix(self.inplace)}"


class SELU(torch.nn.SELU):
    """out = scale * ELU(x, alpha) with the constants that keep mean 0 and variance 1.

    Args:    inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `selu`
    """

    __constants__ = ["inplace"]

    def __init__(self, inplace: bool = False) -> None:
        init_module(SELU, self)
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.selu(input, self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class GLU(torch.nn.GLU):
    """out = value * sigmoid(gate), the halves of x along dim.

    Args:    dim: the dimension to halve, default the last
    Shape:   x: [*, 2 * size, *]   returns: [*, size, *]
    Raises:  RuntimeError when dim is of odd size
    Source:  see `glu`
    """

    __constants__ = ["dim"]

    def __init__(self, dim: int = -1) -> None:
        init_module(GLU, self)
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.glu(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class GELU(torch.nn.GELU):
    """out = x * P(N <= x) for a standard normal N, exactly or approximated by tanh.

    Args:    approximate: "none" (default) or "tanh"
    Shape:   x: [*]   returns: same as x
    Source:  see `gelu`
    """

    __constants__ = ["approximate"]

    def __init__(self, approximate: str = "none") -> None:
        init_module(GELU, self)
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.gelu(input, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Hardshrink(torch.nn.Hardshrink):
    """out = 0 where |x| <= lambd, else x.

    Args:    lambd: the largest magnitude that becomes 0, default 0.5
    Shape:   x: [*]   returns: same as x
    Source:  see `hardshrink`
    """

    __constants__ = ["lambd"]

    def __init__(self, lambd: float = 0.5) -> None:
        init_module(Hardshrink, self)
        self.lambd = lambd

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.hardshrink(input, self.lambd)

    def extra_repr(self) -> str:
        return f"{self.lambd}"


class LeakyReLU(torch.nn.LeakyReLU):
    """out = x where x > 0, else negative_slope * x.

    Args:    negative_slope: default 0.01; inplace: overwrite x (default False)
    Shape:   x: [*]   returns: same as x
    Source:  see `leaky_relu`
    """

    __constants__ = ["inplace", "negative_slope"]

    def __init__(self, negative_slope: float = 1e-2, inplace: bool = False) -> None:
        init_module(LeakyReLU, self)
        self.negative_slope = negative_slope
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.leaky_relu(input, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}{_inplace_suffix(self.inplace)}"


class LogSigmoid(torch.nn.LogSigmoid):
    """out = log(sigmoid(x)).

    Shape:   x: [*]   returns: same as x
    Source:  see `logsigmoid`
    """

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.logsigmoid(input)


class Softplus(torch.nn.Softplus):
    """out = log(1 + exp(beta * x)) / beta, x itself where beta * x > threshold.

    Args:    beta: steepness, default 1; threshold: above it the result is linear, default 20
    Shape:   x: [*]   returns: same as x
    Source:  see `softplus`
    """

    __constants__ = ["beta", "threshold"]

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        init_module(Softplus, self)
        self.beta = beta
        self.threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class Softshrink(torch.nn.Softshrink):
    """out = x moved towards 0 by lambd, 0 where |x| <= lambd.

    Args:    lambd: how far elements move towards 0, not negative, default 0.5
    Shape:   x: [*]   returns: same as x
    Source:  see `softshrink`
    """

    __constants__ = ["lambd"]

    def __init__(self, lambd: float = 0.5) -> None:
        init_module(Softshrink, self)
        self.lambd = lambd

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.softshrink(input, self.lambd)

    def extra_repr(self) -> str:
        return str(self.lambd)


class PReLU(torch.nn.PReLU):
    """out = x where x > 0, else weight * x, with one learned weight or one a channel.

    Args:    num_parameters: 1 (default), or as many as the channels; init: their first value, default 0.25
    Shape:   x: [batch, channels, *] or any when num_parameters is 1   returns: same as x
    Raises:  RuntimeError when the numbers differ
    Source:  see `prelu`
    """

    __constants__ = ["num_parameters"]

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device=None, dtype=None) -> None:
        self.num_parameters = num_parameters
        init_module(PReLU, self)
        self.init = init
        self.weight = Parameter(torch.empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every weight to `init`."""
        with torch.no_grad():
            self.weight.fill_(self.init)

    def forward(self, input: Tensor) -> Tensor:
        return _rectifiers.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class Softsign(torch.nn.Softsign):
    """out = x / (1 + |x|).

    Shape:   x: [*]   returns: same as x
    Source:  see `softsign`
    """

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.softsign(input)


class Tanhshrink(torch.nn.Tanhshrink):
    """out = x - tanh(x).

    Shape:   x: [*]   returns: same as x
    Source:  see `tanhshrink`
    """

    def forward(self, input: Tensor) -> Tensor:
        return _smooth_activations.tanhshrink(input)


class _AlongDim:
    """What Softmin, Softmax and LogSoftmax share: the dimension whose elements sum to 1."""

    __constants__ = ["dim"]
    dim: int | None

    def __init__(self, dim: int | None = None) -> None:
        is_integer = dim is None or (isinstance(dim, int) and not isinstance(dim, bool))
        if SINCE_2_14 and not (is_integer or isinstance(self, Softmin)):
            raise TypeError(f"dim must be an int or None, got {type(dim)}")
        init_module(_AlongDim, self)
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmin(_AlongDim, torch.nn.Softmin):
    """out = softmax(-x) along dim.

    Args:    dim: the dimension whose probabilities sum to 1
    Shape:   x: [*]   returns: same as x
    Source:  see `softmin`
    """

    def forward(self, input: Tensor) -> Tensor:
        return _softmax.softmin(input, self.dim, _stacklevel=6)


class Softmax(_AlongDim, torch.nn.Softmax):
    """out = exp(x) / sum(exp(x)) along dim.

    Args:    dim: the dimension whose probabilities sum to 1
    Shape:   x: [*]   returns: same as x
    Source:  see `softmax`
    """

    def forward(self, input: Tensor) -> Tensor:
        return _softmax.softmax(input, self.dim, _stacklevel=6)


class Softmax2d(torch.nn.Softmax2d):
    """Softmax over the channels of an image.

    Shape:   input: [batch, channels, height, width] or [channels, height, width]   returns: the same
    Raises:  ValueError for another number of dimensions
    Source:  see `softmax`
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.dim()}D instead")
        return _softmax.softmax(input, -3, _stacklevel=5)


class LogSoftmax(_AlongDim, torch.nn.LogSoftmax):
    """out = log(softmax(x)) along dim.

    Args:    dim: the dimension whose probabilities sum to 1
    Shape:   x: [*]   returns: same as x
    Source:  see `log_softmax`
    """

    def forward(self, input: Tensor) -> Tensor:
        return _softmax.log_softmax(input, self.dim, _stacklevel=6)
