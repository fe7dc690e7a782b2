"""The folder in which an artifact is made, beside its place, and what is left when it is killed.

An export makes ``.NAME.omnigraph-RANDOM`` beside its place and holds a lock on it while it lives.
The system takes the lock from a process that is killed, and so the next export to the same place
knows which of these folders nobody needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from omnigraph.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: The artifact's files, in a staging folder; the artifact before it, while it is being replaced;
#: and the single file.
NEW, OLD, PACKED = "new", "old", "packed.omni"
_MARK = ".omnigraph-"
#: Seconds to wait for another export that publishes into the same folder.
_PATIENCE = 10.0
#: Errors of a disk or a folder, of which no fault of this program is the cause.
_OF_DISK = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EIO,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


def place_of(out: str | os.PathLike[str]) -> Path:
    """Where an artifact goes: the path itself, or where it leads if it is a link."""
    return Path(os.path.realpath(out))


@contextlib.contextmanager
def staging(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder for an artifact's files, beside ``out``; gone when the block ends.

    What killed exports to ``out`` have left is removed first.

    Raises:
        ArtifactError: the disk is full, or ``out`` may not be written to.
    """
    place = place_of(out)
    with refused_by_disk(out, place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(place.parent):
            _restore(place)
            _remove_leftovers(place)
            prefix = f".{place.name}{_MARK}"
            container = Path(tempfile.mkdtemp(prefix=prefix, dir=place.parent))
            held = _lock(container)
    try:
        with refused_by_disk(out, container):
            (container / NEW).mkdir()
            yield container / NEW
    finally:
        with contextlib.suppress(OSError), folder_lock(place.parent):
            _restore(place)
        if place.exists() or not (container / OLD).exists():
            shutil.rmtree(container, ignore_errors=True)
        if held is not None:
            os.close(held)


def recover(out: str | os.PathLike[str]) -> None:
    """Put an artifact back that an export had moved aside when it was killed.

    That happens only where two folders cannot be exchanged in one step.
    """
    place = place_of(out)
    if place.exists() or not any((container / OLD).exists() for container in _containers(place)):
        return
    with contextlib.suppress(OSError), folder_lock(place.parent):
        _restore(place)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Let one export at a time change a folder; where there are no locks, go on without one."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + _PATIENCE
        while not _locked(descriptor) and time.monotonic() < until:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def refused_by_disk(out: str | os.PathLike[str], folder: Path) -> Iterator[None]:
    """Make an error of the disk or of ``folder`` within the block an ArtifactError.

    Args:
        out: the path that the user gave.
    """
    try:
        yield
    except OSError as error:
        at = Path(error.filename) if error.filename is not None else folder
        if error.errno not in _OF_DISK or not (at == folder or folder in at.parents):
            raise
        raise ArtifactError(
            f"The artifact at {out} could not be written",
            found=f"{error.strerror} ({error.filename or 'while a file was written'})",
            hint="give --out a folder that you may write to, with room for the artifact; nothing "
            "was changed there",
        ) from error


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _lock(container: Path) -> int | None:
    """A descriptor that holds the lock of a staging folder; None where there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(container, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _containers(place: Path) -> Iterator[Path]:
    """The staging folders of a place."""
    name = re.compile(re.escape(f".{place.name}{_MARK}") + "[a-z0-9_]{8}")
    if place.parent.is_dir():
        for path in sorted(place.parent.iterdir()):
            if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path


def _restore(place: Path) -> None:
    if not place.exists():
        for container in _containers(place):
            if (container / OLD).exists():
                os.rename(container / OLD, place)
                return


def _remove_leftovers(place: Path) -> None:
    for container in _containers(place):
        with contextlib.suppress(FileNotFoundError):  # an export that just ends removes its own
            if {path.name for path in container.iterdir()} <= {NEW, OLD, PACKED}:
                held = _lock(container)
                if held is not None:
                    shutil.rmtree(container, ignore_errors=True)
                    os.close(held)
