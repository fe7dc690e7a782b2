"""The artifact: a manifest and vendor files, as a directory or as one uncompressed zip (``.omni``).

Nothing in it is ever unpickled or executed by Python. Same files and manifest, same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnigraph.artifact.zip_file import CHUNK, REBUILD, check_name, pack, zip_offsets
from omnigraph.errors import ArtifactError
from omnigraph.program import TensorSpec

FORMAT = "omnigraph-artifact"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ProgramEntry:
    """One program of an artifact: its tensors, its files and its golden pair.

    Args:
        inputs: the inputs, in the order of the vendor's program.
        outputs: the outputs, in the order of the vendor's program.
        files: role to file name, such as ``{"model": "forward.onnx"}``.
        state: pairs (input, output) where the output is the next call's input.
        golden: file name of the golden inputs and outputs.
        tolerance: how far outputs may be from the golden ones.
        details: what the target adds, such as an engine's profiles.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, str]
    state: tuple[tuple[str, str], ...] = ()
    golden: str | None = None
    tolerance: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON-ready fields."""
        return {
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "files": dict(self.files),
            "state": [list(pair) for pair in self.state],
            "golden": self.golden,
            "tolerance": dict(self.tolerance),
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ProgramEntry:
        """The inverse of ``to_dict``."""
        return cls(
            tuple(TensorSpec.from_dict(f) for f in fields["inputs"]),
            tuple(TensorSpec.from_dict(f) for f in fields["outputs"]),
            dict(fields["files"]),
            tuple((a, b) for a, b in fields.get("state", ())),
            fields.get("golden"),
            fields.get("tolerance", {}),
            fields.get("details", {}),
        )


class Artifact:
    """An opened artifact whose manifest has been checked, and each file's size and hash.

    Args:
        path: a directory, or a single ``.omni`` file.
        check_hashes: whether to read every file and compare its sha256; sizes are always compared.

    Raises:
        ArtifactError: not an artifact, of a newer format, damaged, changed, or with a file name
            that leaves the directory.
    """

    def __init__(self, path: str | os.PathLike[str], *, check_hashes: bool = True) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise ArtifactError(
                f"There is no artifact at {self.path}",
                hint="`omnigraph export MODEL --target T --out PATH` writes one",
            )
        self._offsets: dict[str, tuple[int, int]] | None = None
        self._map: np.ndarray | None = None
        if self.path.is_file():
            self._offsets = zip_offsets(self.path)
        self.manifest = self._read_manifest()
        self.programs = {n: ProgramEntry.from_dict(f) for n, f in self.manifest["programs"].items()}
        self._check_files(check_hashes)

    # Facts of the manifest -----------------------------------------------------------------------

    @property
    def target(self) -> str:
        """The name of the target it was compiled for."""
        return self.manifest["target"]

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(f["bytes"] for f in self.manifest["files"].values())

    # Its files ----------------------------------------------------------------------------------

    def read(self, name: str) -> np.ndarray:
        """The bytes of one file, [N] uint8, read-only and memory-mapped."""
        if name not in self.manifest["files"]:
            raise ArtifactError(f"{self.path} has no file {name!r}", hint=REBUILD)
        return self._bytes(name)

    def file(self, name: str) -> Path | None:
        """The path of one file, or None where the artifact is a single file."""
        return None if self._offsets is not None else self.path / name

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one ``.npz`` file of the artifact, by name."""
        import io

        try:
            with np.load(io.BytesIO(self.read(name).tobytes()), allow_pickle=False) as npz:
                return {key: npz[key] for key in npz.files}
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{name} in {self.path} is not readable", hint=REBUILD) from error

    def golden_pair(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The golden inputs and the golden outputs of one file, by name of the tensor."""
        arrays = self.arrays(name)
        feeds, outputs = (
            {key.removeprefix(side): a for key, a in arrays.items() if key.startswith(side)}
            for side in ("input/", "output/")
        )
        return feeds, outputs

    def _bytes(self, name: str) -> np.ndarray:
        if self._offsets is None:
            return _map_file(self.path / name)
        if self._map is None:
            self._map = _map_file(self.path)
        offset, length = self._offsets[name]
        return self._map[offset : offset + length]

    # Checks -------------------------------------------------------------------------------------

    def _read_manifest(self) -> dict[str, Any]:
        present = MANIFEST in self._offsets if self._offsets else (self.path / MANIFEST).is_file()
        if not present:
            raise ArtifactError(
                f"{self.path} is not an OmniGraph artifact",
                expected=f"a {MANIFEST} in it",
                found="none",
                hint="give the directory or .omni file that `omnigraph export` wrote",
            )
        try:
            manifest = json.loads(self._bytes(MANIFEST).tobytes())
            if manifest["format"] != FORMAT:
                raise KeyError("format")
            version = manifest["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{MANIFEST} of {self.path} is damaged", hint=REBUILD) from error
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"{self.path} is of a newer format",
                expected=f"format version {FORMAT_VERSION} or earlier",
                found=str(version),
                hint="install a newer omnigraph",
            )
        if manifest.get("integrity") != _integrity(manifest):
            raise ArtifactError(f"{MANIFEST} of {self.path} was changed after export", hint=REBUILD)
        return manifest

    def _check_files(self, check_hashes: bool) -> None:
        referenced = {n for p in self.programs.values() for n in (*p.files.values(), p.golden) if n}
        for name in {*self.manifest["files"], *referenced}:
            check_name(name, self.path)
        if missing := referenced - set(self.manifest["files"]):
            raise ArtifactError(
                f"{self.path} names a file that it does not list: {min(missing)}", hint=REBUILD
            )
        for name, expected in self.manifest["files"].items():
            found = self._file_size(name)
            if found != expected["bytes"]:
                raise ArtifactError(
                    f"{name} in {self.path} "
                    + ("is missing" if found is None else "has another size"),
                    expected=f"{expected['bytes']} bytes",
                    found="no such file" if found is None else f"{found} bytes",
                    hint=REBUILD,
                )
            if check_hashes and self._hash(name) != expected["sha256"]:
                raise ArtifactError(
                    f"{name} in {self.path} is not what was exported: its sha256 differs",
                    hint=REBUILD,
                )

    def _hash(self, name: str) -> str:
        if self._offsets is None:
            return _sha256(self.path / name)
        return _sha256(self.path, *self._offsets[name])

    def _file_size(self, name: str) -> int | None:
        if self._offsets is not None:
            return self._offsets[name][1] if name in self._offsets else None
        path = self.path / name
        try:
            info = path.lstat()
        except OSError:
            return None
        if not stat.S_ISREG(info.st_mode) or not path.resolve().is_relative_to(self.path.resolve()):
            raise ArtifactError(
                f"{name} in {self.path} is a link or not a plain file",
                hint="an artifact holds plain files only; copy the real file in its place",
            )
        return info.st_size


@contextlib.contextmanager
def staging(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary directory next to ``out``, gone when the block ends."""
    parent = Path(out).resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{Path(out).name}.", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def seal(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``manifest`` into a staged directory, with the size and sha256 of each file there."""
    files = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    sealed: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest}
    sealed["files"] = {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in files.items()
    }
    sealed["integrity"] = _integrity(sealed)
    text = json.dumps(sealed, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return sealed


def publish(directory: Path, out: str | os.PathLike[str]) -> None:
    """Move a sealed directory into place whole, as a directory or, for ``*.omni``, as one file.

    An artifact at ``out`` is replaced only when the new one is complete.

    Raises:
        ArtifactError: ``out`` exists and is not an artifact.
    """
    out = Path(out)
    check_replaceable(out)
    if out.suffix == ".omni":
        packed = directory.with_name(directory.name + ".zip")
        try:
            pack(directory, packed)
            os.replace(packed, out)
        finally:
            packed.unlink(missing_ok=True)
        return
    for path in directory.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)
    directory.chmod(0o755)
    old = directory.with_name(directory.name + ".old")
    if out.exists():
        os.replace(out, old)
    try:
        os.replace(directory, out)
    except OSError:
        if old.exists():
            os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(out: Path) -> None:
    """Refuse an output path that holds something other than an artifact.

    Raises:
        ArtifactError: ``out`` is a file that is no artifact, or a directory of other things.
    """
    if out.suffix == ".omni":
        foreign = out.is_dir() or (
            out.is_file() and out.stat().st_size and not zipfile.is_zipfile(out)
        )
    elif out.is_dir():
        foreign = any(out.iterdir()) and not (out / MANIFEST).is_file()
    else:
        foreign = out.exists()
    if foreign:
        raise ArtifactError(
            f"{out} exists and is not an artifact, so it is not replaced",
            hint="give another --out, or move the old file or directory",
        )


def _map_file(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    with open(path, "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)


def _sha256(path: Path, offset: int = 0, length: int | None = None) -> str:
    """The hash of a file or a part of it, read in pieces, so that it is never whole in memory."""
    digest = hashlib.sha256()
    left = path.stat().st_size if length is None else length
    buffer = memoryview(bytearray(min(CHUNK, left)))
    with open(path, "rb", buffering=0) as stream:
        stream.seek(offset)
        while left and (count := stream.readinto(buffer[: min(left, CHUNK)])):
            digest.update(buffer[:count])
            left -= count
    return digest.hexdigest()


def _integrity(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "integrity"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
