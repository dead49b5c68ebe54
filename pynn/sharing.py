"""How a name that needs no definition, or has none yet, resolves to torch's own."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class TorchPaths(MetaPathFinder, Loader):
    """`import pynn.x.y` is `import torch.nn.x.y` wherever pynn has no file x/y.py.

    Both names then hold one module. Without this, Python would run torch's file a second time below a folder
    that is shared, and the classes in it would exist twice.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent.partition(".")[0] != "pynn":
            return None
        folder = sys.modules[parent].__name__
        if folder.startswith("pynn") and PathFinder.find_spec(fullname, path) is not None:
            return None
        torch_name = f"torch.nn{folder.removeprefix('pynn')}" if folder.startswith("pynn") else folder
        try:
            module = importlib.import_module(f"{torch_name}.{name}")
        except ModuleNotFoundError as error:
            if error.name == f"{torch_name}.{name}":
                return None
            raise
        return ModuleSpec(fullname, self, loader_state=(module, module.__spec__))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return spec.loader_state[0]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run: the module only gets back the spec that the import put its own in place of."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state[1]


if not any(isinstance(finder, TorchPaths) for finder in sys.meta_path):
    sys.meta_path.insert(0, TorchPaths())


class AroundImport(MetaPathFinder, Loader):
    """Does something before and after the modules that it wants are run; subclasses say which and what."""

    def wants(self, fullname: str) -> bool:
        raise NotImplementedError

    def around(self, module: ModuleType, run: Callable[[], None]) -> None:
        raise NotImplementedError

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if self.wants(fullname) else None
        if spec is not None and spec.loader is not None:
            spec.loader_state = spec.loader
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        loader = spec.loader = module.__loader__ = spec.loader_state
        self.around(module, lambda: loader.exec_module(module))  # type: ignore[union-attr]


def written_submodules(package: str) -> list[str]:
    """The public submodules that have a file here, in alphabetical order."""
    entries = pkgutil.iter_modules(sys.modules[package].__path__)
    return sorted(entry.name for entry in entries if not entry.name.startswith("_"))


def share_submodules(package: str, torch_package: ModuleType) -> None:
    """Make `package.x` torch's own module x wherever this package has no file x.

    `import package.x` then finds it as well. A file added here later takes over by itself.
    """
    written = written_submodules(package)
    for entry in pkgutil.iter_modules(torch_package.__path__):
        if entry.name in written or entry.name.startswith("_"):
            continue
        torch_name = f"{torch_package.__name__}.{entry.name}"
        module = importlib.import_module(torch_name)
        setattr(sys.modules[package], entry.name, module)
        for loaded in [name for name in sys.modules if name.startswith(torch_name + ".")] + [torch_name]:
            sys.modules[package + loaded.removeprefix(torch_package.__name__)] = sys.modules[loaded]


def share_names(package: str, torch_package: ModuleType) -> list[str]:
    """Let the public names of torch_package that are missing here be torch's own; return all its names."""
    here = sys.modules[package]
    names = getattr(torch_package, "__all__", None) or [
        name for name in vars(torch_package) if not name.startswith("_")
    ]
    for name in names:
        value, own = getattr(torch_package, name), vars(here).get(name)
        if own is None or (isinstance(own, ModuleType) and not isinstance(value, ModuleType)):
            # torch.nn.utils.weight_norm is a function that hides the submodule it comes from
            setattr(here, name, getattr(own, name, value))
    return list(names)


def share_helpers(package: str, torch_package: ModuleType) -> None:
    """Let torch's helpers with a leading underscore (_MaxPoolNd, _no_grad_trunc_normal_) be found here as well.

    People import them; a helper that this module has itself stays its own.
    """

    def getter(name: str) -> Any:
        if name.startswith("_") and not name.startswith("__") and hasattr(torch_package, name):
            return getattr(torch_package, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    sys.modules[package].__getattr__ = getter  # type: ignore[method-assign]
