"""torch.nn.attention.bias: torch's own module, loaded when asked for.

CausalBias sends torch's scaled_dot_product_attention to a C++ kernel; pynn's takes it as the mask it stands
for.
"""

import importlib
import sys

# not `import torch...`: while pynn is installed, torch's module may be importing this one
sys.modules[__name__] = importlib.import_module("torch.nn.attention.bias")
