"""The wheel, installed in an empty environment: it exports, runs and is extended there."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from clean_environment import FILES, ROOT, SOURCES, build, make_environment, run
from markdown_blocks import blocks

from omnigraph.artifact import Artifact

TINY = ("omninet", "--config", "tiny", "--set", "kind=encoder", "--programs", "encode")
SHAPE = "[1, 3, 64]"

#: Says where Python finds each part of the package.
WHERE = """
import importlib, json, omnigraph
parts = [importlib.import_module(f"omnigraph.{part}") for part in ("passes", "runtimes", "models")]
print(json.dumps([module.__file__ for module in (omnigraph, *parts)]))
"""

#: Exports from Python, and runs what comes out.
EXPORT_AND_RUN = """
import sys, numpy, omnigraph
target, out = sys.argv[1:]
settings = {"kind": "encoder"}
(report,) = omnigraph.export(
    "omninet", target, config="tiny", settings=settings, programs=["encode"], out=out
)
with omnigraph.load(report.path, verify=True) as net:
    print(net.run(input_ids=numpy.array([[5, 6, 7]]))["last_hidden_state"].shape)
"""

PASS = '''
from dataclasses import dataclass

from omnigraph.passes.base import Pass


@dataclass(frozen=True)
class NoteProducer(Pass):
    """Write into the graph who made it."""

    producer: str = "me"

    def apply(self, graph):
        changed = graph.producer_name != self.producer
        graph.producer_name = self.producer
        return changed
'''

TARGET = '''
from omnigraph.lowering.onnx.target import OnnxTarget
from omnigraph.runtimes.onnx import OnnxSession


class AbacusTarget(OnnxTarget):
    """ONNX files under another name."""

    name = "abacus"
    purpose = "shows that a target can live in a package of its own"


TARGET = AbacusTarget()
'''

TARGET_PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "omnigraph-abacus"
version = "1"

[project.entry-points."omnigraph.targets"]
abacus = "omnigraph_abacus:TARGET"

[project.entry-points."omnigraph.runtimes"]
abacus = "omnigraph_abacus:OnnxSession"

[tool.setuptools]
py-modules = ["omnigraph_abacus"]
"""


def sources(root: Path) -> set[str]:
    """What of a checkout goes into the wheel, by its path there."""
    files = [path for name in SOURCES if name != "tests" for path in (root / name).rglob("*.py")]
    paths = {path.relative_to(root).as_posix() for path in files} | {"omnigraph/py.typed"}
    return {path if path.startswith("omnigraph/") else f"omnigraph/{path}" for path in paths}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_archives_hold_the_checkout_and_nothing_else(archives, checkout: Path):
    sdist, wheel = archives
    installed = contents(wheel)
    metadata = {name for name in installed if ".dist-info/" in name}
    assert set(installed) - metadata == sources(checkout)
    (license_name,) = (name for name in metadata if name.endswith("/licenses/LICENSE"))
    assert installed[license_name] == (checkout / "LICENSE").read_bytes()
    (description,) = (installed[name] for name in metadata if name.endswith("/METADATA"))
    assert (checkout / "README.md").read_bytes().strip() in description

    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    names = {name.removeprefix("omnigraph/") for name in names if ".egg-info/" not in name}
    code = {name.removeprefix("omnigraph/") for name in sources(checkout)}
    assert names == code | {*FILES, "PKG-INFO", "setup.cfg"}


def test_the_sdist_and_the_checkout_give_the_same_wheel(archives, checkout: Path, tmp_path: Path):
    copy = shutil.copytree(checkout, tmp_path / "copy")
    out = tmp_path / "out"
    out.mkdir()
    (direct,) = build(copy, out, "--wheel")
    assert contents(direct) == contents(archives[1])


def test_elsewhere_everything_comes_from_the_wheel(environment, tmp_path: Path):
    places = json.loads(run([environment.python, "-c", WHERE], tmp_path))
    assert all(Path(place).is_relative_to(environment.folder) for place in places), places


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_in_the_root_everything_comes_from_the_checkout(
    environment, checkout: Path, tmp_path: Path, editable: bool
):
    """Also where an editable install of another checkout has finders of its own."""
    if editable:
        other = shutil.copytree(checkout, tmp_path / "other")
        environment = make_environment(tmp_path / "environment")
        environment.install("--no-build-isolation", "--editable", other)
        places = json.loads(run([environment.python, "-c", WHERE], tmp_path))
        assert all(Path(place).is_relative_to(other) for place in places), places
    places = json.loads(run([environment.python, "-c", WHERE], checkout))
    assert all(Path(place).is_relative_to(checkout) for place in places), places
    listed = run([environment.python, "-m", "omnigraph", "targets", "--json"], checkout)
    names = {target["name"] for target in json.loads(listed)["targets"]}
    assert {"onnx", "openvino", "tensorrt"} <= names


def test_no_class_exists_twice_in_the_root(environment, checkout: Path):
    code = """
import collections, sys
from omnigraph.passes.registry import installed_passes
installed_passes()
files = [m.__file__ for n, m in sys.modules.items() if n.startswith("omnigraph") and m.__file__]
print(len(files), [file for file, count in collections.Counter(files).items() if count > 1])
"""
    count, _, twice = run([environment.python, "-c", code], checkout).partition(" ")
    assert int(count) > 50
    assert twice.strip() == "[]"


def test_the_command_exports_with_a_pass_of_ones_own(environment, tmp_path: Path):
    (tmp_path / "mine.py").write_text(PASS)
    command = (environment.omnigraph, "export", *TINY, "--target", "onnx", "--out", "net.omni")
    run([*command, "--passes", "mine.py:NoteProducer:producer=you"], tmp_path)
    assert "note-producer" in json.dumps(Artifact(tmp_path / "net.omni").manifest)
    ran = run([environment.omnigraph, "run", "net.omni", "--input", "input_ids=5,6,7"], tmp_path)
    assert SHAPE in ran


def test_python_exports_with_a_target_of_ones_own(environment, checkout: Path, tmp_path: Path):
    project = tmp_path / "abacus"
    project.mkdir()
    (project / "pyproject.toml").write_text(TARGET_PROJECT)
    (project / "omnigraph_abacus.py").write_text(TARGET)
    environment.install("--no-build-isolation", project)
    for place in (tmp_path, checkout):
        out = tmp_path / f"{place.name}.omni"
        ran = run([environment.python, "-c", EXPORT_AND_RUN, "abacus", out], place)
        assert "(1, 3, 64)" in ran
        assert Artifact(out).target == "abacus"


def test_the_pass_that_the_documentation_shows_is_tested_without_torch(environment, tmp_path: Path):
    """As its reader would, with nothing of this checkout but the wheel."""
    shown = blocks((ROOT / "docs/passes.md").read_text(encoding="utf-8"))
    (name,) = (b.file_name for b in shown if (b.file_name or "").startswith("test_"))
    for block in shown:
        if block.file_name is not None:
            (tmp_path / block.file_name).write_text(block.text)
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not here')")
    (tmp_path / "where.py").write_text("import omnigraph.testing as it; print(it.__file__)")
    assert str(environment.folder) in run([environment.python, "where.py"], tmp_path)
    pytest_ = (environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "2 passed" in run([*pytest_, name], tmp_path)
    broken = (tmp_path / name).read_text().replace("{ y = Relu(x) }", "{ y = Abs(x) }")
    (tmp_path / "test_broken.py").write_text(broken)
    with pytest.raises(AssertionError, match=r"-y = Abs\(x\)\n.*\+y = Relu\(x\)"):
        run([*pytest_, "test_broken.py"], tmp_path)
