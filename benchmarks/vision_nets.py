"""Three convolutional networks, each written once and built from either torch.nn or pynn.

As `benchmarks/gpt.py`: `build_unet(nn, ...)` takes the namespace the layers come from, `import pynn as nn` or
torch.nn. With the same seed the two start from bit-equal parameters.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor


def conv_norm_relu(nn: ModuleType, channels: int, out_channels: int):
    """relu(batch_norm(conv 3x3)), the spatial size kept."""
    conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def build_vgg(nn: ModuleType, widths: Sequence[int], depths: Sequence[int], hidden: int, classes: int):
    """Build a VGG with batch norm: stages of 3x3 convolutions, each halved by max-pooling, then an MLP.

    Args:    widths, depths: channels and convolutions of each stage
             hidden: width of the classifier (the paper's 4096, over 7x7 places, is for 224 pixels)
    Shape:   forward: pixels [batch, 3, height, width] -> logits [batch, classes]
    Source:  Simonyan & Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition";
             without its dropout, so that every contender computes the same
    """
    layers: list = []
    channels = 3
    for width, depth in zip(widths, depths, strict=True):
        for _ in range(depth):
            layers.append(conv_norm_relu(nn, channels, width))
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *head, nn.Linear(hidden, classes))


def build_unet(nn: ModuleType, widths: Sequence[int], classes: int):
    """Build a U-Net: a pyramid down, a pyramid up by transposed convolutions, and skips at every size.

    Args:    widths: channels of each level, finest first
    Shape:   forward: pixels [batch, 3, height, width] -> logits [batch, classes, height, width];
             height and width are multiples of 2 ** (levels - 1)
    Source:  Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation"; padded,
             and with batch norm
    """

    def double(channels: int, out_channels: int):
        first = conv_norm_relu(nn, channels, out_channels)
        return nn.Sequential(first, conv_norm_relu(nn, out_channels, out_channels))

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            pairs = list(zip(widths, widths[1:]))
            self.stem = double(3, widths[0])
            self.pool = nn.MaxPool2d(2)
            self.down = nn.ModuleList(double(fine, coarse) for fine, coarse in pairs)
            self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
            self.merge = nn.ModuleList(double(2 * fine, fine) for fine, _ in pairs)
            self.head = nn.Conv2d(widths[0], classes, 1)

        def forward(self, x: Tensor) -> Tensor:
            skips = [self.stem(x)]
            for block in self.down:
                skips.append(block(self.pool(skips[-1])))
            x = skips.pop()
            for up, merge in zip(reversed(self.up), reversed(self.merge)):
                x = merge(torch.cat([skips.pop(), up(x)], dim=1))
            return self.head(x)

    return UNet()


def build_autoencoder(nn: ModuleType, widths: Sequence[int]):
    """Build a convolutional autoencoder: strided convolutions down, transposed ones with output padding up.

    Args:    widths: channels of each level, finest first; each level halves the size
    Shape:   forward: pixels [batch, 3, height, width] -> the same; height and width are multiples of 2 ** levels
    """
    channels = [3, *widths]
    encoder: list = []
    for fine, coarse in zip(channels, channels[1:]):
        encoder += [nn.Conv2d(fine, coarse, 3, stride=2, padding=1), nn.LeakyReLU(0.1)]
    decoder: list = []
    for fine, coarse in reversed(list(zip(channels, channels[1:]))):
        up = nn.ConvTranspose2d(coarse, fine, 3, stride=2, padding=1, output_padding=1)
        decoder += [up, nn.LeakyReLU(0.1)]
    return nn.Sequential(*encoder, *decoder[:-1], nn.Sigmoid())
