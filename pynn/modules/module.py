"""Module itself: shared with torch, whose Module is Python throughout."""

from torch.nn.modules.module import *  # noqa: F403
from torch.nn.modules.module import __all__, _IncompatibleKeys  # noqa: F401
