"""torch.nn.utils: weight normalisation and packed sequences are written here, the rest is shared with torch.

Those are Python throughout: the norms that clip_grad takes of lists of tensors are
general tensor operations, spectral_norm is the power method, fusion algebra on weights.
"""

import torch.nn.utils as _torch_utils

from pynn.sharing import share_helpers, share_names, share_submodules

share_submodules(__name__, _torch_utils)

from pynn.utils import parametrizations as parametrizations  # noqa: E402
from pynn.utils import rnn as rnn  # noqa: E402
from pynn.utils.weight_norm import remove_weight_norm, weight_norm  # noqa: E402, F401

__all__ = share_names(__name__, _torch_utils)
share_helpers(parametrizations.__name__, _torch_utils.parametrizations)
