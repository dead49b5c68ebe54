"""torch.nn.attention.bias: torch's own module, loaded when asked for."""

import sys

import torch.nn.attention.bias

sys.modules[__name__] = torch.nn.attention.bias
