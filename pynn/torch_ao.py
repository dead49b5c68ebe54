"""torch.ao quantises, fuses and compares pynn's layers as the torch.nn layers that they stand for.

torch.ao computes with layers of its own, and finds what to replace by the exact class: `type(m) in mapping`,
`type(m) is nn.Conv2d`, in some two hundred places that ask nobody. So its public functions see torch.nn only.
For the time of a call each pynn layer of the model has torch's class, a class or function named in an argument is
torch's, and while pynn is installed the names of torch.nn hold torch's own. Afterwards each layer has its class
again, and float layers that the call made are pynn's, where the model's are. Four passes of torch.fx are as exact.
"""

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

from pynn.counterparts import pynns_objects
from pynn.install import installed, torchs_names
from pynn.lending import LentLayers, translated
from pynn.sharing import AroundImport
from pynn.tracers import keeping_layers, wrap

FUNCTIONS_OF = {
    "torch.ao.quantization.quantize",
    "torch.ao.quantization.fuse_modules",
    "torch.ao.quantization.fuser_method_mappings",
    "torch.ao.quantization.quantization_mappings",
    "torch.ao.quantization.qconfig_mapping",
    "torch.ao.quantization.backend_config.executorch",
    "torch.ao.quantization.backend_config.fbgemm",
    "torch.ao.quantization.backend_config.native",
    "torch.ao.quantization.backend_config.onednn",
    "torch.ao.quantization.backend_config.qnnpack",
    "torch.ao.quantization.backend_config.tensorrt",
    "torch.ao.quantization.backend_config.x86",
    "torch.ao.quantization.quantize_fx",
    "torch.ao.quantization._correct_bias",
    "torch.ao.quantization._equalize",
    "torch.ao.quantization.fx._equalize",
    "torch.ao.ns._numeric_suite",
    "torch.ao.ns._numeric_suite_fx",
    "torch.ao.ns.fx.graph_matcher",
    "torch.ao.ns.fx.mappings",
    "torch.ao.pruning._experimental.data_sparsifier.quantization_utils",
    "torch.fx.experimental.optimization",
    "torch.fx.passes.param_fetch",
}
"""Modules whose functions take models or classes of layers from the user, or tell them classes.

Private ones too: a public one may have been imported from there before pynn was, and calls them.
"""

METHODS = {
    "torch.ao.nn.": {"from_float", "from_observed", "from_reference", "to_float"},
    "torch.ao.nn.intrinsic.modules.fused": {"__init__"},
    "torch.ao.quantization.fx._model_report.detector": {
        "determine_observer_insert_points",
        "generate_detector_report",
        "get_qconfig_info",
    },
    "torch.ao.pruning.": {"prepare", "prune", "make_config_from_model", "squash_mask"},
    "torch.ao.pruning._experimental.data_sparsifier.base_data_sparsifier": {"_extract_weight", "add_data"},
    "torch.ao.pruning._experimental.pruner.base_structured_sparsifier": {"__init__"},
    "torch.fx.experimental.graph_gradual_typechecker": {
        "infer_symbolic_relations",
        "refine",
        "refine_node",
        "symbolic_relations",
        "type_check",
        "type_check_node",
    },
    "torch.fx.experimental.migrate_gradual_types.constraint_generator": {
        "generate_constraints",
        "generate_constraints_node",
    },
}
"""The same of classes, by how the name of their module begins: layers made of others, and what looks at a model."""

LEFT_ALONE = {
    "quantize",
    "quantize_qat",
    "_observer_forward_hook",
    "_observer_forward_pre_hook",
    "add_op_to_sets_of_related_ops",
}
"""The first two call others, and between them the user's function, which is to see pynn's layers and names. The last
writes into the table that it is given."""

_outermost = threading.local()


def is_exact(module: str) -> bool:
    """Whether a module of this name finds layers by their exact class."""
    return module.startswith("torch.ao.") or module in FUNCTIONS_OF or module in METHODS


def teach_torch_ao() -> None:
    """Wrap its functions, those of modules imported later too; a second call changes nothing."""
    if not any(isinstance(finder, _LaterModules) for finder in sys.meta_path):
        _open_doors([module for name, module in sys.modules.items() if is_exact(name)])
        sys.meta_path.insert(0, _LaterModules())


class _LaterModules(AroundImport):
    """Tables that a module of torch.ao makes when it is imported hold torch's own classes, installed or not."""

    def wants(self, fullname: str) -> bool:
        return is_exact(fullname)

    def around(self, module: ModuleType, run: Callable[[], None]) -> None:
        with torchs_names():
            run()
        _open_doors([module])


def _open_doors(modules: Sequence[ModuleType]) -> None:
    """Wrap what users call in these modules."""
    functions = {}
    for module in modules:
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, FunctionType) and module.__name__ in FUNCTIONS_OF and name not in LEFT_ALONE:
                functions[value] = seeing_torchs_layers(value)
            elif isinstance(value, type):
                for beginning, methods in METHODS.items():
                    if module.__name__.startswith(beginning):
                        _open_methods(value, methods)
            if name == "QuantizationTracer":
                wrap(value, "is_leaf_module", keeping_layers)
    if functions:
        _replace(functions)


def _open_methods(cls: type, names: set[str]) -> None:
    for name in names & vars(cls).keys():
        method = vars(cls)[name]
        if isinstance(method, classmethod | staticmethod):
            setattr(cls, name, type(method)(seeing_torchs_layers(method.__func__)))
        else:
            setattr(cls, name, seeing_torchs_layers(method))


def _replace(functions: dict[Callable, Callable]) -> None:
    """Put the wrapped functions under every name that torch.ao, torch.quantization and these passes have for them."""
    for module_name, module in list(sys.modules.items()):
        if is_exact(module_name) or module_name.startswith("torch.quantization"):
            for name, value in vars(module).items():
                if isinstance(value, FunctionType) and value in functions:
                    setattr(module, name, functions[value])


def seeing_torchs_layers(function: Callable) -> Callable:
    """The function, called with torch's layers, classes and names in place of pynn's.

    What it calls may be the user's, and make layers of pynn's: calls within a call give back with the outermost.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        layers = getattr(_outermost, "layers", None)
        if layers is not None:
            return layers.call(function, args, kwargs)
        layers = _outermost.layers = LentLayers()
        result = None
        try:
            with torchs_names():
                result = layers.call(function, args, kwargs)
        finally:
            _outermost.layers = None
            layers.give_back(result)
        return translated(result, pynns_objects()) if installed() else result

    return call
