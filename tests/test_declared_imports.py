"""What the tests import stands in pyproject.toml, and did not merely lie in some environment."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
OURS = {"omnigraph", "passes", "runtimes", "models", "benchmarks"}
#: Modules that tests write themselves, and that of older Pythons (a dependency of pytest there).
OTHERS = {"lent", "tomli"}


def normalized(name: str) -> str:
    """A distribution's name as the package index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra: str) -> set[str]:
    """The distributions of an extra, and of the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    extras = [extra]
    while extras:
        for line in project["optional-dependencies"][extras.pop()]:
            name, named = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", line).groups()
            if name == "omnigraph":
                extras += named.split(",")
            else:
                found.add(normalized(name))
    return found | {normalized(re.match(r"[\w.-]+", line)[0]) for line in project["dependencies"]}


def imported(path: Path) -> Iterator[str]:
    """The first names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_every_import_of_the_tests_is_declared():
    files = list((ROOT / "tests").rglob("*.py"))
    helpers = {path.stem for path in files} | {path.parent.name for path in files}
    known = helpers | OURS | OTHERS | set(sys.stdlib_module_names)
    allowed, owners = declared("test"), packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in set(imported(path)) - known
        if not allowed & {normalized(owner) for owner in owners.get(name, [name])}
    }
    assert not undeclared, "name these in an extra of pyproject.toml, or do without"
