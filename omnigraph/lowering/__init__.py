"""Targets: each one file that says what it takes, which passes it needs, and how it emits."""

from __future__ import annotations

from importlib.metadata import entry_points

from omnigraph.errors import UsageError
from omnigraph.lowering.base import Emission, Lowered, Target

__all__ = ["Emission", "Lowered", "Target", "find_target", "targets"]


def targets() -> dict[str, Target]:
    """Every target that is installed, by name: ours and those of other packages."""
    found = {entry.name: entry for entry in entry_points(group="omnigraph.targets")}
    return {name: found[name].load() for name in sorted(found)}


def find_target(name: str) -> Target:
    """The target of a name.

    Raises:
        UsageError: no target has that name.
    """
    known = targets()
    if name not in known:
        raise UsageError(
            f"There is no target {name!r}",
            expected=" or ".join(known),
            hint="`omnigraph targets` says what each is for and whether it is usable here",
        )
    return known[name]
