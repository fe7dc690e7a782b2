"""Seals an artifact: lists its files in the manifest with their sizes and hashes, and hashes that.

``integrity`` is a hash without a key. It notices damage, and whoever changes the manifest can
compute it again: against an attacker there are signatures (`omnigraph.artifact.signature`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnigraph.artifact.zip_file import CHUNK

FORMAT = "omnigraph-artifact"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
#: Who signed the manifest, and the signature; it is in no list of files.
SIGNATURE = "manifest.sig"


def seal(
    directory: Path, manifest: Mapping[str, Any], *, files: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``manifest`` into a staged directory, with the size and sha256 of each file there.

    Args:
        files: sizes and hashes, where no file changed since they were computed.
    """
    sealed: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest}
    sealed["files"] = dict(files) if files is not None else _hashed(directory)
    sealed["integrity"] = integrity_of(sealed)
    text = json.dumps(sealed, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return sealed


def _hashed(directory: Path) -> dict[str, Any]:
    """The size and sha256 of each file, by its path in the artifact."""
    files = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, SIGNATURE)
    }
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in files.items()
    }


def integrity_of(manifest: Mapping[str, Any]) -> str:
    """The hash of a manifest, but for the entry that holds it."""
    content = {key: value for key, value in manifest.items() if key != "integrity"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path, offset: int = 0, length: int | None = None) -> str:
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
