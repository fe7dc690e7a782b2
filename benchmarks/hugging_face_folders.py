"""Small Hugging Face folders with random weights: which programs each gives, or why it is refused.

``python -m benchmarks.hugging_face_folders`` exports each folder for onnx and openvino in fp32,
compares the artifact with transformers at other shapes than the contract's, and prints a table.
``--only bert,clip`` takes some of the folders. The table is kept in
``benchmarks/results/hugging_face_folders.txt``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import omnigraph
from omnigraph.errors import OmniGraphError
from omnigraph.report import table

TESTS = Path(__file__).parent.parent / "tests"
RESULTS = Path(__file__).parent / "results" / "hugging_face_folders.txt"
HEADER = ("folder", "target", "programs", "error", "not made, or refused")
TARGETS = ("onnx", "openvino")


def main() -> None:
    """Export each folder, and print what became of it."""
    sys.path.insert(0, str(TESTS))
    import transformers
    from hugging_face_folders import FOLDERS

    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of folders, joined by commas")
    names = [name for name in parser.parse_args().only.split(",") if name]
    rows = [row for name in names or FOLDERS for row in _rows(name)]
    text = table(HEADER, rows)
    print(text)
    if not names:
        RESULTS.write_text(text + "\n")


def _rows(name: str) -> list[tuple[str, ...]]:
    from hugging_face_folders import save

    with tempfile.TemporaryDirectory() as folder:
        save(name, Path(folder, name))
        rows = [_row(name, target, Path(folder)) for target in TARGETS]
    for row in rows:
        print("  ".join(row), file=sys.stderr, flush=True)
    return rows


def _row(name: str, target: str, folder: Path) -> tuple[str, ...]:
    from hugging_face_folders import worst_error, worst_step_error

    from omnigraph.frontends.resolve import resolve

    try:
        source = resolve(folder / name)
        (report,) = omnigraph.export(folder / name, target, precision="fp32", out=folder / target)
    except OmniGraphError as error:
        return (name, target, "", "", " ".join(str(error).split())[:400])
    with omnigraph.load(report.path) as session:
        error = worst_error(session, folder / name, source.programs[0])
        if len(source.programs) > 1:
            error = max(error, worst_step_error(session, folder / name))
    made = " ".join(program.name for program in source.programs)
    why = "; ".join(f"{program}: {reason}" for program, reason in source.not_made.items())
    return (name, target, made, f"{error:.1e}", why)


if __name__ == "__main__":
    main()
