"""Text that every machine has: the sources of Python's standard library, in four disjoint parts.

A file belongs to a part by the hash of its path, so that a file that is held out is held out on
every machine and for every version of Python. Two versions of Python differ in some lines: a figure
holds for the version that it was measured with. Files are not compared with each other, and some
lines (licences, idioms, code that was copied from one module to another) stand in several parts.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

#: train; calibration: for statistics of activations; evaluation: what choices are made on;
#: test: what figures are reported on, and nothing else is done with.
SPLITS = ("train", "calibration", "evaluation", "test")

#: One file of 20 for each part that is held out.
_SHARES, _HELD_OUT = 20, ("calibration", "evaluation", "test")
#: Others' packages, and files that a program wrote: tables of characters, documentation.
_LEFT_OUT = {"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"}
#: The library's own tests, which not every machine has: more to train on, and never held out.
_TESTS = {"test", "tests", "idle_test"}


def split_of(path: str) -> str | None:
    """The part that a file belongs to, by its path relative to the standard library.

    Args:
        path: with "/" between its parts, as "json/decoder.py".

    Returns:
        One of `SPLITS`, or None for what is left out.
    """
    parts = PurePosixPath(path).parts
    if _LEFT_OUT.intersection(parts) or parts[-1].startswith("_sysconfigdata"):
        return None
    if _TESTS.intersection(parts):
        return "train"
    share = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % _SHARES
    return _HELD_OUT[share] if share < len(_HELD_OUT) else "train"


def files(split: str) -> list[Path]:
    """The files of a part, by name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - _LEFT_OUT
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    found.sort(key=lambda path: path.relative_to(root).as_posix())
    return [path for path in found if split_of(path.relative_to(root).as_posix()) == split]


@lru_cache(maxsize=len(SPLITS))
def text(split: str) -> np.ndarray:
    """The bytes of a part, file after file: [bytes] uint8, read-only.

    Raises:
        ValueError: there is no such part.
        FileNotFoundError: this Python came without the sources of its library.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    joined = b"".join(path.read_bytes() for path in files(split))
    if not joined:
        raise FileNotFoundError(
            f"{sysconfig.get_path('stdlib')}: expected the sources of the standard library, found "
            "none\nhint: use a Python whose library is a folder of .py files"
        )
    return np.frombuffer(joined, np.uint8)
