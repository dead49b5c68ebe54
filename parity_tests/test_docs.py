"""The pages name what exists: files, environment variables, levels."""

import re
from pathlib import Path

import pytest
import torch

import pynn
from compiler_bridge import settings
from compiler_bridge.cpu import mathlib, simd_python

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "compiler_bridge/ARCHITECTURE.md")
FOLDERS = ("", "pynn/modules", "compiler_bridge")
"""Where a name in backquotes may lie, seen from the root."""

NAMED = re.compile(r"`([\w/]+(?:\.py|\.md|/))`")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_a_page_names_exists(page):
    """Bug: ARCHITECTURE.md named capture/definitions.py, which had moved to pynn."""
    names = set(NAMED.findall((ROOT / page).read_text()))
    assert len(names) > 10
    assert not [name for name in names if not any((ROOT / folder / name).exists() for folder in FOLDERS)]


def test_every_environment_variable_is_described():
    read = set(re.findall(r"\bPYNN_\w+", Path(settings.__file__).read_text()))
    described = set(re.findall(r"^\| `(PYNN_\w+)`", (ROOT / PAGES[1]).read_text(), re.M))
    assert read == described and len(read) >= 5


def test_every_word_of_the_kernel_language_is_described():
    described = (ROOT / PAGES[1]).read_text().split("## Kernel language")[1].split("## Kernel ABI")[0]
    words = {*simd_python.__all__, *mathlib.__all__}
    assert len(words) > 70 and words <= set(re.findall(r"\w+", described))


@pytest.mark.parametrize("level", range(7))
def test_each_debug_level_prints_one_stage_more(level, monkeypatch, capsys):
    monkeypatch.setattr(settings, "DEBUG", level)
    pynn.compile(torch.nn.Softmax(-1), strict=True)(torch.randn(3, 5))
    printed = capsys.readouterr().err
    marks = ("pynn: inference graph", "nothing is left to ATen", "generated module  ", "fused loop IR",
             "loop IR", "FX graph of ATen operations")  # fmt: skip
    assert [re.search(rf"(?<!fused ){re.escape(mark)}", printed) is not None for mark in marks] == [
        number < level for number in range(len(marks))
    ]
