"""The functions of a generated module, and kernels that differ only in their sizes made one.

The stages of a network repeat the same loops over other extents and strides. A processor gains little from knowing
those as constants, but each distinct function costs a tenth of a second and more to compile. So where functions of a
module are equal but for some sizes, these become entries of the argument table: their texts are then the same, and
what is compiled is found by its text (`cache.py`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from compiler_bridge import program as p
from compiler_bridge.emit.kernel import INDENT

LEAST_SIZE = 16
"""Smaller numbers stay constants: a short loop is worth unrolling, a window's taps above all."""

MOST_EXACT = 2**24
"""Whole numbers up to here are exact as float32."""

SIZE = re.compile(
    r"(?<![\w.])(?<=[*+-] )(\d+)(?![\w.])"  # a term or factor of an index
    r"|(?<![\w.])(?<!// )(?<!% )(\d+)(?= \* )"
    r"|(?<=\bi64\()(\d+)(?=\))"
    r"|(?<=\bf(?:32|64)\()(\d+)\.0(?=\))"
)
ANY_NUMBER = re.compile(r"(?<![\w.])(\d+)(?![\w.])")


@dataclass
class ModuleFunction:
    """One function: its text, and what to call to append a size to each table it is called with."""

    name: str
    parameters: str
    docstring: str
    lines: list[str]
    table_length: int = 0
    append: list[Callable[[int], None]] = field(default_factory=list)

    def source(self) -> str:
        body = "\n".join(self.lines)
        return f"\n\n@kernel\ndef {self.name}(tab, {self.parameters}):\n{self.docstring}{body}\n"

    def without_sizes(self) -> tuple[str, list[int]]:
        """The text with its sizes left out, and the sizes."""
        sizes: list[int] = []

        def leave_out(number: int, _: str) -> str:
            sizes.append(number)
            return ""

        return "\n".join(replace_sizes(line, leave_out) for line in self.lines), sizes


class ModuleFunctions:
    """The functions of one module, in order; equal bodies share one."""

    def __init__(self) -> None:
        self.by_body: dict[str, ModuleFunction] = {}
        self.by_name: dict[str, ModuleFunction] = {}

    def add(self, lines: list[str], title: str, docstring: str, parameters: str) -> str:
        """The name of a function with this body."""
        body = "\n".join(lines)
        function = self.by_body.get(body)
        if function is None:
            digest = hashlib.sha256(body.encode()).hexdigest()[:8]
            name = f"k{len(self.by_body)}_{title}_{digest}"
            function = ModuleFunction(name, parameters, docstring, body.split("\n"))
            self.by_body[body] = self.by_name[name] = function
        return function.name

    def called_with(self, name: str, table_length: int, append: Callable[[int], None]) -> None:
        """Say how long the function's table is, and how to make it longer."""
        function = self.by_name[name]
        function.table_length = table_length
        function.append.append(append)

    def source(self) -> str:
        return "".join(function.source() for function in self.by_name.values())

    def share_sizes(self) -> None:
        """Functions that are equal but for sizes -> one text, the sizes from the table."""
        families: dict[tuple[str, int, str], list[tuple[ModuleFunction, list[int]]]] = {}
        for function in self.by_name.values():
            shape, sizes = function.without_sizes()
            family = (function.parameters, function.table_length, shape)
            families.setdefault(family, []).append((function, sizes))
        for family in families.values():
            if len(family) > 1:
                share(family)


def share(family: list[tuple[ModuleFunction, list[int]]]) -> None:
    columns = list(zip(*(sizes for _, sizes in family)))  # one place of the text in every function
    varying = list(dict.fromkeys(column for column in columns if len(set(column)) > 1))
    place = {column: f"size{k}" for k, column in enumerate(varying)}
    for index, (function, _) in enumerate(family):
        remaining = iter(columns)

        def name(number: int, text: str) -> str:
            return place.get(next(remaining), text)  # noqa: B023

        lines = [replace_sizes(line, name) for line in function.lines]
        values = [column[index] for column in varying]
        function.lines = [
            f"{INDENT}size{k} = tab[{function.table_length + k}]  # {value}" for k, value in enumerate(values)
        ] + lines
        for append in function.append:
            for value in values:
                append(value)


def replace_sizes(line: str, name: Callable[[int, str], str]) -> str:
    """The line with name(number, its text) in place of every number that could as well be a variable."""

    def replaced(match: re.Match[str]) -> str:
        number = int(next(group for group in match.groups() if group is not None))
        is_size = LEAST_SIZE <= number and (number <= MOST_EXACT or not match.group().endswith(".0"))
        return name(number, match.group()) if is_size else match.group()

    code = line.lstrip()
    if code.startswith("for ") and " in range(" in code:
        return ANY_NUMBER.sub(replaced, line)
    assigned = re.fullmatch(r"(\s*\w+ = )(\d+)", line)
    if assigned:
        return assigned[1] + ANY_NUMBER.sub(replaced, assigned[2])
    return SIZE.sub(replaced, line)


def append_size(arguments: list[p.Argument]) -> Callable[[int], None]:
    """How a kernel step's table is made longer."""
    return lambda value: arguments.append(p.SizeArgument(value))
