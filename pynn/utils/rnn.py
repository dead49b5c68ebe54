"""Sequences of different lengths in one tensor: padded to the longest, or packed time after time without the padding.

    padded   a b c        packed data    a x b y c       batch_sizes  2 2 1
             x y 0
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, invert_permutation, unpad_sequence
from torch.nn.utils.rnn import pack_padded_sequence as _torchs_pack
from torch.nn.utils.rnn import pad_packed_sequence as _torchs_pad_packed

__all__ = [
    "PackedSequence",
    "invert_permutation",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "unpack_sequence",
    "unpad_sequence",
]


def rows_of_packed(batch_sizes: Tensor, batch: int) -> Tensor:
    """Where the rows of packed data lie in the padded [time, batch]: t * batch + b for every b < batch_sizes[t]."""
    times = batch_sizes.size(0)
    running = torch.arange(batch) < batch_sizes.unsqueeze(1)
    return torch.arange(times * batch).view(times, batch)[running]


def pack_padded_sequence(
    input: Tensor, lengths: Tensor | list[int], batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Take the padding out: the rows of all sequences at time 0, then those at time 1, ...

    Args:    lengths: of the sequences, on the CPU; batch_first: input is [batch, time, *]
             enforce_sorted: the longest comes first; else they are sorted, and the order is kept in the result
    Shape:   input: [time, batch, *]   returns: data [sum(lengths), *] with batch_sizes
    Raises:  RuntimeError for lengths that do not fit, are not positive, or not sorted
    Source:  aten/native/PackedSequence.cpp
    """
    if torch.compiler.is_compiling():
        return _torchs_pack(input, lengths, batch_first, enforce_sorted)
    if not isinstance(lengths, Tensor):
        if torch._C._get_tracing_state():
            warnings.warn(
                "pack_padded_sequence has been called with a Python list of sequence lengths. The tracer cannot track "
                "the data flow of Python values, and it will treat them as constants, likely rendering the trace "
                "incorrect for any other combination of lengths.",
                stacklevel=2,
            )
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
    lengths = lengths.to(torch.int64)
    order = None
    if not enforce_sorted:
        lengths, order = torch.sort(lengths, descending=True)
        order = order.to(input.device)
        input = input.index_select(0 if batch_first else 1, order)
    x = input.transpose(0, 1) if batch_first else input
    _check_lengths(x, lengths)
    # [times]: how many sequences are still running
    batch_sizes = (torch.arange(int(lengths[0])).unsqueeze(1) < lengths).sum(1)
    data = x.flatten(0, 1).index_select(0, rows_of_packed(batch_sizes, x.size(1)).to(x.device))
    return PackedSequence(data, batch_sizes, order, None)


def _check_lengths(x: Tensor, lengths: Tensor) -> None:
    if lengths.dim() != 1 or lengths.device.type != "cpu":
        raise RuntimeError(
            f"'lengths' argument should be a 1D CPU int64 tensor, but got {lengths.dim()}D {lengths.device.type} "
            f"{'Long'} tensor"
        )
    if x.numel() == 0:
        raise RuntimeError("Cannot pack empty tensors.")
    if lengths.size(0) != x.size(1):
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {lengths.size(0)} (batch_size={x.size(1)})"
        )
    if lengths[-1] <= 0:
        raise RuntimeError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0"
        )
    if (lengths[1:] > lengths[:-1]).any():
        raise RuntimeError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can pass "
            "`enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to sidestep this requirement if you "
            "do not need ONNX exportability."
        )
    if lengths[0] > x.size(0):
        raise RuntimeError(f"Expected lengths of at most {x.size(0)}, the times in input, but got {lengths[0]}")


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Put the padding back: the inverse of pack_padded_sequence.

    Args:    total_length: pad to this many times instead of those of the longest sequence
    Shape:   returns: [time, batch, *] (batch_first: [batch, time, *]), and the lengths [batch]
    Raises:  ValueError when total_length is less than the longest sequence
    Source:  aten/native/PackedSequence.cpp
    """
    if torch.compiler.is_compiling():
        return _torchs_pad_packed(sequence, batch_first, padding_value, total_length)
    data, batch_sizes = sequence.data, sequence.batch_sizes
    times = longest = batch_sizes.size(0)
    if total_length is not None:
        if total_length < longest:
            raise ValueError(
                "Expected total_length to be at least the length of the longest sequence in input, but got "
                f"total_length={total_length} and max sequence length being {longest}"
            )
        times = total_length
    batch = int(batch_sizes[0])
    padded = data.new_full((times * batch, *data.shape[1:]), padding_value)
    padded = padded.index_copy(0, rows_of_packed(batch_sizes, batch).to(data.device), data)
    padded = padded.view(times, batch, *data.shape[1:])
    padded = padded.transpose(0, 1).contiguous() if batch_first else padded
    lengths = (torch.arange(batch).unsqueeze(1) < batch_sizes).sum(1)
    order = sequence.unsorted_indices
    if order is not None:
        return padded.index_select(0 if batch_first else 1, order), lengths[order.cpu()]
    return padded, lengths


def pad_sequence(
    sequences: Tensor | list[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Stack sequences of different lengths, each filled up to the longest.

    Args:    padding_side: "right" (the end) or "left"
    Shape:   sequences: [L, *] each   returns: [max(L), batch, *], batch_first: [batch, max(L), *]
    Raises:  RuntimeError for what is no iterable of tensors, for none, or for trailing sizes that differ
    Source:  aten/native/PackedSequence.cpp
    """
    if not isinstance(sequences, Iterable):
        raise RuntimeError(
            f"pad_sequence: Expected iterable for input sequences, but got arg of type: {type(sequences)}"
        )
    rows = list(sequences)
    if not rows:
        raise RuntimeError("received an empty list of sequences")
    if padding_side not in ("left", "right"):
        raise RuntimeError(f"Expected padding_side to be one of left or right, but got {padding_side}.")
    longest = max(row.size(0) for row in rows)
    padded = []
    for row in rows:
        for dim, (a, b) in enumerate(zip(rows[0].shape[1:], row.shape[1:]), start=1):
            if a != b:
                raise RuntimeError(
                    f"The size of tensor a ({a}) must match the size of tensor b ({b}) at non-singleton dimension {dim}"
                )
        row = row.to(rows[0].dtype)
        fill = row.new_full((longest - row.size(0), *rows[0].shape[1:]), padding_value)
        padded.append(torch.cat([row, fill] if padding_side == "right" else [fill, row]))
    return torch.stack(padded, 0 if batch_first else 1)


def pack_sequence(sequences: list[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Pack a list of sequences: pad_sequence, then pack_padded_sequence.

    Shape:   sequences: [L, *] each   returns: data [sum(L), *] with batch_sizes
    """
    lengths = torch.as_tensor([row.size(0) for row in sequences])
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The list that pack_sequence was given."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)


def __getattr__(name: str) -> Any:
    """What torch's file has beside its public names."""
    return getattr(torch.nn.utils.rnn, name)
