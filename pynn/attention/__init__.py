"""torch.nn.attention: the switches between C++ kernels and the mask types, shared with torch.

`bias`, `flex_attention` and `varlen` have files here so that they are loaded only when asked for: torch's
own import the whole of Dynamo.
"""

import torch.nn.attention as _torch_attention

from pynn.sharing import share_names, share_submodules

share_submodules(__name__, _torch_attention)
__all__ = share_names(__name__, _torch_attention)
