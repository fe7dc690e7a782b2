"""Memory that calibrating the seed encoder takes beyond its weights, for few and for many samples:
``python -m benchmarks.calibration_memory``.
"""

from __future__ import annotations

from typing import Any

from benchmarks.timing import in_new_process, print_table, save

#: Samples of 128 tokens.
COUNTS = (8, 64, 256)
_CODE = """
import sys
import numpy as np
import omnigraph
from omnigraph.calibration import calibrate
from omnigraph.model_source import resolve
from omnigraph.passes.analysis.products import products
from omnigraph.passes.base import run_passes
from omnigraph.passes.pipelines import common
from omnigraph.trace import trace

def resident():
    text = open("/proc/self/status").read()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024

class Samples:
    def __iter__(self):
        for seed in range(int(sys.argv[1])):
            ids = np.random.default_rng(seed).integers(0, 50257, (1, 128))
            yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}

settings = {"kind": "encoder", "positions": "alibi"}
source = resolve("omninet", config="seed", settings=settings)
program = next(p for p in source.programs if p.name == "encode")
graph = trace(program)
run_passes(graph, common())
weights = sum(v.const_value.nbytes for v in graph.graph.initializers.values())
del source, program
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
before = resident()
found = calibrate(graph, products(graph), Samples(), method=sys.argv[2])
result = {"before": before, "weights": weights, "observed": len(found.observations)}
"""


def main() -> None:
    """Measure, print and save."""
    figures: dict[str, Any] = {}
    for method in ("min-max", "mse"):
        for count in COUNTS:
            found = in_new_process(_CODE, str(count), method)
            # Weights that were in the mapped file or not touched before count as the model's.
            model = max(found["before"], found["weights"])
            figures[f"{method}, {count}"] = {**found, "beyond": found["peak_bytes"] - model}
    print_table(
        ("ranges, samples", "peak MB", "model MB", "beyond the model MB"),
        [
            (
                name,
                f"{row['peak_bytes'] / 1e6:.0f}",
                f"{max(row['before'], row['weights']) / 1e6:.0f}",
                f"{row['beyond'] / 1e6:.0f}",
            )
            for name, row in figures.items()
        ],
    )
    save("calibration_memory", figures)


if __name__ == "__main__":
    main()
