"""What the loss is measured on: a part of the calibration data, held out of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import token_samples
from token_samples import TINY, TOKENS, data

import omnigraph
from omnigraph.cli.main import main
from omnigraph.inspection.inspect import inspect
from omnigraph.quantization.data import open_data
from omnigraph.quantization.held_out import hold_out
from omnigraph.quantization.options import Quantization


def few() -> Iterator[dict[str, np.ndarray]]:
    """Too few samples to hold some of them out."""
    return ({"input_ids": row[None]} for row in TOKENS[:9])


def firsts(samples) -> list[int]:
    return [int(sample["input_ids"][0, 0]) for sample in samples]


def test_every_fourth_sample_is_held_out():
    kept, held = hold_out(open_data(data, samples=10))
    assert held is not None
    expected = [int(row[0]) for row in TOKENS]
    assert firsts(held.read()) == expected[3::4]
    assert firsts(kept.read()) == [n for place, n in enumerate(expected, 1) if place % 4]
    assert held.source == "data, held out of calibration (every 4th)" and kept.source == "data"
    # As many as were asked for are left for calibration.
    assert kept.samples == 10
    assert hold_out(open_data(few))[1] is None


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_a_loss_is_measured_on_what_calibration_did_not_see(tmp_path: Path, precision: str):
    most = 0.05 if precision == "int8" else None
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        precision=precision,
        quantization=Quantization(calibration=data, max_loss=most),
        out=tmp_path / "a.omni",
        **TINY,
    )
    found, budget = report.quantization, report.quantization["budget"]
    assert (found["source"], found["samples"]) == ("data", 18)
    assert budget["evaluation"] == "data, held out of calibration (every 4th)"
    assert budget["samples"] == 6 and budget["seen_in_calibration"] == 0


def test_without_a_bound_all_samples_are_for_calibration(tmp_path: Path):
    (report,) = omnigraph.export(
        "omninet", "onnx", precision="int8", calibration=data, out=tmp_path / "a.omni", **TINY
    )
    assert report.quantization["samples"] == 24


@pytest.mark.parametrize(
    ("calibration", "evaluation", "seen"),
    [("few", None, 9), ("data", "few", 9), ("few", "other_data", 0)],
)
def test_it_is_said_loudly_where_calibration_saw_the_evaluation_data(
    tmp_path: Path, capsys, calibration: str, evaluation: str | None, seen: int
):
    here = {"few": __file__, "data": token_samples.__file__, "other_data": token_samples.__file__}
    out = str(tmp_path / "a.omni")
    arguments = ["export", "omninet", "--config", "tiny", "--set", "kind=decoder", "--out", out]
    arguments += ["--programs", "forward", "--target", "onnx", "--precision", "int8"]
    arguments += ["--max-loss", "5%", "--calibration", f"{here[calibration]}:{calibration}"]
    if evaluation is not None:
        arguments += ["--evaluation", f"{here[evaluation]}:{evaluation}"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    budget = inspect(out)["quantization"]["budget"]
    assert (f"{seen} EVALUATION SAMPLES ARE CALIBRATION SAMPLES" in said) is bool(seen)
    assert budget["seen_in_calibration"] == seen
    assert f"on {budget['samples']} samples of" in said


def test_random_ids_are_drawn_anew_for_the_loss_and_judged_by_agreement(tmp_path: Path):
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        precision="int8",
        quantization=Quantization(max_loss=0.1),
        out=tmp_path / "a.omni",
        **TINY,
    )
    budget = report.quantization["budget"]
    assert (budget["evaluation"], budget["metric"]) == ("random token ids", "agreement")
    assert budget["loss"] < budget["loss_upper"] <= 0.1


def test_layers_that_lose_more_on_the_target_step_back(tmp_path: Path):
    def measured(most: float):
        said: list[str] = []
        (report,) = omnigraph.export(
            "omninet",
            "onnx",
            precision="int8-weights",
            quantization=Quantization(max_loss=most),
            out=tmp_path / "a.omni",
            progress=lambda step, done, total: said.append(step),
            **TINY,
        )
        pattern = re.compile(r"\d+ of \d+ steps: forward, .*below \+([0-9.]+)% at 95")
        ends = [float(found[1]) / 100 for step in said if (found := pattern.match(step))]
        return report.quantization["budget"], ends

    budget, (graph, target) = measured(1.0)
    assert budget["stepped_back"] == [] and budget["loss_upper"] == pytest.approx(target, rel=1e-2)
    assert graph < target  # its kernels quantize the activations too
    most = (graph + target) / 2
    budget, _ = measured(most)
    assert budget["stepped_back"] and budget["loss_upper"] <= most
    reasons = {row["reason"] for row in budget["layers"] if row["choice"] == "float"}
    assert reasons == {"beyond the budget on the target, within it in onnxruntime"}


@pytest.mark.slow
def test_all_programs_are_judged_on_the_target(tmp_path: Path):
    def both_sides() -> Iterator[dict[str, np.ndarray]]:
        return ({"input_ids": row[None], "decoder_input_ids": row[None, :9]} for row in TOKENS)

    reports = omnigraph.export(
        "omninet",
        ["onnx", "openvino"],
        config="tiny",
        settings={"kind": "encoder-decoder"},
        precision="int8",
        quantization=Quantization(calibration=data, evaluation=both_sides, max_loss=0.02),
        out=tmp_path,
    )
    for report in reports:
        budget = report.quantization["budget"]
        assert budget["measured_on"] == f"target {report.target}"
        found = {name: loss["metric"] for name, loss in budget["programs"].items()}
        # The decoder alone is judged with the encoder's result for the same samples.
        assert found == {"forward": "perplexity", "encode": "agreement", "decode": "perplexity"}
        assert budget["loss_upper"] <= 0.02
        assert all(p["samples"] == 24 for p in budget["programs"].values())
