"""An artifact is what was exported, or it is refused."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from artifact_files import fill, manifest, rewrite

from omnigraph.artifact import MANIFEST, Artifact, seal
from omnigraph.artifact.zip_file import ALIGNMENT, check_name, pack
from omnigraph.errors import ArtifactError


@pytest.fixture(params=["directory", "file"])
def artifact(request, tmp_path: Path) -> Path:
    directory = fill(tmp_path / "net")
    if request.param == "directory":
        return directory
    pack(directory, tmp_path / "net.omni")
    return tmp_path / "net.omni"


def test_it_opens_and_its_files_read_back(artifact: Path):
    opened = Artifact(artifact)
    assert opened.read("a.onnx").tobytes() == b"graph"
    assert opened.read("deep/w.bin").tobytes() == bytes(range(256)) * 40
    assert not opened.read("deep/w.bin").flags.writeable


def test_a_single_file_is_a_zip_whose_data_are_aligned(tmp_path: Path):
    pack(fill(tmp_path / "net"), tmp_path / "net.omni")
    opened = Artifact(tmp_path / "net.omni")
    assert opened._offsets is not None
    assert all(offset % ALIGNMENT == 0 for offset, _ in opened._offsets.values())
    with zipfile.ZipFile(tmp_path / "net.omni") as archive:
        assert archive.testzip() is None
        assert archive.read("a.onnx") == b"graph"


def test_same_content_gives_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        directory = fill(tmp_path / name)
        os.utime(directory / "a.onnx", (1, 1 if name == "one" else 10**9))
        pack(directory, tmp_path / f"{name}.omni")
    assert (tmp_path / "one.omni").read_bytes() == (tmp_path / "two.omni").read_bytes()


def test_every_changed_byte_is_noticed(tmp_path: Path):
    directory = fill(tmp_path / "net")
    for name in ("a.onnx", "deep/w.bin", MANIFEST):
        path = directory / name
        whole = path.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 40)):
            damaged = bytearray(whole)
            damaged[position] ^= 0x20
            path.write_bytes(damaged)
            with pytest.raises(ArtifactError, match="hint:"):
                Artifact(directory)
        path.write_bytes(whole)
    Artifact(directory)


def test_a_changed_byte_of_a_single_file_is_noticed(tmp_path: Path):
    pack(fill(tmp_path / "net"), tmp_path / "net.omni")
    path = tmp_path / "net.omni"
    offset = Artifact(path)._offsets["deep/w.bin"][0]  # type: ignore[index]
    damaged = bytearray(path.read_bytes())
    damaged[offset + 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="sha256 differs"):
        Artifact(path)
    Artifact(path, check_hashes=False)


@pytest.mark.parametrize("keep", [0, 10, 5000, -1, -200])
def test_a_truncated_single_file_is_refused(tmp_path: Path, keep: int):
    pack(fill(tmp_path / "net"), tmp_path / "net.omni")
    whole = (tmp_path / "net.omni").read_bytes()
    (tmp_path / "net.omni").write_bytes(whole[:keep])
    with pytest.raises(ArtifactError, match="hint:"):
        Artifact(tmp_path / "net.omni")


def test_a_truncated_or_missing_file_is_refused(tmp_path: Path):
    directory = fill(tmp_path / "net")
    (directory / "deep/w.bin").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="another size: expected 10240 bytes, found 5 bytes"):
        Artifact(directory)
    (directory / "deep/w.bin").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        Artifact(directory)


@pytest.mark.parametrize(
    "name", ["../w.bin", "/etc/passwd", "a/../../b", "a\\b", "C:x", "a//b", "./a", "a\0b"]
)
def test_names_that_leave_the_artifact_are_refused(tmp_path: Path, name: str):
    with pytest.raises(ArtifactError, match="leaves the artifact"):
        check_name(name, tmp_path)
    directory = fill(tmp_path / "net")
    fields = json.loads((directory / MANIFEST).read_text())
    fields["files"][name] = {"bytes": 5, "sha256": "0" * 64}
    rewrite(directory, fields)
    with pytest.raises(ArtifactError, match="leaves the artifact"):
        Artifact(directory)


def test_a_zip_entry_that_leaves_the_artifact_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "net.omni", "w") as archive:
        archive.writestr("../out", b"x")
        archive.writestr(MANIFEST, b"{}")
    with pytest.raises(ArtifactError, match="leaves the artifact"):
        Artifact(tmp_path / "net.omni")


def test_a_link_is_refused(tmp_path: Path):
    directory = fill(tmp_path / "net")
    (tmp_path / "outside").write_bytes(b"graph")
    (directory / "a.onnx").unlink()
    (directory / "a.onnx").symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match="is a link"):
        Artifact(directory)


def test_a_compressed_zip_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "net.omni", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, b"{}" * 100)
    with pytest.raises(ArtifactError, match="not an OmniGraph artifact"):
        Artifact(tmp_path / "net.omni")


def test_a_newer_format_and_other_things_are_refused(tmp_path: Path):
    directory = fill(tmp_path / "net")
    fields = json.loads((directory / MANIFEST).read_text())
    rewrite(directory, {**fields, "format_version": 2})
    with pytest.raises(ArtifactError, match="newer format: expected format version 1"):
        Artifact(directory)
    (directory / MANIFEST).write_text("[1, 2]")
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact(directory)
    with pytest.raises(ArtifactError, match="There is no artifact"):
        Artifact(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"expected a manifest\.json"):
        Artifact(tmp_path / "empty")


def test_nothing_is_unpickled(tmp_path: Path):
    directory = fill(tmp_path / "net")
    with open(directory / "golden.npz", "wb") as stream:
        np.savez(stream, evil=np.array([{"a": 1}], dtype=object))
    seal(directory, manifest())
    with pytest.raises(ArtifactError, match="not readable"):
        Artifact(directory).arrays("golden.npz")
