"""Which variant of a program answers a request: the one named, or the smallest that has all heads.

An artifact that was exported with ``--variants heads=12,8`` has, for each program, variants with
fewer attention heads. A named variant gives the outputs of the model without the other heads. Where
the heads have gates that depend on the input, a Session can choose the variant itself, and then
gives the whole program's outputs: see ``Session.run``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnigraph.errors import InputError

#: The variant that is chosen anew for each request.
AUTO = "auto"
#: The variant with all heads.
WHOLE = "whole"
#: An output of each variant: above 0 in rows that needed a head that the variant lacks.
MISSED = "missed_heads"


@dataclass(frozen=True)
class Variant:
    """One variant of an artifact.

    Args:
        name: such as "heads=12".
        programs: by program, the program of the variant.
        automatic: programs for which a Session may choose it.
        kept: by the module path of an attention, the heads that it has; others have all of them.
    """

    name: str
    programs: Mapping[str, str]
    automatic: frozenset[str]
    kept: Mapping[str, tuple[int, ...]]

    def covers(self, opened: Mapping[str, np.ndarray]) -> bool:
        """Whether it has every head that is open in some row: by attention, [B, H] bool."""
        for path, heads in opened.items():
            if path in self.kept:
                missing = np.ones(heads.shape[1], bool)
                missing[list(self.kept[path])] = False
                if heads[:, missing].any():
                    return False
        return True


class Variants:
    """The variants of an artifact, the fewest heads first, and the program of the gates."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        fields = manifest.get("variants", {})
        self.gates: str | None = fields.get("gates")
        self._heads = fields.get("heads")
        self._thresholds: dict[str, float] = fields.get("thresholds", {})
        self._choices = tuple(
            Variant(
                choice["name"],
                choice["programs"],
                frozenset(choice["automatic"]),
                {path: tuple(heads) for path, heads in choice["kept"].items()},
            )
            for choice in fields.get("choices", ())
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What ``variant=`` may be, the whole model first."""
        return (WHOLE, *(choice.name for choice in reversed(self._choices)))

    def program(self, program: str, variant: str) -> str:
        """The program that stands for ``program`` in a variant.

        Raises:
            InputError: there is no such variant.
        """
        if variant in (WHOLE, AUTO, f"heads={self._heads}"):
            return program
        for choice in self._choices:
            if choice.name == variant:
                return choice.programs.get(program, program)
        raise InputError(
            f"There is no variant {variant!r}",
            expected=" or ".join((AUTO, *self.names)),
            hint="`omnigraph export --variants heads=12,8` adds variants to an artifact",
        )

    def chooses(self, program: str) -> bool:
        """Whether a Session chooses a variant of a program where none is named."""
        return any(program in choice.automatic for choice in self._choices)

    def covering(self, program: str | None, opened: Mapping[str, np.ndarray]) -> list[str]:
        """The variants with all heads that are open, the smallest first, and last the whole model.

        Args:
            program: only those that a Session may choose for it; None is all.
            opened: the outputs of the program of the gates: by attention, [B, H].
        """
        opened = {path: scores > self._thresholds[path] for path, scores in opened.items()}
        found = [
            choice.name
            for choice in self._choices
            if (program is None or program in choice.automatic) and choice.covers(opened)
        ]
        return [*found, WHOLE]
