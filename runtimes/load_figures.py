"""What loading a program costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadFigures:
    """The cost of loading one program: seconds, and growth of the process's resident bytes."""

    seconds: float
    bytes: int


def resident_bytes() -> int:
    """Resident memory of this process in bytes, or 0 where the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            pages = int(stream.read().split()[1])
    except (OSError, ValueError):
        return 0
    import resource

    return pages * resource.getpagesize()
