"""Quantization judged on real weights: ``python -m benchmarks.quantization_real --model minilm``.

A model of `benchmarks.real_models` does its task on inputs that nothing was calibrated on, in each
precision of ours and of the vendors' own tools, in one run: the figures of the task beside fp32's,
and times of two threads, contestants in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import omnigraph
from benchmarks.quantization_peers import (
    Call,
    Feeds,
    nncf_models,
    onnxruntime_call,
    onnxruntime_dynamic,
    openvino_call,
    plain_onnx,
    plain_openvino,
)
from benchmarks.real_models import MODELS
from benchmarks.real_models.real_model import RealModel
from benchmarks.timing import print_table, save, take_turns
from omnigraph.artifact import Artifact
from omnigraph.errors import OmniGraphError
from omnigraph.lowering.emulation import run_lowered
from omnigraph.quantization.options import Quantization

THREADS = 2
PRECISIONS = ("fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights")
#: ... and in other ways: the precision, and the options of quantization.
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "int8, fast": ("int8", {"preset": "fast"}),
    "int8-weights, learned": ("int8-weights", {"rounding": "learned"}),
    "int4-weights, learned, groups of 32": (
        "int4-weights",
        {"rounding": "learned", "group_size": 32},
    ),
    "int4-weights, 0.5% lost": ("int4-weights", {"max_loss": 0.005, "metric": "cosine"}),
}
#: Of tensorrt, by `--only` alone: what an engine is made of, which needs no GPU for its numbers.
LOWERED = ("fp16", "int8", "int8-weights", "int4-weights")
PEERS = ("int8", "int8-weights", "int4-weights", "int4-weights all")
_REST = 0.03


def main() -> None:
    """Export all, compare and time them; print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--only", nargs="+", metavar="CONTESTANT", help="such as 'nncf int8'")
    parser.add_argument("--no-times", action="store_true", help="compare alone")
    parser.add_argument("--tests", type=int, metavar="N", help="compare on the first N test inputs")
    asked = parser.parse_args()
    model = MODELS[asked.model]()
    test = model.test[: asked.tests]
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    with tempfile.TemporaryDirectory() as scratch:
        makers = _chosen(_contestants(model, Path(scratch)), asked.only, parser)
        reference = model.reference(test)
        for name, make in makers.items():
            try:
                call = make()
            except OmniGraphError as error:
                rows[name] = {"refused": " ".join(str(error).split())}
            else:
                found = [call(feeds) for feeds in test]
                rows[name] = model.figures(found, reference, test)
                if not asked.no_times:
                    calls[name] = call
            print(name, rows[name], flush=True)
        for name, times in _times(model, calls).items():
            rows[name] |= times
    _print(rows)
    if not asked.no_times:
        save(f"quantization_real_{asked.model}", {"threads": THREADS, "contestants": rows})


# Contestants --------------------------------------------------------------------------------------


def _contestants(model: RealModel, scratch: Path) -> dict[str, Callable[[], Call]]:
    """What makes each contestant ready to be called, by name."""
    targets = {"onnx": PRECISIONS, "openvino": PRECISIONS, "tensorrt": LOWERED}
    makers: dict[str, Callable[[], Call]] = {
        f"{target} {precision}": partial(_ours, model, target, precision, scratch)
        for target, precisions in targets.items()
        for precision in (*precisions, *WAYS)
    }
    plain = cache(lambda: plain_openvino(model.module, model.example, scratch / "plain.xml"))
    makers |= {f"nncf {kind}": partial(_nncf, model, plain, kind, scratch) for kind in PEERS}
    return makers | {"onnxruntime int8-dynamic": partial(_onnxruntime, model, scratch)}


def _chosen(
    makers: Mapping[str, Callable[[], Call]],
    only: Sequence[str] | None,
    parser: argparse.ArgumentParser,
) -> dict[str, Callable[[], Call]]:
    if only is None:
        return {name: make for name, make in makers.items() if not name.startswith("tensorrt")}
    if unknown := [name for name in only if name not in makers]:
        parser.error(f"--only: expected some of {', '.join(makers)}; found {', '.join(unknown)}")
    return {name: makers[name] for name in only}


def _ours(model: RealModel, target: str, precision: str, scratch: Path) -> Call:
    def calibration() -> Iterator[Feeds]:
        yield from model.calibration

    out = scratch / f"{target}-{precision}"
    given: dict[str, Any] = {}
    if precision in WAYS:
        precision, options = WAYS[precision]
        given["quantization"] = Quantization(calibration=calibration, **options)
    elif "int" in precision:
        given["calibration"] = calibration
    omnigraph.export(model.exported, target, precision=precision, out=out, **given, **model.options)
    if target == "tensorrt":
        artifact = Artifact(out)
        with run_lowered(artifact, "forward") as lowered:
            return lambda feeds: _only(lowered(_with_defaults(feeds, artifact)))
    session = omnigraph.load(out, threads=THREADS)
    return lambda feeds: _only(session.run(feeds))


def _with_defaults(feeds: Feeds, artifact: Artifact) -> Feeds:
    """The feeds, and what a Session fills in where it is not given, in the shape of the tokens."""
    like = next(iter(feeds.values()))
    specs = artifact.programs["forward"].inputs
    left_out = [s for s in specs if s.name not in feeds and s.default is not None]
    return {**feeds, **{s.name: np.full_like(like, s.default) for s in left_out}}


def _only(outputs: Mapping[str, Any]) -> Any:
    (output,) = outputs.values()
    return output


def _nncf(model: RealModel, plain: Callable[[], Path], kind: str, scratch: Path) -> Call:
    made = nncf_models(plain(), model.calibration, scratch, [kind])
    return openvino_call(made[kind], threads=THREADS)


def _onnxruntime(model: RealModel, scratch: Path) -> Call:
    plain = plain_onnx(model.module, model.example, scratch / "plain.onnx", model.axes)
    return onnxruntime_call(onnxruntime_dynamic(plain, scratch), THREADS)


# Figures ------------------------------------------------------------------------------------------


def _times(model: RealModel, calls: Mapping[str, Call]) -> dict[str, dict[str, float]]:
    """Milliseconds of a call, by contestant and by what is timed."""
    times: dict[str, dict[str, float]] = {name: {} for name in calls}
    for shape, feeds in model.timed.items() if calls else ():
        turns = {name: partial(call, feeds) for name, call in calls.items()}
        for name, seconds in take_turns(turns, seconds=25, rest=_REST).items():
            times[name][f"ms, {shape}"] = 1e3 * seconds
    return times


def _print(rows: Mapping[str, Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    print_table(
        ("", *columns),
        [
            (name, *(_shown(row.get(column, "")) for column in columns))
            for name, row in rows.items()
        ],
    )


def _shown(figure: float | str) -> str:
    return figure if isinstance(figure, str) else f"{figure:.4f}"


if __name__ == "__main__":
    main()
