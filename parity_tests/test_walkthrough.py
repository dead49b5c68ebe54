"""The README's "contribute a layer", followed to the letter in a copy of the repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = re.compile(r"^```python file=(\S+)\n(.*?)^```$", re.M | re.S)
TESTS = re.compile(r"^\| `test_.*?\|", re.M)


@pytest.mark.slow
def test_the_layer_of_the_readme_gets_its_tests(tmp_path: Path):
    readme = (ROOT / "README.md").read_text()
    for folder in ("pynn", "compiler_bridge", "parity_tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = FILES.findall(readme)
    assert [name for name, _ in files] == ["pynn/modules/gated_mlp.py", "parity_tests/cases_own/gated_mlp.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    command = next(line for line in readme.splitlines() if line.endswith("-k GatedMLP")).split()
    run = subprocess.run(
        [sys.executable, *command[1:], "-p", "no:cacheprovider", "-o", "addopts="],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    passed = set(re.findall(r"::(test_\w+)\[.*\] PASSED", run.stdout))
    promised = {name for row in TESTS.findall(readme) for name in re.findall(r"test_\w+", row)}
    assert len(promised) >= 8 and promised <= passed, sorted(promised - passed)
    for executor, dtype in [("eager", "float64"), ("eager", "float16"), ("numba", "float32")]:
        assert re.search(rf"GatedMLP-{executor}-{dtype}\] PASSED", run.stdout)
