"""Reports the progress of an export, and times its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with a text of the current work.
Progress = Callable[[str], None]
#: Called with a step, the number of finished steps, and the number of all steps.
StepProgress = Callable[[str, int, int], None]


def silent(_: str) -> None:
    """Reports nothing."""


class Steps:
    """Counts the steps of an export, and times each.

    Args:
        report: called at the beginning of each step and at the end of the last; None is silent.
        total: how many steps there are.
    """

    def __init__(self, report: StepProgress | None, total: int) -> None:
        self._report, self._done, self._total = report, 0, total
        #: Seconds of each step that belongs to no single target.
        self.seconds: dict[str, float] = {}

    def progress(self, text: str) -> None:
        """Report the current work within a step."""
        if self._report is not None:
            self._report(text, self._done, self._total)

    @contextmanager
    def step(self, name: str, seconds: dict[str, float] | None = None) -> Iterator[None]:
        """One step.

        Args:
            name: for a person; its first word is the key of its time.
            seconds: gets the time of the step; None is ``self.seconds``.
        """
        self.progress(name)
        start = time.perf_counter()
        yield
        self._done += 1
        key = name.split(" ", 1)[0]
        (self.seconds if seconds is None else seconds)[key] = time.perf_counter() - start
        if self._done == self._total:
            self.progress("done")
