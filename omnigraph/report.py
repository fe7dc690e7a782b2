"""Text for people: tables, sizes, progress."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from omnigraph.progress import Estimate, StepProgress

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
def progress_reporter(title: str) -> Iterator[StepProgress]:
    """A bar on a terminal where rich is installed, plain lines on stderr elsewhere."""
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            with _bar(title) as show:
                yield show
            return
    yield _plain_lines(Estimate())


@contextlib.contextmanager
def _bar(title: str) -> Iterator[StepProgress]:
    """A bar by time, which moves within a step, and says how long the rest takes."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    estimate = Estimate()

    class Bar(Progress):
        def get_renderables(self):  # type: ignore[no-untyped-def]
            for task in self.tasks:
                task.completed = estimate.fraction
                task.fields["left"] = left_text(estimate.remaining)
            return super().get_renderables()

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{title}: start", total=1.0, left="")

        def show(step: str, done: int, total: int) -> None:
            estimate.report(step, done, total)
            bar.update(task, description=step)

        yield show


def left_text(seconds: float) -> str:
    """The time that is left, for a person: "about 20 s left"."""
    if seconds >= 90:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds:.0f} s left" if seconds >= 1 else ""


def _plain_lines(estimate: Estimate) -> StepProgress:
    """A line for each step; one in five seconds where only the number of the step changes."""
    last, when = "", 0.0

    def show(step: str, done: int, total: int) -> None:
        nonlocal last, when
        estimate.report(step, done, total)
        words, now = step.rstrip("0123456789"), time.monotonic()
        if words != last or now - when >= _SECONDS:
            last, when = words, now
            about = f"{estimate.fraction:.0%}", left_text(estimate.remaining)
            said = ", ".join(filter(None, about))
            print(f"[{done}/{total}] {step} ({said})", file=sys.stderr, flush=True)

    return show
