"""An export replaces a whole artifact by a whole one, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from artifact_files import export_to, fill

from omnigraph.artifact import (
    MANIFEST,
    Artifact,
    check_replaceable,
    publish,
    staging,
)
from omnigraph.artifact.exchange import exchange
from omnigraph.errors import ArtifactError


@pytest.fixture(params=["net", "net.omni"])
def out(request, tmp_path: Path) -> Path:
    return tmp_path / "to" / request.param


def content(out: Path) -> bytes:
    return Artifact(out).read("a.onnx").tobytes()


def alone(out: Path) -> bool:
    """Whether nothing else is beside it."""
    return [path.name for path in out.parent.iterdir()] == [out.name]


def kept(out: Path, says: str) -> None:
    """That a path is refused before work and at the end, and stays as it is."""
    before = snapshot(out)
    with pytest.raises(ArtifactError, match=says) as refused:
        check_replaceable(out)
    assert str(out) in str(refused.value) and "\nhint: " in str(refused.value)
    with staging(out) as directory, pytest.raises(ArtifactError):
        publish(fill(directory), out)
    assert snapshot(out) == before


def snapshot(out: Path) -> dict[str, bytes | None]:
    paths = [out, *out.rglob("*")]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


# -- what is replaced ------------------------------------------------------------------------------


def test_an_artifact_is_replaced_whole(out: Path):
    for given in (b"first", b"second"):
        export_to(out, given)
        assert content(out) == given
        assert alone(out)


def test_an_empty_folder_and_an_empty_file_are_taken(tmp_path: Path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net.omni").touch()
    for name in ("net", "net.omni"):
        export_to(tmp_path / name)
        assert content(tmp_path / name) == b"graph"


def test_an_artifact_behind_a_link_is_replaced_there(out: Path):
    export_to(out)
    link = out.with_name("link" + out.suffix)
    link.symlink_to(out.name)
    export_to(link, b"second")
    assert link.is_symlink() and content(out) == b"second"


def test_a_web_app_is_not_replaced(tmp_path: Path):
    app = tmp_path / "app"
    app.mkdir()
    (app / MANIFEST).write_text(json.dumps({"name": "app", "icons": []}))
    (app / "index.html").write_text("hello")
    kept(app, r"not an OmniGraph artifact")


@pytest.mark.parametrize("manifest", ["", "[1, 2]", "{", '{"format": "omnigraph-artifact"}'])
def test_a_folder_with_any_manifest_is_not_replaced(tmp_path: Path, manifest: str):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / MANIFEST).write_text(manifest)
    kept(tmp_path / "net", "is not replaced")


def test_a_zip_of_other_things_is_not_replaced(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "photos.omni", "w") as archive:
        archive.writestr("one.jpg", b"a photo")
    kept(tmp_path / "photos.omni", r"not an OmniGraph artifact")


def test_other_files_and_folders_are_not_replaced(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep")
    (tmp_path / "data.omni").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "folder.omni").mkdir()
    for name in ("notes", "data.omni", "file", "folder.omni"):
        kept(tmp_path / name, "is not replaced")


@pytest.mark.parametrize("name", ["mine.txt", "deep/mine.bin", "empty/", "manifest.sig"])
def test_a_file_of_the_user_within_an_artifact_is_not_lost(tmp_path: Path, name: str):
    out = tmp_path / "net"
    export_to(out)
    if name.endswith("/"):
        (out / name).mkdir()
    else:
        (out / name).write_text("keep")
    kept(out, f"holds files that are not the artifact's own.*{name.strip('/')}")


def test_a_link_of_the_user_within_an_artifact_is_not_lost(tmp_path: Path):
    export_to(tmp_path / "net")
    (tmp_path / "net/data").symlink_to(tmp_path)
    kept(tmp_path / "net", "data")


def test_a_file_of_the_user_within_a_single_file_is_not_lost(tmp_path: Path):
    export_to(tmp_path / "net.omni")
    with zipfile.ZipFile(tmp_path / "net.omni", "a") as archive:
        archive.writestr("mine.txt", b"keep")
    kept(tmp_path / "net.omni", r"not the artifact's own.*mine\.txt")


def test_a_damaged_artifact_is_not_replaced(tmp_path: Path):
    export_to(tmp_path / "net")
    (tmp_path / "net/a.onnx").write_bytes(b"grapX")
    with pytest.raises(ArtifactError, match=r"sha256 differs[\s\S]*delete it by hand"):
        check_replaceable(tmp_path / "net")


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"the folder that you are in[\s\S]*net\.omni"):
        check_replaceable(".")


# -- without an exchange in one step ---------------------------------------------------------------


@pytest.fixture
def no_exchange(monkeypatch):
    monkeypatch.setattr("omnigraph.artifact.publishing.exchange", lambda one, other: False)


def test_this_system_exchanges_folders(tmp_path: Path):
    for name in ("one", "other"):
        fill(tmp_path / name, name.encode())
    assert exchange(tmp_path / "one", tmp_path / "other")
    assert content(tmp_path / "one") == b"other" and content(tmp_path / "other") == b"one"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "none")


@pytest.mark.usefixtures("no_exchange")
def test_a_folder_is_replaced_without_an_exchange(tmp_path: Path):
    for given in (b"first", b"second"):
        export_to(tmp_path / "net", given)
    assert content(tmp_path / "net") == b"second" and alone(tmp_path / "net")


@pytest.mark.usefixtures("no_exchange")
def test_a_second_rename_that_fails_puts_the_old_artifact_back(tmp_path: Path, monkeypatch):
    out, rename = tmp_path / "net", os.rename
    export_to(out, b"first")

    def failing(source, target):
        if Path(source).name == "new":
            raise OSError(errno.EIO, "Input/output error", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ArtifactError, match="could not be written: found Input/output error"):
        export_to(out, b"second")
    assert content(out) == b"first" and alone(out)


@pytest.mark.parametrize("opens", [content, check_replaceable, export_to])
def test_an_export_killed_between_two_renames_is_undone_at_the_next(tmp_path: Path, opens):
    out, container = tmp_path / "net", tmp_path / ".net.omnigraph-abcd1234"
    container.mkdir()
    fill(container / "old", b"old")
    fill(container / "new", b"new")
    opens(out)
    assert content(out) == (b"graph" if opens is export_to else b"old")
    export_to(out)
    assert alone(out)


# -- what killed exports leave ---------------------------------------------------------------------


def test_leftovers_are_removed_by_the_next_export_to_the_same_place(out: Path):
    export_to(out)
    for name in (f".{out.name}.omnigraph-abcd1234", f".{out.name}.omnigraph-zzzzzzz_"):
        (out.parent / name / "new").mkdir(parents=True)
        (out.parent / name / "new/half").write_bytes(b"half")
    export_to(out, b"second")
    assert alone(out)


def test_what_only_looks_like_a_leftover_stays(out: Path):
    export_to(out)
    names = (
        f".{out.name}.omnigraph-mine",  # another name
        f".{out.name}.omnigraph-abcd1234",  # with a file of someone
        ".other.omnigraph-abcd1234",  # of another place
    )
    for name in names:
        (out.parent / name).mkdir()
        (out.parent / name / "mine.txt").write_text("keep")
    export_to(out)
    assert all((out.parent / name / "mine.txt").exists() for name in names)


def test_the_staging_folder_of_a_living_export_stays(out: Path):
    with staging(out) as directory:
        export_to(out, b"other")
        fill(directory, b"mine")
        publish(directory, out)
    assert content(out) == b"mine" and alone(out)


def test_a_failed_export_leaves_the_old_artifact(out: Path):
    export_to(out)
    with pytest.raises(ArtifactError, match="could not be written"), staging(out) as directory:
        (directory / "no/such/folder").write_bytes(b"half")
    assert content(out) == b"graph" and alone(out)


def test_of_two_exports_at_once_one_stays_whole(out: Path):
    def work(number: int) -> None:
        for _ in range(5):
            export_to(out, b"%d" % number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert content(out) in [b"%d" % number for number in range(6)]
    assert alone(out)


def test_a_lock_that_someone_holds_is_not_waited_for_without_end(out: Path, monkeypatch):
    monkeypatch.setattr("omnigraph.artifact.staging_folder._PATIENCE", 0.05)
    export_to(out)
    held = os.open(out.parent, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    export_to(out, b"second")
    os.close(held)
    assert content(out) == b"second"


# -- disks and folders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES]
)
def test_an_error_of_the_disk_is_clear(out: Path, code: int):
    export_to(out)
    with pytest.raises(ArtifactError) as refused, staging(out) as directory:
        raise OSError(code, os.strerror(code), *([str(directory / "a")] if code == 13 else []))
    assert f"The artifact at {out} could not be written" in str(refused.value)
    assert os.strerror(code) in str(refused.value)
    assert content(out) == b"graph" and alone(out)


def test_an_error_of_another_file_stays_what_it_is(out: Path):
    with pytest.raises(PermissionError), staging(out):
        raise PermissionError(errno.EACCES, "Permission denied", "/the/model.onnx")


def test_a_folder_that_cannot_be_made_is_refused_before_work(tmp_path: Path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(ArtifactError, match=r"could not be written: found .*file is a file"):
        check_replaceable(tmp_path / "file/below/net")
    with (
        pytest.raises(ArtifactError, match="could not be written"),
        staging(tmp_path / "file/below/net"),
    ):
        pass
    if Path("/proc/self").exists():
        with pytest.raises(ArtifactError, match="No such file"), staging("/proc/none/net.omni"):
            pass
    long = tmp_path / ("n" * 250)
    with pytest.raises(ArtifactError, match="File name too long"), staging(long):
        pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, where a test may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_old_artifact(disk: Path):
    export_to(disk / "net.omni")
    with pytest.raises(ArtifactError, match="could not be written: found No space left"):
        export_to(disk / "net.omni", bytes(60_000))
    assert content(disk / "net.omni") == b"graph" and alone(disk / "net.omni")


def test_a_disk_that_is_read_only_is_refused_before_work(disk: Path):
    export_to(disk / "net.omni")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for name in ("net.omni", "net", "below/net"):
        with pytest.raises(ArtifactError, match="is read-only for you"):
            check_replaceable(disk / name)
        with pytest.raises(ArtifactError, match="Read-only file system"), staging(disk / name):
            pass
    assert content(disk / "net.omni") == b"graph"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_refused_before_work(out: Path):
    export_to(out)
    out.parent.chmod(0o500)
    try:
        with pytest.raises(ArtifactError, match="is read-only for you"):
            check_replaceable(out)
    finally:
        out.parent.chmod(0o700)


def test_the_root_of_a_disk_is_not_replaced(disk: Path):
    with pytest.raises(ArtifactError, match="it is the root of a disk"):
        check_replaceable(disk)
