"""`Runner`: what generation needs of a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from omnigraph.artifact import Artifact


class Runner(Protocol):
    """What is needed of a session."""

    artifact: Artifact

    def run(
        self, feeds: Mapping[str, Any], /, *, program: str | None, variant: str | None
    ) -> dict[str, Any]:
        """Run one program on named inputs."""
