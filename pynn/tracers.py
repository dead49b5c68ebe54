"""TorchScript, torch.fx, Dynamo and torch.package treat pynn's layers as the torch.nn layers that they stand for.

They decide by where a class or a function comes from: TorchScript compiles the text of its methods, torch.fx keeps a
layer whole, or says that it made a node, if its module's name begins with torch.nn, Dynamo compiles the frames of
all files but some, and notes the lines of these, and torch.package leaves torch alone out of what it packs. None asks
anyone, so `import pynn` wraps a few functions of each.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.fx
import torch.jit._recursive
import torch.jit._script
from torch.fx.passes.utils import source_matcher_utils
from torch.nn import Module, Sequential
from torch.package import PackageExporter

from pynn.convert import convert, with_new_bases
from pynn.counterparts import class_pairs, function_pairs, torchs_objects
from pynn.install import torchs_names
from pynn.overrides import is_installed
from pynn.sharing import AroundImport

OWN_FOLDER = Path(__file__).parent.as_posix() + "/"


def teach_tracers() -> None:
    """Wrap their functions; a second call changes nothing."""
    wrap(torch.jit._recursive, "create_script_module", _scripted_as_torchs)
    wrap(torch.jit._script, "_get_overloads", _with_torchs_overloads)
    wrap(torch.fx.Tracer, "is_leaf_module", keeping_layers)
    wrap(torch.fx.Tracer, "trace", _tracing_torchs_functions)
    wrap(source_matcher_utils, "get_source_partitions", _by_layers)
    wrap(PackageExporter, "_can_implicitly_extern", _without_pynn)
    for name, teach in LATER.items():
        if name in sys.modules:
            teach(sys.modules[name])
    if not any(isinstance(finder, _LaterModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LaterModules())


def wrap(owner: Any, name: str, wrapper: Callable) -> None:
    original = getattr(owner, name)
    if not getattr(original, "_wrapped_by_pynn", False):
        wrapped = wrapper(original)
        wrapped._wrapped_by_pynn = True
        setattr(owner, name, wrapped)


def _scripted_as_torchs(create_script_module: Callable) -> Callable:
    """The compiler reads the classes of torch.nn; afterwards each layer has its own class again."""

    @functools.wraps(create_script_module)
    def create(nn_module: Module, *args: Any, **kwargs: Any) -> Any:
        if "_modules" not in vars(nn_module):  # its __init__ was never called: torch says so
            return create_script_module(nn_module, *args, **kwargs)
        converted = [
            (module, type(module), dict(vars(module)))
            for module in nn_module.modules()
            if over_torchs_layers(type(module)) is not type(module)
        ]
        try:
            convert(nn_module, inverse=True)
            for module, _, _ in converted:
                module.__class__ = over_torchs_layers(type(module))
            return create_script_module(nn_module, *args, **kwargs)
        finally:
            for module, cls, attributes in converted:
                module.__class__ = cls
                vars(module).update(attributes)

    return create


def _with_torchs_overloads(get_overloads: Callable) -> Callable:
    """The signatures of a function that has several are kept by the name of torch's function."""

    @functools.wraps(get_overloads)
    def get(obj: Any) -> Any:
        return get_overloads(obj.__prepare_scriptable__() if hasattr(obj, "__prepare_scriptable__") else obj)

    return get


@functools.cache
def over_torchs_layers(cls: type) -> type:
    """The class itself, or one of the same text whose methods are inherited from torch's layers in place of pynn's."""
    originals = {own: original for original, own in class_pairs().items()}
    if cls in originals:
        return originals[cls]
    if "_pynn_original" in vars(cls):
        return cls._pynn_original  # type: ignore[attr-defined]
    bases = tuple(over_torchs_layers(base) for base in cls.__bases__)
    return cls if bases == cls.__bases__ else with_new_bases(cls, bases)


def keeping_layers(is_leaf_module: Callable) -> Callable:
    """For a subclass of torch.fx.Tracer, or itself: pynn's layers are leaves as torch.nn's are."""

    @functools.wraps(is_leaf_module)
    def is_leaf(self: torch.fx.Tracer, m: Module, module_qualified_name: str) -> bool:
        is_layer = type(m).__module__.startswith("pynn.") and not isinstance(m, Sequential)
        return is_layer or is_leaf_module(self, m, module_qualified_name)

    return is_leaf


def _tracing_torchs_functions(trace: Callable) -> Callable:
    """symbolic_trace(pynn.functional.f) takes the text of torch's f apart.

    What it calls by the names of torch.nn.functional is torch's, too. A function of C++ has no text, and torch.fx
    refuses it; pynn's is refused only while it has torch's name.
    """

    @functools.wraps(trace)
    def trace_root(self: torch.fx.Tracer, root: Any, *args: Any, **kwargs: Any) -> torch.fx.Graph:
        originals = {own: original for original, own in function_pairs().items()}
        original = None if isinstance(root, Module) else originals.get(root)
        if original is None or not (inspect.isfunction(original) or is_installed(root)):
            return trace(self, root, *args, **kwargs)
        with torchs_names():
            return trace(self, original, *args, **kwargs)

    return trace_root


def _by_layers(get_source_partitions: Callable) -> Callable:
    """Which nodes come from which layer or function, of torch's or of pynn's."""

    @functools.wraps(get_source_partitions)
    def get(
        graph: torch.fx.Graph, wanted_sources: list[Any], filter_fn: Callable | None = None
    ) -> dict[Any, list]:
        noted = [(node.meta, note) for node in graph.nodes for note in _as_noted_of_torchs(node.meta).items()]
        before = [(meta, name, meta[name]) for meta, (name, _) in noted]
        wanted = [torchs_objects().get(source, source) for source in wanted_sources]
        try:
            for meta, (name, note) in noted:
                meta[name] = note
            found = get_source_partitions(graph, wanted, filter_fn)
        finally:
            for meta, name, note in before:
                meta[name] = note
        partitions = {
            source: found[torchs] for source, torchs in zip(wanted_sources, wanted) if torchs in found
        }
        for source, parts in partitions.items():
            for part in parts:
                part.source = source
        return partitions

    return get


def _as_noted_of_torchs(meta: dict[str, Any]) -> dict[str, Any]:
    """What would be noted otherwise if the node came from torch's layer: a layer of torch.nn is the source itself."""
    layers, sources = meta.get("nn_module_stack"), meta.get("source_fn_stack")
    key, (path, layer) = list(layers.items())[-1] if layers else (None, (None, None))
    original = _layers_and_their_names().get(layer)
    if sources:
        name, source = sources[-1]
        return {"source_fn_stack": [*sources[:-1], (name, original or torchs_objects().get(source, source))]}
    return {"nn_module_stack": {**layers, key: (path, original)}} if original else {}


def _without_pynn(can_implicitly_extern: Callable) -> Callable:
    """A package holds neither torch's source nor pynn's: whoever loads it has both."""

    @functools.wraps(can_implicitly_extern)
    def can(self: PackageExporter, module_name: str) -> bool:
        return module_name.partition(".")[0] == "pynn" or can_implicitly_extern(self, module_name)

    return can


def _write_torchs_sources(serializer: ModuleType) -> None:
    wrap(serializer.GraphModuleSerializer, "serialize_operator", _by_torchs_name)


def _by_torchs_name(serialize_operator: Callable) -> Callable:
    """A saved program names torch's layer or function as a node's source: names below torch alone are looked up
    when it is loaded. While pynn is installed, most of these names hold pynn's.
    """

    @functools.wraps(serialize_operator)
    def serialize(self: Any, target: Any) -> str:
        return serialize_operator(self, torchs_objects().get(target, target))

    return serialize


def _leave_own_frames_alone(trace_rules: ModuleType) -> None:
    """Dynamo inlines pynn's functions where what it compiles calls them, and compiles none that was called otherwise.

    That is its rule for torch.nn. A constructor that it compiled by itself would stop at Module.__init__; a function
    called after a break of the graph would be a graph of its own.
    """
    trace_rules.add("pynn")
    wrap(trace_rules, "is_torch_inline_allowed", _and_pynns)
    wrap(trace_rules, "check", _but_for_layers_with_hooks)


def _and_pynns(is_inlined_when_called: Callable) -> Callable:
    @functools.wraps(is_inlined_when_called)
    def is_inlined(filename: str) -> bool:
        return filename.startswith(OWN_FOLDER) or is_inlined_when_called(filename)

    return is_inlined


def _but_for_layers_with_hooks(is_left_alone: Callable) -> Callable:
    """A hook may break the graph around the layer. Dynamo then compiles `forward` of torch's layers."""

    @functools.wraps(is_left_alone)
    def check(obj: Any, *args: Any, **kwargs: Any) -> bool:
        return is_left_alone(obj, *args, **kwargs) and not _is_forward_with_hooks(kwargs.get("frame"))

    return check


def _is_forward_with_hooks(frame: Any) -> bool:
    if frame is None or frame.f_code.co_name != "forward":
        return False
    layer = frame.f_locals.get("self")
    if not isinstance(layer, Module) or not type(layer).__module__.startswith("pynn."):
        return False
    return torch._dynamo.utils.nnmodule_has_hooks(layer, check_forward_hooks=True)


def _note_the_lines_that_call(symbolic_convert: ModuleType) -> None:
    wrap(symbolic_convert.InstructionTranslatorBase, "is_co_filename_from_nn_modules", _or_from_pynn)


def _or_from_pynn(is_from_torchs_layers: Callable) -> Callable:
    """Lines of pynn are left out of a node's stack trace as those of torch.nn are: the line that calls is noted.

    Where only layers call each other, pynn's lines are all there is to note.
    """

    @functools.wraps(is_from_torchs_layers)
    def is_from_layers(frame: Any) -> bool:
        if not frame.f_code.co_filename.startswith(OWN_FOLDER):
            return is_from_torchs_layers(frame)
        while (frame := getattr(frame, "parent", None)) is not None:
            if not is_from_torchs_layers(frame) and not frame.f_code.co_filename.startswith(OWN_FOLDER):
                return True
        return False

    return is_from_layers


LATER = {
    "torch._dynamo.symbolic_convert": _note_the_lines_that_call,
    "torch._dynamo.trace_rules": _leave_own_frames_alone,
    "torch._export.serde.serialize": _write_torchs_sources,
}
"""What is done to modules that are imported when something is compiled, or saved, for the first time."""


class _LaterModules(AroundImport):
    def wants(self, fullname: str) -> bool:
        return fullname in LATER

    def around(self, module: ModuleType, run: Callable[[], None]) -> None:
        run()
        LATER[module.__name__](module)


@functools.cache
def _layers_and_their_names() -> dict[Any, type]:
    """pynn's layers and their names, as torch.export notes them -> torch's layers."""
    names = {f"{own.__module__}.{own.__qualname__}": original for original, own in class_pairs().items()}
    return {**names, **{own: original for original, own in class_pairs().items()}}
