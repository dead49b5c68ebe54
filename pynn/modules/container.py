"""The containers: shared with torch, whose own are Python throughout."""

from torch.nn.modules.container import *  # noqa: F403
from torch.nn.modules.container import __all__  # noqa: F401
