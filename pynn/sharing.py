"""How a name that needs no definition, or has none yet, resolves to torch's own."""

import importlib
import pkgutil
import sys
from types import ModuleType


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
