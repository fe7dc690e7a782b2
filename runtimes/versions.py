"""Whether the vendor's runtime that is installed has the version that an artifact needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import eq, ge, gt, le, lt, ne

from omnigraph.artifact import Artifact
from omnigraph.errors import ArtifactError, DeviceError

_COMPARISONS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": ge,
    "<=": le,
    "==": eq,
    "!=": ne,
    ">": gt,
    "<": lt,
}
_CLAUSE = re.compile(r"(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)$")


def check_version(package: str, found: str, artifact: Artifact) -> None:
    """Refuse a vendor's runtime of a version that the artifact was not made for.

    Args:
        found: the version that is installed; what follows its numbers is not compared.

    Raises:
        DeviceError: with the versions that the manifest asks for.
        ArtifactError: the manifest asks for something that is no version.
    """
    required = str(artifact.manifest["requires"].get(package, ""))
    if satisfies(found, required, artifact):
        return
    raise DeviceError(
        f"{artifact.path} needs another version of {package}",
        expected=required,
        found=found,
        hint=f"pip install '{package}{required}', or export again with the version that is here",
    )


def satisfies(found: str, required: str, artifact: Artifact) -> bool:
    """Whether a version is within all of some bounds, such as ">=2026.4,<2027"."""
    for clause in filter(None, map(str.strip, required.split(","))):
        match = _CLAUSE.match(clause)
        if match is None:
            raise ArtifactError(
                f"{artifact.path} asks for a version that cannot be read",
                expected="bounds such as >=1.23,<2",
                found=repr(clause),
                hint="export the model again",
            )
        if not _COMPARISONS[match[1]](*_aligned(_numbers(found), _numbers(match[2]))):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2026.4.0 of "2026.4.0-20955-releases/2026/4"."""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def _aligned(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Both with as many numbers: 1.23 is 1.23.0."""
    length = max(len(one), len(other))
    return tuple(part + (0,) * (length - len(part)) for part in (one, other))
