"""torch.nn in readable Python.

    import pynn as nn

offers every name of torch.nn. Layers and functions are defined in Python from elementary tensor operations:
`coverage()` lists which, `source("layer_norm")` shows one. `convert(model)` swaps the layers of a model that
is already built, `install()` makes torch.nn itself resolve here, `compile(model)` turns graphs into Numba
kernels.
"""

# ruff: noqa: E402
import torch.nn as _torch_nn

from pynn.sharing import share_names, share_submodules

share_submodules(__name__, _torch_nn)  # parallel, grad, quantized ...: no file here, so torch's own

from pynn import attention, functional, grad, init, modules, parameter, utils
from pynn.modules import *  # noqa: F403

_torch_names = share_names(__name__, _torch_nn)

from pynn.compile import compile, explain
from pynn.convert import convert
from pynn.coverage import coverage
from pynn.install import install, uninstall
from pynn.source import source
from pynn.torch_ao import teach_torch_ao
from pynn.tracers import teach_tracers

teach_tracers()
teach_torch_ao()

__version__ = "0.1.0"

__all__ = [
    *dict.fromkeys([*_torch_names, *modules.__all__]),
    "attention",
    "compile",
    "convert",
    "coverage",
    "explain",
    "functional",
    "grad",
    "init",
    "install",
    "modules",
    "parameter",
    "source",
    "uninstall",
    "utils",
]
