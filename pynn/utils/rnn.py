"""Sequences of different lengths: side by side with padding, or packed time after time without it.

    padded, 4 x 3:   a b c      packed:  data         a b c | d e | f g | h
                     d e .               batch_sizes  3       2     2     1
                     f g .               (how many sequences are still running at each time)
                     h . .

Both ways are one copy of rows: `collect` takes the cells that hold an element, `spread` puts rows into such
cells and padding into the others. Each is the gradient of the other.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from numbers import Number, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import rnn as torch_rnn
from torch.nn.utils.rnn import PackedSequence, invert_permutation, unpad_sequence

from pynn.definitions import is_traced, type_name

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


def _traced_as_torchs(definition: Callable) -> Callable:
    """Under a tracer, call torch's function of this name: the object, as install() gives the name to pynn's."""
    torchs = getattr(torch_rnn, definition.__name__)

    @functools.wraps(definition)
    def function(*args: Any, **kwargs: Any) -> Any:
        return (torchs if is_traced() else definition)(*args, **kwargs)

    return function


# ---- padded and packed, when it is known which cells hold an element --------------------------------------


def collect(padded: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """rows[n] = padded[first[n], second[n]]

    Shape:   padded: [length, width, *]   first, second: [rows]   returns: [rows, *]
    """
    places = (first * padded.size(1) + second).to(padded.device)
    return padded.flatten(0, 1).index_select(0, places)


def spread(rows: Tensor, first: Tensor, second: Tensor, size: tuple[int, int], value: Any) -> Tensor:
    """padded[first[n], second[n]] = rows[n], each cell at most once, and value in the cells not named.

    Shape:   rows: [rows, *]   first, second: [rows]   returns: [*size, *]
    """
    padded = rows.new_full((*size, *rows.shape[1:]), value)
    padded[first.to(rows.device), second.to(rows.device)] = rows
    return padded


# ---- checks ----------------------------------------------------------------------------------------------


def _require_kind(operation: str, name: str, position: int, value: Any, kind: Any, kind_name: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(
            f"{operation}(): argument '{name}' (position {position}) must be {kind_name}, "
            f"not {type(value).__name__}"
        )


def _require_lengths(lengths: Tensor) -> None:
    if lengths.dim() != 1 or lengths.device.type != "cpu" or lengths.dtype != torch.int64:
        raise RuntimeError(
            "'lengths' argument should be a 1D CPU int64 tensor, but got "
            f"{lengths.dim()}D {lengths.device} {type_name(lengths)} tensor"
        )


def _check_lengths(lengths: Tensor, batch: int) -> None:
    """The lengths must be positive, one a sequence, the longest first."""
    if lengths.size(0) != batch:
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {lengths.size(0)} (batch_size={batch})"
        )
    if lengths[-1] <= 0:
        raise RuntimeError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0"
        )
    if (lengths[1:] > lengths[:-1]).any():
        raise RuntimeError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can pass "
            "`enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to sidestep this requirement "
            "if you do not need ONNX exportability."
        )


# ---- packing ---------------------------------------------------------------------------------------------


@_traced_as_torchs
def pack_padded_sequence(
    input: Tensor, lengths: Tensor | list[int], batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Leave out the padding: all first elements, then all second ones of the sequences that have one, ...

    data = input[t, b] for each time t and each sequence b with lengths[b] > t, the longest sequence first

    Args:    lengths: of each sequence, on the CPU; batch_first: input is [batch, time, *]
             enforce_sorted: the longest comes first already; else they are sorted here, and
             pad_packed_sequence puts them back
    Shape:   input: [time, batch, *]   lengths: [batch]   returns: data [sum(lengths), *] and its batch_sizes
    dtype:   any, returned as input's; lengths are read as int64
    Raises:  RuntimeError for an empty input, lengths that are not positive, not sorted, not one a sequence
    Source:  aten/native/PackedSequence.cpp; torch too cuts an input that ends before its lengths do
    """
    if isinstance(lengths, Tensor):
        lengths = lengths.to(torch.int64)
    else:
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
    order = None
    if not enforce_sorted:
        lengths, order = torch.sort(lengths, descending=True)
        order = order.to(input.device)
        input = input.index_select(0 if batch_first else 1, order)
    _require_kind("_pack_padded_sequence", "input", 1, input, Tensor, "Tensor")
    _require_kind("_pack_padded_sequence", "batch_first", 3, batch_first, bool, "bool")
    if input.numel() == 0:
        raise RuntimeError("Cannot pack empty tensors.")
    _require_lengths(lengths)
    batch, time = (input.size(0), input.size(1)) if batch_first else (input.size(1), input.size(0))
    _check_lengths(lengths, batch)

    # [longest, batch]: whether sequence b is still running at time t
    running = torch.arange(int(lengths[0])).unsqueeze(1) < lengths
    times, sequences = running[:time].nonzero().unbind(1)
    data = collect(input, sequences, times) if batch_first else collect(input, times, sequences)
    return PackedSequence(data, running.sum(1), order, None)


@_traced_as_torchs
def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The sequences side by side again, in the order they were packed from, and their lengths.

    out[t, b] = the element of sequence b at time t, or padding_value when t >= lengths[b]

    Args:    batch_first: return [batch, time, *]; padding_value: default 0
             total_length: of the result, default the longest sequence's
    Shape:   sequence.data: [sum(lengths), *]   returns: [time, batch, *] and lengths [batch]
    dtype:   any, returned as that of the data; lengths int64
    Raises:  ValueError when total_length is less than the longest sequence;
             RuntimeError when data does not hold sum(batch_sizes) rows, or batch_sizes is empty or grows
    Source:  aten/native/PackedSequence.cpp
    """
    data, batch_sizes, unsorted_indices = sequence.data, sequence.batch_sizes, sequence.unsorted_indices
    time = batch_sizes.size(0)
    if total_length is not None and total_length < time:
        raise ValueError(
            "Expected total_length to be at least the length of the longest sequence in input, but got "
            f"total_length={total_length} and max sequence length being {time}"
        )
    _require_kind("_pad_packed_sequence", "batch_first", 3, batch_first, bool, "bool")
    _require_kind("_pad_packed_sequence", "padding_value", 4, padding_value, (Number, Tensor), "Number")
    _check_batch_sizes(data, batch_sizes)

    batch = int(batch_sizes[0])
    # [time, batch]: whether sequence b is still running at time t
    running = torch.arange(batch) < batch_sizes.unsqueeze(1)
    times, sequences = running.nonzero().unbind(1)
    size = (time if total_length is None else total_length, batch)
    out = spread(data[: len(times)], times, sequences, size, padding_value)
    out = out.transpose(0, 1) if batch_first else out
    lengths = running.sum(0)
    if unsorted_indices is None:
        return out, lengths
    return out.index_select(0 if batch_first else 1, unsorted_indices), lengths[unsorted_indices.cpu()]


def _check_batch_sizes(data: Tensor, batch_sizes: Tensor) -> None:
    _require_lengths(batch_sizes)
    if batch_sizes.numel() == 0:
        raise RuntimeError("batch_sizes can not be empty")
    if (batch_sizes[1:] > batch_sizes[:-1]).any():
        raise RuntimeError(
            f"batch_sizes must not grow from one time to the next, but got {batch_sizes.tolist()}"
        )
    rows = int(batch_sizes.sum())
    if data.size(0) < rows:
        raise RuntimeError(
            f"data must hold sum(batch_sizes) = {rows} rows, but has {data.size(0)}: were the lengths that it "
            "was packed with larger than its input?"
        )


# ---- lists of sequences ----------------------------------------------------------------------------------


@_traced_as_torchs
def pad_sequence(
    sequences: Tensor | list[Tensor],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Sequences side by side, each filled up to the length of the longest.

    out[t, b] = sequences[b][t], or padding_value beyond its end (padding_side "left": before its beginning)

    Args:    batch_first: return [batch, time, *]; padding_value: default 0
             padding_side: right (default) or left
    Shape:   sequences: [length, *] each   returns: [time, batch, *]
    dtype:   that of the first sequence, as are the device and the sizes after the length
    Raises:  RuntimeError for no sequences, another padding_side, or sizes that do not fit the first
    Source:  aten/native/PackedSequence.cpp
    """
    if not isinstance(sequences, Iterable):
        raise RuntimeError(
            f"pad_sequence: Expected iterable for input sequences, but got arg of type: {type(sequences)}"
        )
    sequences = tuple(sequences)
    _check_pad_arguments(sequences, batch_first, padding_value, padding_side)

    lengths = torch.tensor([sequence.size(0) for sequence in sequences]).unsqueeze(1)
    batch, time = len(sequences), int(lengths.max())
    # [batch, time]: whether the cell holds an element, one row of cat(sequences) after the other
    holds = torch.arange(time) < lengths if padding_side == "right" else torch.arange(time) >= time - lengths
    owners, times = holds.nonzero().unbind(1)
    rows = torch.cat([_like_first(sequence, sequences[0]) for sequence in sequences])
    if batch_first:
        return spread(rows, owners, times, (batch, time), padding_value)
    return spread(rows, times, owners, (time, batch), padding_value)


def _like_first(sequence: Tensor, first: Tensor) -> Tensor:
    """Give a sequence the dtype, device and trailing sizes of the first one, as copying into the result does."""
    size = (sequence.size(0), *first.shape[1:])
    if sequence.shape == size and sequence.dtype == first.dtype and sequence.device == first.device:
        return sequence
    return sequence.new_empty(size, dtype=first.dtype, device=first.device).copy_(sequence)


def _check_pad_arguments(sequences: Sequence[Any], batch_first: Any, value: Any, side: Any) -> None:
    for number, sequence in enumerate(sequences):
        if not isinstance(sequence, Tensor):
            raise TypeError(
                f"expected Tensor as element {number} in argument 0, but got {type(sequence).__name__}"
            )
    _require_kind("pad_sequence", "batch_first", 2, batch_first, bool, "bool")
    _require_kind("pad_sequence", "padding_value", 3, value, (Real, Tensor), "float")
    _require_kind("pad_sequence", "padding_side", 4, side, str, "str")
    if not sequences:
        raise RuntimeError("received an empty list of sequences")
    if side not in ("left", "right"):
        raise RuntimeError(f"Expected padding_side to be one of left or right, but got {side}.")
    if sequences[0].dim() == 0:
        raise RuntimeError("pad_sequence: the first sequence must have a dimension of time, but is a number")


@_traced_as_torchs
def pack_sequence(sequences: list[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """pack_padded_sequence(pad_sequence(sequences), lengths)

    Args:    enforce_sorted: the longest comes first already (default True)
    Shape:   sequences: [length, *] each, the longest first or enforce_sorted=False
             returns: data [sum(lengths), *] and its batch_sizes
    dtype:   any, returned as that of the first sequence
    Raises:  RuntimeError for no sequences, empty ones, ones that are not sorted, or sizes that do not fit the
             first
    Source:  torch/nn/utils/rnn.py; aten/native/PackedSequence.cpp
    """
    lengths = torch.as_tensor([sequence.size(0) for sequence in sequences])
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


@_traced_as_torchs
def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The list of sequences that pack_sequence was given.

    Args:    packed_sequences: what pack_sequence or pack_padded_sequence returned
    Shape:   packed_sequences.data: [sum(lengths), *]   returns: [length, *] each
    dtype:   any, returned as that of the data
    Raises:  RuntimeError when data does not hold sum(batch_sizes) rows, or batch_sizes is empty or grows
    Source:  torch/nn/utils/rnn.py
    """
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)


def __getattr__(name: str) -> Any:
    """What torch's file has beside its public names."""
    return getattr(torch_rnn, name)
