"""The progress of an export by time: what is done, and how long the rest takes."""

from __future__ import annotations

import sys

import pytest

from omnigraph import report
from omnigraph.progress import Estimate

#: Steps of an export to one target, with the seconds of each in a slow run.
RUN = [("model", 4.0), ("trace forward", 16.0), ("passes for onnx", 6.0),
       ("compile for onnx", 4.0), ("contract of onnx", 10.0)]  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_bar_moves_within_steps_and_learns_from_this_run():
    clock = Clock()
    estimate = Estimate(clock)
    shown = [estimate.fraction]
    clock.now = 3.0  # torch is being imported: no step was reported yet
    shown.append(estimate.fraction)
    assert 0.1 < shown[-1] < 0.9
    left, whole = {}, 3.0 + sum(seconds for _, seconds in RUN)
    for done, (step, seconds) in enumerate(RUN):
        estimate.report(step, done, len(RUN))
        left[step] = estimate.remaining, whole - clock.now
        for _ in range(4):
            clock.now += seconds / 4
            shown.append(estimate.fraction)
    estimate.report("done", len(RUN), len(RUN))
    shown.append(estimate.fraction)
    assert shown == sorted(shown)
    assert len(set(shown)) >= len(shown) - 2  # it may stand where a step was overrated
    assert (shown[0], shown[-1], estimate.remaining) == (0.0, 1.0, 0.0)
    errors = {"trace forward": 0.25, "passes for onnx": 0.1, "contract of onnx": 0.05}
    for step, error in errors.items():
        guessed, true = left[step]
        assert guessed == pytest.approx(true, rel=error), step


def test_a_second_target_takes_as_long_as_the_first():
    clock = Clock()
    estimate = Estimate(clock)
    steps = ["model", "trace", "passes", "compile", "passes", "compile", "contract", "contract"]
    seconds = {"model": 1, "trace": 1, "passes": 50, "compile": 7, "contract": 3}
    for done, step in enumerate(steps):
        estimate.report(step, done, len(steps))
        if done == 4:
            assert estimate.remaining > 50 + 7
        if done == 7:
            assert estimate.remaining == pytest.approx(3)
        clock.now += seconds[step]


def test_a_step_that_takes_longer_is_never_at_its_end():
    clock = Clock()
    estimate = Estimate(clock)
    estimate.report("model", 0, 5)
    clock.now = 1000.0
    assert estimate.remaining > 100
    assert estimate.fraction < 0.95


def test_lines_say_how_long_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with report.progress_reporter("net") as show:
        show("trace forward", 1, 5)
    line = capsys.readouterr().err
    assert line.startswith("[1/5] trace forward (")
    assert "s left)" in line
    assert report.left_text(200) == "about 3 min left"


def test_a_terminal_shows_a_bar(capsys: pytest.CaptureFixture[str]):
    with report._bar("net") as show:
        show("trace forward", 1, 5)
