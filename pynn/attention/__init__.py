"""torch.nn.attention: flex attention, packed sequences, causal masks as rules, and torch's kernel switches.

`sdpa_kernel` and SDPBackend are torch's own: they choose among C++ kernels. In eager pynn there is one
definition, which gives the same values whatever they say, and refuses what no kernel they leave would take; in
a compiled graph that keeps torch's operation they mean what they mean in torch.

`bias`, `flex_attention` and `varlen` have files here so that they are loaded only when asked for: torch's
own import the whole of Dynamo.
"""

import torch.nn.attention as _torch_attention

from pynn.sharing import share_helpers, share_names, share_submodules

share_submodules(__name__, _torch_attention)
__all__ = share_names(__name__, _torch_attention)
share_helpers(__name__, _torch_attention)
