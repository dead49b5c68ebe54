"""Parameter and Buffer: shared with torch, whose own are Python throughout."""

from torch.nn.parameter import *  # noqa: F403
from torch.nn.parameter import UninitializedTensorMixin, __all__, is_lazy  # noqa: F401
