"""The disk cache: generated modules as files, machine code by the content of each kernel.

    <cache dir>/modules/<hash of the text>.py      what Python imports, debuggers show, people read
    <cache dir>/machine/<hash of the kernel>.o     sha256 of the object file, then the object file

The key of a kernel is its text up to its name, comments and docstring, the text of every definition of its
module it reaches, the files of the kernel language, the versions of Python, Numba and llvmlite, and the
processor. Equal kernels of different graphs are therefore compiled once, and a second process compiles
nothing (nor imports Numba). Every file is written beside its place and renamed into it, so that processes
may race; a file that fails its checksum is compiled again. Without a usable directory everything works from
memory.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache as remember
from functools import lru_cache
from pathlib import Path
from typing import Any

from compiler_bridge import settings
from compiler_bridge.cpu import machine_code
from compiler_bridge.errors import CacheWarning, CompileError
from compiler_bridge.progress import report_progress

_LANGUAGE_FILES = (
    "language*.py",
    "simd*.py",
    "mathlib*.py",
    "philox*.py",
    "machine_code.py",
    "code_library.py",
)

_lock = threading.RLock()
_addresses: dict[str, int] = {}  # key of a kernel -> address, for this process
_warned: set[str] = set()
_temporary_directory: Path | None = None


# ------------------------------------------------------------------------------------------------ directory
def _warn_once(message: str, about: str = "") -> None:
    """about: what is warned of only once, if not each message."""
    if (about or message) not in _warned:
        _warned.add(about or message)
        warnings.warn(message, CacheWarning, stacklevel=3)


def cache_directory() -> Path:
    """The cache directory, made if need be; a temporary one for this process if it can't be written."""
    global _temporary_directory
    directory = Path(settings.CACHE_DIR)
    try:
        for part in ("modules", "machine"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        if os.access(directory / "machine", os.W_OK) and os.access(directory / "modules", os.W_OK):
            return directory
        reason = "not writable"
    except OSError as error:
        reason = str(error)
    _warn_once(
        f"cache directory {directory}: {reason}; compiled code is kept for this process only "
        "(fix: set PYNN_CACHE_DIR to a directory you can write)"
    )
    if _temporary_directory is None:
        _temporary_directory = Path(tempfile.mkdtemp(prefix="pynn-"))
        for part in ("modules", "machine"):
            (_temporary_directory / part).mkdir()
    return _temporary_directory


def directory_is_usable() -> bool:
    """Whether other processes will find what this one writes."""
    return cache_directory() == Path(settings.CACHE_DIR)


def holds_machine_code() -> bool:
    """Whether any kernel was ever compiled into the directory."""
    with os.scandir(cache_directory() / "machine") as entries:  # a glob would list all of them first
        return any(entry.name.endswith(".o") for entry in entries)


def write_atomically(path: Path, content: bytes) -> bool:
    """Write a file so that no process ever sees half of it; False (one warning) when the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
        return True
    except OSError as error:
        _warn_once(f"cache directory {path.parent}: {error}; compiled code is kept for this process only")
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass
        return False


# --------------------------------------------------------------------------------------------- module files
def module_path(source: str) -> Path:
    """Where the module with this text lies (written by `write_module`)."""
    return cache_directory() / "modules" / f"{_digest(source)}.py"


def write_module(source: str) -> Path:
    """Put the text of a generated module into the cache; returns its path.

    A file of that name with other content (damaged, or edited by hand) is replaced. Should the disk refuse,
    the module still imports: from memory, under the same path.
    """
    path = module_path(source)
    try:
        if path.read_bytes() == source.encode():
            return path
    except OSError:
        pass
    write_atomically(path, source.encode())
    return path


def import_module(source: str) -> types.ModuleType:
    """Import a generated module from its file; the same text gives the same module."""
    path = write_module(source)
    name = f"pynn_generated_{path.stem}"
    with _lock:
        if name in sys.modules:
            return sys.modules[name]
        module = types.ModuleType(name)
        module.__file__ = str(path)
        # From the text in hand, not from the file: the file is for people and debuggers, and another process
        # or a full disk must not be able to change what runs.
        code = compile(source, str(path), "exec")
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module


# ------------------------------------------------------------------------------------------------------ keys
def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


@remember
def environment_key() -> str:
    """Hash of what machine code depends on besides the kernel: language files, versions, processor."""
    folder = Path(__file__).parent / "cpu"
    files = sorted({path for pattern in _LANGUAGE_FILES for path in folder.glob(pattern)})
    texts = [path.name + path.read_text() for path in files]
    versions = [importlib.metadata.version(package) for package in ("numba", "llvmlite")]
    return _digest(*texts, *versions, platform.python_version(), machine_code.describe_host())


WORD = re.compile(r"[A-Za-z_]\w*")


class ModuleText:
    """The definitions of a module's text, to find what a kernel's meaning depends on."""

    def __init__(self, source: str):
        self.lines = source.splitlines()
        self.common: list[str] = []  # imports: every kernel may depend on them
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.keys: dict[str, str] = {}
        for statement in ast.parse(source).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                self.common.append(self._text(statement))
            for name in _bound_names(statement):
                self.definitions.setdefault(name, []).append(statement)

    def kernel_key(self, name: str) -> str:
        """Content address of a kernel; kernels that differ in name, comments or docstring share it."""
        if name not in self.keys:
            self.keys[name] = self._find_key(name)
        return self.keys[name]

    def _find_key(self, name: str) -> str:
        seen = {name}
        texts = [self._text(own).replace(f"def {name}(", "def kernel(", 1) for own in self.definitions[name]]
        waiting = list(texts)
        while waiting:
            for used in dict.fromkeys(WORD.findall(waiting.pop())):
                if used in self.definitions and used not in seen:
                    seen.add(used)
                    reached = [self._text(statement) for statement in self.definitions[used]]
                    texts += reached
                    waiting += reached
        return _digest(environment_key(), *sorted(self.common), *texts)

    def _text(self, statement: ast.stmt) -> str:
        """The statement's lines without docstring and comments."""
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *[decorator.lineno for decorator in decorators]])
        skipped: set[int] = set()
        if isinstance(statement, ast.FunctionDef) and ast.get_docstring(statement, clean=False) is not None:
            docstring = statement.body[0]
            skipped = set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
        kept: list[str] = []
        for number in range(first, (statement.end_lineno or first) + 1):
            line = self.lines[number - 1]
            if "#" in line and '"' not in line and "'" not in line:
                line = line[: line.index("#")]
            if number not in skipped and line.strip():
                kept.append(line.rstrip())
        return "\n".join(kept)


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
    elif not isinstance(statement, (ast.Import, ast.ImportFrom)):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def function_key(function: Any) -> str:
    """Content address of a Python function: its code, and the code and constants it reaches.

    For kernels of a library, which exist as functions; the language's own words count through
    `environment_key`.
    """
    return _digest(environment_key(), *_describe_function(python_function(function), set()))


def python_function(function: Any) -> Any:
    """The plain Python function under a kernel, a Numba dispatcher or another wrapper."""
    for attribute in ("py_func", "function", "__wrapped__"):
        inner = getattr(function, attribute, None)
        if isinstance(inner, types.FunctionType):
            return inner
    return function


def _describe_function(function: Any, seen: set[int]) -> list[str]:
    seen.add(id(function))
    described = _describe_code(function.__code__)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    names = [name for name in function.__code__.co_names if name in function.__globals__]
    reached = [*zip(function.__code__.co_freevars, cells), *((n, function.__globals__[n]) for n in names)]
    for label, value in reached:
        inner = python_function(value)
        if isinstance(value, (int, float, str, bytes, tuple, bool, frozenset, type(None))):
            described.append(f"{label}={value!r}")
        elif isinstance(inner, types.FunctionType) and id(inner) not in seen:
            described += [label, *_describe_function(inner, seen)]
        else:
            described.append(f"{label}:{type(value).__name__}:{getattr(value, '__name__', '')}")
            if hasattr(value, "dtype"):  # a numpy scalar
                described.append(repr(value))
    return described


def _describe_code(code: types.CodeType) -> list[str]:
    described = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        described += _describe_code(constant) if isinstance(constant, types.CodeType) else [repr(constant)]
    return described


# ---------------------------------------------------------------------------------------------- machine code
def kernel_keys(source: str, names: Sequence[str]) -> dict[str, str]:
    """Content address of each named kernel of a module's text."""
    text = _module_text(source)
    return {name: text.kernel_key(name) for name in names}


@lru_cache(maxsize=16)
def _module_text(source: str) -> ModuleText:
    return ModuleText(source)


def missing_kernels(source: str, names: Sequence[str]) -> list[str]:
    """Those of the named kernels that would have to be compiled; one name for each distinct kernel."""
    by_key = {key: name for name, key in kernel_keys(source, names).items()}
    return [name for key, name in by_key.items() if key not in _addresses and not _object_path(key).exists()]


def load_kernels(source: str, names: Sequence[str], title: str = "graph") -> dict[str, int]:
    """Addresses of the named kernels of a module's text: from memory, from disk, or compiled now."""
    keys = kernel_keys(source, names)
    write_module(source)

    def functions() -> dict[str, Any]:
        module = import_module(source)
        return {keys[name]: python_function(getattr(module, name)) for name in reversed(names)}

    addresses = _resolve(keys.values(), functions, title)
    return {name: addresses[key] for name, key in keys.items()}


def load_function(function: Any) -> int:
    """Address of the machine code of a library kernel."""
    key = function_key(function)
    name = getattr(python_function(function), "__name__", "kernel")
    return _resolve([key], lambda: {key: python_function(function)}, name)[key]


def load_functions_of_file(
    file: str, names: Sequence[str], define: Callable[[], dict[str, Any]]
) -> dict[str, int]:
    """Addresses of the functions `define()` returns, keyed by the text of `file` that defines them."""
    return load_functions(Path(file).read_text(), names, define, Path(file).stem)


def load_functions(
    text: str, names: Sequence[str], define: Callable[[], dict[str, Any]], title: str
) -> dict[str, int]:
    """Addresses of the functions `define()` returns, keyed by a text that determines them and their names.

    `define` runs, and Numba is imported, only when one of them must be compiled.
    """
    keys = {name: _digest(environment_key(), text, name) for name in names}

    def functions() -> dict[str, Any]:
        defined = define()
        return {key: defined[name] for name, key in keys.items()}

    addresses = _resolve(keys.values(), functions, title)
    return {name: addresses[key] for name, key in keys.items()}


def _resolve(keys: Iterable[str], functions: Callable[[], dict[str, Any]], title: str) -> dict[str, int]:
    """key -> address. `functions()` gives key -> Python function; called only if one must be compiled."""
    with _lock:
        wanted = list(dict.fromkeys(keys))
        objects = {key: _read_object(key) for key in wanted if key not in _addresses}
        missing = [key for key, content in objects.items() if content is None]
        if missing:
            by_key = functions()
            with report_progress(f"pynn: compiling {title}", len(missing)) as advance:
                for key in missing:
                    advance(by_key[key].__name__)
                    objects[key] = content = _compile(by_key[key], key)
                    _write_object(key, content)
        contents = {_symbol(key): content for key, content in objects.items() if content is not None}
        found = machine_code.load_objects(contents)
        _addresses.update({key: found[_symbol(key)] for key in objects})
        return {key: _addresses[key] for key in wanted}


def _symbol(key: str) -> str:
    return f"pynn_{key}"


def _compile(function: Any, key: str) -> bytes:
    try:
        return machine_code.compile_to_object(function, _symbol(key))
    except Exception as error:
        raise CompileError(function.__name__, str(error), function.__code__.co_filename) from error


def _object_path(key: str) -> Path:
    return cache_directory() / "machine" / f"{key}.o"


def _read_object(key: str) -> bytes | None:
    """The object file of a kernel; None when it isn't there or fails its checksum."""
    try:
        content = _object_path(key).read_bytes()
    except OSError:
        return None
    checksum, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != checksum:
        path = _object_path(key)
        _warn_once(
            f"cache file {path} is damaged; it and others like it are compiled again", f"{path.parent}"
        )
        return None
    return payload


def _write_object(key: str, content: bytes) -> None:
    write_atomically(_object_path(key), hashlib.sha256(content).digest() + content)


def forget_loaded_kernels() -> None:
    """Drop the in-memory table, so that the next load reads the disk (for tests)."""
    with _lock:
        _addresses.clear()
