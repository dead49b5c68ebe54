"""Where torch's own behaviour changed from one release to the next, pynn follows the one that is installed."""

import torch

SINCE_2_14 = torch.__version__ >= (2, 14)
