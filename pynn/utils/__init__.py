"""torch.nn.utils: shared with torch, whose own are Python throughout (rnn's packing excepted)."""

import torch.nn.utils as _torch_utils

from pynn.sharing import share_names, share_submodules

share_submodules(__name__, _torch_utils)
__all__ = share_names(__name__, _torch_utils)
