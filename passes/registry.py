"""Finds passes: the installed ones by name, a user's own by file or module."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from inspect import isabstract
from pathlib import Path
from typing import Any

from omnigraph import passes
from omnigraph.errors import UsageError, suggest
from omnigraph.passes.base import Pass, pass_name

#: The types of options that a text can set.
_TEXTUAL = (bool, int, float, str, tuple)


def installed_passes() -> dict[str, type[Pass]]:
    """Every pass of this package, by its name on the command line."""
    found: dict[str, type[Pass]] = {}
    for module in pkgutil.iter_modules(passes.__path__):
        imported = importlib.import_module(f"{passes.__name__}.{module.name}")
        for value in vars(imported).values():
            if isinstance(value, type) and issubclass(value, Pass) and not isabstract(value):
                found[pass_name(value)] = value
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class PassEdit:
    """A pass and its options, read from a text: ``fold-position-bias:budget_bytes=65536``."""

    kind: type[Pass]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the pass."""
        return pass_name(self.kind)

    @classmethod
    def parse(cls, text: str) -> PassEdit:
        """Read a text.

        Args:
            text: the name of an installed pass, or ``file.py:Class`` or ``package.module:Class``;
                then ``:option=value`` for each option that differs from its default.

        Raises:
            UsageError: there is no such pass or option, or the value does not suit the option.
        """
        parts = text.split(":")
        where = [part for part in parts if "=" not in part]
        kind = (
            _class(*where) if len(where) == 2 else installed_passes().get(where[0] if where else "")
        )
        if kind is None or len(where) > 2:
            raise UsageError(
                f"There is no pass {text!r}",
                expected="a name that `omnigraph passes` lists, or file.py:Class",
                found=text,
                hint=suggest(
                    where[0] if where else "",
                    installed_passes(),
                    "options follow the name: fold-position-bias:budget_bytes=65536",
                ),
            )
        return cls(kind, _options(kind, [part for part in parts if "=" in part]))

    def make(self) -> Pass:
        """A new pass with these options, and defaults for all others."""
        return self.kind(**self.options)

    def set_on(self, pass_: Pass) -> Pass:
        """A given pass with these options; a user's own pass of the same name replaces it."""
        return replace(pass_, **self.options) if type(pass_) is self.kind else self.make()


def make_pass(text: str) -> Pass:
    """A pass from its name and options; see `PassEdit.parse`."""
    return PassEdit.parse(text).make()


def _options(kind: type[Pass], parts: Sequence[str]) -> dict[str, Any]:
    """The options of a pass from texts ``name=value``."""
    known = {field.name: field for field in fields(kind)}
    options: dict[str, Any] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in known:
            raise UsageError(
                f"Pass {pass_name(kind)!r} has no option {name!r}",
                expected=" or ".join(known) or "none",
                hint=suggest(name, known, "`omnigraph passes` lists the options of each pass"),
            )
        options[name] = _value(pass_name(kind), name, value, known[name].default)
    return options


def describe_options(kind: type[Pass]) -> list[str]:
    """The options of a pass that a text can set, each with its default."""
    return [
        f.name if f.default is MISSING else f"{f.name}={f.default}"
        for f in fields(kind)
        if f.default in (MISSING, None) or isinstance(f.default, _TEXTUAL)
    ]


def _class(where: str, attribute: str) -> type[Pass]:
    """A user's own pass, from a file or a module."""
    try:
        if where.endswith(".py"):
            name = f"omnigraph_pass_{Path(where).stem}"
            spec = importlib.util.spec_from_file_location(name, where)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except Exception as error:
        raise UsageError(
            f"{where} cannot be imported, where pass {attribute!r} should be",
            found=f"{type(error).__name__}: {error}",
            hint="--traceback shows where it fails",
        ) from error
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Pass) and not isabstract(value)
    }
    if attribute not in own:
        raise UsageError(
            f"There is no pass {attribute!r} in {where}",
            expected=" or ".join(own) or "a class derived from Pass",
            found=attribute,
            hint=suggest(attribute, own, "a pass is named file.py:Class"),
        )
    return own[attribute]


def _value(pass_: str, option: str, text: str, default: object) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, tuple) and not isinstance(value, tuple):
        value = (value,)
    wrong = default is not MISSING and default is not None and not _alike(value, default)
    if wrong:
        raise UsageError(
            f"Option {option!r} of pass {pass_!r} cannot be {text!r}",
            expected=f"a value like {default}",
            hint="`omnigraph passes` shows the defaults",
        )
    return value


def _alike(value: object, default: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
