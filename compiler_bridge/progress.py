"""A line on stderr while a graph compiles for longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from compiler_bridge import settings

SECONDS_OF_SILENCE = 1.0


@contextmanager
def report_progress(title: str, total: int) -> Generator[Callable[[str], None], None, None]:
    """Gives `advance(item)`, called as each of `total` items begins.

    Says nothing for the first second; then one line, kept current, if stderr is a terminal, or plain lines
    when PYNN_DEBUG >= 1.
    """
    interactive = sys.stderr.isatty()
    if not interactive and settings.DEBUG < 1:
        yield lambda item: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    status = console.status(title) if interactive else None
    started = time.monotonic()
    done = 0
    shown = False

    def advance(item: str) -> None:
        nonlocal done, shown
        done += 1
        if time.monotonic() - started < SECONDS_OF_SILENCE:
            return
        line = f"{title}: {item} ({done} of {total})"
        if status is None:
            console.print(line, markup=False, highlight=False)
            return
        if not shown:
            status.start()
            shown = True
        status.update(line)

    try:
        yield advance
    finally:
        if shown and status is not None:
            status.stop()
