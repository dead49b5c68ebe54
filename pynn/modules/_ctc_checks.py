"""What ctc_loss refuses, in ATen's words."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynn.argument_types import is_int
from pynn.definitions import can_read_values, type_name

Lengths = Tensor | Sequence[int]

WHERE = " (while checking arguments for ctc_loss_allocate_outputs)"


def check_kinds(targets: Any, input_lengths: Any, target_lengths: Any, blank: Any) -> None:
    for name, value, fits, wanted in (
        ("targets", targets, isinstance(targets, Tensor), "a Tensor"),
        ("blank", blank, is_int(blank), "an int"),
    ):
        if not fits:
            raise TypeError(
                f"ctc_loss() received an invalid combination of arguments - got {type(value).__name__} for {name}, but "
                f"expected {wanted}"
            )
    kinds = (Tensor, (tuple, list))
    for kind in kinds:
        if isinstance(input_lengths, kind) and isinstance(target_lengths, kind):
            break
    else:
        got = ", ".join(type(n).__name__ for n in (input_lengths, target_lengths))
        raise TypeError(
            f"ctc_loss() received an invalid combination of arguments - got lengths of types ({got}), but "
            "expected two tensors or two tuples of ints"
        )
    for name, lengths in (("input_lengths", input_lengths), ("target_lengths", target_lengths)):
        if isinstance(lengths, Tensor):
            if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
                raise RuntimeError(f"{name} must be integral")
        elif any(isinstance(length, float) for length in lengths):
            raise TypeError(
                "ctc_loss() received an invalid combination of arguments - got floats in "
                f"{name}, but expected a tuple of ints"
            )


def check_log_probs(log_probs: Tensor, blank: int) -> None:
    if log_probs.dim() != 3:
        raise RuntimeError(
            f"Expected 3-dimensional tensor, but got {log_probs.dim()}-dimensional tensor for argument #1 "
            f"'log_probs'{WHERE}"
        )
    if log_probs.dtype not in (torch.float32, torch.float64):
        raise NotImplementedError(f"\"ctc_loss_cpu\" not implemented for '{type_name(log_probs)}'")
    if log_probs.numel() == 0:
        raise RuntimeError("log_probs tensor must not be empty")
    if not 0 <= blank < log_probs.size(2):
        raise RuntimeError("blank must be in label range")


def _values(name: str, lengths: Lengths, batch: int) -> list[int]:
    """The lengths as numbers, none where they can't be read.

    Raises:  RuntimeError for another number of them, or negative ones
    """
    if (lengths.numel() if isinstance(lengths, Tensor) else len(lengths)) != batch:
        raise RuntimeError(f"{name} must be of size batch_size")
    if not isinstance(lengths, Tensor):
        values = [int(length) for length in lengths]
    else:
        values = lengths.reshape(-1).tolist() if can_read_values(lengths) else []
    for value in values:
        if value < 0:
            raise RuntimeError(f"Expected {name} to have value at least 0, but got value {value}{WHERE}")
    return values


def check_input_lengths(log_probs: Tensor, input_lengths: Lengths) -> None:
    time, batch, _ = log_probs.shape
    for value in _values("input_lengths", input_lengths, batch):
        if value > time:
            raise RuntimeError(
                f"Expected input_lengths to have value at most {time}, but got value {value}{WHERE}"
            )


def check_targets(log_probs: Tensor, targets: Tensor, target_lengths: Lengths) -> None:
    batch = log_probs.size(1)
    if targets.dim() not in (1, 2):
        raise RuntimeError(
            f"Expected 1 to 2 dimensions, but got {targets.dim()}-dimensional tensor for argument #2 'targets'"
            f"{WHERE}"
        )
    lengths = _values("target_lengths", target_lengths, batch)
    argument = f"for argument #2 'targets'{WHERE}"
    if targets.dim() == 2 and targets.size(0) != batch:
        raise RuntimeError(
            f"Expected tensor to have size {batch} at dimension 0, but got size {targets.size(0)} {argument}"
        )
    if not lengths:
        return
    if targets.dim() == 1 and targets.size(0) != sum(lengths):
        raise RuntimeError(
            f"Expected tensor to have size {sum(lengths)} at dimension 0, but got size {targets.size(0)} {argument}"
        )
    if targets.dim() == 2 and targets.size(1) < max(lengths):
        raise RuntimeError(
            f"Expected tensor to have size at least {max(lengths)} at dimension 1, but got size "
            f"{targets.size(1)} {argument}"
        )
