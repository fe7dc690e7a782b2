"""The one error that a wrong configuration raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """A field of a configuration is wrong: says which, what was expected, found, and a hint."""

    def __init__(self, field: str, expected: str, found: Any, hint: str) -> None:
        self.field = field
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(f"{field}: expected {expected}, found {found!r}\nhint: {hint}")


def unknown_field(name: str, known: Iterable[str]) -> ConfigError:
    """The error of a field that there is not, with the one that was probably meant."""
    fields = [*known]
    meant = "".join(f"did you mean {m!r}? " for m in difflib.get_close_matches(name, fields, n=1))
    hint = f"{meant}check the spelling"
    return ConfigError(name, f"one of the fields {', '.join(fields)}", name, hint)
