"""torch.nn.attention.flex_attention: torch's own module, loaded when asked for."""

import sys

import torch.nn.attention.flex_attention

sys.modules[__name__] = torch.nn.attention.flex_attention
