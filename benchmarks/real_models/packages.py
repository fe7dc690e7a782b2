"""Packages of the registry: downloaded once, unpacked, and not installed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

#: Where packages are kept between runs; git does not see it.
_CACHE = Path(__file__).parents[2] / ".packages"


def unpacked(package: str, *options: str) -> Path:
    """The folder with the files of a package's wheel or source distribution.

    Args:
        package: name and version, ``name==1.0``.
        options: of ``pip download``, such as ``--no-binary=name`` for the source distribution.
    """
    folder = _CACHE / package
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
        subprocess.run([*command, "--dest", str(partial), package], check=True)
        (archive,) = (p for p in partial.iterdir() if p.name.endswith((".whl", ".tar.gz")))
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(partial)
        else:
            with tarfile.open(archive) as sources:
                sources.extractall(partial, filter="data")
        archive.unlink()
        partial.rename(folder)
    return folder
