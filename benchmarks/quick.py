"""Integers beside floats and beside the vendors' own, in 3 minutes: ``make bench-quick``.

The seed's encoder (128 tokens), and its decoder (a prompt of 128 tokens, and one step behind them),
with 2 of its 12 layers, which are all alike, and a vocabulary of 4,096. Every contestant takes its
turn in one run, on two threads. What is kept is ratios of medians, by the extensions of the CPU;
one that is more than 15% worse than the last on like extensions is named, and ends with status 1.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

import omnigraph
from benchmarks.quantization_peers import (
    Call,
    nncf_models,
    onnxruntime_call,
    onnxruntime_dynamic,
    openvino_call,
)
from benchmarks.timing import RESULTS, machine, print_table, save, take_turns
from omnigraph.models import OmniNet, OmniNetConfig
from omnigraph.models.programs import programs
from omnigraph.program import Case, Program
from omnigraph.tracing.module_call import ModuleCall
from omnigraph.tracing.sizes import example_case

THREADS = 2
LENGTH = 128
TARGETS = ("onnx", "openvino")
PRECISIONS = ("fp32", "int8", "int8-weights", "int4-weights")
#: A model and the program of it that is measured, with the sizes of each call.
MEASURED: Mapping[str, tuple[str, Mapping[str, Mapping[str, int]]]] = {
    "encoder": ("encode", {"encoder": {"batch": 1, "sequence": LENGTH}}),
    "decoder": (
        "decode",
        {
            "prompt": {"batch": 1, "sequence": LENGTH, "past": 0},
            "step": {"batch": 1, "sequence": 1, "past": LENGTH},
        },
    ),
}
#: What each of ours is compared with, beside its own fp32.
RIVALS = {
    ("onnx", "int8"): "onnxruntime int8-dynamic",
    ("openvino", "int8"): "nncf int8",
    ("openvino", "int8-weights"): "nncf int8-weights",
    ("openvino", "int4-weights"): "nncf int4-weights",
}
#: How much worse a ratio may be than the last before it is named: these machines are noisy.
WORSE = 1.15
#: Seconds of each measurement, and of rest before each call: threads of onnxruntime go on spinning
#: for a while, and take a core from whoever comes next.
_SECONDS, _REST = 5, 0.1


def main() -> None:
    """Measure, print, compare with the last figures on like extensions, and save."""
    file = "_".join(["quick", *machine()["extensions"]])
    path = RESULTS / f"{file}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["ratios"] if path.exists() else {}
    milliseconds: dict[str, dict[str, float]] = {}
    for kind, (name, calls) in MEASURED.items():
        program = _program(kind, name)
        with tempfile.TemporaryDirectory() as scratch:
            contestants = dict(_contestants(kind, program, Path(scratch)))
            for said, sizes in calls.items():
                milliseconds[said] = _times(contestants, program, sizes)
    ratios = {f"{said} {name}": r for said, ms in milliseconds.items() for name, r in _ratios(ms)}
    for said, ms in milliseconds.items():
        print(f"\n{said}\n")
        _print(said, ms, ratios)
    worse = [
        f"{key}: {ratio:.2f}, was {before[key]:.2f}"
        for key, ratio in ratios.items()
        if ratio > WORSE * before.get(key, math.inf)
    ]
    print("\n" + ("\n".join(["worse than before:", *worse]) if worse else "no ratio is worse"))
    if worse and "--accept" not in sys.argv:
        sys.exit("the figures are not saved; --accept saves them")
    save(file, {"threads": THREADS, "ms": milliseconds, "ratios": ratios})


def _program(kind: str, name: str) -> Program:
    config = OmniNetConfig.from_overrides(_settings(kind), name="seed")
    model = OmniNet.from_seed(config, trained_like=True).eval()
    return next(program for program in programs(model) if program.name == name)


def _settings(kind: str) -> dict[str, str]:
    return {"kind": kind, "num_layers": "2", "vocab_size": "4096"}


def _contestants(kind: str, program: Program, folder: Path) -> Iterator[tuple[str, Call]]:
    for precision in PRECISIONS:
        reports = omnigraph.export(
            "omninet",
            TARGETS,
            config="seed",
            settings=_settings(kind),
            precision=precision,
            programs=[program.name],
            out=folder / precision,
        )
        for report in reports:
            session = omnigraph.load(report.path, threads=THREADS)
            yield f"{report.target} {precision}", session.run
    plain = _plain_onnx(program, folder / "plain.onnx")
    sizes = {"batch": 1, "sequence": 64, "past": 8}
    samples = [_feeds(program, sizes, seed=seed) for seed in range(4)]
    kinds = [rival.removeprefix("nncf ") for rival in RIVALS.values() if rival.startswith("nncf")]
    for precision, path in nncf_models(plain, samples, folder, kinds).items():
        yield f"nncf {precision}", openvino_call(path, threads=THREADS)
    dynamic = onnxruntime_dynamic(plain, folder)
    yield "onnxruntime int8-dynamic", onnxruntime_call(dynamic, THREADS)


def _plain_onnx(program: Program, path: Path) -> Path:
    """What torch's own exporter gives for a program, without any of our passes."""
    example = program.make_inputs(example_case(program))
    names = [spec.name for spec in program.inputs]
    automatic = torch.export.Dim.AUTO
    shapes = [
        {axis: automatic for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in program.inputs
    ]
    with torch.no_grad():
        torch.onnx.export(
            ModuleCall(program),
            tuple(example[name] for name in names),
            path,
            input_names=names,
            output_names=list(program.outputs),
            dynamo=True,
            opset_version=20,
            dynamic_shapes=(tuple(shapes),),
            external_data=True,
            verbose=False,
        )
    return path


def _feeds(program: Program, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    named = {name: sizes[name] for name in program.dim_names()}
    made = program.make_inputs(Case("quick", named, seed=seed))
    return {name: tensor.numpy() for name, tensor in made.items()}


def _times(
    contestants: Mapping[str, Call], program: Program, sizes: Mapping[str, int]
) -> dict[str, float]:
    feeds = _feeds(program, sizes)
    turns = {name: lambda call=call: call(feeds) for name, call in contestants.items()}
    seconds = take_turns(turns, seconds=_SECONDS, rest=_REST)
    return {name: 1e3 * value for name, value in seconds.items()}


def _ratios(ms: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """The time of each of ours over that of its own fp32, and over that of its rival."""
    for target in TARGETS:
        for precision in PRECISIONS[1:]:
            name = f"{target} {precision}"
            yield f"{name} / fp32", ms[name] / ms[f"{target} fp32"]
            if (rival := RIVALS.get((target, precision))) is not None:
                yield f"{name} / {rival}", ms[name] / ms[rival]


def _print(said: str, ms: Mapping[str, float], ratios: Mapping[str, float]) -> None:
    rows = []
    for name, value in ms.items():
        found = {
            key.rpartition(" / ")[2]: ratio
            for key, ratio in ratios.items()
            if key.startswith(f"{said} {name} / ")
        }
        rival = next((f"{r:.2f} of {key}" for key, r in found.items() if key != "fp32"), "")
        rows.append((name, f"{value:.2f}", f"{found['fp32']:.2f}" if found else "", rival))
    print_table(("", "ms", "of its fp32", "of the vendor's own"), rows)


if __name__ == "__main__":
    main()
