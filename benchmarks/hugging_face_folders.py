"""Small Hugging Face folders with random weights: which programs each gives, or why it is refused.

``python -m benchmarks.hugging_face_folders`` exports each folder for onnx and openvino in fp32,
compares the artifact with transformers at other shapes than the contract's, and prints a table.
The table goes to ``benchmarks/results/hugging_face_folders.json``; ``--only bert,clip`` replaces
the rows of some folders there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import omnigraph
from omnigraph.errors import OmniGraphError
from omnigraph.report import table

TESTS = Path(__file__).parent.parent / "tests"
RESULTS = Path(__file__).parent / "results" / "hugging_face_folders.json"
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
    print(table(HEADER, rows))
    found = [dict(zip(HEADER, row, strict=True)) for row in rows]
    if names:
        found += [row for row in json.loads(RESULTS.read_text()) if row["folder"] not in names]
    found.sort(key=lambda row: [*FOLDERS].index(row["folder"]))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _rows(name: str) -> list[tuple[str, ...]]:
    from hugging_face_folders import save

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, name)
        save(name, folder)
        try:  # both at once, since most time is torch's
            rows = _exported(folder, TARGETS)
        except OmniGraphError:
            rows = [_exported_or_refused(folder, target) for target in TARGETS]
    for row in rows:
        print("  ".join(row), file=sys.stderr, flush=True)
    return rows


def _exported_or_refused(folder: Path, target: str) -> tuple[str, ...]:
    try:
        return _exported(folder, [target])[0]
    except OmniGraphError as error:
        text = " ".join(str(error).replace(str(folder.parent), "").split())
        return (folder.name, target, "", "", text)


def _exported(folder: Path, targets: Sequence[str]) -> list[tuple[str, ...]]:
    from hugging_face_folders import worst_error, worst_step_error

    from omnigraph.frontends.resolve import resolve

    source = resolve(folder)
    why = "; ".join(f"{program}: {reason}" for program, reason in source.not_made.items())
    out = folder.parent / "artifacts"
    reports = omnigraph.export(folder, targets, precision="fp32", out=out)
    rows = []
    for report in reports:
        with omnigraph.load(report.path) as session:
            error = worst_error(session, folder, source.programs[0])
            if "decode" in report.programs:
                error = max(error, worst_step_error(session, folder, source.programs))
        rows.append((folder.name, report.target, " ".join(report.programs), f"{error:.1e}", why))
    return rows


if __name__ == "__main__":
    main()
