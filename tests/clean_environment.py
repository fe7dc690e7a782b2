"""Builds this project as its users get it, and makes environments to install it in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("omnigraph", "passes", "runtimes", "models", "tests")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")


def run(command: Sequence[object], cwd: Path) -> str:
    """The stdout of a command that sees no variables of Python's; fails with its stderr."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, out: Path, *options: str) -> list[Path]:
    """The archives that ``python -m build`` writes, with the setuptools that is installed."""
    run([sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", out, source], out)
    return sorted(out.iterdir())


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds a wheel, and sees the third-party packages of this one."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def omnigraph(self) -> Path:
        """The command that the wheel installs."""
        return self.folder / "bin" / "omnigraph"

    def install(self, *what: object) -> None:
        # What pip sees of this environment is installed, and must stay.
        options = ("--ignore-installed", "--no-deps", "--no-index", "--disable-pip-version-check")
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install")
        run([*pip, *options, *what], self.folder)


def make_environment(folder: Path) -> Environment:
    """An environment that imports nothing of this checkout.

    Python does not process the .pth files of a folder that a .pth file adds, so an editable install
    of this checkout stays behind.
    """
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if any(Path(path).glob("*.dist-info"))]
    (site / "third_party.pth").write_text("\n".join(shared))
    return Environment(folder)


def make_runtime_environment(folder: Path, *distributions: str) -> Environment:
    """An environment with these distributions of this one, and no others."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in distributions:
        files = distribution(name).files
        assert files is not None
        for top in {file.parts[0] for file in files if ".." not in file.parts}:
            if top != "__pycache__":
                (site / top).symlink_to(distribution(name).locate_file(top))
    return Environment(folder)
