"""Puts a sealed artifact in its place whole, and replaces nothing but a whole artifact."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omnigraph.artifact.artifact import Artifact
from omnigraph.artifact.exchange import exchange
from omnigraph.artifact.staging_folder import (
    OLD,
    PACKED,
    folder_lock,
    place_of,
    recover,
    refused_by_disk,
)
from omnigraph.artifact.zip_file import pack
from omnigraph.errors import ArtifactError

#: An artifact whose path ends so is a single file.
SINGLE_FILE = ".omni"
#: Files that an error names.
_MOST_NAMED = 5


def publish(directory: Path, out: str | os.PathLike[str]) -> None:
    """Move a sealed directory into place whole, as a directory or, for ``*.omni``, as one file.

    An artifact at ``out`` is there until the new one is: where the system can, the two are
    exchanged in one step. Of several exports to one place the last stays.

    Args:
        directory: of `staging`.

    Raises:
        ArtifactError: ``out`` holds anything but a whole artifact, or cannot be written to.
    """
    place = place_of(out)
    with refused_by_disk(out, place.parent):
        if Path(out).suffix == SINGLE_FILE:
            packed = directory.with_name(PACKED)
            pack(directory, packed)
            with folder_lock(place.parent):
                check_replaceable(out, check_hashes=False)
                os.replace(packed, place)
            return
        for path in (directory, *directory.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        with folder_lock(place.parent):
            check_replaceable(out, check_hashes=False)
            _put(directory, place)


def _put(directory: Path, place: Path) -> None:
    if not place.exists() or not any(place.iterdir()):
        os.rename(directory, place)  # an empty folder goes
    elif not exchange(directory, place):
        old = directory.with_name(OLD)
        os.rename(place, old)
        try:
            os.rename(directory, place)
        except BaseException:
            os.rename(old, place)
            raise


def check_replaceable(out: str | os.PathLike[str], *, check_hashes: bool = True) -> None:
    """Refuse an output path that holds anything but a whole artifact, or cannot be written to.

    Args:
        check_hashes: whether every file of an artifact there is compared with its hash.

    Raises:
        ArtifactError: naming what is there.
    """
    place = place_of(out)
    _check_folder(out, place)
    recover(place)
    single = Path(out).suffix == SINGLE_FILE
    if not os.path.lexists(place) or _is_empty(place, single):
        return
    if not (place.is_file() if single else place.is_dir()):
        raise _kept(out, place, single)
    try:
        artifact = Artifact(place, check_hashes=check_hashes)
    except ArtifactError as error:
        raise ArtifactError(
            f"{out} exists and is not a whole artifact, so it is not replaced",
            found=error.message,
            hint="give another --out; or look at it, and delete it by hand if you do not need it",
        ) from error
    if foreign := artifact.foreign_files():
        raise ArtifactError(
            f"{out} holds files that are not the artifact's own, so it is not replaced",
            found=_named(foreign),
            hint="move them elsewhere, or give another --out",
        )


def _check_folder(out: str | os.PathLike[str], place: Path) -> None:
    """Refuse a place whose folder cannot be written to, as far as that can be known before."""
    if place == Path.cwd() or place.is_mount():
        raise ArtifactError(
            f"{out} cannot be replaced: it is "
            + ("the folder that you are in" if place == Path.cwd() else "the root of a disk"),
            hint=f"give --out a path inside it: {place / 'net.omni'}",
        )
    above = next(path for path in place.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ArtifactError(
            f"The artifact at {out} could not be written",
            found=f"{above} is " + ("read-only for you" if above.is_dir() else "a file"),
            hint="give --out a folder that you may write to",
        )


def _is_empty(place: Path, single: bool) -> bool:
    if single:
        return place.is_file() and place.stat().st_size == 0
    return place.is_dir() and not any(place.iterdir())


def _kept(out: str | os.PathLike[str], place: Path, single: bool) -> ArtifactError:
    kind = "a folder" if place.is_dir() else "a file" if place.is_file() else "no plain file"
    return ArtifactError(
        f"{out} exists and is not replaced",
        expected="a single file" if single else "a folder with an artifact",
        found=kind,
        hint=f"a path that ends in {SINGLE_FILE} is a file, any other a folder; give another --out",
    )


def _named(files: Sequence[str]) -> str:
    more = len(files) - _MOST_NAMED
    return ", ".join(files[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
