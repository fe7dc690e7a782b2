"""Size, speed and loss of each precision, against the vendors' own: ``python -m
benchmarks.quantization [--text] [--seed] [--budget]``.

The text models (`benchmarks.text`) say what quantization costs in perplexity, on files that nothing
was calibrated or chosen on. The seed encoder, whose weights are random, says what it gains in time,
and how far its outputs move. Times are of two threads, all contestants taking turns in one run.
Figures of CPUs without VNNI are kept apart: there, 8-bit products have other kernels.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import omnigraph
from benchmarks.latency import Encoder
from benchmarks.quantization_peers import (
    Call,
    Feeds,
    nncf_models,
    onnxruntime_call,
    onnxruntime_dynamic,
    openvino_call,
    plain_onnx,
    stored_bytes,
)
from benchmarks.text.checkpoints import FOLDERS, load
from benchmarks.text.data import held_out
from benchmarks.text.loss import cross_entropies, run_module
from benchmarks.timing import machine, print_table, save, take_turns
from omnigraph.models import OmniNet, OmniNetConfig
from omnigraph.quantization.options import Quantization

THREADS = 2
KINDS = ("decoder", "encoder-decoder")
FLOATS = {"onnx": ("fp32",), "openvino": ("fp32", "bf16"), "tensorrt": ("fp16",)}
PRECISIONS = {
    "onnx": ("int8", "int8-dynamic", "int8-weights", "int4-weights"),
    "openvino": ("int8", "int8-dynamic", "int8-weights", "int4-weights"),
    "tensorrt": ("int8", "int8-weights", "int4-weights", "fp8"),
}
#: Windows of 256 bytes: to calibrate on, to choose on, and to report on.
CALIBRATION, EVALUATION, TEST = 64, 128, 512
_REST = 0.04
_SEED = {"kind": "encoder", "positions": "alibi"}


def main() -> None:
    """Run the parts that are named, or all; print and save each."""
    parts = {"text": text_part, "seed": seed_part, "budget": budget_part}
    parser = argparse.ArgumentParser(description=__doc__)
    for name in parts:
        parser.add_argument(f"--{name}", action="append_const", dest="parts", const=name)
    kind = "" if any("vnni" in name for name in machine()["extensions"]) else "_without_vnni"
    for name in parser.parse_args().parts or parts:
        figures = parts[name]()
        save(f"quantization_{name}{kind}", {"threads": THREADS, **figures})


def samples(kind: str, split: str, windows: int) -> Iterator[Feeds]:
    """Windows of one part of the text, each a sample."""
    return (batch.feeds for batch in held_out(kind, split, windows=windows, batch=1))


def calibration(kind: str) -> Callable[[], Iterator[Feeds]]:
    """DATA of a text model: samples to calibrate on."""

    def calibration_files() -> Iterator[Feeds]:
        return samples(kind, "calibration", CALIBRATION)

    return calibration_files


def evaluation(kind: str) -> Callable[[], Iterator[Feeds]]:
    """DATA of a text model: samples to choose on."""

    def evaluation_files() -> Iterator[Feeds]:
        return samples(kind, "evaluation", EVALUATION)

    return evaluation_files


# Text models --------------------------------------------------------------------------------------


def text_part() -> dict[str, Any]:
    """Loss, size and time of every precision of the text models."""
    return {kind: _text_model(kind) for kind in KINDS}


def _text_model(kind: str) -> dict[str, Any]:
    batches = held_out(kind, "test", windows=TEST, batch=8)
    model = load(kind)
    reference = run_module(model)
    nats = [cross_entropies(reference(b.feeds)["logits"], b.targets) for b in batches]
    base = math.exp(float(np.concatenate(nats).mean()))
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, call, size in (*_ours(kind, folder), *_peers(kind, model, folder)):
            found = [cross_entropies(call(b.feeds), b.targets) for b in batches]
            perplexity = math.exp(float(np.concatenate(found).mean()))
            rows[name] = {"bytes": size, "perplexity": perplexity, "loss": perplexity / base - 1}
            if not name.startswith("tensorrt"):
                calls[name] = call
        one = {name: array[:1] for name, array in batches[0].feeds.items()}
        turns = {name: lambda call=call: call(one) for name, call in calls.items()}
        for name, seconds in take_turns(turns, seconds=40, rest=_REST).items():
            rows[name]["ms"] = 1e3 * seconds
    print(f"\n{kind} of text, perplexity {base:.4f} on the test files; ms of one window\n")
    print_table(
        ("", "MB", "ms", "perplexity", "loss"),
        [
            (
                name,
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['ms']:.2f}" if "ms" in row else "",
                f"{row['perplexity']:.4f}",
                f"{row['loss']:+.3%}",
            )
            for name, row in rows.items()
        ],
    )
    return {"perplexity": base, "rows": rows}


def _ours(kind: str, folder: Path) -> Iterator[tuple[str, Call, int]]:
    sources = [(kind, "", FLOATS), (kind, "", PRECISIONS)]
    if f"{kind}-qat" in FOLDERS:
        trained = {"onnx": ("int8",), "openvino": ("int8",)}
        sources.append((f"{kind}-qat", " after training with it", trained))
    for source, said, precisions in sources:
        for target, names in precisions.items():
            for precision in names:
                out = folder / f"{source}-{target}-{precision}"
                given = {} if precisions is FLOATS else {"calibration": calibration(kind)}
                (report,) = omnigraph.export(
                    FOLDERS[source],
                    target,
                    precision=precision,
                    programs=["forward"],
                    out=out,
                    **given,
                )
                yield f"{target} {precision}{said}", _call(out, target), _weights(out, report)


def _weights(out: Path, report: omnigraph.ExportReport) -> int:
    """The bytes of an artifact, without the golden pair, whose size has nothing to do with it."""
    golden = sum(p.stat().st_size for p in (out / "golden").iterdir())
    lowered = (
        sum(p.stat().st_size for p in out.glob("*.onnx*")) if report.target == "tensorrt" else 0
    )
    return report.bytes - golden - lowered


def _call(out: Path, target: str) -> Call:
    if target == "tensorrt":
        return _lowered_call(out)
    session = omnigraph.load(out, threads=THREADS)
    output = session.entry().outputs[0].name
    return lambda feeds: session.run(feeds)[output]


def _lowered_call(out: Path) -> Call:
    """The Graph that an engine was made of, in onnxruntime: no GPU is needed for its numbers."""
    from omnigraph.artifact import Artifact
    from omnigraph.lowering.emulation import run_lowered

    with run_lowered(Artifact(out), "forward") as run:  # it holds nothing open
        return lambda feeds: run(feeds)["logits"]


def _peers(kind: str, model: nn.Module, folder: Path) -> Iterator[tuple[str, Call, int]]:
    example = {n: torch.from_numpy(a) for n, a in held_out(kind, "test", batch=2)[0].feeds.items()}
    plain = plain_onnx(model, example, folder / "plain.onnx")
    data = list(samples(kind, "calibration", CALIBRATION))
    kinds = ("int8", "int8-weights", "int4-weights")
    for precision, path in nncf_models(plain, data, folder, kinds).items():
        yield f"nncf {precision}", openvino_call(path, threads=THREADS), stored_bytes(path)
    path = onnxruntime_dynamic(plain, folder)
    yield "onnxruntime int8-dynamic", onnxruntime_call(path, THREADS), stored_bytes(path)


# The seed encoder ---------------------------------------------------------------------------------


def seed_part() -> dict[str, Any]:
    """Time, size and error of the seed encoder, 128 tokens."""
    model = OmniNet.from_seed(OmniNetConfig.named("seed", **_SEED), trained_like=True).eval()
    encoder = Encoder(model)
    ids = np.random.default_rng(0).integers(0, 50257, (1, 128))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with torch.no_grad():
        expected = encoder(**{n: torch.from_numpy(a) for n, a in feeds.items()}).numpy()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calls: dict[str, Call] = {}
        for name, call, size in (*_our_seeds(folder), *_seed_peers(encoder, folder)):
            error = call(feeds).astype(np.float64) - expected
            rms = math.sqrt(float(np.square(error).mean() / np.square(expected).mean()))
            rows[name], calls[name] = {"bytes": size, "rms": rms}, call
        turns = {name: lambda call=call: call(feeds) for name, call in calls.items()}
        for name, seconds in take_turns(turns, seconds=90, rest=_REST).items():
            rows[name]["ms"] = 1e3 * seconds
    base = rows["onnx fp32"]["bytes"]
    print("\nseed encoder, batch 1, 128 tokens, random weights\n")
    print_table(
        ("", "MB", "of fp32", "ms", "error (rms)"),
        [
            (
                name,
                f"{row['bytes'] / 1e6:.0f}",
                f"{row['bytes'] / base:.1%}",
                f"{row['ms']:.1f}",
                f"{row['rms']:.1e}",
            )
            for name, row in rows.items()
        ],
    )
    return {"rows": rows}


def _our_seeds(folder: Path) -> Iterator[tuple[str, Call, int]]:
    for target in ("onnx", "openvino"):
        for precision in (*FLOATS[target], *PRECISIONS[target]):
            out = folder / f"{target}-{precision}"
            (report,) = omnigraph.export(
                "omninet",
                target,
                config="seed",
                settings=_SEED,
                precision=precision,
                programs=["encode"],
                out=out,
            )
            yield f"{target} {precision}", _call(out, target), _weights(out, report)


def _seed_peers(encoder: Encoder, folder: Path) -> Iterator[tuple[str, Call, int]]:
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, 50257, (1, 64)) for _ in range(16)]
    data = [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids]
    example = {n: torch.from_numpy(np.repeat(a, 2, axis=0)) for n, a in data[0].items()}
    plain = plain_onnx(encoder, example, folder / "plain.onnx")
    for precision, path in nncf_models(plain, data, folder, ("int8", "int8-weights")).items():
        yield f"nncf {precision}", openvino_call(path, threads=THREADS), stored_bytes(path)


# Budgets ------------------------------------------------------------------------------------------

#: What is exported under a budget: a name, the target, the precision, and the options.
BUDGETS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("int8, 0.5%", "onnx", "int8", {"max_loss": 0.005}),
    ("int4-weights, 0.1%", "onnx", "int4-weights", {"max_loss": 0.001}),
    ("int4-weights, 0.1%", "openvino", "int4-weights", {"max_loss": 0.001}),
    ("int8, speed gate", "onnx", "int8", {"speed_gate": 128}),
    ("auto", "openvino", "auto", {}),
)


def budget_part() -> dict[str, Any]:
    """What --max-loss, --speed-gate and auto choose for the decoder of text, and what it costs."""
    kind = "decoder"
    batches = held_out(kind, "test", windows=TEST, batch=8)
    reference = run_module(load(kind))
    nats = np.concatenate(
        [cross_entropies(reference(b.feeds)["logits"], b.targets) for b in batches]
    )
    figures: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for position, (name, target, precision, options) in enumerate(BUDGETS):
            out = Path(scratch) / str(position)
            asked = Quantization(
                calibration=calibration(kind),
                evaluation=evaluation(kind),
                **options,
            )
            (report,) = omnigraph.export(
                FOLDERS[kind],
                target,
                precision=precision,
                programs=["forward"],
                quantization=asked,
                out=out,
            )
            budget = report.quantization["budget"]
            call = _call(out, target)
            found = np.concatenate([cross_entropies(call(b.feeds), b.targets) for b in batches])
            loss = math.exp(float(found.mean() - nats.mean())) - 1
            figures[f"{target} {name}"] = {**budget, "loss_on_test": loss, "bytes": report.bytes}
            counts: dict[str, int] = {}
            for row in budget["layers"]:
                counts[row["choice"]] = counts.get(row["choice"], 0) + len(row["layers"])
            chosen = ", ".join(f"{n} {count}" for n, count in sorted(counts.items()))
            on_set = f"{budget['loss']:+.3%}" if "loss" in budget else ""
            rows.append((target, name, chosen, on_set, f"{loss:+.3%}"))
    print("\ndecoder of text: what a budget chooses\n")
    print_table(("target", "asked", "layers", "loss on its set", "loss on test files"), rows)
    return figures


if __name__ == "__main__":
    main()
