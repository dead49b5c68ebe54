"""The convolutional networks that must run unmodified: builders shared by the tests (tiny) and the benchmarks.

Those of `transformers` come with random weights and know nothing of pynn; the U-Net, the VGG and the autoencoder
(`vision_nets.py`) are built from the namespace asked for. Dropout and stochastic depth are off, so that every
contender computes the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import Batch, Workload, model_loss, without_labels
from benchmarks.vision_nets import build_autoencoder, build_unet, build_vgg

CLASSES = 10


@dataclass(frozen=True)
class Size:
    """How large: the architecture's own channel counts divided by `shrink`, at most `blocks` blocks a stage.

    image: height and width in pixels, a multiple of 32
    """

    image: int
    shrink: int = 1
    blocks: int = 100

    def widths(self, *channels: int) -> list[int]:
        return [max(8, count // self.shrink) for count in channels]

    def depths(self, *counts: int) -> list[int]:
        return [min(count, self.blocks) for count in counts]


TINY = Size(image=64, shrink=8, blocks=1)
BENCH = Size(image=96)


def pixels(size: Size, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size.image, size.image, generator=generator)


def draw_classes(size: Size) -> Callable[[int, int, int], Batch]:
    """Images with one label each. (A workload's draw takes a sequence length too; images have none.)"""

    def draw(batch: int, seq: int, seed: int) -> Batch:
        labels = torch.randint(CLASSES, (batch,), generator=torch.Generator().manual_seed(seed + 1))
        return {"pixel_values": pixels(size, batch, seed), "labels": labels}

    return draw


def draw_masks(size: Size) -> Callable[[int, int, int], Batch]:
    """Images with one label a pixel."""

    def draw(batch: int, seq: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed + 1)
        labels = torch.randint(CLASSES, (batch, size.image, size.image), generator=generator)
        return {"pixel_values": pixels(size, batch, seed), "labels": labels}

    return draw


def classifier(name: str, model: torch.nn.Module, size: Size) -> Workload:
    """A model of `transformers` that computes its own loss.

    Its first call would otherwise work the kind of problem out and note it, and the second compile again.
    """
    model.config.problem_type = "single_label_classification"  # pyright: ignore
    return Workload(name, model, draw_classes(size), model_loss, without_labels)


def resnet18(size: Size, nn: ModuleType) -> Workload:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=size.widths(64)[0], hidden_sizes=size.widths(64, 128, 256, 512),
        depths=size.depths(2, 2, 2, 2), layer_type="basic", num_labels=CLASSES,
    )  # fmt: skip
    return classifier("resnet18", ResNetForImageClassification(config), size)


def resnet50(size: Size, nn: ModuleType) -> Workload:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=size.widths(64)[0], hidden_sizes=size.widths(256, 512, 1024, 2048),
        depths=size.depths(3, 4, 6, 3), layer_type="bottleneck", num_labels=CLASSES,
    )  # fmt: skip
    return classifier("resnet50", ResNetForImageClassification(config), size)


def convnext(size: Size, nn: ModuleType) -> Workload:
    """ConvNeXt-atto's sizes."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        hidden_sizes=size.widths(40, 80, 160, 320), depths=size.depths(2, 2, 6, 2), drop_path_rate=0.0,
        layer_scale_init_value=0.5, num_labels=CLASSES,
    )  # fmt: skip
    return classifier("convnext", ConvNextForImageClassification(config), size)


def mobilenet_v2(size: Size, nn: ModuleType) -> Workload:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(
        image_size=size.image, depth_multiplier=1.0 if size.shrink == 1 else 0.25, finegrained_output=size.shrink == 1,
        classifier_dropout_prob=0.0, num_labels=CLASSES,
    )  # fmt: skip
    return classifier("mobilenet_v2", MobileNetV2ForImageClassification(config), size)


def efficientnet(size: Size, nn: ModuleType) -> Workload:
    """EfficientNet-B0's sizes (the default configuration is B7's); cut down, its first four stages."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    stages = 7 if size.shrink == 1 else 4
    config = EfficientNetConfig(
        image_size=size.image, width_coefficient=1.0 if size.shrink == 1 else 0.25, depth_coefficient=1.0,
        in_channels=[32, 16, 24, 40, 80, 112, 192][:stages], out_channels=[16, 24, 40, 80, 112, 192, 320][:stages],
        strides=[1, 2, 2, 2, 1, 2, 1][:stages], kernel_sizes=[3, 3, 5, 3, 5, 5, 3][:stages],
        expand_ratios=[1, 6, 6, 6, 6, 6, 6][:stages], num_block_repeats=size.depths(1, 2, 2, 3, 3, 4, 1)[:stages],
        hidden_dim=1280 if size.shrink == 1 else 320, dropout_rate=0.0, drop_connect_rate=0.0, num_labels=CLASSES,
    )  # fmt: skip
    return classifier("efficientnet", EfficientNetForImageClassification(config), size)


def regnet(size: Size, nn: ModuleType) -> Workload:
    """RegNetY-400MF's sizes: groups of 8 channels."""
    from transformers import RegNetConfig, RegNetForImageClassification

    widths = [48, 104, 208, 440] if size.shrink == 1 else [16, 24, 32, 40]
    config = RegNetConfig(
        embedding_size=32 if size.shrink == 1 else 8, hidden_sizes=widths, depths=size.depths(1, 3, 6, 6),
        groups_width=8, layer_type="y", num_labels=CLASSES,
    )  # fmt: skip
    return classifier("regnet", RegNetForImageClassification(config), size)


def swin(size: Size, nn: ModuleType) -> Workload:
    """Swin-Tiny's channels and heads, two blocks a stage (one shifted); the last stage is one window, as at 224."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=size.image, window_size=size.image // 32, embed_dim=96 // size.shrink, depths=[2, 2, 2, 2],
        num_heads=[3, 6, 12, 24], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0,
        num_labels=CLASSES,
    )  # fmt: skip
    return classifier("swin", SwinForImageClassification(config), size)


def segformer(size: Size, nn: ModuleType) -> Workload:
    """SegFormer-B0 with its segmentation head: the loss upsamples the logits."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        hidden_sizes=size.widths(32, 64, 160, 256), depths=size.depths(2, 2, 2, 2), num_labels=CLASSES,
        decoder_hidden_size=size.widths(256)[0], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():  # transformers hooks its layers in the first call, which would break the graph
        model.eval()(pixels(size, 1, 0))
    model.train()
    return Workload("segformer", model, draw_masks(size), model_loss, without_labels)


def infer_pixels(model: torch.nn.Module, batch: Batch) -> Tensor:
    return model(batch["pixel_values"])


def cross_entropy(model: torch.nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(infer_pixels(model, batch), batch["labels"])


def reconstruction_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(infer_pixels(model, batch), batch["pixel_values"].sigmoid())


def vgg(size: Size, nn: ModuleType) -> Workload:
    """VGG-11's convolutions."""
    widths, hidden = size.widths(64, 128, 256, 512, 512), size.widths(512)[0]
    model = build_vgg(nn, widths, size.depths(1, 1, 2, 2, 2), hidden, CLASSES)
    return Workload("vgg", model, draw_classes(size), cross_entropy, infer_pixels)


def unet(size: Size, nn: ModuleType) -> Workload:
    model = build_unet(nn, size.widths(32, 64, 128, 256), CLASSES)
    return Workload("unet", model, draw_masks(size), cross_entropy, infer_pixels)


def autoencoder(size: Size, nn: ModuleType) -> Workload:
    model = build_autoencoder(nn, size.widths(32, 64, 128, 256))
    return Workload("autoencoder", model, draw_classes(size), reconstruction_loss, infer_pixels)


TRANSFORMERS = (resnet18, resnet50, convnext, mobilenet_v2, efficientnet, regnet, swin, segformer)
OWN = (vgg, unet, autoencoder)
BUILDERS: dict[str, Callable[[Size, ModuleType], Workload]] = {
    make.__name__: make for make in TRANSFORMERS + OWN
}


def build(name: str, size: Size, nn: ModuleType = torch.nn, seed: int = 0) -> Workload:
    """Build a workload with seeded weights; `nn` (torch.nn or pynn) is for the networks written here.

    Raises:  KeyError for a name not in BUILDERS
    """
    torch.manual_seed(seed)
    return BUILDERS[name](size, nn)


def build_for(contender: str, name: str, size: Size) -> Workload:
    """The workload as a contender of the benchmarks has it: only pynn's own is written with pynn."""
    import pynn

    return build(name, size, pynn if contender == "pynn" else torch.nn)
