"""The passes that are installed, by name; and anyone's own, by file or module."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from inspect import isabstract
from pathlib import Path
from typing import Any

from omnigraph import passes
from omnigraph.errors import UsageError
from omnigraph.passes.base import Pass, pass_name


def installed_passes() -> dict[str, type[Pass]]:
    """Every pass of this package, by its name on the command line."""
    found: dict[str, type[Pass]] = {}
    for module in pkgutil.iter_modules(passes.__path__):
        imported = importlib.import_module(f"{passes.__name__}.{module.name}")
        for value in vars(imported).values():
            if isinstance(value, type) and issubclass(value, Pass) and not isabstract(value):
                found[pass_name(value)] = value
    return dict(sorted(found.items()))


def make_pass(text: str) -> Pass:
    """A pass from its name and options: ``fold-position-bias:budget_bytes=65536``.

    Args:
        text: the name of an installed pass, or ``file.py:Class`` or ``package.module:Class``;
            then ``:option=value`` for each option that is not at its default.

    Raises:
        UsageError: there is no such pass or option, or the option has no such value.
    """
    kind, options = _parsed(text)
    return kind(**options)


def _parsed(text: str) -> tuple[type[Pass], dict[str, Any]]:
    """The class of a pass, and the options that a text gives it."""
    parts = text.split(":")
    where = [part for part in parts if "=" not in part]
    kind = _class(*where) if len(where) == 2 else installed_passes().get(where[0] if where else "")
    if kind is None or len(where) > 2:
        raise UsageError(
            f"There is no pass {text!r}",
            expected="a name that `omnigraph passes` lists, or file.py:Class",
            found=text,
            hint="options follow the name: fold-position-bias:budget_bytes=65536",
        )
    known = {field.name: field for field in fields(kind)}
    options: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            continue
        if name not in known:
            raise UsageError(
                f"Pass {pass_name(kind)!r} has no option {name!r}",
                expected=" or ".join(known) or "none",
                hint="`omnigraph passes` lists the options of each pass",
            )
        options[name] = _value(pass_name(kind), name, value, known[name].default)
    return kind, options


def edited(pipeline: Sequence[Pass], edits: str, place: int) -> tuple[Pass, ...]:
    """A pipeline with passes added and left out.

    Args:
        pipeline: the passes of a target.
        edits: names joined by commas: ``-name`` leaves every pass of that name out; ``name``, with
            options, sets those options of the passes of that name, or is added where there is none.
        place: where in the pipeline what is added goes.

    Raises:
        UsageError: a name that is not known, or one to be left out that is not there.
    """
    edited = list(pipeline)
    for text in filter(None, (part.strip() for part in edits.split(","))):
        if text.startswith("-"):
            kept = [pass_ for pass_ in edited if pass_.name != text[1:]]
            if len(kept) == len(edited):
                names = dict.fromkeys(pass_.name for pass_ in pipeline)
                raise UsageError(
                    f"Pass {text[1:]!r} cannot be left out: it is not in the pipeline",
                    expected=" or ".join(names),
                    hint="`omnigraph passes` lists all there are",
                )
            place -= sum(pass_.name == text[1:] for pass_ in edited[:place])
            edited = kept
            continue
        kind, options = _parsed(text)
        name = pass_name(kind)
        if any(pass_.name == name for pass_ in edited):
            edited = [_set(p, kind, options) if p.name == name else p for p in edited]
        else:
            edited.insert(place, kind(**options))
            place += 1
    return tuple(edited)


def _set(pass_: Pass, kind: type[Pass], options: Mapping[str, Any]) -> Pass:
    """A pass with some options set; anyone's own of the same name takes its place."""
    return replace(pass_, **options) if type(pass_) is kind else kind(**options)


def describe_options(kind: type[Pass]) -> list[str]:
    """The options of a pass, each with its default."""
    return [f.name if f.default is MISSING else f"{f.name}={f.default}" for f in fields(kind)]


def _class(where: str, attribute: str) -> type[Pass] | None:
    """A pass of anyone's, from a file or a module."""
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
    found = getattr(module, attribute, None)
    return found if isinstance(found, type) and issubclass(found, Pass) else None


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
            expected=f"a value like {default!r}",
            hint="`omnigraph passes` shows the defaults",
        )
    return value


def _alike(value: object, default: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
