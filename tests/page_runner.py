"""Runs a page of the documentation as its reader would: its blocks in order, in one folder."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from markdown_blocks import ROOT, Block, blocks

#: Commands that set up a machine; no test runs them, and they need no mark.
SET_UP = ("pip install ", "pre-commit install", ". .venv/bin/activate")
#: These need no torch, and so each gets a process of its own, as on a reader's machine.
_OWN_PROCESS = ("run", "generate", "verify", "targets")
_ENTRY_POINTS = re.compile(r'\[project\.entry-points\."(.+)"\]')


class PageError(AssertionError):
    """A block of a page that does not do what the page says."""


def run_page(page: str, folder: Path, *, slow: bool = False) -> list[str]:
    """Run the blocks of a page in order; Python files that it shows are written first to last.

    Args:
        page: its text.
        folder: where to run them, with the files that the page takes as given.
        slow: whether to run the blocks that are marked so, too.

    Returns:
        What each command printed.

    Raises:
        PageError: with the line, where a block fails or is of no kind that can be checked.
    """
    printed: list[str] = []
    names: dict[str, object] = {"__name__": "__main__"}
    with _working_in(folder):
        for block in blocks(page):
            if block.slow and not slow:
                continue
            try:
                printed += _run(block, folder, names)
            except PageError as error:
                raise PageError(f"line {block.line}: {error}") from error
    return printed


def _run(block: Block, folder: Path, names: dict[str, object]) -> list[str]:
    if block.language == "sh":
        return [out for line in _lines(block) if (out := _run_line(line, block, folder))]
    if re.search(r"^(\$ )?omnigraph ", block.text, re.M):
        raise PageError(f"commands stand in a block of {block.language or 'no language'}, not sh")
    if block.language == "toml":
        _register(block, folder)
    elif block.language == "python" and block.file_name is not None:
        (folder / block.file_name).write_text(block.text)
        if block.file_name.startswith("test_"):
            _run_tests(block, folder)
    elif block.language == "python" and not block.skipped:
        _run_python(block, names)
    elif block.language not in ("python", "mermaid", "text", "yaml"):
        raise PageError(f"nothing checks a block of {block.language or 'no language'}")
    return []


def _lines(block: Block) -> list[str]:
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def _run_line(line: str, block: Block, folder: Path) -> str | None:
    words = shlex.split(line, comments=True)
    if words[0] == "omnigraph":
        return check_usage(words[1:]) if block.skipped else _run_command(words[1:], folder)
    if words[0] == "make":
        _check_make(words[1:])
    elif words[:2] == ["python", "-m"]:
        _check_module(words[2], block)
    elif words[0] == "openssl" and not block.skipped:
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    elif not block.skipped and not line.startswith(SET_UP):
        raise PageError(f"`{line}` is not run, and nothing says why: <!-- not run: REASON -->")
    return None


def _run_command(arguments: list[str], folder: Path) -> str:
    if arguments[0] in _OWN_PROCESS:
        command = [sys.executable, "-m", "omnigraph", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        status, out, errors = done.returncode, done.stdout, done.stderr
    else:
        status, out, errors = _call_main(arguments)
    if status != 0:
        raise PageError(f"`omnigraph {shlex.join(arguments)}` ends with {status}: {errors[-2000:]}")
    return out


def _call_main(arguments: list[str]) -> tuple[int, str, str]:
    """A command in this process, which has imported torch already."""
    from omnigraph.cli.main import main

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), errors.getvalue()


def check_usage(arguments: list[str]) -> None:
    """Refuse a command that has an option, or lacks one, which its help does not have.

    Raises:
        PageError: with the usage error.
    """
    # An unknown option behind all others is the only thing wrong with a command that is right.
    status, _, errors = _call_main([*arguments, "--no-such-option"])
    if status != 2 or not re.search(r"unrecognized arguments: --no-such-option$", errors, re.M):
        raise PageError(f"`omnigraph {shlex.join(arguments)}` is no usage: {errors[-2000:]}")


def _check_make(words: list[str]) -> None:
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for word in words:
        if "=" not in word and word not in rules:
            raise PageError(f"the Makefile has no rule {word}")


def _check_module(name: str, block: Block) -> None:
    if not block.skipped and not (ROOT / f"{name.replace('.', '/')}.py").is_file():
        raise PageError(f"there is no module {name} to run")


def _run_python(block: Block, names: dict[str, object]) -> None:
    """Run a block with the names that those before it made."""
    code = "\n" * (block.line - 1) + block.text
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, "block", "exec"), names)
    except Exception as error:
        raise PageError("".join(traceback.format_exception(error)[-4:])) from error


def _run_tests(block: Block, folder: Path) -> None:
    """A file of tests, in a folder outside of the checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(block.file_name)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    expected = f"{block.text.count('def test_')} passed"
    if expected not in done.stdout:
        raise PageError(f"expected {expected}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _register(block: Block, folder: Path) -> None:
    """Make the entry points of a block those of an installed package, as pip would."""
    if not _ENTRY_POINTS.search(block.text):
        raise PageError("a block of toml registers no entry points")
    metadata = folder / "shown-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shown\nVersion: 1.0\n")
    entries = _ENTRY_POINTS.sub(r"[\1]", block.text).replace('"', "")
    (metadata / "entry_points.txt").write_text(entries)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Work in a folder whose modules can be imported, and forget them after."""
    before, path = Path.cwd(), list(sys.path)
    known = set(sys.modules)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in set(sys.modules) - known:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]
