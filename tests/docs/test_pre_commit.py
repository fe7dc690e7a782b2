"""The hooks that run before a commit are there, and say no where they should."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_blocks import ROOT

CONFIG = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))


def hooks() -> dict[str, dict[str, Any]]:
    return {hook["id"]: hook for repo in CONFIG["repos"] for hook in repo["hooks"]}


def command(hook: dict[str, Any]) -> list[str]:
    """What a hook runs, from the environment of the tests."""
    name, *arguments = shlex.split(hook["entry"])
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return [found, *arguments]


def test_no_hook_needs_the_network():
    assert {repo["repo"] for repo in CONFIG["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks().values()} == {"system", "pygrep"}
    stages = {stage for hook in hooks().values() for stage in hook.get("stages", ["pre-commit"])}
    assert {*CONFIG["default_install_hook_types"]} == stages


@pytest.mark.parametrize(
    ("hook", "wrong"), [("ruff-check", "import os\n"), ("ruff-format", "x = [1,2]\n")]
)
def test_ruff_takes_what_is_right_and_refuses_what_is_wrong(hook: str, wrong: str, tmp_path: Path):
    for text, right in (("x = [1, 2]\n", True), (wrong, False)):
        path = tmp_path / "file.py"
        path.write_text(text)
        config = ["--config", str(ROOT / "pyproject.toml")]
        done = subprocess.run([*command(hooks()[hook]), *config, str(path)], capture_output=True)
        assert (done.returncode == 0) is right, done.stdout


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ("Fold causal ALiBi into one row per head\n", False),
        ("x" * 71 + "\n\n" + "A body may be as wide as it needs to be. " * 3, False),
        ("x" * 72 + "\n", True),
    ],
)
def test_long_subjects_are_refused(message: str, refused: bool):
    hook = hooks()["subject-length"]
    assert hook["args"] == ["--multiline"]
    # How pygrep searches with this argument.
    assert bool(re.search(hook["entry"], message, re.MULTILINE | re.DOTALL)) is refused
