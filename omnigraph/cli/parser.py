"""Parsers of the commands: argparse with this project's form of errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from omnigraph.errors import nearest

#: Runs a command, and gives its exit status.
Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """argparse with this project's form of errors, which names what was meant."""

    #: The whole command line, of all parsers of one.
    given: Sequence[str] = ()

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def, override]
        """See argparse."""
        given = list(sys.argv[1:] if args is None else args)
        for parser in (self, *self.commands.values()):
            parser.given = given
        return super().parse_args(args, namespace)

    @property
    def commands(self) -> dict[str, Parser]:
        """The parser of each command, by name."""
        found = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return {name: parser for action in found for name, parser in action.choices.items()}

    def error(self, message: str) -> NoReturn:
        meant = ", ".join(self._meant())
        hint = f"did you mean {meant}? {self.prog} --help" if meant else f"{self.prog} --help"
        print(f"error: {message}\nhint: {hint}", file=sys.stderr)
        raise SystemExit(2)

    def _meant(self) -> Iterator[str]:
        """The nearest known word to each option, and to the command, that there is not."""
        words = [word.partition("=")[0] for word in self.given]
        command = next((word for word in words if not word.startswith("-")), "")
        parser = self.commands.get(command, self)
        if self.commands and command not in self.commands:
            yield from nearest(command, self.commands)
        for word in words:
            known = parser._option_string_actions
            if word.startswith("--") and not any(option.startswith(word) for option in known):
                yield from nearest(word, known)


def add_command(commands: Any, name: str, run: Run, purpose: str) -> argparse.ArgumentParser:
    """Add a command, with the options that all commands have."""
    command = commands.add_parser(name, help=purpose, description=purpose)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument("--traceback", action="store_true", help="show where an error was raised")
    command.set_defaults(run=run)
    return command
