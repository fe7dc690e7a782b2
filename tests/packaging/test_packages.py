"""What pyproject.toml lists by hand agrees with the folders on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import omnigraph

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDERS = ("omnigraph", "passes", "runtimes", "models")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def package_name(folder: Path) -> str:
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "omnigraph" else ("omnigraph", *parts))


def test_every_package_is_listed_once(project):
    listed = project["tool"]["setuptools"]["packages"]
    inits = [path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    assert sorted(listed) == sorted(package_name(path.parent) for path in inits)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_with_code_is_a_package(folder: str):
    with_code = {path.parent for path in (ROOT / folder).rglob("*.py")}
    assert [path for path in with_code if not (path / "__init__.py").is_file()] == []


def test_the_mapped_folders_are_those_beside_the_package(project):
    mapped = {f"omnigraph.{folder}": folder for folder in FOLDERS[1:]}
    assert project["tool"]["setuptools"]["package-dir"] == mapped
    assert set(omnigraph._MAPPED) == set(mapped.values())


def test_the_version_is_the_same_everywhere(project):
    assert project["project"]["version"] == omnigraph.__version__


def test_every_entry_point_leads_to_a_module(project):
    groups = {"scripts": project["project"]["scripts"], **project["project"]["entry-points"]}
    for entries in groups.values():
        for where in entries.values():
            module = where.partition(":")[0].removeprefix("omnigraph.")
            inside = module if module.split(".")[0] in FOLDERS else f"omnigraph.{module}"
            assert (ROOT / inside.replace(".", "/")).with_suffix(".py").is_file(), where
