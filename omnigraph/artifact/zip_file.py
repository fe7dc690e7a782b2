"""A directory as one uncompressed zip whose files can be mapped into memory in place."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from omnigraph.errors import ArtifactError

#: The data of each file start at a multiple of this, so that tensors in it can be mapped.
ALIGNMENT = 4096
#: Files are read and written in pieces of this many bytes.
CHUNK = 1 << 22
REBUILD = "the artifact is damaged or was changed: export it again, or copy it again"

_EPOCH = (1980, 1, 1, 0, 0, 0)


def check_name(name: str, where: object) -> None:
    """Refuse a file name that is not a plain relative path inside the artifact.

    Raises:
        ArtifactError: an absolute path, a drive, a backslash, or a part that is ``..``.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", name) or str(path) != name:
        raise ArtifactError(
            f"A file name in {where} leaves the artifact",
            expected="a relative path inside it",
            found=repr(name),
            hint="do not use this artifact: it was not written by omnigraph",
        )


def pack(directory: Path, out: Path) -> None:
    """Write a sealed directory as one uncompressed zip whose files' data are page-aligned."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    with open(out, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            # Local header: 30 bytes, the name, 20 bytes of zip64 sizes, then our padding field.
            start = stream.tell() + 30 + len(name.encode()) + 20 + 4
            info.extra = _padding_field(-start % ALIGNMENT)
            with archive.open(info, "w", force_zip64=True) as member:
                member_start = stream.tell()
                assert member_start % ALIGNMENT == 0, (name, member_start)
                with open(directory / name, "rb") as source:
                    shutil.copyfileobj(source, member, CHUNK)


def _padding_field(length: int) -> bytes:
    return b"OG" + length.to_bytes(2, "little") + bytes(length)


def zip_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Name to (offset, length) of each file in an uncompressed zip."""
    offsets: dict[str, tuple[int, int]] = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as stream:
            for info in archive.infolist():
                check_name(info.filename, path)
                if info.compress_type != zipfile.ZIP_STORED or info.filename in offsets:
                    raise zipfile.BadZipFile(info.filename)
                offsets[info.filename] = (_data_offset(stream, info), info.file_size)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArtifactError(
            f"{path} is not an OmniGraph artifact, or is truncated",
            expected="an uncompressed zip with a manifest",
            hint=REBUILD,
        ) from error
    end = path.stat().st_size
    if any(offset + length > end for offset, length in offsets.values()):
        raise ArtifactError(f"{path} is truncated", hint=REBUILD)
    return offsets


def _data_offset(stream: IO[bytes], info: zipfile.ZipInfo) -> int:
    stream.seek(info.header_offset)
    header = stream.read(30)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(info.filename)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + name + extra
