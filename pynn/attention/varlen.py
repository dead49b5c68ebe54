"""torch.nn.attention.varlen: torch's own module, loaded when asked for."""

import sys

import torch.nn.attention.varlen

sys.modules[__name__] = torch.nn.attention.varlen
