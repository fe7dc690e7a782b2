"""The whole main job: export the reference model to every target, run it, show: ``make demo``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import omnigraph
from benchmarks.timing import in_new_process, take_turns
from omnigraph.inspection.inspect import list_targets
from omnigraph.report import progress_reporter, size_text, table

SETTINGS = {"kind": "encoder-decoder", "positions": "rotary"}

_RUN = """
import sys, numpy, omnigraph
with omnigraph.load(sys.argv[1], verify=True) as net:
    ids = numpy.arange(1, 65)[None]
    net.run(input_ids=ids, decoder_input_ids=ids)
result = {"modules": sorted({m.partition(".")[0] for m in sys.modules})}
"""


def main() -> None:
    """Export, verify, run and time; one row for each artifact."""
    targets = [t for t in list_targets() if t["unusable"] is None]
    precisions = dict.fromkeys(p for t in targets for p in t["precisions"])
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for precision in precisions:
            chosen = {t["name"]: t for t in targets if precision in t["precisions"]}
            names = ",".join(chosen)
            command = f"omnigraph export omninet --config small --target {names}"
            print(f"\n{command} --precision {precision}", file=sys.stderr)
            with progress_reporter(precision) as progress:
                reports = omnigraph.export(
                    "omninet",
                    list(chosen),
                    config="small",
                    settings=SETTINGS,
                    precision=precision,
                    out=Path(scratch) / precision,
                    progress=progress,
                )
            for report in reports:
                why_not = chosen[report.target]["unrunnable"]
                latency, memory = (why_not, "") if why_not else run(report.path)
                size, error = size_text(report.bytes), f"{report.deviation.rms:.1e}"
                rows.append((report.target, precision, size, error, latency, memory))
    rows.sort()
    print()
    print(
        "OmniNet small: encoder-decoder, 4 + 4 layers of 256, rotary positions; forward, 64 tokens"
    )
    print(table(("target", "precision", "size", "error (rms)", "latency", "memory to run"), rows))


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
