"""The documentation names every option of the commands, and none that they lack."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache

import pytest
from markdown_blocks import PAGES, ROOT, inline_code

from omnigraph.lowering import targets
from omnigraph.quantization.metrics.registry import METRICS
from omnigraph.quantization.options import GROUP_SIZE, METHODS, Quantization

COMMANDS = (
    "export",
    "run",
    "generate",
    "verify",
    "inspect",
    "explain",
    "bisect",
    "passes",
    "targets",
)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@cache
def help_text(command: str) -> str:
    """What a command says of itself."""
    done = subprocess.run(
        [sys.executable, "-m", "omnigraph", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"COLUMNS": "200"},
    )
    return done.stdout


def options(command: str) -> frozenset[str]:
    """The options in the help of a command."""
    return frozenset(_OPTION.findall(help_text(command))) - {"--help"}


def named(page: str) -> set[str]:
    """The options that the prose of a page names."""
    code = inline_code((ROOT / page).read_text(encoding="utf-8"))
    return {option for text in code for option in _OPTION.findall(text)}


def test_the_page_of_commands_names_every_command():
    code = inline_code((ROOT / "docs/commands.md").read_text(encoding="utf-8"))
    found = {text.split()[1] for text in code if text.startswith("omnigraph ")}
    assert {word for word in found if not word.startswith("--")} - {"COMMAND"} == {*COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_commands_names_every_option(command: str):
    assert len(options(command)) >= 2
    assert options(command) - named("docs/commands.md") == set()


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_an_option_that_there_is_not(page: str):
    known = {
        "--help",
        "--install-completion",
        "--show-completion",
        "--text",
        "--seed",
        "--budget",
    }.union(*map(options, COMMANDS))
    assert named(page) - known == set()


def test_the_table_of_the_readme_has_the_precisions_of_each_target():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, target in targets().items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", readme, re.MULTILINE)
        assert row.split("|")[3].strip() == ", ".join(target.offered)


def test_what_texts_say_of_defaults_is_so():
    text = " ".join(help_text("export").split())
    assert f"how to choose ranges: {Quantization().method} (default), " in text
    assert f"at most ({Quantization().samples})" in text
    page = (ROOT / "docs/quantization.md").read_text(encoding="utf-8")
    (first, *others), last = METHODS[:-1], METHODS[-1]
    listed = ", ".join([f"`{first}` (the default)", *(f"`{name}`" for name in others)])
    assert f"`--method` chooses ranges: {listed} or `{last}`." in page
    blocks = {
        scheme.weights.block
        for target in targets().values()
        for scheme in target.schemes.values()
        if scheme is not None and scheme.weights.block
    }
    assert blocks == {GROUP_SIZE}
    assert f"in four bits ({GROUP_SIZE})" in text


def test_the_page_of_quantization_has_every_metric():
    page = (ROOT / "docs/quantization.md").read_text(encoding="utf-8")
    table = page.partition("### Metrics")[2].partition("## Keys")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == [*METRICS]
    assert f"what to measure the loss by: {', '.join(METRICS)};" in " ".join(
        help_text("export").split()
    )
