"""What Session.run adds to the vendor's own call: ``python -m benchmarks.session_overhead``.

A tiny model, so that the call itself is short and its noise small. Both sides get the same arrays;
the vendor's side is the shortest safe call that its own API has for named inputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import omnigraph
from benchmarks.timing import print_table, save, take_turns

BOUND = 30.0


def onnx_call(artifact: Path, program: str, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    """onnxruntime's own ``run`` on the same file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(artifact / f"{program}.onnx", options)
    return lambda: session.run(None, feeds)


def openvino_call(
    artifact: Path, program: str, feeds: Mapping[str, np.ndarray]
) -> Callable[[], Any]:
    """OpenVINO's own call of a compiled model, its results copied out as a caller needs them."""
    import openvino

    core = openvino.Core()
    # One file of weights serves every program, so it is named.
    model = core.read_model(artifact / f"{program}.xml", artifact / "weights.bin")
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()
    return lambda: request.infer(feeds, share_inputs=True)


CALLS = {"onnx": onnx_call, "openvino": openvino_call}


def main() -> None:
    """Measure both targets, for a program of 2 inputs and one with a past."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        reports = omnigraph.export(
            "omninet",
            list(CALLS),
            config="tiny",
            settings={"kind": "decoder", "positions": "alibi"},
            out=scratch,
        )
        for report in reports:
            directory = Path(scratch) / report.target
            unpack(report.path, directory)
            for program in ("forward", "decode"):
                figures[f"{report.target} {program}"] = measure(directory, report.target, program)
    print_table(
        ("program", "inputs", "vendor's call (us)", "Session.run (us)", "added (us)"),
        [
            (name, f["inputs"], f"{f['vendor']:.1f}", f"{f['session']:.1f}", f"{f['added']:.1f}")
            for name, f in figures.items()
        ],
    )
    save("session_overhead", {"unit": "microseconds", "bound": BOUND, "programs": figures})
    worst = max(f["added"] for f in figures.values())
    if worst > BOUND:
        raise SystemExit(f"Session.run adds {worst:.1f} us, more than {BOUND:.0f}")


def measure(directory: Path, target: str, program: str) -> dict[str, float]:
    """Medians of both calls on the golden inputs, taken in turn."""
    with omnigraph.load(directory, threads=1, program=program) as session:
        entry = session.entry(program)
        assert entry.golden is not None
        arrays = session.artifact.arrays(entry.golden)
        feeds = {k.removeprefix("input/"): v for k, v in arrays.items() if "input/" in k}
        calls = {
            "vendor": CALLS[target](directory, program, feeds),
            "session": lambda: session.run(feeds),
        }
        times = take_turns(calls, seconds=10, warmup=200)
    return {
        "inputs": len(feeds),
        "vendor": times["vendor"] * 1e6,
        "session": times["session"] * 1e6,
        "added": (times["session"] - times["vendor"]) * 1e6,
    }


def unpack(artifact: Path, directory: Path) -> None:
    """A single-file artifact as a directory: it is an ordinary zip."""
    import zipfile

    with zipfile.ZipFile(artifact) as archive:
        archive.extractall(directory)


if __name__ == "__main__":
    main()
