"""Pooling layers: each window gives one number, its largest, its mean or its norm."""

import torch
from torch import Tensor

from pynn.modules._average_pooling_functions import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
)
from pynn.modules._max_pooling_functions import (
    adaptive_max_pool1d,
    adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d,
    adaptive_max_pool3d_with_indices,
    fractional_max_pool2d,
    fractional_max_pool2d_with_indices,
    fractional_max_pool3d,
    fractional_max_pool3d_with_indices,
    max_pool1d,
    max_pool1d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_pool3d,
    max_pool3d_with_indices,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "FractionalMaxPool2d",
    "FractionalMaxPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]


class MaxPool1d(torch.nn.MaxPool1d):
    """The largest element of each window.

    Args:    kernel_size, stride, padding, dilation, ceil_mode: as `max_pool1d`'s
             return_indices: also return where each maximum was, for MaxUnpool1d
    Shape:   x: [batch, channels, L] or without batch   returns: the last one as `max_pool1d`
    Source:  see `max_pool1d`
    """

    def forward(self, input: Tensor):
        return max_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """The largest element of each window.

    Args:    kernel_size, stride, padding, dilation, ceil_mode: as `max_pool2d`'s
             return_indices: also return where each maximum was, for MaxUnpool2d
    Shape:   x: [batch, channels, height, width] or without batch   returns: the last two as `max_pool2d`
    Source:  see `max_pool2d`
    """

    def forward(self, input: Tensor):
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxPool3d(torch.nn.MaxPool3d):
    """The largest element of each window.

    Args:    kernel_size, stride, padding, dilation, ceil_mode: as `max_pool3d`'s
             return_indices: also return where each maximum was, for MaxUnpool3d
    Shape:   x: [batch, channels, depth, height, width] or without batch
             returns: the last three as `max_pool3d`
    Source:  see `max_pool3d`
    """

    def forward(self, input: Tensor):
        return max_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxUnpool1d(torch.nn.MaxUnpool1d):
    """Put elements back where MaxPool1d took them from, 0 elsewhere.

    Args:    kernel_size, stride, padding: those of the MaxPool1d
    Shape:   x: [batch, channels, L] or without batch   returns: the last one as `max_unpool1d`
    Source:  see `max_unpool1d`
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """Put elements back where MaxPool2d took them from, 0 elsewhere.

    Args:    kernel_size, stride, padding: those of the MaxPool2d
    Shape:   x: [batch, channels, height, width] or without batch   returns: the last two as `max_unpool2d`
    Source:  see `max_unpool2d`
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool3d(torch.nn.MaxUnpool3d):
    """Put elements back where MaxPool3d took them from, 0 elsewhere.

    Args:    kernel_size, stride, padding: those of the MaxPool3d
    Shape:   x: [batch, channels, depth, height, width] or without batch
             returns: the last three as `max_unpool3d`
    Source:  see `max_unpool3d`
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class AvgPool1d(torch.nn.AvgPool1d):
    """The mean of each window.

    Args:    kernel_size, stride, padding, ceil_mode, count_include_pad: as `avg_pool1d`'s
    Shape:   x: [batch, channels, L] or without batch   returns: the last one as `avg_pool1d`
    Source:  see `avg_pool1d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """The mean of each window.

    Args:    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as `avg_pool2d`'s
    Shape:   x: [batch, channels, height, width] or without batch   returns: the last two as `avg_pool2d`
    Source:  see `avg_pool2d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AvgPool3d(torch.nn.AvgPool3d):
    """The mean of each window.

    Args:    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as `avg_pool3d`'s
    Shape:   x: [batch, channels, depth, height, width] or without batch
             returns: the last three as `avg_pool3d`
    Source:  see `avg_pool3d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class FractionalMaxPool2d(torch.nn.FractionalMaxPool2d):
    """The largest element of windows at random places.

    Args:    kernel_size, output_size, output_ratio: as `fractional_max_pool2d`'s
             return_indices: also return where each maximum was (default False)
    Shape:   x: [batch, channels, height, width] or without batch   returns: the last two output_size
    Raises:  ValueError unless exactly one of output_size and output_ratio is given, or for a ratio outside (0, 1)
    Source:  see `fractional_max_pool2d`
    """

    def forward(self, input: Tensor):
        return fractional_max_pool2d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )


class FractionalMaxPool3d(torch.nn.FractionalMaxPool3d):
    """The largest element of windows at random places.

    Args:    kernel_size, output_size, output_ratio: as `fractional_max_pool3d`'s
             return_indices: also return where each maximum was (default False)
    Shape:   x: [batch, channels, depth, height, width] or without batch   returns: the last three output_size
    Raises:  ValueError unless exactly one of output_size and output_ratio is given, or for a ratio outside (0, 1)
    Source:  see `fractional_max_pool3d`
    """

    def forward(self, input: Tensor):
        return fractional_max_pool3d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )


class LPPool1d(torch.nn.LPPool1d):
    """The p-norm of each window, p = norm_type.

    Args:    norm_type, kernel_size, stride, ceil_mode: as `lp_pool1d`'s
    Shape:   x: [batch, channels, L] or without batch   returns: the last one as `lp_pool1d`
    Source:  see `lp_pool1d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(torch.nn.LPPool2d):
    """The p-norm of each window, p = norm_type.

    Args:    norm_type, kernel_size, stride, ceil_mode: as `lp_pool2d`'s
    Shape:   x: [batch, channels, height, width] or without batch   returns: the last two as `lp_pool2d`
    Source:  see `lp_pool2d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(torch.nn.LPPool3d):
    """The p-norm of each window, p = norm_type.

    Args:    norm_type, kernel_size, stride, ceil_mode: as `lp_pool3d`'s
    Shape:   x: [batch, channels, depth, height, width] or without batch
             returns: the last three as `lp_pool3d`
    Source:  see `lp_pool3d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """The largest element of output_size windows that cover the input.

    Args:    output_size: how many windows
             return_indices: also return where each maximum was (default False)
    Shape:   x: [batch, channels, L] or without batch   returns: [batch, channels, output_size]
    Raises:  RuntimeError for an empty input or a negative size
    Source:  see `adaptive_max_pool1d`
    """

    def forward(self, input: Tensor):
        return adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """The largest element of output_size windows that cover the input.

    Args:    output_size: one number or two; None keeps the size
             return_indices: also return where each maximum was (default False)
    Shape:   x: [batch, channels, height, width] or without batch   returns: the last two output_size
    Source:  see `adaptive_max_pool2d`
    """

    def forward(self, input: Tensor):
        return adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """The largest element of output_size windows that cover the input.

    Args:    output_size: one number or three; None keeps the size
             return_indices: also return where each maximum was (default False)
    Shape:   x: [batch, channels, depth, height, width] or without batch   returns: the last three output_size
    Source:  see `adaptive_max_pool3d`
    """

    def forward(self, input: Tensor):
        return adaptive_max_pool3d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """The mean of output_size windows that cover the input.

    Args:    output_size: how many windows
    Shape:   x: [batch, channels, L] or without batch   returns: [batch, channels, output_size]
    Source:  see `adaptive_avg_pool1d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """The mean of output_size windows that cover the input.

    Args:    output_size: one number or two; None keeps the size
    Shape:   x: [batch, channels, height, width] or without batch   returns: the last two output_size
    Source:  see `adaptive_avg_pool2d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """The mean of output_size windows that cover the input.

    Args:    output_size: one number or three; None keeps the size
    Shape:   x: [batch, channels, depth, height, width] or without batch   returns: the last three output_size
    Source:  see `adaptive_avg_pool3d`
    """

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool3d(input, self.output_size)
