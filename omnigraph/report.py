"""Text for people: tables, sizes, progress."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

#: Seconds between two plain lines of one step.
_SECONDS = 5.0


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, under a rule."""
    cells = [list(header), *[list(map(str, row)) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def size_text(size: float) -> str:
    """A number of bytes for a person: 1,234 bytes is "1.2 kB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


@contextlib.contextmanager
def progress_reporter(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal where rich is installed, plain lines on stderr elsewhere."""
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import Progress

            with Progress(console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(title)
                yield lambda step, done, total: bar.update(
                    task, description=step, completed=done, total=total
                )
            return
    yield _plain_lines()


def _plain_lines() -> Callable[[str, int, int], None]:
    """A line for each step; one in five seconds where only the number of the step changes."""
    last, when = "", 0.0

    def show(step: str, done: int, total: int) -> None:
        nonlocal last, when
        words, now = step.rstrip("0123456789"), time.monotonic()
        if words != last or now - when >= _SECONDS:
            last, when = words, now
            print(f"[{done}/{total}] {step}", file=sys.stderr, flush=True)

    return show
