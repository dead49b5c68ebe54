"""torch.nn.attention.bias: torch's own module, loaded when asked for.

CausalBias sends torch's scaled_dot_product_attention to a C++ kernel; pynn's takes it as the mask it stands
for.
"""

import sys

import torch.nn.attention.bias

sys.modules[__name__] = torch.nn.attention.bias
