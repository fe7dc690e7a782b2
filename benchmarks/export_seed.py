"""Time and peak memory of exporting the 24-layer seed model: ``python -m benchmarks.export_seed``.

Each target in a process of its own, from the import to the published artifact: random weights,
three programs, the contract, a single file. The weights are 4 bytes for each parameter.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import in_new_process, print_table, save

TARGETS = ("onnx", "openvino", "tensorrt")
#: The bounds of the project: seconds, and peak memory over the weights in fp32.
SECONDS, RATIO = 180, 2.5

_EXPORT = """
import sys, time
start = time.perf_counter()
import omnigraph
(report,) = omnigraph.export("omninet", sys.argv[1], config="seed", out=sys.argv[2])
result = {
    "seconds": time.perf_counter() - start,
    "steps": dict(report.seconds),
    "bytes": report.bytes,
    "precision": report.precision,
    "rms": report.deviation.rms,
    "tolerance": min(check.tolerance.rms for check in report.checks),
}
"""


def main() -> None:
    """Export to each target, or to those named on the command line."""
    from omnigraph.models import OmniNetConfig

    weights = 4 * parameters(OmniNetConfig.named("seed"))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for target in sys.argv[1:] or TARGETS:
            out = Path(scratch) / f"{target}.omni"
            figures[target] = in_new_process(_EXPORT, target, str(out))
            figures[target]["ratio"] = figures[target]["peak_bytes"] / weights
            out.unlink()
    print_table(
        (
            "target",
            "precision",
            "seconds",
            "peak memory",
            "over the weights",
            "size",
            "error (rms)",
        ),
        [
            (
                target,
                f["precision"],
                f"{f['seconds']:.0f}",
                f"{f['peak_bytes'] / 1e9:.2f} GB",
                f"{f['ratio']:.2f}",
                f"{f['bytes'] / 1e9:.2f} GB",
                f"{f['rms']:.1e}",
            )
            for target, f in figures.items()
        ],
    )
    save("export_seed", {"weights_bytes": weights, "targets": figures})
    over = [t for t, f in figures.items() if f["ratio"] > RATIO or f["seconds"] > SECONDS]
    if over:
        raise SystemExit(f"over {SECONDS} s or {RATIO} times the weights: {', '.join(over)}")


def parameters(config: Any) -> int:
    """Parameters of a model, counted without making their storage."""
    import torch

    from omnigraph.models import OmniNet

    with torch.device("meta"):
        model = OmniNet(config, initialize=False)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
