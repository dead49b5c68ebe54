"""Parameter and Buffer: shared with torch, whose own are Python throughout."""

import torch.nn.parameter as _torch_parameter
from torch.nn.parameter import *  # noqa: F403
from torch.nn.parameter import UninitializedTensorMixin, __all__, is_lazy  # noqa: F401

from pynn.sharing import share_helpers

share_helpers(__name__, _torch_parameter)
