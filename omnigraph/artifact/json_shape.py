"""The shape that JSON must have, written as small checks that are put together.

A check takes a value and where it stands, and raises `Fault` where the value is another. Objects
may have more keys than a check knows: those of later versions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

#: Checks a value; the text says where it stands, such as ``programs.forward.inputs[0]``.
Check = Callable[[Any, str], None]


class Fault(Exception):
    """A value that is not what it must be: where, what was expected, and what was found."""

    def __init__(self, where: str, expected: str, found: object) -> None:
        super().__init__(where, expected, found)
        self.where, self.expected = where, expected
        self.found = shown(found)


def shown(value: object) -> str:
    """A value of JSON as an error shows it: short, and printable whatever it is."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "…"


def text(value: Any, where: str) -> None:
    """Text that can be encoded and has no control characters."""
    if not isinstance(value, str) or re.search(r"[\0-\x1f\x7f\ud800-\udfff]", value):
        raise Fault(where, "plain text", value)


def name(value: Any, where: str) -> None:
    """Text that is not empty."""
    text(value, where)
    if not value:
        raise Fault(where, "a name", value)


def anything(value: Any, where: str) -> None:
    """Takes every value."""


def flag(value: Any, where: str) -> None:
    """Takes booleans."""
    if not isinstance(value, bool):
        raise Fault(where, "true or false", value)


def integer(least: int | None = 0, most: int = 2**63 - 1) -> Check:
    """Takes whole numbers within bounds, and no booleans."""

    def check(value: Any, where: str) -> None:
        low = -most if least is None else least
        if type(value) is not int or not low <= value <= most:
            kind = "a whole number" if least is None else f"a whole number of at least {least}"
            raise Fault(where, kind, value)

    return check


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """Takes finite numbers within bounds, and no booleans."""

    def check(value: Any, where: str) -> None:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not math.isfinite(value) or not least <= value <= most:
            bounds = "" if math.isinf(most) else f" from {least:g} to {most:g}"
            raise Fault(where, f"a number{bounds}", value)

    return check


def one_of(allowed: Collection[Any]) -> Check:
    """Takes some texts."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise Fault(where, "one of " + ", ".join(map(str, allowed)), value)

    return check


def maybe(inner: Check) -> Check:
    """Takes null, too."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def either(one: Check, other: Check) -> Check:
    """Takes what one of two checks takes."""

    def check(value: Any, where: str) -> None:
        try:
            one(value, where)
        except Fault as fault:
            try:
                other(value, where)
            except Fault as second:
                raise Fault(where, f"{fault.expected} or {second.expected}", value) from None

    return check


def each(inner: Check, count: int | None = None) -> Check:
    """Takes a list of such values, of ``count`` of them where that is given."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or count not in (None, len(value)):
            raise Fault(where, "a list" if count is None else f"a list of {count}", value)
        for position, item in enumerate(value):
            inner(item, f"{where}[{position}]")

    return check


def mapping(values: Check, keys: Check = text) -> Check:
    """Takes an object of any keys, with such values."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Fault(where, "an object", value)
        for key, item in value.items():
            keys(key, where)
            values(item, f"{where}.{key}" if where else key)

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Takes an object that has such keys with such values, and any others."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Fault(where, "an object", value)
        for key, inner in {**required, **(optional or {})}.items():
            at = f"{where}.{key}" if where else key
            if key in value:
                inner(value[key], at)
            elif key in required:
                raise Fault(at, "an entry", "none")

    return check
