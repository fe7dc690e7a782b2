"""The time that one run of a model may take while it is exported: some models loop without end."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

from omnigraph.errors import GraphError, UsageError

#: The environment's variable with the limit in seconds, and the limit where it is not set.
VARIABLE, USUAL = "OMNIGRAPH_TIME_LIMIT", 600.0


class TimeLimitError(GraphError):
    """A run that was stopped when its time was over: it may have no end."""


def time_limit() -> float:
    """The seconds that one run in onnxruntime may take.

    Raises:
        UsageError: the variable is not a number above zero.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else USUAL
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise UsageError(
            f"{VARIABLE} is not a time",
            expected="seconds, above 0",
            found=repr(text),
            hint=f"leave it out for {USUAL:.0f} seconds",
        )
    return seconds


@contextlib.contextmanager
def limited(what: str, options: Any) -> Iterator[None]:
    """Stop a run within the block when its time is over.

    Args:
        what: names it, for a person.
        options: ``onnxruntime.RunOptions`` of the run.

    Raises:
        TimeLimitError: it was stopped.
    """
    seconds = time_limit()
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        options.terminate = True

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if not stopped.is_set():
            raise
        raise TimeLimitError(
            f"{what} did not end in onnxruntime",
            expected=f"an end within {seconds:g} seconds",
            hint=f"a Loop may have no end; {VARIABLE}=SECONDS sets the time that a run may take",
        ) from error
    finally:
        timer.cancel()
