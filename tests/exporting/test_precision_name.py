"""An artifact, and each row of a plan, is called what it is stored in."""

from __future__ import annotations

from pathlib import Path

import pytest
from token_samples import TINY, data

import omnigraph
from omnigraph.artifact import Artifact
from omnigraph.cli.main import main
from omnigraph.quantization.options import Quantization

ALL = Quantization(calibration=data, keep=("*",))


@pytest.mark.parametrize(
    ("target", "precision", "called"),
    [
        ("onnx", "auto", "fp32"),
        ("onnx", "int8", "fp32"),
        ("onnx", "int4-weights", "fp32"),
        ("openvino", "auto", "bf16"),  # the type of the products around integers
        ("tensorrt", "int8", "fp16"),
    ],
)
def test_where_all_stays_in_float_the_artifact_is_called_so(
    tmp_path: Path, target: str, precision: str, called: str
):
    (report,) = omnigraph.export(
        "omninet",
        target,
        precision=precision,
        quantization=ALL,
        out=tmp_path / "net.omni",
        **TINY,
    )
    assert report.precision == called
    assert Artifact(report.path).manifest["precision"] == called


def test_the_plan_calls_an_embedding_what_it_is_stored_in(tmp_path: Path, capsys):
    (tmp_path / "given.py").write_text("from token_samples import data\n")
    settings = [f"--set={k}={v}" for k, v in TINY["settings"].items()]
    status = main(
        ["export", "omninet", "--config", TINY["config"], *settings, "--target", "onnx",
         "--precision", "int4-weights", "--calibration", f"{tmp_path / 'given.py'}:data",
         "--max-loss", "100%", "--out", str(tmp_path / "net.omni")]
    )  # fmt: skip
    assert status == 0
    text = capsys.readouterr().out
    manifest = Artifact(tmp_path / "net.omni").manifest
    assert manifest["precision"] == "int4-weights"
    assert f"{tmp_path / 'net.omni'}  onnx int4-weights" in text
    plan = manifest["quantization"]["budget"]["layers"]
    choices = {layer: row["choice"] for row in plan for layer in row["layers"]}
    stored = {row["layer"]: row["weights"] for p in manifest["programs"].values()
              for row in p["layers"]}  # fmt: skip
    assert choices["token_embedding"] == "int8-weights"
    assert set(choices.values()) == {"int8-weights", "int4-weights"}
    for layer, choice in choices.items():
        assert ("4" in choice) == ("4" in stored[layer]), layer
