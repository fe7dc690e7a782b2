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


#: Seconds of each kind of step in a usual export, beside one another; "start" imports torch.
_USUAL = {"start": 4.0, "model": 2.0, "trace": 8.0, "passes": 3.0, "compile": 2.0, "contract": 5.0}
#: A step that takes longer than expected is expected to take so much longer still.
_OVERTIME = 0.25
#: Seconds of usual pace that count beside those of this run.
_TRUST = 1.0


class Estimate:
    """How much of an export is done, by time, and how long the rest takes.

    It begins with the usual seconds of each kind of step, and learns from the steps of this run: a
    kind that was seen takes as long again, and the others are as much slower than usual as those.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin = clock, clock()
        self._since, self._shown = self._begin, 0.0
        self._kinds: list[str] = [*_USUAL]
        self._place = 0
        self._seen: dict[str, list[float]] = {}

    def report(self, step: str, done: int, total: int) -> None:
        """A `StepProgress`: the steps that were finished since the last call are timed."""
        targets = max(0, (total - 2) // 3)
        self._kinds = ["start", "model", "trace", *("passes", "compile") * targets]
        self._kinds += ["contract"] * targets
        now = self._clock()
        finished = self._kinds[self._place : done + 1]
        for kind in finished:
            self._seen.setdefault(kind, []).append((now - self._since) / len(finished))
        if finished:
            self._place, self._since = done + 1, now

    @property
    def remaining(self) -> float:
        """The seconds that are left."""
        if self._place >= len(self._kinds):
            return 0.0
        here, *after = map(self._expected, self._kinds[self._place :])
        spent = self._clock() - self._since
        return max(here - spent, _OVERTIME * spent) + sum(after)

    @property
    def fraction(self) -> float:
        """The share that is done, from 0 to 1; it never falls."""
        spent = self._clock() - self._begin
        left = self.remaining
        self._shown = max(self._shown, spent / (spent + left) if spent + left else 0.0)
        return self._shown

    def _expected(self, kind: str) -> float:
        if kind in self._seen:
            return sum(self._seen[kind]) / len(self._seen[kind])
        known = [k for k in self._seen if k != "start"]
        usual = sum(_USUAL[k] * len(self._seen[k]) for k in known)
        spent = sum(sum(self._seen[k]) for k in known)
        pace = (spent + _TRUST) / (usual + _TRUST)
        return _USUAL[kind] * pace
