"""The docstrings of pynn's public names say what one asks of them: shapes, dtypes, errors, where it is from.

The rule, for what `pynn.coverage()` lists as Python of pynn:

    a function   Shape, dtype, Raises, Source; every parameter named
    a layer      Shape and Source, its own or a base's in pynn; every parameter of its constructor named
    an alias     one paragraph that names the function or layer whose docstring holds all that

A section may send its reader to another name, in backquotes, which then is a public name of pynn; what "Args: as
`that`" leaves out counts as named if it is named there.
"""

import importlib
import inspect
import re
from pathlib import Path

import torch

from pynn.coverage import PYTHON, coverage

SECTION = re.compile(r"^(Args|Shape|dtype|Raises|Source): +(\S.*(?:\n {5,}.*)*)$", re.M)
ALIAS = re.compile(r"(In-place version of|The same as|The old name of) `(\w+)`[^\n]*")
UNNAMED = {"device", "dtype", "args", "kwargs"}
"""Parameters that every layer has with one meaning; those that begin with _ aren't the caller's."""


def public() -> dict[str, object]:
    """The objects behind the names that pynn.coverage() says are defined here."""
    found = {}
    for entry in coverage(show=False):
        if entry.status == PYTHON:
            namespace, _, name = entry.name.removeprefix("nn.").rpartition(".")
            found[entry.name] = getattr(importlib.import_module(f"pynn.{namespace}".rstrip(".")), name)
    return found


NAMES = public()
BY_SHORT_NAME = {name.rpartition(".")[2]: value for name, value in NAMES.items()}


def is_layer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, torch.nn.Module)


def text_of(value: object) -> str:
    """The docstring; of a layer also those of its bases in pynn."""
    if not is_layer(value):
        return inspect.getdoc(inspect.unwrap(value)) or ""
    own = [cls for cls in value.__mro__ if cls.__module__.startswith("pynn.")]
    return "\n\n".join(inspect.cleandoc(cls.__doc__) for cls in own if cls.__doc__)


def sections_of(text: str) -> dict[str, str]:
    """The first of each kind: a layer's own come before those of its bases."""
    found: dict[str, str] = {}
    for name, content in SECTION.findall(text):
        found.setdefault(name, content)
    return found


def with_references(value: object, known: dict[str, object]) -> str:
    """The docstring and those that its Args send the reader to."""
    text, seen = "", [value]
    for each in seen:
        text += "\n" + text_of(each)
        names = re.findall(r"`(\w+)`", sections_of(text_of(each)).get("Args", ""))
        seen += [known[name] for name in names if known.get(name, value) not in seen]
    return text


def faults(value: object, known: dict[str, object]) -> list[str]:
    """What the docstring lacks. known: the public names by which it may send its reader elsewhere"""
    text = text_of(value)
    if alias := ALIAS.fullmatch(text.partition("\n\nShape:")[0]):
        return [] if alias[2] in known else [f"`{alias[2]}` is no public name"]
    found = sections_of(text)
    wanted = ("Shape", "Source") if is_layer(value) else ("Shape", "dtype", "Raises", "Source")
    lacking = [name for name in wanted if name not in found]
    for parameter in inspect.signature(inspect.unwrap(value)).parameters:
        is_hidden = parameter.startswith("_") or (is_layer(value) and parameter in UNNAMED)
        if not is_hidden and not re.search(rf"\b{parameter}\b", with_references(value, known)):
            lacking.append(f"parameter {parameter}")
    references = re.findall(r"see `(\w+)`", found.get("Source", ""))
    lacking += [f"`{name}` is no public name" for name in references if name not in known]
    return lacking


def test_every_docstring_is_complete():
    assert len(NAMES) > 290
    found = {name: faults(value, BY_SHORT_NAME) for name, value in NAMES.items()}
    report = "\n".join(f"{name}: {', '.join(each)}" for name, each in found.items() if each)
    assert not report, f"\n{report}"


def test_the_layer_of_the_readme_keeps_the_rule():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    text = re.search(r"^```python file=pynn/modules/gated_mlp.py\n(.*?)^```$", readme, re.M | re.S)
    assert text
    module: dict[str, object] = {"__name__": "pynn.modules.gated_mlp"}
    exec(text[1], module)
    names = {name: module[name] for name in module["__all__"]}  # type: ignore[attr-defined]
    assert names and {name: faults(value, BY_SHORT_NAME | names) for name, value in names.items()} == {
        name: [] for name in names
    }
