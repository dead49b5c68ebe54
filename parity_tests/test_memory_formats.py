"""Channels-last inputs: every result has torch's strides; and torch.use_deterministic_algorithms.

Each row is run with its 4- and 5-dimensional tensors laid out channels-last, in torch and in pynn.
"""

import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import pynn
from parity_tests.cases import Row, Sample, defined_rows, seed
from parity_tests.devices import DEVICES

pytestmark = pytest.mark.slow  # `make check` leaves the whole file to `make test`

ROWS = defined_rows()
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
# ATen's CUDA kernels give up the format (cuDNN's transposed convolution that of one image), its CPU kernels keep
# it: so does pynn on both.
CONTIGUOUS_ON_CUDA = frozenset(
    """
    functional.channel_shuffle functional.conv_transpose2d functional.conv_transpose2d.edges
    functional.group_norm.groups functional.max_unpool2d functional.max_unpool2d.grad functional.max_unpool2d.sizes
    functional.pad.reflect functional.pad.replicate functional.pad.replicate_negative functional.pixel_shuffle
    functional.pixel_unshuffle nn.ChannelShuffle nn.Conv2d.reflect nn.Conv2d.replicate nn.Conv3d.reflect
    nn.Conv3d.replicate nn.GroupNorm nn.MaxUnpool2d nn.PixelShuffle nn.PixelUnshuffle nn.ReflectionPad2d
    nn.ReflectionPad3d nn.ReplicationPad2d nn.ReplicationPad3d
    """.split()
)


def tensors_of(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def channels_last(sample: Sample) -> Sample:
    def laid_out(value):
        if not isinstance(value, torch.Tensor) or value.dim() not in FORMATS:
            return value
        moved = value.detach().clone(memory_format=FORMATS[value.dim()])
        return moved.requires_grad_(value.requires_grad)

    args, kwargs = tree_map(laid_out, (sample.args, sample.kwargs))
    return Sample(args, kwargs, sample.constructor, sample.training)


def layout(tensor: torch.Tensor):
    """The sizes, and the strides of those dimensions where a step is taken at all."""
    if tensor.numel() == 0:
        return tuple(tensor.shape)
    return [(n, stride) if n > 1 else n for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def layouts(row: Row, nn, sample: Sample, with_gradients: bool, device: str):
    sample = channels_last(sample.cast(torch.float32)).on(device)
    subject = row.build(nn, sample, device)
    seed(0)
    with warnings.catch_warnings(), torch.set_grad_enabled(with_gradients):
        warnings.simplefilter("ignore")
        return [layout(result) for result in tensors_of(subject(*sample.args, **sample.kwargs))]


def is_of_images(sample: Sample) -> bool:
    return any(t.dim() in FORMATS for t in tensors_of((sample.args, sample.kwargs)))


def has_format_of_its_own(row: Row, sample: Sample) -> bool:
    """Where torch's strides are an accident.

    conv_transpose3d: oneDNN keeps the format or not by its choice of kernel (not for one volume, nor for some
    dilations); pynn always keeps it. Losses of more than 5 dimensions, where only the target has a format.
    """
    return row.symbol in ("conv_transpose3d", "ConvTranspose3d", "LazyConvTranspose3d") or any(
        t.dim() > 5 for t in tensors_of(sample.args)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_results_have_torchs_strides(row, device):
    for sample in filter(is_of_images, row.draw(6)):
        if has_format_of_its_own(row, sample):
            continue
        like = "cpu" if row.name in CONTIGUOUS_ON_CUDA else device
        for with_gradients in (False, True):
            try:
                expected = layouts(row, torch.nn, sample, with_gradients, like)
            except RuntimeError:
                continue  # nll_loss and an unbatched max_pool3d refuse the format in torch
            assert layouts(row, pynn, sample, with_gradients, device) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_deterministic_algorithms_are_refused_only_where_torch_refuses(row, device):
    """pynn may have a deterministic algorithm where torch has none (max_unpool: the last of equal indices)."""
    for sample in row.draw(3):
        refused = []
        for nn in (torch.nn, pynn):
            fresh = sample.cast(torch.float32).on(device)
            subject = row.build(nn, fresh, device)
            torch.use_deterministic_algorithms(True)
            try:
                run_with_gradients(subject, fresh)
            except RuntimeError as error:
                refused.append("use_deterministic_algorithms" in str(error))
                continue
            finally:
                torch.use_deterministic_algorithms(False)
            refused.append(False)
        assert refused[0] or not refused[1]


def run_with_gradients(subject, sample: Sample) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed(0)
        results = tensors_of(subject(*sample.args, **sample.kwargs))
    leaves = sample.differentiable()
    if isinstance(subject, torch.nn.Module):
        leaves += [p for p in subject.parameters() if p.requires_grad]
    wanted = [r for r in results if r.requires_grad and r.is_floating_point()]
    if leaves and wanted:
        torch.autograd.grad(sum(r.sum() for r in wanted), leaves, allow_unused=True)
