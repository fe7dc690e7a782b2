"""A wheel of this checkout, and a new environment with nothing of the checkout but that wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clean_environment import FILES, ROOT, SOURCES, Environment, build, make_environment


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of this checkout: builds leave their files there, and none here gets in."""
    root = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture(scope="session")
def archives(checkout: Path, tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    wheel, sdist = build(checkout, tmp_path_factory.mktemp("dist"))
    shutil.rmtree(checkout / "omnigraph.egg-info")
    return sdist, wheel


@pytest.fixture(scope="session")
def environment(archives: tuple[Path, Path], tmp_path_factory) -> Environment:
    """A new environment with the wheel."""
    made = make_environment(tmp_path_factory.mktemp("environments") / "wheel")
    made.install(archives[1])
    return made
