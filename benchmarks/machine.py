"""What the figures were measured on: the machine, the versions, and the machine's measured peaks."""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cxx_compiler() -> str | None:
    """Return the C++ compiler Inductor would use, or None; Inductor's figures are left out without one."""
    candidates = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    return next(filter(None, map(shutil.which, candidates)), None)


def git_commit() -> str:
    root = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def wait_for_device() -> None:
    """Kernels on a CUDA device, where one is used, run behind the program's back."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def describe_machine(device: str = "cpu") -> dict:
    """Return machine and versions, as every result file carries them."""
    import numba

    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if device == "cuda" else {}
    return {
        **gpu,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "cxx": cxx_compiler(),
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def seconds_of(function: Callable[[], object], repeats: int = 7) -> float:
    """Return the median wall time of a call after two unmeasured ones."""
    function(), function()
    times = []
    for _ in range(repeats):
        wait_for_device()
        begin = time.perf_counter()
        function()
        wait_for_device()
        times.append(time.perf_counter() - begin)
    return median(times)


def measure_peaks(device: str = "cpu") -> dict:
    """Measure what the machine can do with torch's present thread count, or on a CUDA device.

    flops:  a 2048 x 2048 x 2048 float32 matmul, floating-point operations a second
    bytes:  Tensor.copy_ of 256 MiB (past any last-level cache), bytes read plus bytes written a second
    """
    size = 2048
    a, b, out = (torch.randn(size, size, device=device) for _ in range(3))
    source = torch.ones(64 * 2**20, device=device)
    target = torch.empty_like(source)
    return {
        "flops": 2 * size**3 / seconds_of(lambda: torch.mm(a, b, out=out)),
        "bytes": 2 * source.nbytes / seconds_of(lambda: target.copy_(source)),
    }


def write_record(path: Path, entries: dict[str, dict]) -> None:
    """A demo's results by contender, with the machine and the threads they were had on."""
    record = {"machine": describe_machine(), "threads": torch.get_num_threads(), **entries}
    path.write_text(json.dumps(record, indent=1))
