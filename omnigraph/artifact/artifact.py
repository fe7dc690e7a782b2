"""The artifact: a manifest and vendor files, as a directory or as one uncompressed zip (``.omni``).

Nothing in it is ever unpickled or executed by Python. Same files and manifest, same bytes.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnigraph.artifact.json_shape import Fault
from omnigraph.artifact.schema import check_manifest
from omnigraph.artifact.sealing import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SIGNATURE,
    integrity_of,
    sha256_of,
)
from omnigraph.artifact.signature import Key, check_signature, is_signature
from omnigraph.artifact.staging_folder import recover
from omnigraph.artifact.zip_file import REBUILD, zip_offsets
from omnigraph.errors import ArtifactError
from omnigraph.program import TensorSpec


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
    tolerance: Mapping[str, Any] = field(default_factory=dict)
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
    """An opened artifact: its manifest and each file's size and hash have been checked.

    Args:
        path: a directory, or a single ``.omni`` file.
        check_hashes: whether to read every file and compare its sha256; sizes are always compared.
        trusted: public keys; one of them must have signed the artifact, and all files are then
            compared with their hashes. None trusts whoever gave you the artifact.

    Raises:
        ArtifactError: not an artifact, of a newer format, damaged, changed, not signed by a trusted
            key, or with a file name that leaves the directory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        check_hashes: bool = True,
        trusted: Key | Sequence[Key] | None = None,
    ) -> None:
        self.path = Path(path)
        recover(self.path)
        if not self.path.exists():
            raise ArtifactError(
                f"There is no artifact at {self.path}",
                hint="`omnigraph export MODEL --target T --out PATH` writes one",
            )
        self._offsets: dict[str, tuple[int, int]] | None = None
        self._map: np.ndarray | None = None
        with _readable(self.path):
            if self.path.is_file():
                self._offsets = zip_offsets(self.path)
            self.manifest = self._read_manifest(trusted)
            self._check_files(check_hashes or trusted is not None)
        self.programs = {n: ProgramEntry.from_dict(f) for n, f in self.manifest["programs"].items()}

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

    def foreign_files(self) -> list[str]:
        """Files and empty folders in it that are not its own, by name."""
        own = {MANIFEST, *self.manifest["files"]}
        if self._holds(SIGNATURE) and is_signature(self._bytes(SIGNATURE).tobytes()):
            own.add(SIGNATURE)
        if self._offsets is not None:
            return sorted(set(self._offsets) - own)
        found = []
        for folder, inner, files in os.walk(self.path):
            here = Path(folder).relative_to(self.path)
            links = [name for name in inner if (Path(folder) / name).is_symlink()]
            found += [(here / name).as_posix() for name in (*files, *links)]
            if not inner and not files and here.parts:
                found.append(here.as_posix())
        return sorted(set(found) - own)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one ``.npz`` file of the artifact, by name."""
        import io

        try:
            with np.load(io.BytesIO(self.read(name).tobytes()), allow_pickle=False) as npz:
                return {key: npz[key] for key in npz.files}
        except ArtifactError:
            raise
        except Exception as error:  # whatever numpy makes of bytes that are no arrays
            raise ArtifactError(f"{name} in {self.path} is not readable", hint=REBUILD) from error

    def golden_pair(
        self, program: str, *, without: Collection[str] = ()
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The golden inputs and the golden outputs of one program, by name of the tensor.

        Args:
            without: outputs that it may lack.

        Raises:
            ArtifactError: it has none; or they are not arrays of its inputs and of all its outputs.
        """
        entry = self.programs[program]
        if entry.golden is None:
            raise ArtifactError(
                f"Program {program!r} of {self.path} has no golden pair",
                hint="export it again: an export writes one for each program",
            )
        arrays = self.arrays(entry.golden)
        feeds, outputs = (
            {key.removeprefix(side): a for key, a in arrays.items() if key.startswith(side)}
            for side in ("input/", "output/")
        )
        known = {spec.name: spec for spec in (*entry.inputs, *entry.outputs)}
        needed = {name for name, spec in known.items() if spec.default is None} - {*without}
        given = {**feeds, **outputs}
        wrong = sorted(needed - set(given)) + [
            name
            for name, array in given.items()
            if name not in known
            or not _may_verify(str(array.dtype), known[name].dtype)
            or array.ndim != len(known[name].shape)
        ]
        if wrong or not any(array.size for array in outputs.values()):
            raise ArtifactError(
                f"The golden pair of program {program!r} in {self.path} cannot verify it",
                expected="an array of the right dtype and rank for each input and output",
                found=f"another for {wrong[0]!r}" if wrong else "outputs without elements",
                hint=REBUILD,
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

    def _holds(self, name: str) -> bool:
        """Whether a file is there, listed or not."""
        return name in self._offsets if self._offsets is not None else (self.path / name).is_file()

    def _read_manifest(self, trusted: Key | Sequence[Key] | None) -> dict[str, Any]:
        if not self._holds(MANIFEST):
            raise ArtifactError(
                f"{self.path} is not an OmniGraph artifact",
                expected=f"a {MANIFEST} in it",
                found="none",
                hint="give the directory or .omni file that `omnigraph export` wrote",
            )
        data = self._bytes(MANIFEST).tobytes()
        if trusted is not None:
            signature = self._bytes(SIGNATURE).tobytes() if self._holds(SIGNATURE) else None
            check_signature(self.path, data, signature, trusted)
        try:
            manifest = parse_manifest(data)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{MANIFEST} of {self.path} is damaged", hint=REBUILD) from error
        if manifest.get("format") != FORMAT:
            raise ArtifactError(
                f"{self.path} is not an OmniGraph artifact",
                expected=f"a {MANIFEST} of format {FORMAT}",
                found=f"another {MANIFEST}",
                hint="give the directory or .omni file that `omnigraph export` wrote",
            )
        if manifest.get("integrity") != integrity_of(manifest):
            raise ArtifactError(f"{MANIFEST} of {self.path} was changed after export", hint=REBUILD)
        version = manifest.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ArtifactError(
                f"{self.path} is of a newer format",
                expected=f"format version {FORMAT_VERSION} or earlier",
                found=str(version),
                hint="install a newer omnigraph",
            )
        try:
            check_manifest(manifest)
        except Fault as fault:
            raise ArtifactError(
                f"{fault.where or MANIFEST} in the manifest of {self.path} is wrong",
                expected=fault.expected,
                found=fault.found,
                hint="the artifact was changed, or another program wrote it: export it again",
            ) from fault
        return {"requires": {}, "tools": {}, **manifest}

    def _check_files(self, check_hashes: bool) -> None:
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
            return sha256_of(self.path / name)
        return sha256_of(self.path, *self._offsets[name])

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
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read",
            found=f"{error.strerror} ({error.filename or path})",
            hint="an artifact needs the right to read each of its files",
        ) from error


def _may_verify(dtype: str, declared: str) -> bool:
    """Whether a golden array is of the dtype of its tensor; codes are also compared unrounded."""
    return dtype == declared or (declared in ("int8", "uint8") and dtype == "float32")


def _map_file(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    with open(path, "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)


def parse_manifest(data: bytes) -> dict[str, Any]:
    """The object in a manifest's bytes, not yet checked.

    Raises:
        ValueError: no JSON object, a key that stands twice, or a number that is not finite.
        RecursionError: it is nested too deep.
    """
    manifest = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(manifest, dict):
        raise ValueError("no object")
    return manifest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice, and one would hide the other")
    return fields


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
