"""Dataclass fields that are also options of the command line, defined once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any

from omnigraph.errors import UsageError


@dataclass(frozen=True)
class Option:
    """The command line's form of a field.

    Args:
        help: one line for a person.
        metavar: the name of the value in the help text.
        parse: turns text into a value; raises UsageError.
        flag: its name on the command line; empty is the field's.
        switch: "on" is a flag without a value, "both" one that can be negated.
        bare: the value of a flag without one; None means that it needs one.
        repeated: the flag may be given several times; ``parse`` gets a list of texts.
    """

    help: str
    metavar: str = ""
    parse: Callable[[Any], Any] | None = None
    flag: str = ""
    switch: str = ""
    bare: object = None
    repeated: bool = False


def option(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field that is an option of the command line; see `Option`."""
    return field(default=default, metadata={"option": Option(help, **about)})


def names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Names, of a sequence or joined by commas."""
    parts = given.split(",") if isinstance(given, str) else given
    return tuple(name.strip() for name in parts if name.strip())


def set_field(options: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass that is being made."""
    object.__setattr__(options, name, value)


def options_of(kind: type) -> Iterator[tuple[Field[Any], Option, str]]:
    """The fields of a class that are options of the command line, each with its flag."""
    for found in fields(kind):
        if (about := found.metadata.get("option")) is not None:
            yield found, about, about.flag or "--" + found.name.replace("_", "-")


def add_options(parser: Any, kind: type, only: Callable[[str], bool] = lambda _: True) -> None:
    """Add the options of a class to a parser, or to a group of one.

    Args:
        only: whether to add a field, by its name.
    """
    for found, about, flag in options_of(kind):
        if not only(found.name):
            continue
        common: dict[str, Any] = {"help": about.help, "dest": found.name, "default": None}
        if about.switch == "on":
            parser.add_argument(flag, action="store_true", **common)
        elif about.switch == "both":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif about.repeated:
            parser.add_argument(flag, action="append", metavar=about.metavar, **common)
        elif about.bare is not None:
            common |= {"nargs": "?", "const": str(about.bare)}
            parser.add_argument(flag, metavar=about.metavar, **common)
        else:
            parser.add_argument(flag, metavar=about.metavar, **common)


def given_options(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The parsed options of a class from a command line, by field name.

    Raises:
        UsageError: a value cannot be read.
    """
    given = {}
    for found, about, flag in options_of(kind):
        value = getattr(args, found.name, None)
        if value is None:
            continue
        try:
            given[found.name] = about.parse(value) if about.parse is not None else value
        except ValueError as error:
            raise UsageError(
                f"{flag} cannot be {value!r}", expected=about.metavar, hint=about.help
            ) from error
    return given
