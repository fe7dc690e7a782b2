"""The documentation names every option of the commands, and none that they lack."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache

import pytest
from markdown_blocks import PAGES, ROOT, inline_code

from omnigraph.lowering import targets
from omnigraph.precision import AUTO

COMMANDS = ("export", "run", "verify", "inspect", "explain", "bisect", "passes", "targets")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@cache
def options(command: str) -> frozenset[str]:
    """The options in the help of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "omnigraph", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"COLUMNS": "200"},
    )
    return frozenset(_OPTION.findall(done.stdout)) - {"--help"}


def named(page: str) -> set[str]:
    """The options that the prose of a page names."""
    code = inline_code((ROOT / page).read_text(encoding="utf-8"))
    return {option for text in code for option in _OPTION.findall(text)}


def test_the_page_of_commands_names_every_command():
    code = inline_code((ROOT / "docs/commands.md").read_text(encoding="utf-8"))
    found = {text.split()[1] for text in code if text.startswith("omnigraph ")}
    assert found - {"COMMAND"} == {*COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_commands_names_every_option(command: str):
    assert len(options(command)) >= 2
    assert options(command) - named("docs/commands.md") == set()


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_an_option_that_there_is_not(page: str):
    known = {"--help", "--text", "--seed", "--budget"}.union(*map(options, COMMANDS))
    assert named(page) - known == set()


def test_the_table_of_the_readme_has_the_precisions_of_each_target():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, target in targets().items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", readme, re.MULTILINE)
        assert row.split("|")[3].strip() == ", ".join((*target.precisions, AUTO))
