"""relu of sparse tensors: what is 0 at 0 is taken of the values that such a tensor holds."""

from collections.abc import Callable

import torch
from torch import Tensor

BY_ROWS = (torch.sparse_csr, torch.sparse_bsr)


def of_values(function: Callable[[Tensor], Tensor], x: Tensor, inplace: bool) -> Tensor:
    """out[place] = function(x[place]) where x holds a value; layout and places are those of x.

    Raises:  RuntimeError for inplace where x (layout COO) may name a place more than once
    """
    if x.layout == torch.sparse_coo:
        if inplace and not x.is_coalesced():
            raise RuntimeError("relu_ requires coalesced input")
        held = x.coalesce()
        result = torch.sparse_coo_tensor(
            held.indices(), function(held.values()), x.shape, is_coalesced=True, check_invariants=False
        )
    else:
        compressed = x.crow_indices() if x.layout in BY_ROWS else x.ccol_indices()
        plain = x.col_indices() if x.layout in BY_ROWS else x.row_indices()
        result = torch.sparse_compressed_tensor(
            compressed, plain, function(x.values()), x.shape, layout=x.layout, check_invariants=False
        )
    return x.copy_(result) if inplace else result
