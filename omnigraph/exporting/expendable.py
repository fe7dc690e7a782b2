"""Programs that an export goes on without, where it was not asked for them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from omnigraph.errors import TraceError
from omnigraph.program import Program

_Traced = TypeVar("_Traced")


def tried(
    programs: Iterable[Program], trace: Callable[[Program], _Traced]
) -> tuple[list[_Traced], dict[str, str]]:
    """What ``trace`` gives of each program; and why some expendable ones have none, by name.

    Raises:
        TraceError: of a program that is not expendable.
    """
    done, why = [], {}
    for program in programs:
        try:
            done.append(trace(program))
        except TraceError as error:
            if not program.expendable:
                raise
            why[program.name] = (
                f"it cannot be traced, and --programs {program.name} says more: "
                f"{str(error).splitlines()[0]}"
            )
    return done, why
