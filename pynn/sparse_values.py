"""Functions that leave 0 as it is, of sparse tensors: they are functions of the values that are stored."""

from collections.abc import Callable

import torch
from torch import Tensor

BY_ROW = (torch.sparse_csr, torch.sparse_bsr)
BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)


def is_sparse(x: Tensor) -> bool:
    """Of any sparse layout."""
    return x.is_sparse or x.layout in BY_ROW or x.layout in BY_COLUMN


def of_values(function: Callable[[Tensor], Tensor], x: Tensor, in_place: str | None = None) -> Tensor:
    """The sparse tensor of function(values), values at one place added up before.

    Args:    in_place: the name of the function that writes the result to x
    Raises:  RuntimeError in place for an uncoalesced tensor
    """
    if in_place is not None:
        if x.is_sparse and not x.is_coalesced():
            raise RuntimeError(f"{in_place} requires coalesced input")
        return x.copy_(of_values(function, x))
    if x.is_sparse:
        x = x.coalesce()
        values = function(x.values())
        return torch.sparse_coo_tensor(
            x.indices(), values, x.shape, check_invariants=False, is_coalesced=True
        )
    is_by_row = x.layout in BY_ROW
    ends, places = (x.crow_indices(), x.col_indices()) if is_by_row else (x.ccol_indices(), x.row_indices())
    values = function(x.values())
    return torch.sparse_compressed_tensor(
        ends, places, values, x.shape, layout=x.layout, check_invariants=False
    )
