"""Targets: each declares which nodes it takes, which passes it needs, and how it emits files."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from omnigraph.errors import UsageError, suggest
from omnigraph.lowering.base import Emission, Lowered, Target

__all__ = ["Emission", "Lowered", "Target", "find_target", "targets"]


def targets() -> dict[str, Target]:
    """Every target that is installed, by name: ours and those of other packages."""
    return {name: entry.load() for name, entry in _registered().items()}


def find_target(name: str) -> Target:
    """The target of a name.

    Raises:
        UsageError: no target has that name, or the package that provides it cannot be imported.
    """
    known = _registered()
    if name not in known:
        raise UsageError(
            f"There is no target {name!r}",
            expected=" or ".join(known),
            hint=suggest(
                name, known, "`omnigraph targets` lists their purposes, and which are usable here"
            ),
        )
    try:
        return known[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"Target {name!r} is registered by {known[name].value}, which cannot be imported",
            found=str(error),
            hint="reinstall that package, or uninstall it",
        ) from error


def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group="omnigraph.targets"))}
