"""The errors OmniGraph raises, each one paragraph: what failed, expected, found, and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(given: object, known: Iterable[str]) -> list[str]:
    """The known word that was probably meant, if any."""
    return difflib.get_close_matches(given, [*known], n=1) if isinstance(given, str) else []


def suggest(given: object, known: Iterable[str], hint: str) -> str:
    """A hint that begins with the word that was probably meant, if any."""
    return "".join(f"did you mean {word!r}? " for word in nearest(given, known)) + hint


class OmniGraphError(Exception):
    """What failed and where, what was expected and found, and what to try next.

    Args:
        message: what failed and where (pass, node, module, input, file).
        expected: what would have been right.
        found: what was there.
        hint: the next thing to try, on a line of its own.
    """

    exit_status = 2
    kind = "error"

    def __init__(
        self,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.expected, self.found, self.hint = message, expected, found, hint
        text = message.rstrip(".")
        if expected is not None:
            text += f": expected {expected}"
        if found is not None:
            text += f"{',' if expected is not None else ':'} found {found}"
        super().__init__(text + "." + (f"\nhint: {hint}" if hint else ""))

    def to_dict(self) -> dict[str, object]:
        """The error as JSON-ready fields."""
        fields = {
            "kind": self.kind,
            "message": self.message,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }
        return {
            k: v if isinstance(v, int | float) else str(v)
            for k, v in fields.items()
            if v is not None
        }


class UsageError(OmniGraphError):
    """A command, option or argument that is not valid."""

    kind = "usage"


class InputError(OmniGraphError):
    """An input of a run that is missing, unknown, or of the wrong dtype or shape."""

    kind = "input"


class TraceError(OmniGraphError):
    """A model that could not be traced, or whose trace computes something else."""

    kind = "trace"


class GraphError(OmniGraphError):
    """A Graph that is not legal at its stage."""

    kind = "graph"


class UnsupportedError(OmniGraphError):
    """A node, precision or option that a target cannot take."""

    kind = "unsupported"


class CompileError(OmniGraphError):
    """A vendor's compiler refused its input; its own error is the cause."""

    kind = "compile"


class ArtifactError(OmniGraphError):
    """An artifact that is damaged or unsafe, or a path that is not an artifact."""

    kind = "artifact"


class DeviceError(OmniGraphError):
    """The runtime or the device an artifact needs is not here."""

    kind = "device"


class ResourceError(OmniGraphError):
    """Work that needs more memory than the system gives."""

    kind = "resource"


class RunError(OmniGraphError):
    """The vendor's runtime failed while it ran a program; its own error is the cause."""

    kind = "run"


class ContractError(OmniGraphError):
    """Numbers further from the reference than the tolerance allows."""

    kind = "contract"
    exit_status = 1


class FusionError(OmniGraphError):
    """An attention that is not fused, though the export requires it."""

    kind = "fusion"
    exit_status = 1
