"""torch.nn.init: shared with torch, whose initialisers are Python over elementary in-place operations.

They fill a tensor with random draws (uniform_, normal_), constants or an identity and scale it; two use more:
sparse_ torch.randperm, orthogonal_ a QR decomposition (LAPACK), and both keep torch's own so that equal seeds
give bit-equal parameters.
"""

import torch.nn.init as _torch_init

from pynn.sharing import share_helpers, share_names

__all__ = share_names(__name__, _torch_init)
share_helpers(__name__, _torch_init)
