"""The whole main job: export the reference model to every target, run it, show: ``make demo``.

python -m benchmarks.demo          each target's own float, int8 and int4-weights
python -m benchmarks.demo --all    every precision of every target: ``make demo-all``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import omnigraph
from benchmarks.timing import in_new_process, take_turns
from omnigraph.inspection.targets import list_targets
from omnigraph.precision import AUTO
from omnigraph.report import progress_reporter, size_text, table

SETTINGS = {"kind": "encoder-decoder", "positions": "rotary"}

_RUN = """
import sys, numpy, omnigraph
with omnigraph.load(sys.argv[1], verify=True) as net:
    ids = numpy.arange(1, 65)[None]
    net.run(input_ids=ids, decoder_input_ids=ids)
result = {"modules": sorted({m.partition(".")[0] for m in sys.modules})}
"""


#: What is shown first: None is each target's own default, fp32 or fp16.
FIRST = (None, "int8", "int4-weights")


def main() -> None:
    """Export, verify, run and time; one row for each artifact."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--all", action="store_true", help="every precision of every target")
    targets = [t for t in list_targets() if t["unusable"] is None]
    precisions: Sequence[str | None] = FIRST
    if parser.parse_args().all:
        precisions = tuple(dict.fromkeys(p for t in targets for p in t["precisions"] if p != AUTO))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for precision in precisions:
            chosen = [t for t in targets if precision is None or precision in t["precisions"]]
            rows += list(exported(chosen, precision, Path(scratch) / str(precision)))
    rows.sort()
    print()
    print(
        "OmniNet small: encoder-decoder, 4 + 4 layers of 256, rotary positions; forward, 64 tokens"
    )
    print(table(("target", "precision", "size", "error (rms)", "latency", "memory to run"), rows))


def exported(
    targets: Sequence[Mapping[str, Any]], precision: str | None, out: Path
) -> Iterator[tuple[str, ...]]:
    """Export to some targets in one precision, and run: a row for each artifact."""
    names = [target["name"] for target in targets]
    command = f"omnigraph export omninet --config small --target {','.join(names)}"
    print(f"\n{command}" + (f" --precision {precision}" if precision else ""), file=sys.stderr)
    with progress_reporter(precision or "floats") as progress:
        reports = omnigraph.export(
            "omninet",
            names,
            config="small",
            settings=SETTINGS,
            precision=precision,
            out=out,
            progress=progress,
        )
    for report, target in zip(reports, targets, strict=True):
        why_not = target["unrunnable"]
        latency, memory = (why_not, "") if why_not else run(report.path)
        size, error = size_text(report.bytes), f"{report.deviation.rms:.1e}"
        yield report.target, report.precision, size, error, latency, memory


def run(artifact: Path) -> tuple[str, str]:
    """Latency here, and the memory of a process that only runs the artifact."""
    alone = in_new_process(_RUN, str(artifact))
    assert "torch" not in alone["modules"]
    ids = np.arange(1, 65)[None]
    with omnigraph.load(artifact) as net:
        times = take_turns({"": lambda: net.run(input_ids=ids, decoder_input_ids=ids)}, seconds=2)
    return f"{times[''] * 1e3:.1f} ms", size_text(alone["peak_bytes"])


if __name__ == "__main__":
    main()
