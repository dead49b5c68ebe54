"""Where rows are run: on the CPU, and on a CUDA device where there is one."""

import torch

DEVICES = ("cpu", *["cuda"] * torch.cuda.is_available())
